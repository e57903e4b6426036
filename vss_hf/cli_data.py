"""The commands of `vss-hf data`: check, make and convert data sets."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .cli_common import JsonFile, check_writable, write_results


data_app = typer.Typer(help="Check, make and convert data sets.", no_args_is_help=True)
SampleKind = Literal["scenes", "ambiguous"]


@data_app.command("verify")
def data_verify(
    root: Annotated[
        Path, typer.Argument(metavar="DIR", help="Data set in VSPW layout, or a Parquet folder made of one.")
    ],
    repair: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Make OUT a clean data set from DIR, which stays as it is.")
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=1, help="With --repair: height of OUT's frames; default 480.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Look for missing, damaged or wrong files; exit code 1 when something would break training.

    With --repair OUT: make OUT a clean data set of frames 480 high (or an incomplete OUT whole), and check that one.
    """
    from rich.console import Console

    from vss_hf.data import repair_dataset, verify_dataset

    check_writable(json_file)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    if repair is not None:
        report = repair_dataset(root, repair, height=480 if height is None else height)
    elif height is not None:
        raise ValueError("--height is for --repair OUT")
    else:
        report = verify_dataset(root)
    report.print(Console())
    write_results(report.to_dict(), json_file)
    if not report.ok:
        raise typer.Exit(1)


@data_app.command("remap")
def data_remap(
    source: Annotated[str, typer.Option(help="coco_stuff, ade20k, cityscapes, pascal_context, camvid or vipseg.")],
    table: Annotated[str, typer.Option(help="default, liberal, or a CSV file (name, vspw).")] = "default",
    reverse: Annotated[bool, typer.Option("--reverse", help="As what VSPW's classes count there.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the table to this new CSV file, to edit it.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Show which of VSPW's 124 classes each class of another data set becomes."""
    from vss_hf.data.remap import load_table
    from vss_hf.data.remap_report import print_report, remap_report, write_copy

    for path in (out, json_file):
        check_writable(path)
    remap_table = load_table(source, table)
    report = remap_report(remap_table, reverse)
    if out is not None:
        write_copy(remap_table, out)
    write_results(report, json_file)
    print_report(report)
    if out is not None:
        typer.echo(f"{out}: written; use it with --table {out}")


@data_app.command("stats")
def data_stats(
    root: Annotated[str, typer.Argument(help="Data set folder, or a Hub id of packed data.")],
    split: Annotated[str, typer.Option(help="A split with masks.")] = "train",
    source: Annotated[str, typer.Option(help="Its layout: vspw, coco_stuff, ade20k, cityscapes, ...")] = "vspw",
    table: Annotated[
        str | None, typer.Option(help="Count VSPW's classes: default, liberal, or a CSV file; else its own.")
    ] = None,
    min_labelled: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out frames with a smaller share of labelled pixels.")
    ] = 0.0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out masks that cannot be read.")] = False,
    json_file: JsonFile = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw them: .png, .svg or .pdf.")] = None,
) -> None:
    """Count the labels of a split: how often classes occur, and beside which others. Counts are kept for next time."""
    from vss_hf.data.scan import scan_labels, select_labelled
    from vss_hf.data.splits import open_split
    from vss_hf.data.statistics import print_statistics, statistics_of
    from vss_hf.visualize import check_picture_name, plot_label_statistics

    for path in (json_file, plot):
        check_writable(path)
    if plot is not None:
        check_picture_name(plot)
    opened = open_split(root, split, source=source, table=table)
    scan = scan_labels(opened, on_bad_sample="skip" if skip_bad else "raise")
    report = None
    if min_labelled:
        scan, report = select_labelled(scan, min_labelled)
    statistics = statistics_of(scan)
    print_statistics(statistics)
    if report is not None:
        typer.echo(str(report))
    write_results(statistics.to_dict() | ({"filter": report.to_dict()} if report else {}), json_file)
    if plot is not None:
        plot_label_statistics(statistics, opened.classes.palette, plot)


@data_app.command("parquet")
def data_parquet(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Data set in VSPW layout.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    split: Annotated[
        list[str] | None, typer.Option(help="May be repeated; default: train, val and test, those that exist.")
    ] = None,
    shard_mb: Annotated[float, typer.Option(min=0.001, help="About how large a file becomes, in MB.")] = 500,
    license: Annotated[str | None, typer.Option(help="The data set's licence, for the metadata.")] = None,
) -> None:
    """Pack a data set into Parquet shards, for fast copies and for the Hub; goes on where it was interrupted."""
    from vss_hf.data import write_parquet

    index = write_parquet(root, out, splits=split, shard_bytes=int(shard_mb * 1e6), license=license)
    for name, counts in index["splits"].items():
        typer.echo(f"{name}: {counts['videos']:,} videos, {counts['frames']:,} frames in {counts['shards']} shards")
    kept = len(index["shards"]) - index["written"]
    typer.echo(f"{out}: {index['written']} shards written, {kept} were there already")


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


@data_app.command("push")
def data_push(
    out: Annotated[Path, typer.Argument(help="Folder that `vss-hf data parquet` made.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name of a data set on the Hub.")],
    public: Annotated[bool, typer.Option("--public", help="For everybody to see; otherwise private.")] = False,
    rights: Annotated[
        str | None, typer.Option(help="Why frames of VSPW and the like may be public; stands in the card.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if it does not exist.")] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
) -> None:
    """Upload packed data to a data set repository; private by default, and only what the Hub does not have.

    Checksums are compared first. After a failure the same command goes on where it stopped.
    """
    from vss_hf.hub_cards import push_dataset

    result = push_dataset(
        out, repo_id, private=not public, rights=rights, revision=revision, commit_message=message
    )
    for line in result.lines():
        typer.echo(line)
