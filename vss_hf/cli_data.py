"""The commands of `vss-hf data`: check, make and convert data sets."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .cli_common import JsonFile, check_writable, write_results


data_app = typer.Typer(help="Check, make and convert data sets.", no_args_is_help=True)
SampleKind = Literal["scenes", "ambiguous"]


@data_app.command("verify")
def data_verify(
    root: Annotated[Path, typer.Argument(help="Data set in VSPW layout.")],
    json_file: JsonFile = None,
) -> None:
    """Look for missing, damaged or wrong files; exit code 1 when something would break training."""
    from rich.console import Console

    from vss_hf.data import verify_dataset

    check_writable(json_file)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    report = verify_dataset(root)
    report.print(Console())
    write_results(report.to_dict(), json_file)
    if report.errors:
        raise typer.Exit(1)


@data_app.command("sample")
def data_sample(
    root: Annotated[Path, typer.Argument(help="Folder to make.")],
    seed: Annotated[int, typer.Option(help="Another seed, other videos.")] = 0,
    kind: Annotated[
        SampleKind, typer.Option(help="scenes: five kinds of scene; ambiguous: single frames do not tell the classes.")
    ] = "scenes",
) -> None:
    """Make a small procedural data set in VSPW layout, to try everything without a download."""
    from vss_hf.data import make_ambiguous_dataset, make_sample_dataset

    make = {"scenes": make_sample_dataset, "ambiguous": make_ambiguous_dataset}[kind]
    summary = make(root, seed=seed)
    verb = "already there" if summary["reused"] else "made"
    videos, frames = summary["videos"], summary["frames"]
    counts = ", ".join(f"{split} {videos[split]} videos/{n} frames" for split, n in frames.items())
    typer.echo(f"{root}: {verb}; {counts}")
