"""Ours beside the reference's: by how much a quantity of a fixture differs, and how much is tolerated.

The tolerances are those of ../shared/parity/README.md: far above the rounding of fp32, far below known mistakes.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vss_hf.convert.tables import Table, rename


PARITY = Path(__file__).resolve().parents[2] / "../shared/parity"
# Outputs are compared element by element: |ours - reference| <= ATOL + RTOL * |reference|.
ATOL, RTOL = 2e-5, 1e-4
LOSS_RTOL = 1e-5
GRADIENT, WEIGHT_GRADIENT = 1e-4, 1e-3  # of the gradient's largest element
SAMPLED_GRADIENT = 1e-3  # through deformable convolutions, whose samples may lie on a border between pixels


@dataclass(frozen=True)
class Row:
    """One quantity of a fixture.

    Args:
        what: its name, e.g. `logits`.
        difference: from the reference, where it is largest in terms of what is tolerated there.
        tolerance: what is tolerated there.
    """

    what: str
    difference: float
    tolerance: float

    @property
    def equal(self) -> bool:
        return self.difference <= self.tolerance  # False for nan

    @property
    def used(self) -> float:
        """The part of the tolerance that is used up; infinite for nan, and for what had to be exact and is not."""
        if self.equal:
            return self.difference / self.tolerance if self.tolerance else 0.0
        return self.difference / self.tolerance if self.tolerance and not math.isnan(self.difference) else math.inf


def compare(what: str, ours: torch.Tensor, reference: torch.Tensor) -> Row:
    """The element that is farthest off in terms of the tolerance of outputs."""
    assert ours.shape == reference.shape, f"{what}: {tuple(ours.shape)} for {tuple(reference.shape)}"
    difference, tolerance = (ours - reference).abs().flatten(), (ATOL + RTOL * reference.abs()).flatten()
    worst = (difference / tolerance).argmax()
    return Row(what, difference[worst].item(), tolerance[worst].item())


def compare_largest(what: str, ours: torch.Tensor | None, reference: torch.Tensor, relative: float) -> Row:
    """The largest difference, against a part of the largest element."""
    assert ours is not None and ours.shape == reference.shape, what
    return Row(what, (ours - reference).abs().max().item(), relative * reference.abs().max().item())


def compare_numbers(
    what: str, ours: Iterable[float | None], reference: Iterable[float | None], absolute: float
) -> Row:
    """The largest difference of two lists in float64; None stands for a number that neither side has."""
    ours, expected = (
        torch.tensor([math.nan if n is None else n for n in numbers], dtype=torch.float64)
        for numbers in (ours, reference)
    )
    assert ours.shape == expected.shape, f"{what}: {len(ours)} numbers for {len(expected)}"
    difference = torch.where(ours.isnan() & expected.isnan(), 0.0, (ours - expected).abs())
    return Row(what, difference.max().item(), absolute)


def compare_exactly(what: str, ours: torch.Tensor | Sequence[Any], reference: torch.Tensor | Sequence[Any]) -> Row:
    """How many elements are not the same, of which none may be."""
    ours, reference = torch.as_tensor(ours), torch.as_tensor(reference)
    assert ours.shape == reference.shape, f"{what}: {tuple(ours.shape)} for {tuple(reference.shape)}"
    return Row(what, (ours != reference).sum().item(), 0.0)


def compare_parameter_gradients(model: Any, tensors: dict[str, torch.Tensor], table: Table) -> list[Row]:
    """The gradients that `model` has, against every `grad_param/...` of the fixture under our names."""
    renamed = rename(part(tensors, "grad_param/"), table)
    assert not renamed.unused, renamed.unused
    return [
        compare_largest(f"grad {name}", model.get_parameter(name).grad, gradient, WEIGHT_GRADIENT)
        for name, gradient in renamed.tensors.items()
    ]


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin so, without that."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def read_case(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The settings and the tensors of a fixture."""
    return json.loads((folder / "config.json").read_text()), load_file(folder / "tensors.safetensors")


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The reference's weights under its own names."""
    return load_file(folder / "weights.safetensors")
