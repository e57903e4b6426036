"""The commands `vss-hf evaluate` (a model) and `vss-hf score` (prediction files of any toolbox)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_common import DataFolder, Device, JsonFile, check_writable, progress_bar, write_results
from .cli_inference import Refine, Smooth, TestTimeAugmentation, open_segmenter
from .files import write_json


if TYPE_CHECKING:
    from vss_hf.refinement.flow import Flow
    from vss_hf.scoring.report import Report

Protocol = Annotated[
    str,
    typer.Option(
        help="mIoU that leads: over classes present in the ground truth (vspw) or with union > 0 (evaluate)."
    ),
]
Source = Annotated[
    str, typer.Option(help="Layout of the data: vspw, coco_stuff, ade20k, cityscapes, pascal_context, camvid, ...")
]
VCProtocol = Annotated[
    str, typer.Option(help="Video consistency that leads: vspw-official, paper or dvis-legacy; all are reported.")
]
MarkdownFile = Annotated[
    Path | None, typer.Option("--markdown", help="Also write tables here, as Markdown: all videos and classes.")
]
FlowWeights = Annotated[
    Path | None,
    typer.Option(
        help="RAFT's weights, of torchvision (raft_large_C_T_V1.pth): measure temporal consistency (TC), too."
    ),
]
TCProtocol = Annotated[str, typer.Option(help="Temporal consistency: vspw-official or paper.")]
HtmlFolder = Annotated[
    Path | None,
    typer.Option("--html", help="Also make a page here, a folder: index.html with pictures of the worst videos."),
]
Compare = Annotated[
    Path | None, typer.Option(help="Another dump of predictions (folder or zip), for the page's slider between both.")
]
HtmlClips = Annotated[
    int, typer.Option(min=0, help="Videos with pictures on the page: so many by mean IoU and so many by flicker.")
]
HtmlFrames = Annotated[
    int, typer.Option(min=1, help="Frames of each: the worst of so many parts of it, and two neighbours that flicker.")
]
ConfusionPicture = Annotated[
    Path | None,
    typer.Option("--confusion_png", help="Draw the confusion matrix here (.png, .svg, .pdf): what is taken for what."),
]
Timeline = Annotated[bool, typer.Option("--timeline", help="Add every frame's flicker rate to the JSON file.")]


def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder or Hub repo.")],
    data: DataFolder,
    split: Annotated[str, typer.Option(help="A split with masks.")] = "val",
    source: Source = "vspw",
    table: Annotated[
        str | None, typer.Option(help="Score in VSPW's classes by this remap table: default, liberal or a CSV file.")
    ] = None,
    json_file: JsonFile = None,
    markdown: MarkdownFile = None,
    html: HtmlFolder = None,
    compare: Compare = None,
    html_clips: HtmlClips = 4,
    html_frames: HtmlFrames = 3,
    timeline: Timeline = False,
    protocol: Protocol = "vspw",
    vc_protocol: VCProtocol = "vspw-official",
    flow_weights: FlowWeights = None,
    tc_protocol: TCProtocol = "vspw-official",
    confusion: Annotated[
        Path | None,
        typer.Option(help="Write the confusion matrix here, as JSON: for the loss confusion_focal of a recipe."),
    ] = None,
    confusion_png: ConfusionPicture = None,
    tta: TestTimeAugmentation = None,
    refine: Refine = None,
    smooth: Smooth = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Frames per forward pass.")] = 4,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 2,
    device: Device = None,
) -> None:
    """Measure mIoU and video consistency of a model on labelled videos.

    Several GPUs: torchrun --nproc_per_node=8 -m vss_hf evaluate ...
    """
    from vss_hf.inference.processes import failing_together, is_first, joined_processes
    from vss_hf.scoring import evaluate_model
    from vss_hf.scoring.class_scores import training_statistics

    for path in (json_file, markdown, confusion, confusion_png):
        check_writable(path)
    check_picture(confusion_png)
    report = report_in(html, compare, html_clips, html_frames)
    with joined_processes(device) as own_device:
        with failing_together():
            segmenter = open_segmenter(model, own_device, tta, refine, smooth)
            flow = raft_with(flow_weights, str(segmenter.model.device))
        results = evaluate_model(
            segmenter,
            data,
            split,
            source=source,
            table=table,
            protocol=protocol,
            vc_protocol=vc_protocol,
            flow=flow,
            tc_protocol=tc_protocol,
            training=training_statistics(data, segmenter.names, source, table),
            batch_size=batch_size,
            num_workers=num_workers,
            with_confusion=confusion is not None or confusion_png is not None,
            with_timeline=timeline,
            report=report,
            progress=lambda frames, total: progress_bar(frames, total, "evaluating"),
        )
        counts = results.pop("confusion", None)
        if is_first():
            if confusion is not None:
                write_json(confusion, counts)
            tell(results, json_file, markdown)
            draw_confusion(results, counts, confusion_png)
        if report is not None:
            report.write(results)


def score(
    predictions: Annotated[
        Path,
        typer.Option(help="Folder or zip file with <video>/<frame>.png or <video>/mask/<frame>.png, 8-bit indices."),
    ],
    data: DataFolder,
    split: Annotated[str, typer.Option(help="A split with masks.")] = "val",
    source: Source = "vspw",
    table: Annotated[
        str | None,
        typer.Option(
            help="default, liberal or a CSV file: score in VSPW's classes; "
            "reverse: score predictions of VSPW's classes in the data set's own."
        ),
    ] = None,
    values: Annotated[
        str, typer.Option(help="labels: the files hold 0..num_labels-1; disk: values of masks, VSPW's 1..124, 0 none.")
    ] = "labels",
    resize: Annotated[
        bool, typer.Option("--resize", help="Bring predictions of another size to the mask's, by nearest neighbour.")
    ] = False,
    missing: Annotated[
        str, typer.Option(help="Frames without a prediction: error; skip: not scored; wrong: count as wrong.")
    ] = "error",
    json_file: JsonFile = None,
    markdown: MarkdownFile = None,
    html: HtmlFolder = None,
    compare: Compare = None,
    html_clips: HtmlClips = 4,
    html_frames: HtmlFrames = 3,
    timeline: Timeline = False,
    protocol: Protocol = "vspw",
    vc_protocol: VCProtocol = "vspw-official",
    flow_weights: FlowWeights = None,
    tc_protocol: TCProtocol = "vspw-official",
    confusion_png: ConfusionPicture = None,
    device: Annotated[str | None, typer.Option(help="Where the optical flow is computed: cpu, cuda ...")] = None,
) -> None:
    """Score anybody's prediction files by the same rules. Several processes: torchrun ... -m vss_hf score ..."""
    from vss_hf.inference.processes import failing_together, is_first, joined_processes
    from vss_hf.scoring import score_predictions

    for path in (json_file, markdown, confusion_png):
        check_writable(path)
    check_picture(confusion_png)
    report = report_in(html, compare, html_clips, html_frames)
    with joined_processes(device if flow_weights else "cpu") as own_device:
        with failing_together():
            flow = raft_with(flow_weights, own_device)
        results = score_predictions(
            predictions,
            data,
            split,
            source=source,
            table=table,
            protocol=protocol,
            vc_protocol=vc_protocol,
            flow=flow,
            tc_protocol=tc_protocol,
            values=values,
            resize=resize,
            missing=missing,
            with_confusion=confusion_png is not None,
            with_timeline=timeline,
            report=report,
            progress=lambda frames, total: progress_bar(frames, total, "scoring"),
        )
        counts = results.pop("confusion", None)
        if is_first():
            tell(results, json_file, markdown)
            draw_confusion(results, counts, confusion_png)
        if report is not None:
            report.write(results)


