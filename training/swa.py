"""Stochastic weight averaging (SWA): the mean of the weights that a run had at the ends of learning-rate cycles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .ema import WeightAverage
from .schedule import Cyclic


SWA_FILE = "swa.safetensors"


class SWA(WeightAverage):
    """The mean of snapshots: the weights after steps start + every, start + 2 * every, ...

    Until the first of them it is the model that it was made of.

    Args:
        model: as for `WeightAverage`.
        start: step after which the first cycle begins, at least 0.
        every: steps in a cycle, at least 1.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization" (UAI 2018). The
    fifth of the VSPW 2021 challenge took a snapshot every 2k of 20k more iterations, with a cyclical learning rate.
    """

    def __init__(self, model: nn.Module, start: int, every: int):
        super().__init__(model)
        self.start, self.every = start, every
        self.recalibrated = 0  # snapshots in the average when its BatchNorm statistics were last counted

    def share(self) -> torch.Tensor:
        return 1 / (1 + self.n_averaged)

    def snapshots(self, step: int) -> int:
        """How many snapshots there are after a step."""
        return max(0, step - self.start) // self.every

    def follow(self, model: nn.Module, step: int) -> None:
        """Take in the model if this step ends a cycle; every process must call this."""
        if self.snapshots(step) > self.snapshots(step - 1):
            self.update_parameters(model)

    def load(self, checkpoint: Path, step: int) -> None:
        """Take the average from the checkpoint after a step; one without snapshots may be of a run without SWA.

        Raises:
            ValueError: the checkpoint has other snapshots than there should be.
        """
        self.n_averaged.zero_()
        self.recalibrated = 0
        if (checkpoint / SWA_FILE).is_file():
            self.load_state_dict(load_file(checkpoint / SWA_FILE))
        found, expected = int(self.n_averaged), self.snapshots(step)
        if found != expected:
            raise ValueError(
                f"{checkpoint} holds {found} snapshots; with --swa_start {self.start} --swa_every {self.every} there "
                f"are {expected} after {step} steps; go on with the settings that it was made with, or let SWA begin "
                "later"
            )


def add_cycles(scheduler: Any, start: int, every: int, peak: float) -> None:
    """Let a schedule go over into cycles, of the shape of `Cyclic`.

    Args:
        scheduler: a LambdaLR, as all of transformers' step-wise schedules; changed in place.
        start: step after which the first cycle begins.
        every: steps in a cycle.
        peak: relative to the peak of the schedule so far.

    Raises:
        ValueError: the schedule is of another kind.
    """
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            f"--swa_learning_rate: a schedule of the kind {type(scheduler).__name__} cannot be followed by cycles; "
            "choose another --lr_scheduler_type, e.g. polynomial"
        )
    shape = Cyclic(cycle_steps=every)

    def with_cycles(before: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: before(step) if step < start else shape.rate(step - start, 0, peak)

    scheduler.lr_lambdas = [with_cycles(each) for each in scheduler.lr_lambdas]
    if start == 0:  # the schedule has set the first step's learning rates already
        for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = base * peak
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
