"""What a run shows on a terminal and in a log file, and the scores of head, medium and tail classes."""

import json
import os
import re
import struct
import sys
import threading
from functools import partial

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny import make_data, make_trainer, mask_values, tiny_model
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging

from vss_hf.data.splits import open_split
from vss_hf.data.statistics import label_statistics
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.scoring.class_scores import class_table, group_scores, training_statistics
from vss_hf.scoring.evaluation import evaluate_model
from vss_hf.training import progress
from vss_hf.training.progress import Stopwatch


NAMES = ["road", "sky", "tree"]
EVALUATED = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    videos = {"train": {"a": 4, "b": 3}, "val": {"v": 4, "w": 3}}
    return make_data(tmp_path_factory.mktemp("data") / "videos", videos)


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Passing(TrainerCallback):
    """Each step takes half a second, whatever the machine does."""

    def __init__(self, clock):
        self.clock = clock

    def on_step_begin(self, args, state, control, **kwargs):
        self.clock.now += 0.5


def timed_trainer(monkeypatch, *arguments, **settings):
    """A Trainer by whose clock a step of 2 samples takes 0.5 s, and an evaluation 100 s."""
    clock = Clock()
    monkeypatch.setattr(progress, "Stopwatch", partial(Stopwatch, clock=clock))
    trainer = make_trainer(*arguments, **settings)
    trainer.add_callback(Passing(clock))
    evaluate = trainer.evaluate

    def slowly(*arguments, **options):
        clock.now += 100
        return evaluate(*arguments, **options)

    trainer.evaluate = slowly
    return trainer


# --- time


def test_rate_leaves_out_evaluating_and_the_time_left_does_not():
    clock = Clock()
    watch = Stopwatch(40, clock)
    assert watch.steps_per_second() is None and watch.seconds_left(50) is None
    clock.now += 30  # the first step compiles
    watch.end_step(41)
    assert watch.seconds_left(50) == pytest.approx(30 * 9)
    for step in (42, 43, 44):
        clock.now += 2
        watch.end_step(step)
    assert watch.seconds_left(50) == pytest.approx(2 * 6)  # without the first one
    clock.now += 60
    watch.end_pause()  # after an evaluation
    clock.now += 4
    watch.end_pause()  # and a checkpoint
    clock.now += 2
    watch.end_step(45)
    assert watch.paused == 64
    assert watch.steps_per_second() == pytest.approx(5 / (30 + 4 * 2))
    assert watch.seconds_left(50) == pytest.approx((4 * 2 + 64) / 4 * 5)


def test_rate_is_of_the_last_steps():
    clock = Clock()
    watch = Stopwatch(0, clock)
    for step in range(1, 201):
        clock.now += 7 if step <= 100 else 0.25
        watch.end_step(step)
    assert watch.steps_per_second() == pytest.approx(4)


# --- a log file


def test_lines_in_a_log_file(root, tmp_path, monkeypatch, capsys):
    trainer = timed_trainer(monkeypatch, root, tmp_path / "run", disable_tqdm=False, **EVALUATED)
    kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert not kinds & {ProgressCallback, PrinterCallback}
    trainer.train()
    captured = capsys.readouterr()
    assert "\r" not in captured.out + captured.err and "it/s" not in captured.err
    assert "{" not in captured.out and "\x1b" not in captured.out
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    lines = [line for line in captured.out.splitlines() if line.startswith("step ")]
    left = [line.split("  ")[1] for line in lines]
    # 0.5 s for each step that is left, after the third step also 100 s of evaluating, shared by those so far
    assert left == ["00:02 left", "00:02 left", "00:01 left", "01:07 left", "00:25 left", "00:00 left"]
    for number, (line, entry) in enumerate(zip(lines, losses, strict=True), 1):
        assert line.startswith(f"step {number}/6  ") and "  4.0 images/s  " in line
        assert f"  loss {entry['loss']:.4f}  " in line and "  lr 1.0e-02" in line
    evaluated = [entry for entry in trainer.state.log_history if "eval_mean_iou" in entry]
    assert f"mIoU {evaluated[0]['eval_mean_iou']:.4f}" in lines[3] and "mIoU" not in lines[2]
    told = re.findall(r"^evaluation at step (\d): mIoU (\d\.\d{4})", captured.out, re.MULTILINE)
    assert told == [(str(entry["step"]), f"{entry['eval_mean_iou']:.4f}") for entry in evaluated]
    assert captured.out.splitlines()[-1].startswith("6 steps, 12 images in 03:23, 4.0 images/s")
    assert logging.is_progress_bar_enabled()  # as it was


