"""Every step's learning rate against the formulas."""

import math

import pytest
import torch
from tiny import arguments, make_default_data, make_trainer
from torch import nn
from transformers import TrainerCallback, get_scheduler

from vss_hf.training.schedule import build_scheduler, parse_schedule


PEAKS = [6e-3, 6e-4, 0.0]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


def optimizer_of(peaks=PEAKS):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks], lr=peaks[0])


def rates(scheduler, optimizer, steps) -> list[list[float]]:
    """The rate of each step and group."""
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def mmcv_poly(step, steps, peak, power, min_lr, warmup, ratio) -> float:
    """PolyLrUpdaterHook with `warmup="linear"` and `by_epoch=False`: the decay is multiplied with the warm-up."""
    if peak == 0:  # a frozen backbone stays one
        return 0.0
    regular = (peak - min_lr) * (1 - step / steps) ** power + min_lr
    return regular if step >= warmup else regular * (1 - (1 - step / warmup) * (1 - ratio))


@pytest.mark.parametrize("warmup", [0, 1, 15])
@pytest.mark.parametrize(("power", "min_lr", "ratio"), [(1.0, 0.0, 1e-6), (0.9, 1e-4, 0.1), (2.5, 0.0, 1.0)])
def test_poly(power, min_lr, ratio, warmup):
    schedule = parse_schedule({"name": "poly", "power": power, "min_lr": min_lr, "warmup_start": ratio})
    optimizer = optimizer_of()
    found = rates(build_scheduler(schedule, optimizer, warmup, 60), optimizer, 60)
    for step, row in enumerate(found):
        expected = [mmcv_poly(step, 60, peak, power, min_lr, warmup, ratio) for peak in PEAKS]
        assert row == pytest.approx(expected, rel=1e-9, abs=0), step
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([min_lr, min_lr, 0.0], abs=0, rel=1e-12)


def test_detectron2_warms_up_alike():
    """WarmupPolyLR: factor * (1 - a) + a with a = step / warm-up steps."""
    optimizer = optimizer_of([6e-5])
    schedule = parse_schedule({"name": "poly", "power": 0.9})
    for step, [found] in enumerate(rates(build_scheduler(schedule, optimizer, 15, 160), optimizer, 160)):
        factor = 1e-6 * (1 - step / 15) + step / 15 if step < 15 else 1.0
        assert found == pytest.approx(6e-5 * factor * (1 - step / 160) ** 0.9, rel=1e-12)


def test_the_polynomial_of_transformers_begins_after_the_warm_up():
    """The other one of both: from 0, and the decay over the steps that are left."""
    optimizer = optimizer_of()
    scheduler = get_scheduler("polynomial", optimizer, 15, 60, {"power": 0.9, "lr_end": 0.0})
    ours = optimizer_of()
    other = rates(build_scheduler(parse_schedule({"name": "poly", "power": 0.9}), ours, 15, 60), ours, 60)
    for step, row in enumerate(rates(scheduler, optimizer, 60)):
        share = step / 15 if step < 15 else (1 - (step - 15) / 45) ** 0.9
        assert row == pytest.approx([peak * share for peak in PEAKS], rel=1e-12)
        if step:
            assert other[step][0] < row[0]
    without = optimizer_of(), optimizer_of()  # without a warm-up they are the same
    theirs = get_scheduler("polynomial", without[0], 0, 60, {"power": 0.9, "lr_end": 0.0})
    same = build_scheduler(parse_schedule({"name": "poly", "power": 0.9}), without[1], 0, 60)
    pairs = zip(rates(theirs, without[0], 60), rates(same, without[1], 60), strict=True)
    assert all(a == pytest.approx(b, rel=1e-12) for a, b in pairs)


