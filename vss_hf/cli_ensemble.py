"""The commands of `vss-hf ensemble`: make an ensemble, search its weights."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_common import DataFolder, JsonFile, check_writable, progress_bar, write_results
from .cli_inference import read_value


ensemble_app = typer.Typer(help="Ensembles: several models used as one.", no_args_is_help=True)

Members = Annotated[
    list[str] | None,
    typer.Option(
        "--member",
        metavar="MODEL[:WEIGHT]|JSON",
        help="Model folder or Hub id, e.g. swin:0.56 or {name: swin, tta: flip}; once for each.",
    ),
]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="NAME[:WEIGHT]=MODEL,MODEL",
        help="Instead of --member: models that are averaged, and what their mean counts, e.g. W:1.4=a,b,c.",
    ),
]


@ensemble_app.command("create")
def ensemble_create(
    out: Annotated[Path, typer.Argument(help="The ensemble's folder.")],
    member: Members = None,
    group: Groups = None,
    gamma: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="For two members: gamma * first + (1 - gamma) * second."),
    ] = None,
) -> None:
    """Write a folder that is used like a model's: evaluate OUT, predict OUT, from_pretrained("OUT").

    The members stay where they are.
    """
    from vss_hf.ensembles.ensemble import create_ensemble, two_models

    members, groups = read_members(member, group)
    if gamma is not None:
        if groups is not None or len(members) != 2 or any("weight" in one for one in members):
            raise ValueError(f"--gamma {gamma}: expected two --member without weights")
        members = two_models(members[0], members[1], gamma)
    config = create_ensemble(out, members, groups)
    for one, weight in zip(config.members or [], config.weights, strict=True):
        typer.echo(f"{weight:8.4f}  {one['name']}")
    typer.echo(out)


@ensemble_app.command("search")
def ensemble_search(
    out: Annotated[Path, typer.Argument(help="The ensemble's folder.")],
    data: DataFolder,
    member: Members = None,
    group: Groups = None,
    split: Annotated[str, typer.Option(help="A split with masks.")] = "val",
    source: Annotated[str, typer.Option(help="Layout of the data: vspw, camvid, cityscapes, ...")] = "vspw",
    table: Annotated[
        str | None, typer.Option(help="Remap table to VSPW's classes: default, liberal or a file.")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="Where scores are stored; default OUT.scores.")] = None,
    top_k: Annotated[int, typer.Option(help="Classes stored of each pixel.")] = 8,
    stride: Annotated[int, typer.Option(help="Store every so manyth pixel of every so manyth row.")] = 8,
    every: Annotated[int, typer.Option(help="Store every so manyth frame.")] = 5,
    step: Annotated[float, typer.Option(help="Of weights that sum to 1.")] = 0.05,
    method: Annotated[
        str | None, typer.Option(help="grid or coordinate; default: grid up to 2000 sets of weights.")
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of the videos that are measured, not searched.")] = 0.5,
    folds: Annotated[
        int | None, typer.Option(help="Instead: so many searches, each measured on the videos it did not see.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw of videos.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Frames per forward pass.")] = 4,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 2,
    json_file: JsonFile = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: a GPU if there is one.")] = None,
) -> None:
    """Search the weights of an ensemble on labelled videos, measure them on others, and write it.

    The same command goes on where it was stopped; with other --step, --method, --held-out, --folds or --seed it uses
    the stored scores. Several GPUs share the videos: torchrun --nproc_per_node=8 -m vss_hf ensemble search ...
    """
    from vss_hf.ensembles.scores import Sampling
    from vss_hf.ensembles.search import search_ensemble
    from vss_hf.ensembles.weights import SearchSettings
    from vss_hf.inference.processes import is_first, joined_processes

    check_writable(json_file)
    members, groups = read_members(member, group)
    with joined_processes(device) as own_device:
        report = search_ensemble(
            members,
            out,
            data,
            split,
            groups=groups,
            source=source,
            table=table,
            scores=scores,
            sampling=Sampling(top_k, stride, every),
            settings=SearchSettings(step, method, held_out, folds, seed),
            device=own_device,
            batch_size=batch_size,
            num_workers=num_workers,
            tell=lambda line: typer.echo(line, err=True),
            progress=progress_bar,
        )
        if is_first():
            show(report)
            typer.echo(out)
            write_results(report, json_file)


def read_members(members: list[str] | None, groups: list[str] | None) -> tuple[list[dict[str, Any]], Any]:
    """Members and groups of an `EnsembleConfig`, from the options.

    Raises:
        ValueError: neither option, or both; or a word of another form.
    """
    if bool(members) == bool(groups):
        raise ValueError("name the models with --member MODEL[:WEIGHT], or with --group NAME[:WEIGHT]=MODEL,MODEL")
    if members:
        return [read_member(word, "--member") for word in members], None
    found, weights = [], {}
    for word in groups or []:
        head, equals, names = word.partition("=")
        name, weight = split_weight(head)
        if not equals or not name or not names:
            raise ValueError(f"--group {word}: expected NAME[:WEIGHT]=MODEL,MODEL, e.g. W:1.4=a,b,c")
        if name in weights:
            raise ValueError(f"--group {word}: there is a group '{name}' already")
        weights[name] = 1.0 if weight is None else weight
        found += [{**read_member(one, "--group"), "group": name} for one in names.split(",")]
    return found, weights


def read_member(word: str, option: str) -> dict[str, Any]:
    """A member of MODEL[:WEIGHT], or of its fields."""
    value = read_value(word, option)
    if isinstance(value, dict):
        return value
    if not isinstance(value, str) or not word:
        raise ValueError(f"{option} {word}: expected MODEL[:WEIGHT], or fields: {{name: MODEL, weight: 1}}")
    name, weight = (word, None) if Path(word).is_dir() else split_weight(word)
    return {"name": name} if weight is None else {"name": name, "weight": weight}


def split_weight(word: str) -> tuple[str, float | None]:
    """Name and weight of NAME:WEIGHT; None where there is no number behind a colon."""
    name, _, number = word.rpartition(":")
    try:
        return (name, float(number)) if name else (word, None)
    except ValueError:
        return word, None


def show(report: dict[str, Any]) -> None:
    """The report for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    videos, seconds = report["videos"], report["seconds"]
    table = Table(title=escape(f"mIoU on {report['dataset']} {report['split']}, sampled pixels"))
    table.add_column("")
    table.add_column(f"{videos['searched']} searched videos", justify="right")
    table.add_column(f"{videos['held_out']} held-out videos", justify="right")
    for row in report["results"]:
        table.add_row(escape(row["name"]), f"{100 * row['searched']:.2f}", f"{100 * row['held_out']:.2f}")
    console = Console()
    console.print(table)
    for name, weight in zip(report["searched"], report["weights"], strict=True):
        typer.echo(f"{weight:8.4f}  {name}")
    for one in report["gains"].values():
        low, high = (100 * bound for bound in one["interval"])
        gained = f"{100 * one['held_out']:+.2f} ({low:+.2f} to {high:+.2f})"
        typer.echo(f"gain over {one['over']}: {100 * one['searched']:+.2f} searched, {gained} held out")
    typer.echo(
        f"scores {seconds['scores']:.1f} s, reading {seconds['reading']:.1f} s, search {seconds['search']:.1f} s"
    )
    for line in report["warnings"]:
        typer.echo(f"warning: {line}", err=True)
