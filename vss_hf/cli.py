"""The command line: `vss-hf` and `python -m vss_hf`."""

import json
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .cli_analyze import analyze
from .cli_common import (
    Device,
    JsonFile,
    by_reason,
    camera_or_path,
    check_writable,
    progress_bar,
    read_class_names,
    read_numbers,
    read_settings,
    write_results,
)
from .cli_data import data_app
from .cli_demo import demo
from .cli_doctor import doctor
from .cli_ensemble import ensemble_app
from .cli_evaluate import evaluate, score
from .cli_export import export
from .cli_inference import Refine, Smooth, TestTimeAugmentation, open_segmenter
from .cli_pseudo_label import pseudo_label
from .cli_submission import DEFAULT_ROOT, ZipRoot, submission_app


app = typer.Typer(
    name="vss-hf",
    help="Video semantic segmentation: train, evaluate, predict, score, convert, cards, data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},  # --repo_id is --repo-id
)
app.add_typer(data_app, name="data")
app.add_typer(ensemble_app, name="ensemble")
app.add_typer(submission_app, name="submission")
app.command("pseudo-label")(pseudo_label)
app.command()(analyze)
app.command()(export)

OverlayStyle = Literal["side-by-side", "painted"]


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train a recipe: vss-hf train RECIPE.yaml [--field value ...].

    Several processes: accelerate launch train.py ...
    With --dry_run (or --dry_run 8, for eight devices) print the plan only; --json FILE writes it, too.
    """
    from vss_hf.training.interruption import TrainingInterrupted
    from vss_hf.training.plan import dry_run
    from vss_hf.training.run import main as run

    try:
        if not dry_run(context.args):
            run(context.args)
    except TrainingInterrupted as stopped:
        typer.echo(f"\n{stopped}", err=True)
        raise typer.Exit(stopped.exit_code) from None


app.command()(evaluate)
app.command()(score)
app.command()(demo)
app.command()(doctor)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Model folder or Hub repo; an image or a video model.")],
    out: Annotated[Path, typer.Option(help="Folder for <video>/<frame>.png.")],
    source: Annotated[
        str | None,
        typer.Argument(metavar="INPUT", help="Video, folder of frames, image, VSPW root or video, camera number."),
    ] = None,
    camera: Annotated[int | None, typer.Option(min=0, help="Number of a camera, instead of INPUT.")] = None,
    split: Annotated[str, typer.Option(help="For a VSPW root: which split.")] = "test",
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write <video>_overlay.mp4.")] = False,
    overlay_style: Annotated[
        OverlayStyle, typer.Option(help="side-by-side: frame, painted frame, legend; painted: that frame alone.")
    ] = "side-by-side",
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Strength of the overlay's colours.")] = 0.6,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop each video or camera after so many.")] = None,
    tta: TestTimeAugmentation = None,
    refine: Refine = None,
    smooth: Smooth = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Frames per forward pass, for image models.")] = 1,
    submission: Annotated[
        Path | None, typer.Option(help="Also pack a VSPW root's PNGs into this zip for the challenge.")
    ] = None,
    zip_root: ZipRoot = DEFAULT_ROOT,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="For a VSPW root: begin anew instead of going on.")
    ] = False,
    json_file: JsonFile = None,
    device: Device = None,
) -> None:
    """Label a video, frames, an image or what a camera sees. Ctrl-C or SIGTERM ends it and keeps what is done.

    With a VSPW root, the same command goes on where it stopped, and several GPUs share the videos:
    accelerate launch -m vss_hf predict ..., or torchrun --nproc_per_node=8 -m vss_hf predict ...
    """
    from vss_hf.inference import predict as run
    from vss_hf.inference.processes import failing_together, is_first, joined_processes

    for path in (submission, json_file):
        check_writable(path)
    what = camera_or_path(source, camera)
    with joined_processes(device) as own_device:
        with failing_together():
            segmenter = open_segmenter(model, own_device, tta, refine, smooth)
        results = run(
            segmenter,
            what,
            out,
            split=split,
            batch_size=batch_size,
            max_frames=max_frames,
            overlay_video=overlay,
            overlay_style=overlay_style,
            alpha=alpha,
            submission=submission,
            zip_root=zip_root,
            overwrite=overwrite,
            progress=progress_bar,
        )
        if is_first():
            rate = results["frames_per_second"]
            speed = "" if rate is None else f", {rate:.1f} frames per second"
            before = f" ({results['videos_before']} were there before)" if results["videos_before"] else ""
            typer.echo(f"{results['frames']} label maps of {results['videos']} videos in {out}{before}{speed}")
            for path in results["files"]:
                typer.echo(path)
            write_results(results, json_file)
    number = results["stop_signal"]
    if number and not (isinstance(what, int) and number == signal.SIGINT):  # a camera has no other end than Ctrl-C
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        typer.echo(f"stopped by {name}; what is written is whole, and with a VSPW root the command goes on", err=True)
        raise typer.Exit(128 + number)


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="Model folder, or one that `vss-hf data parquet` made.")],
    repo_id: Annotated[
        str | None, typer.Option(help="owner/name on the Hub, for title and examples; default: the folder's name.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Licence of weights or data, e.g. apache-2.0.")] = None,
    license_name: Annotated[str | None, typer.Option(help="With --license other: its name.")] = None,
    license_link: Annotated[str | None, typer.Option(help="With --license other: where it can be read.")] = None,
    dataset_id: Annotated[
        str | None, typer.Option(help="Hub id of the data set that was evaluated on, if it has one.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Released recipe that the model is of; default: the one that its run recorded.")
    ] = None,
) -> None:
    """Write the card (README.md) of a model folder, and its .eval_results; or the card of a packed data set.

    All of it comes from the folder's files. Options hold for this card and its pushes; give all of them at once.
    """
    from vss_hf.hub_cards import write_card, write_dataset_card, write_eval_results

    licence = {"license": license, "license_name": license_name, "license_link": license_link}
    if (folder / "vss_hf_dataset.json").is_file():
        typer.echo(write_dataset_card(folder, repo_id=repo_id, **licence))
        return
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no config.json; expected a model folder")
    path = write_card(folder, repo_id=repo_id, dataset_id=dataset_id, recipe=recipe, **licence)
    results = folder / "eval_results.json"
    if results.is_file():
        write_eval_results(folder, json.loads(results.read_text(encoding="utf-8")), dataset_id)
    typer.echo(path)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Official checkpoint file (.pth, .safetensors, ...).")],
    source: Annotated[str, typer.Option(help="Whose names it has: mmseg, internimage, volo, detectron2, timm, ...")],
    arch: Annotated[
        str, typer.Option(help="Preset (upernet-swin-large), backbone (internimage-xl), or mmseg's config as .json.")
    ],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    class_names: Annotated[
        Path | None, typer.Option(help="JSON list of class names in the order of the label values.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of the configuration to change; may be repeated."),
    ] = None,
) -> None:
    """Turn an official checkpoint into a model folder that from_pretrained loads.

    Strict: every tensor of the checkpoint is used, or listed with the reason why it has no place.
    """
    from vss_hf.convert.checkpoint import convert_checkpoint

    names = None if class_names is None else read_class_names(class_names)
    fields = read_settings(settings) if settings else None
    converted = convert_checkpoint(checkpoint, source, arch, out, names, fields)
    report = converted.report
    typer.echo(f"{out}: {len(report.loaded)} tensors of {arch}")
    for title, reasons in (("not used", report.unused), ("kept new", report.kept)):
        for reason, of_reason in by_reason(reasons).items():
            typer.echo(f"{title}: {len(of_reason)} tensors, {reason}: {', '.join(of_reason[:3])}, ..."[:200])


@app.command()
def average(
    models: Annotated[list[str], typer.Argument(help="Model folders, checkpoints of a run or Hub ids; two or more.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    weights: Annotated[
        str | None, typer.Option(metavar="1,1,2", help="What each model counts; default: all the same.")
    ] = None,
    recalibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Count BatchNorm statistics anew from these training samples: a recipe, or a data set in VSPW's "
            "layout, augmented as in the first model's recipe.",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of DATA; default: the recipe's training split.")] = None,
    batches: Annotated[int, typer.Option(min=1, help="Batches of DATA, of the recipe's batch size.")] = 200,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 2,
    device: Device = None,
) -> None:
    """Average the weights of models that differ in nothing else, e.g. the last checkpoints of a run."""
    from vss_hf.training.averaging import average_models
    from vss_hf.training.recalibration import Recalibration

    samples = None
    if recalibrate is None and split is not None:
        raise ValueError(f"--split {split}: there is no --recalibrate")
    if recalibrate is not None:
        samples = Recalibration(recalibrate, split, batches, num_workers)
    numbers = None if weights is None else read_numbers(weights, "--weights")
    result = average_models(models, out, weights=numbers, recalibrate=samples, device=device)
    copies = f"{result.copied} are the first one's" if result.copied else "all there are"
    typer.echo(f"{out}: {result.averaged} tensors are means of {len(models)} models, {copies}")
    if result.batches:
        typer.echo(f"BatchNorm statistics counted from {result.batches} batches")
    elif result.has_batchnorm:
        typer.echo("BatchNorm statistics are means too; --recalibrate DATA counts them anew, which mostly is better")
    elif samples is not None:
        typer.echo("--recalibrate had nothing to do: the model has no BatchNorm")
    typer.echo(f"evaluate it: vss-hf evaluate {out} --data ...")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Model folder.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="For everybody to see; without it a public repository is refused.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if it does not exist.")] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Propose the change as a pull request instead of pushing it.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    with_code: Annotated[
        bool,
        typer.Option(
            "--with-code", help="Also the model's code, so that trust_remote_code=True loads it without vss_hf."
        ),
    ] = False,
) -> None:
    """Push everything a model folder holds to the Hub, in one commit; private by default, and only what changed.

    Needs `hf auth login` or HF_TOKEN. In recipe and results, folders of this machine are reduced to their last name.
    After a failure the same command goes on where it stopped.
    """
    from vss_hf.hub_cards import push_folder

    result = push_folder(
        folder,
        repo_id,
        private=not public,
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
        with_code=with_code,
    )
    for line in result.lines():
        typer.echo(line)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `vss-hf`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    run_reporting_errors(lambda args: app(args, prog_name="vss-hf"), arguments)


def train_main(arguments: list[str] | None = None) -> None:
    """Entry point of `train.py`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    run_reporting_errors(lambda args: app(["train", *args], prog_name="train.py"), arguments)


def run_reporting_errors(command: Callable[[list[str]], Any], arguments: list[str]) -> None:
    """Run; on bad input print one line and exit with 2. With `--debug` anywhere, let the traceback through."""
    from huggingface_hub.errors import HTTPError, StrictDataclassError  # a broken download; a model configuration

    debug = "--debug" in arguments
    try:
        command([word for word in arguments if word != "--debug"])
    except Exception as raised:
        from vss_hf.training.faults import explain  # torch wraps the errors of its workers in a traceback

        error = explain(raised)
        expected = (
            *(ValueError, OSError, KeyError, TypeError, ArithmeticError, MemoryError),
            *(HTTPError, StrictDataclassError),
        )
        if debug or not isinstance(error, expected):
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if isinstance(error, OSError) and error.strerror and error.filename:
            text = f"{error.filename}: {error.strerror}"
        traceback.clear_frames(raised.__traceback__)  # they hold progress bars, whose lines go with them
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(2) from None
