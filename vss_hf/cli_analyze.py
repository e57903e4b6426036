"""The command `vss-hf analyze`: how well one model, or two beside each other, keep classes apart."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .cli_common import Device, progress_bar
from .cli_inference import device_of


Branch = Literal["output", "high-level"]
Method = Literal["tsne", "umap"]


def analyze(
    model: Annotated[str, typer.Argument(help="Model folder or Hub repo, of a per-pixel model.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled data, to look at features, too: a folder, or owner/name of packed data."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and analysis.json.")] = Path("analysis"),
    compare: Annotated[
        str | None, typer.Option(help="Another model of the same classes, to be drawn beside the first.")
    ] = None,
    split: Annotated[str, typer.Option(help="A split with masks.")] = "val",
    source: Annotated[str, typer.Option(help="Layout of the data: vspw, ade20k, cityscapes, camvid, ...")] = "vspw",
    table: Annotated[
        str | None, typer.Option(help="For a model of VSPW's classes on other data: default, liberal or a CSV file.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            help="Classes whose features are drawn; default: the 8 that MODEL confuses most with each other.",
        ),
    ] = None,
    method: Annotated[Method, typer.Option(help="How features are laid out in the plane.")] = "tsne",
    samples: Annotated[int, typer.Option(min=10, help="Places of each class that are drawn, at most.")] = 300,
    branch: Annotated[
        Branch, typer.Option(help="Of a guided HFGD model: the upsampler's features or the high-level ones.")
    ] = "output",
    compare_branch: Annotated[Branch, typer.Option(help="The same, of the model of --compare.")] = "output",
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="Only so many frames of each video, the first.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the choice of places, and of the layout.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Frames per forward pass.")] = 4,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 2,
    device: Device = None,
) -> None:
    """Draw how much classes depend on each other, and the features that the classifier reads.

    Without --data only the class tokens, the rows of the last layer. Drawing features needs scikit-learn, and
    --method umap umap-learn, too: both come with the extra "analysis" of this package.
    """
    from vss_hf.analysis_run import Features, analyze_models, chosen_classes, open_labelled, open_subjects
    from vss_hf.scoring.ground_truth import data_set_name

    for option, given in (("--classes", classes), ("--table", table), ("--max-frames", max_frames)):
        if data is None and given is not None:
            raise ValueError(f"{option} {given}: there is no --data to take features from")
    if compare is None and compare_branch != "output":
        raise ValueError(f"--compare-branch {compare_branch}: there is no --compare")
    given = [(model, branch)] if compare is None else [(model, branch), (compare, compare_branch)]
    subjects = open_subjects(given, device_of(device))
    features = None
    if data is not None:
        names = subjects[0].segmenter.names
        features = Features(
            open_labelled(data, split, source, table, names),
            data_set_name(data),
            classes=None if classes is None else chosen_classes(classes, names),
            method=method,
            samples=samples,
            max_frames=max_frames,
            seed=seed,
            batch_size=batch_size,
            num_workers=num_workers,
        )
    results = analyze_models(
        subjects, out, features, progress=lambda frames, total: progress_bar(frames, total, "reading features")
    )
    for name, of_model in results["models"].items():
        for line in lines_about(of_model):
            typer.echo(f"{name}: {line}")
    for path in results["files"]:
        typer.echo(path)


def lines_about(numbers: dict[str, Any]) -> Iterator[str]:
    """What is printed about a model."""
    for kind, words in (("class_tokens", "class tokens"), ("class_centers", "class centres")):
        if matrix := numbers.get(kind):
            pairs = ", ".join(
                f"{pair['class']} on {pair['on']} {pair['score']:.3f}" for pair in matrix["most_dependent"][:3]
            )
            yield (
                f"{words}: mean of the diagonal {matrix['mean_diagonal']:.3f} (chance {matrix['chance']:.3f}); "
                f"most dependent: {pairs or 'none, there is one class'}"
            )
    if features := numbers.get("features"):
        ratio = features["inter_to_intra"]
        yield (
            f"features of {', '.join(features['per_class'])}: silhouette {features['silhouette']:.3f}, distance "
            f"between classes / within {'-' if ratio is None else f'{ratio:.2f}'}, mIoU {features['mean_iou']:.3f}"
        )
