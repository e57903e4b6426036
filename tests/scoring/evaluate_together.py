"""Run by test_distributed.py under torchrun: every process writes what it got, and what it printed, to <rank>.json."""

import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path

import torch.distributed as dist

from vss_hf.cli import main as command_line
from vss_hf.inference.prediction import predict
from vss_hf.inference.processes import joined_processes
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.scoring.evaluation import evaluate_model, score_predictions


def error_of(action, *arguments, **settings) -> str:
    """The error that a call must raise."""
    try:
        action(*arguments, **settings)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def printed_by(*words: str | Path) -> tuple[str, str, int]:
    """Standard output, error stream and exit code of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command_line([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code or 0
    return out.getvalue(), err.getvalue(), code


def leave_out_some(labels: Path, out: Path) -> None:
    """A copy of label maps of which a frame, a stretch of frames and a video are missing."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(labels, out, ignore=shutil.ignore_patterns("*.mp4", "*.json", "b_large"))
    for frame in ("a/00000009", "d/00000000", "k/00000013", "k/00000014"):
        (out / f"{frame}.png").unlink()


def main(folder: Path) -> None:
    """All checks in one start, because starting takes seconds."""
    root, few, damaged, model = folder / "root", folder / "few", folder / "damaged", folder / "model"
    found: dict = {}
    with joined_processes(None) as device:
        rank = dist.get_rank()
        segmenter = VideoSegmenter.from_pretrained(model, device)
        found["device"], found["backend"] = device, dist.get_backend()
        for protocols in (("vspw", "vspw-official"), ("evaluate", "paper"), ("vspw", "dvis-legacy")):
            settings = dict(zip(("protocol", "vc_protocol"), protocols, strict=True))
            found["/".join(protocols)] = evaluate_model(segmenter, root, batch_size=4, num_workers=1, **settings)
        found["few"] = evaluate_model(segmenter, few)
        found["video model"] = evaluate_model(VideoSegmenter.from_pretrained(folder / "video_model", device), root)
        shown: list[int] = []
        found["predict"] = predict(
            segmenter,
            root,
            folder / "labels",
            split="val",
            overlay_video=True,
            submission=folder / "submission.zip",
            overwrite=True,  # of other numbers of processes
            progress=lambda frames, length, name: (shown.append(length), frames)[1],
        )
        found["progress"] = shown
        found["one image"] = predict(segmenter, folder / "picture.png", folder / "labels_of_one")
        found["score"] = score_predictions(folder / "labels", root)
        if rank == 0:
            leave_out_some(folder / "labels", folder / "some_labels")
        dist.barrier()
        some = folder / "some_labels"
        for missing in ("skip", "wrong"):
            found[f"score, {missing}"] = score_predictions(some, root, missing=missing, with_timeline=True)
        found["other files"] = error_of(score_predictions, folder / "labels" if rank else some, root, missing="skip")

        found["damaged"] = error_of(evaluate_model, segmenter, damaged)
        found["damaged, workers"] = error_of(evaluate_model, segmenter, damaged, num_workers=1)
        found["predict damaged"] = error_of(predict, segmenter, damaged, folder / "labels_of_damaged", split="val")
        found["different data"] = error_of(evaluate_model, segmenter, root if rank else few)
        found["missing on one"] = error_of(evaluate_model, segmenter, folder / "nowhere" if rank == 1 else root)
        found["bad protocol"] = error_of(evaluate_model, segmenter, root, protocol="none")
        found["evaluate command"] = printed_by("evaluate", model, "--data", few, "--json", folder / "few.json")
        found["predict command"] = printed_by("predict", model, few, "--out", folder / "by_command", "--split", "val")
        found["failing command"] = printed_by("evaluate", model, "--data", damaged, "--num-workers", "0")
        found["again"] = evaluate_model(segmenter, few)  # errors leave nothing behind
    found["alone again"] = dist.is_initialized()
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
