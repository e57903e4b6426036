"""Tables of renames: how a reference's tensor names and layouts become ours.

A table is read from top to bottom, and the first row whose pattern matches a whole reference name decides. A name that
no row matches is an error, so that nothing is ever dropped unseen.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Rename:
    r"""One row.

    Args:
        pattern: regular expression for the whole reference name.
        own: the model's (in-memory) name; `\1` and so on are the pattern's groups. None: the tensor has no place in
            our model, and `reason` says why.
        reason: for `own=None`.
        change: turns the reference's layout into ours; must work on meta tensors.
        parts: the tensor is cut along axis 0 into as many equal parts; `{part}` in `own` stands for each of them.
        minus: the whole name of another reference tensor, which is subtracted first; `\1` as in `own`. BatchNorm's
            mean takes over the bias of the convolution before it: both are subtracted from the same numbers.
    """

    pattern: str
    own: str | None
    reason: str = ""
    change: Callable[[torch.Tensor], torch.Tensor] | None = None
    parts: tuple[str, ...] = ()
    minus: str = ""


@dataclass(frozen=True)
class Table:
    """Rows, and the tensors of ours that a reference may lack.

    Args:
        renames: the rows.
        kept: (regular expression for our names, reason): these tensors keep their initial value when the reference has
            none for them; any other gap is an error.
    """

    renames: tuple[Rename, ...]
    kept: tuple[tuple[str, str], ...] = ()


@dataclass
class Renamed:
    """A state dict under our names.

    Args:
        tensors: our name -> tensor.
        origins: our name -> the reference's name.
        unused: reference name -> why our model has no place for it.
    """

    tensors: dict[str, torch.Tensor]
    origins: dict[str, str]
    unused: dict[str, str]


def as_linear(tensor: torch.Tensor) -> torch.Tensor:
    """For `Rename.change`: a 1x1 convolution's weight (out, in, 1, 1) as a linear layer's; others and biases stay."""
    return tensor.flatten(1) if tensor.ndim == 4 else tensor


def under(table: Table, reference_prefix: str, own_prefix: str) -> Table:
    r"""The same table for a part of a model, e.g. `under(SWIN, r"backbone\.", "backbone.")`.

    Args:
        table: rows relative to the part.
        reference_prefix: regular expression without groups.
        own_prefix: plain text.
    """
    renames = tuple(
        replace(row, pattern=reference_prefix + row.pattern, own=None if row.own is None else own_prefix + row.own)
        for row in table.renames
    )
    return Table(renames, tuple((re.escape(own_prefix) + pattern, reason) for pattern, reason in table.kept))


def joined(*tables: Table) -> Table:
    """One table with the rows of all, in this order."""
    return Table(
        tuple(row for table in tables for row in table.renames), tuple(kept for table in tables for kept in table.kept)
    )


def rename(state_dict: dict[str, torch.Tensor], table: Table) -> Renamed:
    """Apply a table.

    Raises:
        ValueError: a name that no row matches, or two names that become the same one.
    """
    renamed = Renamed({}, {}, {})
    unknown = []
    for name, tensor in state_dict.items():
        row, match = first_match(name, table)
        if row is None or match is None:
            unknown.append(name)
        elif row.own is None:
            renamed.unused[name] = row.reason
        else:
            if row.minus:
                tensor = tensor - state_dict[match.expand(row.minus)]
            tensor = row.change(tensor) if row.change else tensor
            own = match.expand(row.own)
            pieces = tensor.chunk(len(row.parts)) if row.parts else (tensor,)
            for part, piece in zip(row.parts or ("",), pieces, strict=True):
                own_name = own.replace("{part}", part)
                if own_name in renamed.origins:
                    both = f"'{renamed.origins[own_name]}' and '{name}'"
                    raise ValueError(f"the reference tensors {both} have one place in our model: {own_name}")
                renamed.tensors[own_name], renamed.origins[own_name] = piece, name
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise ValueError(f"reference names that belong to no layer known here: {', '.join(unknown[:8])}{more}")
    return renamed


def first_match(name: str, table: Table) -> tuple[Rename | None, re.Match | None]:
    """The row that decides about a reference name."""
    for row in table.renames:
        if match := re.fullmatch(row.pattern, name):
            return row, match
    return None, None


def reason_to_keep(own_name: str, table: Table) -> str | None:
    """Why a tensor of ours may be missing in the reference, or None."""
    return next((reason for pattern, reason in table.kept if re.fullmatch(pattern, own_name)), None)