def test_every_class_is_in_a_file(root, tmp_path, capsys):
    trainer = make_trainer(root, tmp_path / "run", max_steps=2)
    metrics = trainer.evaluate()
    kept = json.loads((tmp_path / "run" / "evaluations" / "step-0.json").read_text())
    assert kept["mean_iou"] == metrics["eval_mean_iou"] and list(kept["per_class_iou"]) == NAMES
    assert kept["mean_iou_head"] == metrics["eval_mean_iou_head"]
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith(tuple(NAMES))]
    shown = {name: float(iou) for name, iou, *_ in rows}
    assert shown == {name: round(iou, 4) for name, iou in kept["per_class_iou"].items()}
    assert list(shown.values()) == sorted(shown.values())


# --- a terminal


class Terminal:
    """A pseudo terminal of 100 columns as standard output and error stream."""

    def __init__(self, monkeypatch):
        fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")  # not on Windows
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))  # rows and columns
        self.file, self.raw = os.fdopen(slave, "w"), b""
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "stdout", self.file)
        monkeypatch.setattr(sys, "stderr", self.file)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        while True:
            try:
                self.raw += os.read(self.master, 4096)
            except OSError:  # nobody writes any more
                return

    def text(self) -> str:
        """All that was written, without colours and movements of the cursor."""
        self.file.close()
        self.reader.join(timeout=60)
        os.close(self.master)
        return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", self.raw.decode())


def test_bar_of_a_resumed_run_in_a_terminal(root, tmp_path, monkeypatch, capsys):
    make_trainer(root, tmp_path / "run", max_steps=3, **EVALUATED).train()
    capsys.readouterr()
    trainer = timed_trainer(monkeypatch, root, tmp_path / "run", disable_tqdm=False, **EVALUATED)
    terminal = Terminal(monkeypatch)
    trainer.train(resume_from_checkpoint=True)
    text = terminal.text()
    bars = [piece for piece in re.split(r"[\r\n]+", text) if re.match(r"\d+/6 \|", piece)]
    assert bars[0].startswith("3/6 |") and bars[-1].startswith("6/6 |")
    history = trainer.state.log_history
    first, last = [entry["eval_mean_iou"] for entry in history if "eval_mean_iou" in entry]
    assert f"mIoU {last:.4f}" in bars[-1] and "4.0 images/s" in bars[-1] and "00:00 left" in bars[-1]
    assert f"loss {[e['loss'] for e in history if 'loss' in e][-1]:.4f}" in bars[-1]
    assert all(f"mIoU {first:.4f}" in bar for bar in bars if "images/s" in bar and bar != bars[-1])
    assert all(len(bar) <= 100 for bar in bars)
    assert "evaluation at step 6" in text and "Writing model" not in text and "{" not in text
    assert "3 steps, 6 images in" in text  # of this session


def test_bar_goes_when_a_run_breaks_off(root, tmp_path, monkeypatch):
    trainer = make_trainer(root, tmp_path / "run", disable_tqdm=False, learning_rate=1e30, max_steps=50)
    terminal = Terminal(monkeypatch)
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert trainer.progress.bar is None and trainer.progress.watch is None
    assert "/50 |" in terminal.text()


# --- head, medium and tail


def counted_by_hand(root, videos):
    """(pixels, frames) of each class, from the masks."""
    pixels, frames = np.zeros(3, int), np.zeros(3, int)
    for video, number in videos.items():
        for frame in range(number):
            counts = np.array([(mask_values(video, frame) == value).sum() for value in (1, 2, 5)])
            pixels, frames = pixels + counts, frames + (counts > 0)
    return pixels, frames


