"""Options of `predict` and `evaluate` for how frames become labels: views, smoothing, refinement."""

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vss_hf.fields import known_or_raise


if TYPE_CHECKING:
    import torch

    from vss_hf.inference import VideoSegmenter

TestTimeAugmentation = Annotated[
    str | None,
    typer.Option(
        "--tta",
        metavar="NAME|JSON",
        help="Average several views of each frame: flip, betterthing-swin, ... or {scales: [0.75, 1], flip: true}.",
    ),
]
Refine = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND:FOLDER",
        help="Refine labels with cascade-psp:FOLDER or ssa:FOLDER, or with settings, cascade-psp:{model: FOLDER, "
        "global_only: true}, ssa:{model: FOLDER, vote: probability}; may be repeated, in order.",
    ),
]
Smooth = Annotated[
    str | None, typer.Option(metavar="NAME|JSON", help="Smooth scores or labels over time, e.g. ema or flicker.")
]

REFINERS = {"cascade-psp": "cascade_psp", "ssa": "ssa"}  # kind: its module in vss_hf.refinement


def open_segmenter(
    model: str, device: str | None, tta: str | None, refine: list[str] | None, smooth: str | None
) -> "VideoSegmenter":
    """The segmenter that the options ask for.

    Args:
        model: folder or Hub id.
        device: where to run; None: a GPU if there is one.
        tta, refine, smooth: as typed.

    Raises:
        ValueError: an option names what does not exist, or has a value outside its range; and as
            `VideoSegmenter.from_pretrained`.
    """
    from vss_hf.inference import VideoSegmenter
    from vss_hf.inference.views import parse_tta

    place = device_of(device)
    views = None if tta is None else parse_tta(read_value(tta, "--tta"), "--tta")
    steps = []
    for kind, value in [refiner_of(word) for word in refine or []]:
        parse = import_module(f"vss_hf.refinement.{REFINERS[kind]}").parse
        steps += as_list(parse(read_value(value, f"--refine {kind}"), place, f"--refine {kind}"))
    if smooth is not None:  # last: a filter of labels sees the refined ones
        parse = import_module("vss_hf.refinement.smoothing").parse
        steps += as_list(parse(read_value(smooth, "--smooth"), place, "--smooth"))
    return VideoSegmenter.from_pretrained(
        model,
        place,
        tta=views,
        score_steps=[step for step in steps if step.changes == "scores"],
        label_steps=[step for step in steps if step.changes == "labels"],
    )


def device_of(name: str | None) -> "torch.device":
    """The device of `--device`, or a GPU if there is one.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter: torch was built without it
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {name}: expected cpu, cuda, cuda:1, ... that is there; torch: {reason}") from error


def read_value(text: str, option: str) -> Any:
    """A name, or the fields of JSON or YAML."""
    from vss_hf.training.recipe import parse_yaml

    return parse_yaml(text, option) if text.lstrip().startswith(("{", "[")) else text


def refiner_of(word: str) -> tuple[str, str]:
    """Kind and what stands after the colon: a folder, a Hub id, or the fields of JSON or YAML."""
    kind, _, value = word.partition(":")
    known_or_raise(kind, list(REFINERS), f"--refine {word}: there is no refiner")
    if not value:
        raise ValueError(f"--refine {word}: expected {kind}:FOLDER")
    return kind, value


def as_list(steps: Any) -> list[Any]:
    """The steps that an option stands for: one or several."""
    return list(steps) if isinstance(steps, (list, tuple)) else [steps]
