"""What stops a run: Ctrl-C, a loss that is not finite, too little memory. Nothing is lost, and the message helps."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import make_default_data, make_trainer, state_of, tiny_model, write_recipe
from transformers import TrainerCallback

from vss_hf import interruption
from vss_hf.inference.segmenter import is_out_of_memory
from vss_hf.training.checkpoints import newest_checkpoint
from vss_hf.training.interruption import TrainingInterrupted


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


class Signals(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, number: int):
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_the_run_goes_on_exactly(root, tmp_path, number):
    settings = dict(max_steps=5, ema_decay=0.9, save_strategy="steps", save_steps=100)
    straight = make_trainer(root, tmp_path / "straight", **settings)
    straight.train()

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(root, tmp_path / "run", **settings)
    trainer.add_callback(Signals(3, number))
    with pytest.raises(TrainingInterrupted, match="after step 3 of 5; saved in .*checkpoint-3; continue") as stop:
        trainer.train()
    assert stop.value.exit_code == 128 + number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers

    resumed = make_trainer(root, tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=True)
    for one, other in ((straight.model, resumed.model), (straight.ema, resumed.ema)):
        for name, tensor in state_of(one).items():
            assert torch.equal(tensor, state_of(other)[name]), name


def test_second_signal_stops_at_once(root, tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "ECHO_SECONDS", 0.0)
    trainer = make_trainer(root, tmp_path, max_steps=5)
    trainer.add_callback(Signals(2, signal.SIGINT))

    class Again(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    trainer.add_callback(Again())
    with pytest.raises(KeyboardInterrupt) as stop:
        trainer.train()
    assert not isinstance(stop.value, TrainingInterrupted)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_launcher_that_repeats_the_signal_does_no_harm(root, tmp_path):
    """torchrun sends its processes the SIGINT once more that the terminal has sent to all of them."""
    trainer = make_trainer(root, tmp_path, max_steps=5)
    trainer.add_callback(Signals(2, signal.SIGINT))
    trainer.add_callback(Signals(2, signal.SIGINT))
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    assert (tmp_path / "checkpoint-2").is_dir()


def test_signal_in_the_last_step_is_no_interruption(root, tmp_path):
    trainer = make_trainer(root, tmp_path, max_steps=2)
    trainer.add_callback(Signals(2, signal.SIGINT))
    trainer.train()
    assert trainer.state.global_step == 2


def test_ctrl_c_of_the_command(root, tmp_path):
    """The real train.py: SIGINT, exit code 130, one line that says how to continue; the rest of the run follows."""
    long_run = {"max_steps": 400, "eval_steps": 200, "save_steps": 200, "logging_steps": 1}
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out", training=long_run)
    train = Path(__file__).parents[2] / "train.py"
    process = subprocess.Popen(
        [sys.executable, "-u", train, recipe], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if "  loss " in line:  # it trains
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    last = errors.strip().splitlines()[-1]
    assert last.startswith("stopped after step ") and "--resume_from_checkpoint true" in last
    assert "Traceback" not in errors
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_ctrl_c_of_a_launcher(root, tmp_path, launcher):
    """Ctrl-C reaches the launcher and its processes alike; they save together, and the run goes on."""
    steps = {"max_steps": 4000, "eval_steps": 4000, "save_steps": 4000, "logging_steps": 1}
    recipe = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out", training=steps)
    launch = {
        "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"],
        "accelerate": ["-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "1"],
    }[launcher]
    log = tmp_path / "log.txt"
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, *launch, Path(__file__).parents[2] / "train.py", recipe],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
        )
        while "  loss " not in log.read_text():  # until it trains
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) != 0
    end = time.monotonic() + 30  # accelerate's launcher does not wait for its process
    while newest_checkpoint(tmp_path / "out") is None and time.monotonic() < end:
        time.sleep(0.2)
    stopped = newest_checkpoint(tmp_path / "out")
    assert stopped is not None and stopped.name != "checkpoint-4000", log.read_text()


# --- a loss that is not finite


class Poisoned(torch.nn.Module):
    """Makes the logits of chosen calls NaN, or only their gradient."""

    def __init__(self, head: torch.nn.Module, calls: set[int], gradient_only: bool = False):
        super().__init__()
        self.head, self.calls, self.gradient_only, self.count = head, calls, gradient_only, 0

    def forward(self, *inputs):
        logits = self.head(*inputs)
        if self.training:
            self.count += 1
            if self.count in self.calls and self.gradient_only:
                logits.register_hook(lambda gradient: gradient * float("inf"))
            elif self.count in self.calls:
                logits = logits * float("nan")
        return logits


def poisoned_trainer(root, folder, calls, gradient_only=False, **settings):
    model = tiny_model(root)
    model.decode_head = Poisoned(model.decode_head, calls, gradient_only)
    return make_trainer(root, folder, model=model, **settings)


@pytest.mark.parametrize("gradient_only", [False, True])
def test_nan_stops_with_the_names_of_the_frames(root, tmp_path, gradient_only):
    """Step 3 of batches of two: draws 4 and 5, whose frames are those that the data set gives for them."""
    trainer = poisoned_trainer(root, tmp_path, {3}, gradient_only, max_steps=5)
    names = [trainer.train_dataset.name(draw) for draw in (4, 5)]
    assert all(name.startswith("video ") for name in names)
    what = "the gradient" if gradient_only else "the loss"
    with pytest.raises(FloatingPointError, match=f"{what} of step 3 is not finite.*{names[0]}; {names[1]}; lower"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert all(torch.isfinite(tensor).all() for tensor in state_of(trainer.model).values())


@pytest.mark.parametrize("gradient_only", [False, True])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_nan_is_skipped_and_counted(root, tmp_path, gradient_only, max_grad_norm, recwarn):
    """The weights are those before the step, moments too; then the run goes on, and remembers in its checkpoint."""
    weights = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            weights.append({name: p.detach().clone() for name, p in kwargs["model"].named_parameters()})

    settings = dict(max_steps=4, save_strategy="steps", save_steps=4, max_grad_norm=max_grad_norm)
    settings["on_nonfinite_loss"] = "skip"
    trainer = poisoned_trainer(root, tmp_path, {3}, gradient_only, **settings)
    trainer.add_callback(Watch())
    trainer.train()
    assert trainer.skipped_steps == 1
    assert all(torch.equal(tensor, weights[2][name]) for name, tensor in weights[1].items())  # step 3 was skipped
    assert not all(torch.equal(tensor, weights[3][name]) for name, tensor in weights[2].items())
    assert json.loads((tmp_path / "checkpoint-4" / "run_state.json").read_text())["skipped_steps"] == 1


def test_accumulated_step_with_one_bad_micro_batch_is_skipped_whole(root, tmp_path):
    settings = dict(max_steps=1, on_nonfinite_loss="skip", gradient_accumulation_steps=3)
    trainer = poisoned_trainer(root, tmp_path, {2}, **settings)
    before = dict(trainer.model.named_parameters())
    before = {name: p.detach().clone() for name, p in before.items()}
    trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


def test_skipping_for_ever_is_an_error(root, tmp_path):
    trainer = poisoned_trainer(root, tmp_path, set(range(1, 100)), max_steps=50, on_nonfinite_loss="skip")
    with pytest.raises(FloatingPointError, match="and so were the 10 before: lower --learning_rate"):
        trainer.train()
    assert trainer.state.global_step == 10


# --- memory


OUT_OF_MEMORY = """
import resource, sys, torch
from pathlib import Path
from tiny import make_trainer, tiny_model, training_data
torch.set_num_threads(1)
root, folder = Path(sys.argv[1]), Path(sys.argv[2])
side = int(sys.argv[3])
trainer = make_trainer(root, folder, model=tiny_model(root, channels=256), per_device_train_batch_size=32,
                       data=training_data(root, crop_size=(side, side)))
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 700 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    trainer.train()
except MemoryError as error:
    print(error)
