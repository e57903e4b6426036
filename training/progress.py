"""What a run shows on the terminal: a bar, or a line at each logging step; and the classes at each evaluation."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.utils import logging

from vss_hf.scoring.class_scores import GROUPS, class_table


STEPS_OF_RATE = 50  # how far back images per second look
BAR = "{n_fmt}/{total_fmt} |{bar}| {desc}"


@contextmanager
def without_bars_of_transformers() -> Iterator[None]:
    """In this context transformers draws no bars: they last no time and spoil the one of the run."""
    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


class Stopwatch:
    """How fast a run goes, from the times at which its steps ended.

    Nothing here asks a GPU, which may still be at work on the last of the steps that are counted.

    Args:
        step: that has been done already.
        clock: seconds, of a clock that only goes forward.
    """

    def __init__(self, step: int, clock=time.monotonic):
        self.clock, self.first_step, self.began = clock, step, clock()
        self.step, self.last = step, self.began
        self.paused = 0.0  # seconds of evaluating and saving
        self.warm: tuple[int, float] | None = None  # the first step, which may compile and fill caches, and its end
        self.marks = deque([(step, self.began)], maxlen=STEPS_OF_RATE + 1)  # working time only

    def end_step(self, step: int) -> None:
        """A step is done."""
        self.step, self.last = step, self.clock()
        self.marks.append((step, self.last - self.paused))
        if self.warm is None:
            self.warm = (step, self.last)

    def end_pause(self) -> None:
        """What was done since the last step, or since the last pause, was no training."""
        now = self.clock()
        self.paused, self.last = self.paused + now - self.last, now

    def steps_per_second(self) -> float | None:
        """Of the last steps, with their data, without evaluating and saving; None before the first one."""
        (first, then), (last, now) = self.marks[0], self.marks[-1]
        return (last - first) / (now - then) if now > then else None

    def seconds_left(self, max_steps: int) -> float | None:
        """Until the run ends, if the rest goes as its steps so far, with what there was of evaluating and saving."""
        first, then = self.warm if self.warm and self.step > self.warm[0] else (self.first_step, self.began)
        done = self.step - first
        return (self.clock() - then) / done * (max_steps - self.step) if done else None


class RunProgress(TrainerCallback):
    """Shows where a run is: step, loss, mIoU, learning rate, images per second of all processes, time left.

    In a terminal it is a bar on the error stream; without one, or with `--disable_tqdm`, a line on standard output at
    each logging step. After each evaluation come a line with its means and a table of the worst classes. The loss is
    the mean since the logging step before, as the Trainer logs it.

    Args:
        trainer: the `VSSTrainer`; its `global_batch_size` and `eval_results` are shown.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.bar: tqdm | None = None
        self.watch: Stopwatch | None = None  # in the first process, while it trains
        self.shown: dict[str, str] = {}  # by key of the log

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.shown = {}
        for entry in state.log_history:  # of the run that is resumed
            self.note(entry)
        self.watch = Stopwatch(state.global_step)
        if sys.stderr.isatty() and not args.disable_tqdm:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, bar_format=BAR, dynamic_ncols=True, file=sys.stderr
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.watch is not None:
            self.watch.end_step(state.global_step)
        self.draw(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.watch is None or not logs or "loss" not in logs:
            return
        self.note(logs)
        if self.bar is None:
            self.write(f"step {state.global_step}/{state.max_steps}  {'  '.join(self.facts(state))}")
        self.draw(state, at_once=True)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self.watch is not None:
            self.watch.end_pause()
        if not state.is_world_process_zero or not metrics or "eval_mean_iou" not in metrics:
            return
        self.note(metrics)
        console = Console()
        with console.capture() as captured:
            console.print(class_table(self.trainer.eval_results))
        self.write(f"{self.told(state, metrics)}\n{captured.get()}")
        self.draw(state, at_once=True)

    def on_save(self, args, state, control, **kwargs):
        if self.watch is not None:
            self.watch.end_pause()

    def on_train_end(self, args, state, control, **kwargs):
        if self.watch is None:
            return
        watch, steps = self.watch, state.global_step - self.watch.first_step
        self.close()
        seconds = watch.clock() - watch.began
        images = steps * self.trainer.global_batch_size
        rate = f", {images / (seconds - watch.paused):.1f} images/s without evaluating and saving" if steps else ""
        self.write(f"{steps} steps, {images} images in {tqdm.format_interval(seconds)}{rate}")

    def close(self) -> None:
        """Leave the bar as it is; also when a run breaks off."""
        if self.bar is not None:
            self.bar.close()
        self.bar = self.watch = None

    # --- what is shown

    def note(self, logs: dict[str, Any]) -> None:
        """Remember what is shown of a log entry."""
        forms = {"loss": "loss {:.4f}", "eval_mean_iou": "mIoU {:.4f}", "learning_rate": "lr {:.1e}"}
        self.shown |= {key: form.format(logs[key]) for key, form in forms.items() if key in logs}

    def facts(self, state) -> list[str]:
        """The words behind the bar."""
        assert self.watch is not None
        left, rate = self.watch.seconds_left(state.max_steps), self.watch.steps_per_second()
        speed = [] if rate is None else [f"{rate * self.trainer.global_batch_size:.1f} images/s"]
        time_left = [] if left is None else [f"{tqdm.format_interval(left)} left"]
        return [
            *time_left,
            *speed,
            *(self.shown[key] for key in ("loss", "eval_mean_iou", "learning_rate") if key in self.shown),
        ]

    def draw(self, state, at_once: bool = False) -> None:
        """Bring the bar up to date; unless it has to be `at_once`, tqdm sees to it that this is not too often."""
        if self.bar is not None:
            self.bar.set_description_str(", ".join(self.facts(state)), refresh=False)
            self.bar.update(state.global_step - self.bar.n)
            if at_once:
                self.bar.refresh()

    def told(self, state, metrics: dict[str, float]) -> str:
        """An evaluation in a line."""
        scores = {entry["step"]: entry["eval_mean_iou"] for entry in state.log_history if "eval_mean_iou" in entry}
        best = max(scores, key=lambda step: scores[step])
        words = [f"mIoU {metrics['eval_mean_iou']:.4f}"]
        if scores[best] > metrics["eval_mean_iou"]:
            words[0] += f" (best {scores[best]:.4f} at step {best})"
        words += [f"{group} {metrics[key]:.4f}" for group in GROUPS if (key := f"eval_mean_iou_{group}") in metrics]
        words.append(f"{metrics['eval_runtime']:.1f} s")
        return f"\nevaluation at step {state.global_step}: {', '.join(words)}"

    def write(self, text: str) -> None:
        """Lines above the bar."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def frames(self, frames: Iterator, total: int) -> Iterator:
        """A second bar while the videos are evaluated on."""
        return iter(tqdm(frames, total=total, desc="evaluating", unit="frame", leave=False, disable=self.bar is None))