def test_groups_against_the_confusion_matrix(root):
    segmenter = VideoSegmenter(tiny_model(root), VSSImageProcessor())
    counted = label_statistics(open_split(root, "train"), progress=False)
    object.__setattr__(counted, "videos", np.array([50, 1, 5]))
    object.__setattr__(counted, "num_videos", 100)  # road is head, sky tail, tree medium
    results = evaluate_model(segmenter, root, "val", training=counted, with_confusion=True)
    confusion = np.array(results["confusion"], dtype=float)
    iou = confusion.diagonal() / (confusion.sum(0) + confusion.sum(1) - confusion.diagonal())
    found = [results[f"mean_iou_{group}"] for group in ("head", "tail", "medium")]
    assert found == pytest.approx(iou.tolist(), rel=1e-12)
    assert results["class_groups"] == {"road": "head", "sky": "tail", "tree": "medium"}
    assert results["class_groups_of"] == "videos train"
    accuracy = confusion.diagonal() / confusion.sum(1)
    assert list(results["per_class_accuracy"].values()) == pytest.approx(accuracy.tolist(), rel=1e-12)
    pixels, frames = counted_by_hand(root, {"v": 4, "w": 3})
    assert list(results["per_class_pixels"].values()) == pixels.tolist()
    assert list(results["per_class_frames"].values()) == frames.tolist()
    own = evaluate_model(segmenter, root, "val")
    assert own["class_groups_of"] == "videos val" and set(own["class_groups"].values()) == {"head"}
    assert own["mean_iou_head"] == pytest.approx(iou.mean()) and "mean_iou_tail" not in own


def test_group_without_a_scored_class_is_left_out():
    groups = ["head", "tail", "tail", "medium", "absent", "head"]
    scores = group_scores([0.5, 0.2, 0.4, None, 0.9, None], groups)
    assert scores == pytest.approx({"mean_iou_head": 0.5, "mean_iou_tail": 0.3})


def test_other_classes_are_an_error(root):
    counted = label_statistics(open_split(root, "train"), progress=False)
    object.__setattr__(counted, "names", ("road", "sky", "water"))
    with pytest.raises(ValueError, match="class 2 is 'water', expected 'tree'"):
        evaluate_model(VideoSegmenter(tiny_model(root), VSSImageProcessor()), root, "val", training=counted)


def test_training_statistics_are_used_only_if_they_are_known(tmp_path):
    root = make_data(tmp_path / "videos", {"train": {"a": 2}, "val": {"v": 1}})
    masks = sorted((root / "data" / "a" / "mask").iterdir())
    for mask in masks:
        os.utime(mask, (10**9, 10**9))  # of a file that is seconds old the time says little
    assert training_statistics(root, NAMES) is None
    assert not (root / ".vss_hf").exists()  # nothing was counted
    label_statistics(open_split(root, "train"), progress=False)
    known = training_statistics(root, NAMES)
    assert known is not None and (known.split, known.num_frames) == ("train", 2)
    assert known.pixels.tolist() == counted_by_hand(root, {"a": 2})[0].tolist()
    assert training_statistics(root, ["road", "sky", "water"]) is None
    assert training_statistics(tmp_path / "nowhere", NAMES) is None
    Image.fromarray(mask_values("b", 0)).save(masks[1])
    assert training_statistics(root, NAMES) is None


def test_table_of_many_classes_shows_the_worst():
    names = [f"class {i}" for i in range(124)]
    iou = {name: None if i % 10 == 9 else (i * 37 % 124) / 124 for i, name in enumerate(names)}
    numbers = dict.fromkeys(names, 7)
    results = {
        "per_class_iou": iou, "per_class_accuracy": iou, "per_class_pixels": numbers, "per_class_frames": numbers,
        "class_groups": dict.fromkeys(names, "tail"), "class_groups_of": "VSPW train", "dataset": "VSPW",
        "split": "val", "frames": 14,
    }  # fmt: skip
    console = Console(width=80, record=True, file=open(os.devnull, "w"))
    console.print(class_table(results))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[0] == "VSPW val: the 20 worst of 112 classes; groups of VSPW train"
    worst = sorted(value for value in iou.values() if value is not None)[:20]
    assert [float(line.split()[2]) for line in lines[3:23]] == [round(value, 4) for value in worst]
    assert len([line for line in lines if line]) == 23
    assert lines[3].split()[-3:] == ["0.81%", "50.0%", "tail"]