@pytest.mark.parametrize("warmup", [0, 5])
def test_cyclic(warmup):
    optimizer = optimizer_of()
    schedule = parse_schedule({"name": "cyclic", "cycle_steps": 8, "min_share": 0.02})
    found = rates(build_scheduler(schedule, optimizer, warmup, 40), optimizer, 40)
    for step, row in enumerate(found):
        position = (step - 8 * math.floor(step / 8)) / 8
        warm = 1e-6 + (1 - 1e-6) * step / warmup if step < warmup else 1
        low = [0.02 * peak for peak in PEAKS]
        expected = [b + (a - b) * 0.5 * (1 + math.cos(math.pi * position)) for a, b in zip(PEAKS, low, strict=True)]
        assert row == pytest.approx([warm * rate for rate in expected], rel=1e-12, abs=0), step
    assert [row[0] for row in found[8::8]] == [PEAKS[0]] * 4  # back at the peak after every cycle
    # torch's scheduler of the same shape (its lowest rate is one for all groups).
    other = optimizer_of([6e-3])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(other, T_0=8, eta_min=0.02 * 6e-3)
    if not warmup:
        assert [row[0] for row in found] == pytest.approx([row[0] for row in rates(scheduler, other, 40)], rel=1e-9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"power": 1.0}, "training.schedule: expected fields such as {name: poly"),
        ({"name": "polly"}, "training.schedule.name: there is no schedule 'polly'; did you mean 'poly'"),
        ({"name": ["poly"]}, "there is no schedule"),
        ({"name": "poly", "powr": 1}, "training.schedule has no field 'powr'; did you mean 'power'"),
        ({"name": "poly", "power": "high"}, "training.schedule.power: expected a number; found 'high'"),
        ({"name": "poly", "power": 0}, "training.schedule.power: 0: expected a finite number above 0"),
        ({"name": "poly", "min_lr": -1.0}, "training.schedule.min_lr: -1.0"),
        ({"name": "poly", "warmup_start": 2.0}, "training.schedule.warmup_start: 2.0: expected 0 <= value <= 1"),
        ({"name": "cyclic"}, "training.schedule.cycle_steps: 0: give the steps of a cycle"),
        ({"name": "cyclic", "cycle_steps": 4, "min_share": 2}, "training.schedule.min_share: 2"),
    ],
)
def test_wrong_fields(tmp_path, given, message):
    with pytest.raises(ValueError) as error:
        arguments(tmp_path, schedule=given, lr_scheduler_type="linear")
    assert message in str(error.value)


def test_either_a_schedule_or_one_of_transformers(tmp_path):
    with pytest.raises(ValueError, match="--lr_scheduler_type cosine: there is a training.schedule"):
        arguments(tmp_path, schedule={"name": "poly"}, lr_scheduler_type="cosine")


@pytest.mark.parametrize("given", [{"name": "poly", "power": 0.9}, {"name": "cyclic", "cycle_steps": 4}])
def test_a_loaded_state_goes_on(given):
    schedule, whole, parts = parse_schedule(given), optimizer_of(), [optimizer_of(), optimizer_of()]
    expected = rates(build_scheduler(schedule, whole, 3, 20), whole, 20)
    before, after = (build_scheduler(schedule, optimizer, 3, 20) for optimizer in parts)
    found = rates(before, parts[0], 7)
    parts[1].load_state_dict(parts[0].state_dict())
    after.load_state_dict(before.state_dict())
    assert found + rates(after, parts[1], 13) == expected


def test_an_end_above_the_beginning():
    with pytest.raises(ValueError, match=r"min_lr: 0.001 is above the rate 0.0006 of the group"):
        build_scheduler(parse_schedule({"name": "poly", "min_lr": 1e-3}), optimizer_of(), 0, 10)


# --- in a run


