"""Files that break while a run, an evaluation or a prediction goes on; workers that die; a disk that fills up."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_default_data, tiny_model, training_data, write_recipe
from torch.utils.data import DataLoader

from vss_hf.cli import main as vss_hf
from vss_hf.cli import train_main
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.training import run
from vss_hf.training import sources as training_sources
from vss_hf.training.draws import BAD_IN_A_ROW, DrawOrder, EndlessSampler, Source, TrainingDraws, TrainingStream
from vss_hf.training.faults import explain, explained
from vss_hf.training.recipe import load_recipe
from vss_hf.video_io import open_source


SEED = 42
TRAIN_PY = Path(__file__).resolve().parents[2] / "train.py"


@pytest.fixture
def root(tmp_path):
    return make_default_data(tmp_path / "videos")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def frame(root, video, number, kind="origin"):
    return root / "data" / video / kind / f"{number:08d}.png"


def name_samples(sample, seed):
    return {"sample": f"{sample['video']}/{int(sample['frame'])}", "seed": seed}


def dataset(root, kind="draws", on_bad_sample="raise"):
    dataset_class = TrainingDraws if kind == "draws" else TrainingStream
    return dataset_class(training_data(root).sources, name_samples, SEED, on_bad_sample=on_bad_sample)


def loader(data, batch_size=2, workers=0, start=0):
    order = DrawOrder(batch_size, start=start)
    if isinstance(data, TrainingStream):
        data.order = order
        return DataLoader(data, batch_size, num_workers=workers)
    return DataLoader(data, batch_size, sampler=EndlessSampler(order), num_workers=workers)


def samples(batches, count):
    return [name for batch in islice(batches, count) for name in batch["sample"]]


def pairs(batches):
    return [pair for batch in batches for pair in zip(batch["sample"], batch["seed"].tolist(), strict=True)]


@contextmanager
def raises(kind, match=None):
    """pytest.raises that lets go of the frames at once: they hold loaders, whose workers garbage would wait for."""
    with pytest.raises(kind, match=match) as caught:
        yield caught
    error = caught.value
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def failure(capsys, command, *arguments) -> str:
    """The one line that a command prints before it ends with code 2."""
    with raises(SystemExit) as stop:
        command([str(a) for a in arguments])
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


# --- a bad sample is an error


@pytest.mark.parametrize("kind", ["draws", "stream"])
def test_the_message_does_not_depend_on_workers(root, kind):
    cut(frame(root, "b", 1))
    messages = []
    for workers in (0, 1, 2):
        with raises(ValueError) as caught, explained():
            samples(loader(dataset(root, kind), workers=workers), 4)  # 8 draws hold all 7 samples
        messages.append(str(caught.value))
    assert len(set(messages)) == 1 and "\n" not in messages[0]
    assert messages[0].startswith("video b, frame 00000001: ") and "origin/00000001.png: cannot be read" in messages[0]


def test_everything_before_the_bad_sample_is_delivered(root):
    whole = samples(loader(dataset(root), 1), 7)
    video, number = whole[4].split("/")
    frame(root, video, int(number), "mask").write_bytes(b"")
    batches = iter(loader(dataset(root), 1))
    assert samples(batches, 4) == whole[:4]
    with pytest.raises(ValueError, match=f"video {video}, frame {int(number):08d}: .*empty file"):
        next(batches)


def test_a_video_that_disappears_between_two_batches(root):
    batches = iter(loader(dataset(root), 1))
    samples(batches, 3)
    shutil.rmtree(root / "data" / "a")
    with pytest.raises(ValueError, match="video a, frame .*no such file; its folder is gone too"):
        samples(batches, 8)


@pytest.mark.parametrize(
    ("streaming", "workers"),
    [(True, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((False, 0), (False, 2), (True, 0)))],
)
def test_train_names_the_frame(root, tmp_path, capsys, streaming, workers):
    cut(frame(root, "a", 3))
    recipe = write_recipe(tmp_path / "r.yaml", root, tmp_path / "out", data={"streaming": streaming})
    line = failure(capsys, train_main, recipe, "--dataloader_num_workers", workers)
    assert "video a, frame 00000003" in line and "origin/00000003.png" in line and "vss-hf data verify" in line
    assert "data.on_bad_sample" in line and len(line) < 500


# --- a bad sample is skipped


@pytest.mark.parametrize("kind", ["draws", "stream"])
@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_takes_the_next_readable_sample(root, kind, workers):
    """Every draw keeps its place and its seed; what cannot be read is replaced by what the sequence holds next."""
    whole = pairs(islice(loader(dataset(root)), 15))
    bad = {"a/2", "b/0"}
    data = dataset(root, kind, "skip")
    cut(frame(root, "a", 2))
    frame(root, "b", 0, "mask").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pairs(islice(loader(data, workers=workers), 11))
    expected = []
    for draw in range(22):
        replacement = next(name for name, _ in whole[draw:] if name not in bad)
        expected.append((replacement, whole[draw][1]))
    assert found == expected
    skipped = sum(name in bad for name, _ in whole[:22])
    if workers == 0:
        assert data.skipped == skipped > 4
    else:
        assert data.skipped >= skipped  # workers read ahead


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_skipped_samples_are_counted_exactly(root, workers):
    """A loader that ends, so that nothing is read ahead."""
    cut(frame(root, "a", 2))
    cut(frame(root, "b", 2))
    data = dataset(root, "draws", "skip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in DataLoader(data, 5, sampler=range(70), num_workers=workers):
            pass
    assert data.skipped == 20


def test_a_bad_file_is_named_once(root):
    cut(frame(root, "a", 2))
    data = dataset(root, "draws", "skip")
    with pytest.warns(RuntimeWarning, match="skipped: video a, frame 00000002: .*origin/00000002.png") as caught:
        samples(loader(data), 30)
    assert len(caught) == 1 and data.skipped > 5


def test_too_many_bad_samples_stop_the_run(root, tmp_path):
    for path in root.glob("data/[ab]/origin/*"):
        cut(path)
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="14 samples in a row cannot be read, the last"):
        samples(loader(dataset(root, "draws", "skip")), 1)
    shutil.copy(frame(root, "v", 0), frame(root, "b", 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert set(samples(loader(dataset(root, "stream", "skip")), 20)) == {"b/1"}  # one is enough

    class Broken:
        def __len__(self):
            return 1000

        def __getitem__(self, index):
            raise OSError("disk is gone")

    with warnings.catch_warnings(), pytest.raises(ValueError, match=f"{BAD_IN_A_ROW} samples in a row.*disk is gone"):
        warnings.simplefilter("ignore")
        TrainingDraws([Source(Broken())], name_samples, 0, on_bad_sample="skip")[0]


def test_a_mistake_in_the_program_is_not_skipped(root):
    def broken(sample, seed):
        raise ValueError("a mistake")

    data = TrainingDraws(training_data(root).sources, broken, SEED, on_bad_sample="skip")
    with pytest.raises(ValueError, match="a mistake"):
        data[0]


@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_train_skips_by_recipe(root, tmp_path, streaming):
    cut(frame(root, "a", 3))
    cut(frame(root, "b", 1, "mask"))
    data = {"streaming": streaming, "on_bad_sample": "skip"}
    recipe = write_recipe(tmp_path / "r.yaml", root, tmp_path / "out", data=data)
    with pytest.warns(RuntimeWarning) as caught:
        folder = run.main([str(recipe), "--losses=[{name: cross_entropy, class_weights: inverse_sqrt}]"])
    told = " ".join(str(warning.message) for warning in caught)
    assert "skipped: video a, frame 00000003" in told and "skipped: video b, frame 00000001" in told
    assert re.search("1 of 7 masks cannot be read and are not counted; the first: .*b/mask/00000001.png", told)
    assert (folder / "model.safetensors").is_file()


def test_the_recipe_field(root, tmp_path):
    recipe = write_recipe(tmp_path / "r.yaml", root, tmp_path / "out")
    assert load_recipe(recipe).data.on_bad_sample == "raise"
    assert load_recipe(recipe, ["--on_bad_sample=skip"]).data.on_bad_sample == "skip"
    with pytest.raises(ValueError, match="data.on_bad_sample has no choice 'skpi'; did you mean 'skip'"):
        load_recipe(recipe, ["--on_bad_sample", "skpi"])


# --- workers


@pytest.fixture(autouse=True)
def signal_handler():
    """`explain` takes torch's handler away, for this process is about to end; the next test starts with it."""
    before = signal.getsignal(signal.SIGCHLD)
    yield before
    signal.signal(signal.SIGCHLD, before)