"""


OUT_OF_MEMORY_INFERENCE = """
import resource, sys, torch
import numpy as np
from pathlib import Path
from tiny import tiny_model
from vss_hf.inference import VideoSegmenter
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
torch.set_num_threads(1)
segmenter = VideoSegmenter(tiny_model(Path(sys.argv[1]), channels=256), VSSImageProcessor())
frames = [np.zeros((720, 1280, 3), np.uint8)] * 16
segmenter.step(frames[0][:64, :64])
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 900 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    segmenter.label_batch(frames)
except MemoryError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_out_of_memory_when_labelling(root):
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY_INFERENCE, root],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "out of memory with 16 frames of 720x1280 (height x width) on cpu: label fewer frames" in done.stdout


def test_words_for_no_memory():
    """Seen from torch's CPU convolutions under a limit; and oneDNN's word for what it cannot compute at all."""
    for words in ("DefaultCPUAllocator: can't allocate memory: you tried", "could not create a primitive"):
        assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize(
    ("side", "message"),
    [
        (320, "out of memory in step 1 with input (32, 3, 320, 320)"),
        pytest.param(1280, "out of memory while batches are put together", marks=pytest.mark.slow),  # 1 GB of input
    ],
)
def test_out_of_memory_says_what_to_turn_down(root, tmp_path, side, message):
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, root, tmp_path, str(side)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert message in done.stdout
    assert "--per_device_train_batch_size (now 32" in done.stdout