class Rates(TrainerCallback):
    """Notes the rates with which steps are taken."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        self.steps.append([group["lr"] for group in optimizer.param_groups])


def test_a_run_and_its_continuation(root, tmp_path):
    """Whole and resumed: the same rates, logs and weights, and those of the formula."""

    def run(**options):
        trainer = make_trainer(
            root,
            tmp_path,
            max_steps=5,
            lr_scheduler_type="linear",
            schedule={"name": "poly", "power": 0.9, "min_lr": 1e-3},
            warmup_steps=2,
            learning_rate=0.03,
            backbone_learning_rate=0.01,
            layer_decay=0.7,
            save_strategy="steps",
            save_steps=3,
        )
        callback = Rates()
        trainer.add_callback(callback)
        trainer.train(**options)
        return trainer, callback.steps

    whole, steps = run()
    resumed, after = run(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert len(steps) == 5 and after == steps[3:]
    shares = {"backbone_layer_00": 0.7**3, "backbone_layer_01": 0.7**2, "backbone_layer_02": 0.7}
    for step, row in enumerate(steps):
        for group, found in zip(whole.optimizer.param_groups, row, strict=True):
            name = group["name"].removesuffix("_no_decay")
            peak = 0.03 if name == "heads" else 0.01 * shares[name]
            assert found == pytest.approx(mmcv_poly(step, 5, peak, 0.9, 1e-3, 2, 1e-6), rel=1e-9)
    logged = [entry["learning_rate"] for entry in whole.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx([row[0] for row in steps])
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name


POLY_RUN = dict(
    lr_scheduler_type="linear",
    schedule={"name": "poly"},
    learning_rate=0.04,
    backbone_learning_rate=0.02,
    weight_decay=0.1,
    optim="sgd",
)


@pytest.fixture(scope="module")
def halfway(root, tmp_path_factory):
    """The checkpoint after step 2 of 4."""
    folder = tmp_path_factory.mktemp("halfway")
    make_trainer(root, folder, max_steps=4, save_strategy="steps", save_steps=2, **POLY_RUN).train()
    return folder / "checkpoint-2"


@pytest.mark.parametrize(
    ("changes", "rates", "decay"),
    [
        ({"learning_rate": 0.01, "backbone_learning_rate": 0.002}, [0.005, 0.001], 0.1),
        ({"weight_decay": 0.5}, [0.02, 0.01], 0.5),
        ({"max_steps": 8}, [0.03, 0.015], 0.1),
        ({"schedule": None, "lr_scheduler_type": "constant"}, [0.04, 0.02], 0.1),
        ({"swa_start": 2, "swa_every": 1, "swa_learning_rate": 0.08}, [0.08, 0.04], 0.1),
    ],
)
def test_a_resumed_run_obeys_its_own_settings(root, tmp_path, halfway, changes, rates, decay):
    """From its first step on, which the checkpoint of another schedule knows nothing of."""
    settings = {"max_steps": 4, **POLY_RUN, **changes}
    trainer = make_trainer(root, tmp_path, **settings)
    callback = Rates()
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=halfway)
    assert callback.steps[0] == pytest.approx([rates[0]] * 2 + [rates[1]] * 2)
    assert len(callback.steps) == settings["max_steps"] - 2
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [decay, 0, decay, 0]


@pytest.mark.parametrize("changes", [{"layer_decay": 0.5}, {"no_decay": ["1d", "conv"]}, {"optim": "adamw_torch"}])
def test_other_groups_of_parameters_cannot_be_resumed(root, tmp_path, halfway, changes):
    trainer = make_trainer(root, tmp_path, max_steps=4, **{**POLY_RUN, **changes})
    with pytest.raises(ValueError, match="--resume_from_checkpoint .*: the optimizer's state there is of another"):
        trainer.train(resume_from_checkpoint=halfway)


def test_cycles_begin_after_the_warm_up(tmp_path):
    cycles = {"swa_every": 2, "swa_start": 3, "swa_learning_rate": 0.1}
    arguments(tmp_path, warmup_steps=3, **cycles)
    with pytest.raises(ValueError, match="--warmup_steps 4 with --swa_start 3: SWA's cycles would begin within"):
        arguments(tmp_path, warmup_steps=4, **cycles)
    arguments(tmp_path, warmup_steps=4, swa_every=2, swa_start=3)  # the schedule goes on: nothing is cut off


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -1.0}, "--learning_rate -1.0: expected at least 0 and finite"),
        ({"backbone_learning_rate": math.inf}, "--backbone_learning_rate inf: expected at least 0 and finite"),
        ({"weight_decay": -0.1}, "--weight_decay -0.1: expected at least 0 and finite"),
        ({"swa_every": 1, "swa_learning_rate": math.inf}, "--swa_learning_rate inf: expected at least 0 and finite"),
        ({"schedule": {"name": "poly"}, "lr_scheduler_kwargs": {"power": 2}}, "training.schedule has its own"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, lr_scheduler_type="linear", **changes)