class KillsItsProcess:
    """A transform that ends the worker that works on a certain draw."""

    def __init__(self, seed, end):
        self.seed, self.end, self.parent = seed, end, os.getpid()

    def __call__(self, sample, seed):
        if seed == self.seed:
            assert os.getpid() != self.parent
            self.end()
        return name_samples(sample, seed)


ENDS = {
    "SIGKILL": (lambda: os.kill(os.getpid(), signal.SIGKILL), "by the signal Killed"),
    "SIGBUS": (lambda: os.kill(os.getpid(), signal.SIGBUS), "by the signal Bus error"),
    "exit": (lambda: os._exit(3), ""),
}


def check_death(root, kind, workers, draw, end):
    data = dataset(root, kind)
    seeds = [seed for batch in islice(loader(data), draw // 2 + 1) for seed in batch["seed"].tolist()]
    data.transform = KillsItsProcess(seeds[draw], ENDS[end][0])
    with raises(ChildProcessError) as caught, explained():
        samples(loader(data, workers=workers), 1000)
    message = str(caught.value)
    assert re.match(r"a process that loads data (\(pid [\d, ]+\) )?was ended", message) and "\n" not in message
    assert ENDS[end][1] in message or "signal" not in message
    assert "--dataloader_num_workers" in message and "/dev/shm" in message


@pytest.mark.parametrize(("kind", "end"), [("draws", "SIGKILL"), ("stream", "SIGBUS"), ("stream", "exit")])
def test_a_worker_that_dies_is_explained(root, kind, end):
    check_death(root, kind, workers=2, draw=5, end=end)


@pytest.mark.slow
def test_30_random_deaths_never_hang(root, signal_handler):
    numbers = random.Random(0)
    for _ in range(30):
        signal.signal(signal.SIGCHLD, signal_handler)
        kind, end = numbers.choice(["draws", "stream"]), numbers.choice(list(ENDS))
        check_death(root, kind, numbers.randint(1, 3), numbers.randrange(40), end)


def test_train_tells_that_a_worker_died(root, tmp_path, capsys, monkeypatch):
    real = training_sources.TrainTransform

    class Deadly(real):
        def __call__(self, sample, seed):
            if sample["video"] == "b":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(sample, seed)

    monkeypatch.setattr(training_sources, "TrainTransform", Deadly)
    recipe = write_recipe(tmp_path / "r.yaml", root, tmp_path / "out")
    line = failure(capsys, train_main, recipe, "--dataloader_num_workers", "2")
    assert re.search("a process that loads data .*was ended", line) and "fewer workers" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)", "/dev/shm"),
        ("unable to write to file </torch_17_99>: No space left on device (28)", "ran out of shared memory"),
        ("Too many open files. Communication with the workers is no longer possible.", "ulimit -n"),
        ("received 0 items of ancdata", "ulimit -n"),
    ],
)
def test_what_torch_says_about_the_machine(text, expected):
    for message in (text, f"Caught RuntimeError in DataLoader worker process 1.\nOriginal Traceback (most recent call "
                    f"last):\n  File \"x.py\", line 1, in f\n    g()\nRuntimeError: {text}\n"):  # fmt: skip
        told = explain(RuntimeError(message))
        assert isinstance(told, OSError) and expected in str(told) and "Traceback" not in str(told)


