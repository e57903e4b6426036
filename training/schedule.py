"""Learning-rate schedules of the papers that transformers does not have: the field `training.schedule`.

    lr_scheduler_type: linear                               # transformers' own, as long as there is no `schedule`
    schedule: {name: poly, power: 0.9, min_lr: 1.0e-4}      # instead of it
    schedule: {name: cyclic, cycle_steps: 2000}
    warmup_steps: 1500                                      # of either

transformers' schedules warm up from a rate of 0, and decay over the steps after the warm-up: `linear` is BetterThing's
(part 1). The codebases that the papers used count the decay from the first step on, and multiply it with the warm-up:
that is `poly` here.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_type_hints

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vss_hf.fields import known_or_raise, of_type, shown


@dataclass
class Schedule:
    """What all schedules have.

    Args:
        warmup_start: 0..1, share of the scheduled rate in the first step; it grows linearly to 1 over `warmup_steps`.
    """

    warmup_start: float = 1e-6

    def check(self, place: str) -> None:
        """Raise ValueError for a value outside its range; `place` is how messages call this schedule."""
        if not 0 <= self.warmup_start <= 1:
            raise ValueError(f"{place}.warmup_start: {self.warmup_start}: expected 0 <= value <= 1")

    def rate(self, step: int, steps: int, peak: float) -> float:
        """Learning rate without warm-up.

        Args:
            step: steps done before this one.
            steps: of the whole run.
            peak: the parameter group's own rate.
        """
        raise NotImplementedError


@dataclass
class Poly(Schedule):
    """(peak - min_lr) * (1 - step / steps) ** power + min_lr, with the warm-up among the steps.

    mmsegmentation 0.x (mmcv's PolyLrUpdaterHook) and Detectron2's WarmupPolyLR, which MaskFormer trains with.

    Args:
        power: of the decay, above 0; 1 is linear.
        min_lr: where it ends, the same for all parameter groups, at most the lowest of their rates.
    """

    power: float = 1.0
    min_lr: float = 0.0

    def check(self, place: str) -> None:
        super().check(place)
        if not 0 < self.power < math.inf:
            raise ValueError(f"{place}.power: {self.power}: expected a finite number above 0")
        if not 0 <= self.min_lr < math.inf:
            raise ValueError(f"{place}.min_lr: {self.min_lr}: expected a finite number of at least 0")

    def rate(self, step: int, steps: int, peak: float) -> float:
        left = max(0.0, 1 - step / steps)
        return (peak - self.min_lr) * left**self.power + self.min_lr


@dataclass
class Cyclic(Schedule):
    """From the peak down to `min_share` of it along a cosine, again and again: weights to average end each cycle.

    USTC (2021) trains 20,000 steps with a cyclical rate, averages the weights after every 2,000 of them, and does not
    tell the cycle's shape. This is the shape of Zhang et al. 2020, "SWA Object Detection", down to a hundredth.

    Args:
        cycle_steps: steps of a cycle; what is averaged are the weights after every so many steps.
        min_share: 0..1, the lowest rate as a share of the peak.
    """

    cycle_steps: int = 0
    min_share: float = 0.01

    def check(self, place: str) -> None:
        super().check(place)
        if self.cycle_steps < 1:
            raise ValueError(f"{place}.cycle_steps: {self.cycle_steps}: give the steps of a cycle, at least 1")
        if not 0 <= self.min_share <= 1:
            raise ValueError(f"{place}.min_share: {self.min_share}: expected 0 <= value <= 1")

    def rate(self, step: int, steps: int, peak: float) -> float:
        fall = (1 + math.cos(math.pi * (step % self.cycle_steps) / self.cycle_steps)) / 2
        return peak * (self.min_share + (1 - self.min_share) * fall)


SCHEDULES: dict[str, type[Schedule]] = {"poly": Poly, "cyclic": Cyclic}


def parse_schedule(given: dict[str, Any], place: str = "training.schedule") -> Schedule:
    """The schedule from its fields as they stand in a recipe.

    Args:
        given: e.g. `{"name": "poly", "power": 0.9}`.
        place: how messages call it.

    Raises:
        ValueError: a name or field that does not exist (with the nearest one), or a value outside its range.
    """
    if "name" not in given:
        raise ValueError(f"{place}: expected fields such as {{name: poly, power: 0.9}}; found {shown(given)}")
    fields = {key: value for key, value in given.items() if key != "name"}
    known_or_raise(given["name"], list(SCHEDULES), f"{place}.name: there is no schedule")
    kind = SCHEDULES[given["name"]]
    hints = get_type_hints(kind)
    for key in fields:
        known_or_raise(key, list(hints), f"{place} has no field")
    schedule = kind(**{key: of_type(value, hints[key], f"{place}.{key}") for key, value in fields.items()})
    schedule.check(place)
    return schedule


def build_scheduler(schedule: Schedule, optimizer: Optimizer, warmup_steps: int, steps: int) -> LambdaLR:
    """The schedule as torch's scheduler, to be stepped after every optimisation step.

    The rate follows from the number of steps done and nothing else, so that a resumed run goes on exactly.

    Args:
        schedule: the schedule.
        optimizer: its groups' `lr` are the peaks.
        warmup_steps: steps in which the rate grows.
        steps: of the whole run.

    Raises:
        ValueError: a group's rate is below the `min_lr` that it should fall to.
    """
    peaks = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    lowest = getattr(schedule, "min_lr", 0.0)
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        if 0 < peak < lowest:
            name = group.get("name", "all parameters")
            raise ValueError(f"training.schedule.min_lr: {lowest} is above the rate {peak:.3g} of the group '{name}'")

    def shares_of(peak: float) -> Callable[[int], float]:
        def share(step: int) -> float:
            """Of the peak, because LambdaLR multiplies."""
            start = schedule.warmup_start
            warm = start + (1 - start) * step / warmup_steps if step < warmup_steps else 1.0
            return warm * schedule.rate(step, steps, peak) / peak if peak else 1.0

        return share

    return LambdaLR(optimizer, [shares_of(peak) for peak in peaks])


@contextmanager
def keeping_settings(optimizer: Optimizer, scheduler: Any) -> Iterator[None]:
    """Within this context states are loaded; peak rates, weight decays and the schedule stay those before it.

    torch's states bring along the numbers of the run that saved them: a rate that was lowered for the resumed run
    would have no effect, and another schedule none in the first step. With the same settings nothing changes.

    Args:
        optimizer: with named groups, of which `scheduler` was made.
        scheduler: a LambdaLR, as all of transformers' step-wise schedules; others go on as they are loaded.

    Raises:
        ValueError: the loaded state is of another kind of optimizer, or of other groups.
    """
    before = [dict(group) for group in optimizer.param_groups]
    yield
    for old, group in zip(before, optimizer.param_groups, strict=True):
        if old["name"] != group.get("name", old["name"]):
            raise ValueError(f"there is the group '{group['name']}' in place of '{old['name']}'")
        if missing := sorted(old.keys() - group.keys() - {"initial_lr"}):
            raise ValueError(f"its groups have no {', '.join(missing)}")
    if not isinstance(scheduler, LambdaLR):
        return
    for old, group, share in zip(before, optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group["initial_lr"], group["weight_decay"] = old["initial_lr"], old["weight_decay"]
        group["lr"] = old["initial_lr"] * share(scheduler.last_epoch)
    scheduler.base_lrs = [old["initial_lr"] for old in before]
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