def check_picture(path: Path | None) -> None:
    """Raise before the work when the name of a picture does not tell its format."""
    from vss_hf.visualize import check_picture_name

    if path is not None:
        check_picture_name(path)


def draw_confusion(results: dict[str, Any], counts: list[list[int]] | None, path: Path | None) -> None:
    """Draw the confusion matrix where that was asked for."""
    from vss_hf.confusion_plot import plot_confusion, title_of

    if path is not None:
        plot_confusion(counts, list(results["per_class_iou"]), path, title_of(results))


def report_in(html: Path | None, compare: Path | None, clips: int, frames: int) -> "Report | None":
    """What makes the page, if one is wanted."""
    if html is None:
        if compare is not None:
            raise ValueError(f"--compare {compare} is for the page; give --html FOLDER, too")
        return None
    from vss_hf.scoring.report import Report

    check_writable(html / "index.html" if html.is_dir() else html)
    return Report(html, clips=clips, frames=frames, compare=compare)


def raft_with(weights: Path | None, device: str | None) -> "Flow | None":
    """RAFT with the weights of a file; None without one."""
    if weights is None:
        return None
    import torch

    from vss_hf.refinement.flow import load_raft

    return load_raft(weights, device or ("cuda" if torch.cuda.is_available() else "cpu"))


def tell(results: dict[str, Any], json_file: Path | None, markdown: Path | None) -> None:
    """Print the results and write them where that was asked for."""
    from vss_hf.scoring.class_scores import show_results
    from vss_hf.scoring.results_markdown import write_markdown

    show_results(results)
    write_results(results, json_file)
    if markdown is not None:
        write_markdown(markdown, results)