class Needy(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (FileNotFoundError("x.png: no such file"), FileNotFoundError, "x.png: no such file"),
        (ValueError("one: two: three"), ValueError, "one: two: three"),
        (ValueError("two\nlines"), ValueError, "two\nlines"),
        (KeyError("missing"), KeyError, "missing"),
        (Needy(1, 2), RuntimeError, "Needy: 1 and 2"),
    ],
)
def test_an_error_of_a_worker_comes_out_as_it_was(error, kind, message):
    class Raises(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            try:
                raise RuntimeError("the cause")
            except RuntimeError as cause:
                raise error from cause

    with raises(kind) as caught, explained():
        list(DataLoader(Raises(), num_workers=1))
    assert message in str(caught.value) and "Traceback" not in str(caught.value)


def test_other_errors_stay_what_they_are():
    for error in (ValueError("x"), RuntimeError("size mismatch"), OSError(2, "none", "file")):
        assert explain(error) is error


# --- real processes


def train_process(recipe, *words):
    command = [sys.executable, str(TRAIN_PY), str(recipe), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_video_disappears_from_a_running_training(root, tmp_path, workers, streaming):
    recipe = write_recipe(tmp_path / "r.yaml", root, tmp_path / "out", data={"streaming": streaming})
    words = ["--max_steps=100000", "--eval_strategy=no", "--load_best_model_at_end=false"]
    process = train_process(recipe, *words, f"--dataloader_num_workers={workers}")
    while not list((tmp_path / "out").glob("checkpoint-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    shutil.rmtree(root / "data" / "a")
    _, errors = process.communicate(timeout=120)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and len(lines) == 1 and "Traceback" not in errors, errors
    assert "video a, frame" in lines[0] and "its folder is gone too" in lines[0]
    assert [path for path in (tmp_path / "out").glob("checkpoint-*") if (path / "trainer_state.json").is_file()]


@pytest.mark.slow
def test_workers_name_each_bad_file_once(root, tmp_path):
    cut(frame(root, "a", 3))
    cut(frame(root, "b", 0, "mask"))
    recipe = write_recipe(tmp_path / "r.yaml", root, tmp_path / "out", data={"on_bad_sample": "skip"})
    words = ["--dataloader_num_workers=2", "--max_steps=30", "--eval_steps=30", "--save_steps=30"]
    process = train_process(recipe, *words)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert errors.count("skipped: video a, frame 00000003") == 1
    assert errors.count("skipped: video b, frame 00000000") == 1


@pytest.mark.slow
def test_10_killed_workers_of_a_running_training(root, tmp_path):
    """Killed from outside, as the kernel does when memory is short; nothing but one line on the error stream."""
    numbers = random.Random(0)
    for turn in range(10):
        out = tmp_path / f"out{turn}"
        data = {"streaming": bool(turn % 2)}
        recipe = write_recipe(tmp_path / f"r{turn}.yaml", root, out, data=data)
        words = ["--max_steps=100000", "--eval_strategy=no", "--load_best_model_at_end=false"]
        process = train_process(recipe, *words, "--dataloader_num_workers=2")
        while not list(out.glob("checkpoint-*")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        time.sleep(numbers.random())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [pid for pid in children if "train.py" in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(int(numbers.choice(workers)), signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert process.returncode == 2 and len(lines) == 1, errors
        assert re.search("a process that loads data .*was ended", lines[0])
        assert "Traceback" not in errors and "Exception ignored" not in errors, errors
        assert [path for path in out.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]


# --- evaluation and prediction


@pytest.fixture
def model_folder(root, tmp_path):
    folder = tmp_path / "model"
    tiny_model(root).save_pretrained(folder)
    VSSImageProcessor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_evaluation_names_the_damaged_frame(root, model_folder, tmp_path, capsys, workers):
    cut(frame(root, "v", 6))
    (tmp_path / "r.json").write_text("old")
    arguments = ["--data", root, "--json", tmp_path / "r.json", "--num-workers", workers]
    line = failure(capsys, vss_hf, "evaluate", model_folder, *arguments)
    assert "v/origin/00000006.png: cannot be read" in line and len(line) < 400
    assert (tmp_path / "r.json").read_text() == "old"


@pytest.mark.parametrize("overlay", [False, True])
def test_prediction_names_the_damaged_frame_and_keeps_the_others(root, model_folder, tmp_path, capsys, overlay):
    cut(frame(root, "v", 6))
    words = ["--overlay"] if overlay else []
    line = failure(capsys, vss_hf, "predict", model_folder, root, "--split", "val", "--out", tmp_path / "p", *words)
    assert "v/origin/00000006.png: cannot be read" in line
    assert [path.name for path in (tmp_path / "p").iterdir()] == [".prediction"]  # no video is complete
    partial = tmp_path / "p" / ".prediction" / "partial"
    assert sorted(path.name for path in (partial / "v").iterdir()) == [f"{n:08d}.png" for n in range(6)]
    for path in (partial / "v").iterdir():
        assert np.asarray(Image.open(path)).shape == (32, 48)
    assert {path.name for path in partial.iterdir()} == ({"v", "v_overlay.mp4"} if overlay else {"v"})
    if overlay:  # a whole file, up to the break
        assert len(list(open_source(partial / "v_overlay.mp4"))) == 6
    line = failure(capsys, vss_hf, "predict", model_folder, root / "data/v/origin", "--out", tmp_path / "q", *words)
    assert "v/origin/00000006.png: cannot be read" in line and len(list((tmp_path / "q" / "v").iterdir())) == 6


def test_prediction_on_a_disk_that_fills_up(root, model_folder, small_disk, capsys):
    """Room for 4 of 10 label maps (a page of 4096 bytes each)."""
    with open(small_disk / "filler", "wb") as file:
        file.write(bytes(2**20 - 4 * 4096 - 4096))
    line = failure(capsys, vss_hf, "predict", model_folder, root, "--split", "val", "--out", small_disk)
    written = sorted((small_disk / ".prediction" / "partial" / "v").iterdir())
    assert 2 <= len(written) <= 5
    for path in written:
        assert np.asarray(Image.open(path)).shape == (32, 48)
    assert f"v/{len(written):08d}.png: no space left on the disk" in line
    assert re.search(r": [\d,]+ bytes needed, [\d,]+ bytes free; the previous one is untouched$", line)


@pytest.mark.parametrize("target", [pytest.param("r.json", marks=pytest.mark.slow), "s.zip"])
def test_results_on_a_full_disk_leave_the_old_ones(root, model_folder, tmp_path, capsys, fill_up, target):
    path = tmp_path / target
    path.write_text("old")
    fill_up(path)
    if target == "r.json":
        line = failure(capsys, vss_hf, "evaluate", model_folder, "--data", root, "--json", path, "--num-workers", "0")
    else:
        words = ["--split", "val", "--out", tmp_path / "p", "--submission", path]
        line = failure(capsys, vss_hf, "predict", model_folder, root, *words)
        assert len(list((tmp_path / "p" / "v").iterdir())) == 10
    assert f"{target}: no space left on the disk" in line and path.read_text() == "old"


@pytest.mark.slow
def test_the_folder_of_a_run_on_a_full_disk(root, tmp_path, capsys, fill_up):
    """The last files of a run: the weights are there, and the old results are as they were."""
    folder = tmp_path / "out" / "model"
    folder.mkdir(parents=True)
    for name in ("eval_results.json", "training_curve.png", "README.md"):
        (folder / name).write_text("old")
    fill_up(folder / "eval_results.json")
    recipe = write_recipe(tmp_path / "r.yaml", root, tmp_path / "out")
    line = failure(capsys, train_main, recipe)
    assert "eval_results.json: no space left on the disk" in line and "bytes needed" in line
    assert (folder / "eval_results.json").read_text() == "old"
    assert json.loads((folder / "config.json").read_text())["model_type"] == "vss_ocrnet"
