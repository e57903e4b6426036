"""`vss-hf export`: an image model as a file for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer


Format = Literal["onnx", "torch"]


def export(
    model: Annotated[str, typer.Argument(help="Model folder or Hub repo; an image model.")],
    out: Annotated[Path, typer.Option(help="File that ends on .onnx or .pt2, or a new folder for it.")],
    format: Annotated[Format, typer.Option(help="onnx; torch: a program for torch.export.load.")] = "onnx",
    labels: Annotated[
        bool, typer.Option("--labels", help="End in a label map of the image's size; per-pixel models only.")
    ] = False,
) -> None:
    """Write an image model as one graph for any batch and image size, and compare it with torch.

    A file that differs from torch by more than a thousandth is not kept.
    """
    from vss_hf.export import export_model

    result = export_model(model, out, format, labels=labels)
    for (batch, height, width), difference in result.differences.items():
        typer.echo(f"{batch} x 3 x {height} x {width}: largest difference from torch {difference:.1e}")
    typer.echo(f"{result.path}: pixel_values -> {', '.join(result.metadata['outputs'])}")
