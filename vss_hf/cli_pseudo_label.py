"""The command `vss-hf pseudo-label`."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from .cli_common import JsonFile, check_writable, progress_bar, write_results


def pseudo_label(
    model: Annotated[str, typer.Argument(help="Model folder or Hub repo; an image or a video model.")],
    data: Annotated[
        str, typer.Option(help="What to label: a data set in VSPW's layout, a folder of videos or of frames, a video.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new data set.")],
    split: Annotated[str, typer.Option(help="Of a data set: which split; masks are not needed.")] = "train",
    source: Annotated[str, typer.Option(help="Layout of a data set: vspw, cityscapes, vipseg, ...")] = "vspw",
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Keep pixels of this probability; default 0.9, or 0 with --class-balanced."),
    ] = None,
    class_balanced: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Keep the most confident SHARE of each class's pixels; looks twice."
        ),
    ] = None,
    balance_every: Annotated[
        int, typer.Option(min=1, help="For --class-balanced: count confidences on every so manyth labelled frame.")
    ] = 5,
    temporal_window: Annotated[
        int, typer.Option(min=0, help="So many frames before and after must agree on a pixel; 0: not asked.")
    ] = 0,
    temporal_radius: Annotated[
        int, typer.Option(min=0, help="They agree if the label is within so many pixels of its place.")
    ] = 0,
    min_labelled: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out frames that keep a smaller share of their pixels.")
    ] = 0.05,
    every: Annotated[int, typer.Option(min=1, help="Label every so manyth frame of each video.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Frames per forward pass, for image models.")] = 1,
    json_file: JsonFile = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: a GPU if there is one.")] = None,
) -> None:
    """Label videos with a model and keep what it is sure of, as a data set to train on: `data: {root: OUT}`.

    The same command goes on where it was stopped. Several GPUs share the videos:
    torchrun --nproc_per_node=8 -m vss_hf pseudo-label ...
    """
    from vss_hf.inference import VideoSegmenter
    from vss_hf.inference.processes import failing_together, is_first, joined_processes
    from vss_hf.pseudo_labels import pseudo_label as run
    from vss_hf.pseudo_labels.filters import PseudoLabelSettings

    check_writable(json_file)
    settings = PseudoLabelSettings(
        threshold=threshold,
        class_balanced=class_balanced,
        balance_every=balance_every,
        temporal_window=temporal_window,
        temporal_radius=temporal_radius,
        min_labelled=min_labelled,
        every=every,
    )
    with joined_processes(device) as own_device:
        with failing_together():
            segmenter = VideoSegmenter.from_pretrained(model, own_device)
        report = run(
            segmenter,
            data,
            out,
            split=split,
            source=source,
            settings=settings,
            batch_size=batch_size,
            progress=progress_bar,
        )
        stop_signal = report.pop("stop_signal")
        if is_first():
            typer.echo(
                f"{out}: {report['videos_written']} videos, {report['frames_written']} of {report['frames']} frames; "
                f"{100 * report['kept_share']:.1f} % of the pixels have a label, mean confidence "
                f"{report['mean_confidence']:.3f}"
            )
            write_results(report, json_file)
    if stop_signal:
        name = "Ctrl-C" if stop_signal == signal.SIGINT else signal.Signals(stop_signal).name
        typer.echo(f"stopped by {name}; the same command goes on from here", err=True)
        raise typer.Exit(128 + stop_signal)
