"""The commands of `vss-hf submission`: pack label maps for a challenge, and check what was packed."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .cli_common import JsonFile, check_writable, progress_bar, write_results


submission_app = typer.Typer(help="Pack and check submissions to the VSPW challenge.", no_args_is_help=True)
Values = Literal["labels", "disk"]
ZipRoot = Annotated[
    str, typer.Option(metavar="NAME", help="Folder in the zip that holds the videos; '' where the server wants none.")
]
DEFAULT_ROOT = "result_submission"  # see vss_hf.inference.submission, which imports torch


@submission_app.command("check")
def submission_check(
    archive: Annotated[Path, typer.Argument(metavar="FILE.zip", help="The submission.")],
    data: Annotated[Path, typer.Option(help="Data set in VSPW's layout; its pictures are needed, not its masks.")],
    split: Annotated[str, typer.Option(help="Every frame of this split must have a label map.")] = "test",
    zip_root: ZipRoot = DEFAULT_ROOT,
    json_file: JsonFile = None,
) -> None:
    """Say what a server would reject: names, coverage, sizes, values, damage. Exit code 1 if there is anything."""
    from rich.console import Console

    from vss_hf.inference.submission_check import check_submission

    check_writable(json_file)
    report = check_submission(archive, data, split, zip_root=zip_root, progress=progress_bar)
    report.print(Console())
    write_results(report.to_dict(), json_file)
    if not report.ok:
        raise typer.Exit(1)


@submission_app.command("pack")
def submission_pack(
    folder: Annotated[Path, typer.Argument(help="Holds <video>/<frame>.png, 8-bit, from whatever program.")],
    archive: Annotated[Path, typer.Argument(metavar="OUT.zip", help="The submission to write.")],
    zip_root: ZipRoot = DEFAULT_ROOT,
    values: Annotated[
        Values, typer.Option(help="In the files: labels 0..123; or disk, as in VSPW's masks: 1..124 become 0..123.")
    ] = "labels",
) -> None:
    """Pack a folder of label maps of VSPW's classes into a submission."""
    from vss_hf.inference.submission import pack_folder

    check_writable(archive)
    packed = pack_folder(folder, archive, zip_root=zip_root, values=values, progress=progress_bar)
    typer.echo(f"{archive}: {packed['label_maps']} label maps of {packed['videos']} videos")
    if left_out := packed["left_out"]:
        typer.echo(f"left out, as no <video>/<frame>.png: {', '.join(left_out[:3])} ({len(left_out)} files)")
    typer.echo(f"check it: vss-hf submission check {archive} --data ...")
