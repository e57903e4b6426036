"""The Trainer: exact steps, exact resume, honest evaluation; every run here has a second or so."""

import copy
import json
import multiprocessing
import shutil
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    CALM,
    RESNET,
    FrozenNorms,
    losses,
    make_data,
    make_default_data,
    make_trainer,
    state_of,
    tiny_clip_model,
    tiny_config,
    tiny_model,
    training_clips,
    training_data,
)
from torch.nn import functional as F
from transformers import TrainerCallback

from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation
from vss_hf.scoring.evaluation import evaluate_model
from vss_hf.training.draws import DrawOrder, EndlessSampler, Source, TrainingDraws
from vss_hf.training.saving import EMA_FILE


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# --- learning


def test_overfits_a_handful_of_frames(tmp_path):
    root = make_data(tmp_path / "videos", {"train": {"a": 4}, "val": {"v": 1}})
    trainer = make_trainer(
        root,
        tmp_path / "run",
        data=training_data(root, **CALM),
        max_steps=60,
        per_device_train_batch_size=4,
        learning_rate=2e-2,
        ema_decay=0.8,
        logging_steps=20,
    )
    trainer.train()
    curve = losses(trainer)
    assert curve[-1] < 0.3 * curve[0]
    assert trainer.evaluate((root, "train"))["eval_mean_iou"] > 0.8


# --- the loss of a step


def test_loss_is_the_mean_over_labelled_pixels_of_the_step(root, tmp_path):
    """Also when micro-batches hold different numbers of them."""
    data = training_data(root, **CALM)
    trainer = make_trainer(
        root,
        tmp_path,
        model=tiny_model(root, FrozenNorms),
        data=data,
        max_steps=1,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
    )
    model = tiny_model(root, FrozenNorms)
    trainer.train()
    batch = [data[draw] for draw in islice(EndlessSampler(DrawOrder(6)), 6)]
    pixels = torch.stack([sample["pixel_values"] for sample in batch])
    labels = torch.stack([sample["labels"] for sample in batch])
    assert 0 < (labels == 255).sum() < labels.numel()
    model.train()
    with torch.no_grad():
        outputs = model(pixels)
    expected = 0
    for logits, weight in ((outputs.logits, 1.0), (outputs.auxiliary_logits[0], 0.4)):
        upsampled = F.interpolate(logits.double(), size=labels.shape[1:], mode="bilinear")
        expected += weight * F.cross_entropy(upsampled, labels, ignore_index=255)
    assert losses(trainer)[0] == pytest.approx(float(expected), rel=1e-5)


def test_class_weights(root, tmp_path):
    """Sum of weight * cross entropy over the labelled pixels of the step, 1/n as in the paper."""
    weights = torch.tensor([0.5, 2.0, 7.0])
    trainer = make_trainer(root, tmp_path, losses=[{"name": "cross_entropy", "class_weights": weights.tolist()}])
    model = trainer.model.train()
    samples = [trainer.train_dataset[draw] for draw in range(3)]
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
    for num_items in (None, torch.tensor(1234)):
        torch.manual_seed(0)
        loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=num_items)
        outputs = model(batch["pixel_values"])
        labels, expected = batch["labels"], 0
        for logits, head_weight in ((outputs.logits, 1.0), (outputs.auxiliary_logits[0], 0.4)):
            upsampled = F.interpolate(logits.double(), size=labels.shape[1:], mode="bilinear")
            total = F.cross_entropy(upsampled, labels, weights.double(), ignore_index=255, reduction="sum")
            expected += head_weight * total / (num_items or (labels != 255).sum())
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", ["images", "weighted images", "clips", "weighted clips"])
def test_gradient_accumulation_equals_a_large_batch(root, tmp_path, kind):
    """With frozen BatchNorm, so that samples do not see each other, and SGD, which keeps small errors small."""
    weighted = [{"name": "cross_entropy", "class_weights": [0.5, 2.0, 7.0]}] if "weighted" in kind else []
    runs = []
    for batch_size, accumulation in ((8, 1), (4, 2), (2, 4)):
        trainer = make_trainer(
            root,
            tmp_path / f"{accumulation}",
            model=tiny_clip_model(root) if "clips" in kind else tiny_model(root, FrozenNorms),
            data=training_clips(root) if "clips" in kind else training_data(root),
            losses=weighted,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.1,
        )
        trainer.train()
        runs.append((losses(trainer), state_of(trainer.model)))
    (curve, state), *others = runs
    assert max(curve) - min(curve) > 1e-2  # something was learnt
    for other_curve, other_state in others:
        assert other_curve == pytest.approx(curve, abs=1e-5)
        for name, tensor in state.items():
            torch.testing.assert_close(other_state[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_nothing_labelled_gives_no_gradient_and_no_nan(tmp_path):
    root = make_data(tmp_path / "videos", {"train": {"a": 2}, "val": {"v": 1}})
    data = training_data(root, **CALM)
    samples = [data.sources[0].samples[index] for index in range(2)]
    samples = [{**sample, "labels": torch.full_like(sample["labels"], 255)} for sample in samples]
    unlabelled = TrainingDraws([Source(samples)], data.transform, seed=42)
    model = tiny_model(root)
    before = state_of(model)
    trainer = make_trainer(root, tmp_path, model=model, data=unlabelled, max_steps=2, weight_decay=0.0, optim="sgd")
    trainer.train()
    assert losses(trainer) == [0, 0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


# --- resuming


def full_settings(streaming, workers):
    """Everything that a checkpoint must hold at once."""
    return dict(
        max_steps=8,
        save_strategy="steps",
        save_steps=4,
        save_total_limit=None,
        gradient_accumulation_steps=2,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"power": 0.9, "lr_end": 1e-6},
        warmup_steps=3,
        ema_decay=0.9,
        weight_decay=0.01,
        max_grad_norm=1.0,
        dataloader_num_workers=workers,
    )


@pytest.mark.parametrize(("streaming", "workers"), [(False, 0), (False, 2), (True, 0), (True, 2)])
def test_resumed_run_is_the_uninterrupted_one(root, tmp_path, streaming, workers):
    """Weights, optimizer, schedule, average and random numbers (dropout), bit for bit, across passes over the data."""

    def run(folder, resume=None):
        model = tiny_model(root, classifier_dropout=0.1)
        data = training_data(root, streaming=streaming)
        trainer = make_trainer(root, folder, model=model, data=data, **full_settings(streaming, workers))
        trainer.train(resume_from_checkpoint=resume)
        assert not multiprocessing.active_children()  # no worker outlives the run
        return trainer

    straight = run(tmp_path / "straight")
    torch.manual_seed(12345)  # what a new process would not have either
    shutil.copytree(tmp_path / "straight" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    resumed = run(tmp_path / "resumed", resume=True)

    one, other = (tmp_path / name / "checkpoint-8" for name in ("straight", "resumed"))
    assert_same_state(load_file(one / "model.safetensors"), load_file(other / "model.safetensors"))
    assert_same_state(load_file(one / EMA_FILE), load_file(other / EMA_FILE))
    ours, theirs = (torch.load(path / "optimizer.pt", weights_only=True) for path in (one, other))
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in ours["state"].items():
        assert_same_state(state, theirs["state"][index])
    ours, theirs = (torch.load(path / "scheduler.pt", weights_only=True) for path in (one, other))
    assert ours["last_epoch"] == theirs["last_epoch"] == 8 and ours["_last_lr"] == theirs["_last_lr"]
    assert losses(straight)[4:] == losses(resumed)[4:]
    assert straight.state.epoch == resumed.state.epoch == pytest.approx(8 * 4 / 7)  # passes over 7 samples


def test_resume_reads_only_what_comes_next(root, tmp_path):
    """A checkpoint far into a long run must not cost reading everything before it."""

    class Counted:
        def __init__(self, samples):
            self.samples, self.opened = samples, []

        def __len__(self):
            return len(self.samples)

        def __getitem__(self, index):
            self.opened.append(index)
            return self.samples[index]

    def run(resume=None):
        data = training_data(root)
        source = data.sources[0]
        source.samples = counted = Counted(source.samples)
        settings = dict(max_steps=6, save_strategy="steps", save_steps=3, save_total_limit=None)
        make_trainer(root, tmp_path, data=data, **settings).train(resume_from_checkpoint=resume)
        return counted.opened

    everything = run()
    assert len(everything) == 12
    assert run(str(tmp_path / "checkpoint-3")) == everything[6:]


def test_resuming_a_finished_run_changes_nothing(root, tmp_path):
    """As happens when a run dies between its last checkpoint and its model folder."""
    settings = dict(max_steps=4, save_strategy="steps", save_steps=2, ema_decay=0.5)
    first = make_trainer(root, tmp_path, **settings)
    first.train()
    second = make_trainer(root, tmp_path, **settings)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 4
    assert_same_state(state_of(first.model), state_of(second.model))
    assert_same_state(state_of(first.ema), state_of(second.ema))


def test_unknown_checkpoints(root, tmp_path):
    trainer = make_trainer(root, tmp_path / "run", ema_decay=0.5)
    with pytest.raises(FileNotFoundError, match="--resume_from_checkpoint .*nowhere: not a whole checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="--resume_from_checkpoint: no checkpoint in .*run"):
        trainer.train(resume_from_checkpoint=True)


def test_checkpoint_without_average(root, tmp_path):
    make_trainer(root, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    trainer = make_trainer(root, tmp_path, max_steps=2, ema_decay=0.5)
    with pytest.raises(FileNotFoundError, match="ema.safetensors is missing, but --ema_decay 0.5"):
        trainer.train(resume_from_checkpoint=True)


def test_data_seed(root, tmp_path):
    """Zero is a seed like any other, and not "the same as --seed"."""
    curves = {}
    for seed, data_seed in ((0, None), (5, 0), (5, None)):
        trainer = make_trainer(root, tmp_path, max_steps=1, seed=seed, data_seed=data_seed)
        curves[seed, data_seed] = [batch["labels"] for batch in islice(trainer.get_train_dataloader(), 3)]
    assert all(map(torch.equal, curves[0, None], curves[5, 0]))
    assert not all(map(torch.equal, curves[5, None], curves[5, 0]))
    with pytest.raises(ValueError, match="draws with seed 42, the run with 5"):
        make_trainer(root, tmp_path, data=training_data(root), seed=5)


# --- evaluation


def test_evaluation_does_not_disturb_training(root, tmp_path):
    """Dropout draws from the same random numbers that loaders seed themselves from."""
    states = []
    for changes in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        model = tiny_model(root, classifier_dropout=0.5)
        trainer = make_trainer(root, tmp_path, model=model, max_steps=3, ema_decay=0.5, **changes)
        trainer.train()
        states.append(state_of(model))
    assert_same_state(*states)


class WorstAtTheEnd(TrainerCallback):
    """Ruins the averaged weights after a step, so that the best checkpoint is an earlier one."""

    def __init__(self, step):
        self.step, self.trainer = step, None

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                for parameter in self.trainer.ema.module.parameters():
                    parameter.zero_()


def test_best_checkpoint_by_average_is_the_result(root, tmp_path):
    callback = WorstAtTheEnd(step=4)
    trainer = make_trainer(
        root,
        tmp_path / "run",
        data=training_data(root, **CALM),
        max_steps=6,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        save_total_limit=1,
        load_best_model_at_end=True,
        learning_rate=2e-2,
        ema_decay=0.2,
        per_device_train_batch_size=4,
    )
    callback.trainer = trainer
    trainer.add_callback(callback)
    trainer.train()
    scores = {e["step"]: e["eval_mean_iou"] for e in trainer.state.log_history if "eval_mean_iou" in e}
    best = max(scores, key=scores.get)
    assert list(scores) == [2, 4, 6] and best in (2, 4) and scores[6] < scores[best]
    assert trainer.state.best_global_step == best and trainer.state.best_metric == scores[best]
    average = load_file(tmp_path / "run" / f"checkpoint-{best}" / EMA_FILE)
    with trainer.averaged_weights():
        assert_same_state({f"module.{k}": v for k, v in state_of(trainer.model).items()}, {
            name: tensor for name, tensor in average.items() if name != "n_averaged"
        })  # fmt: skip
        trainer.model.save_pretrained(tmp_path / "model")
        trainer.processing_class.save_pretrained(tmp_path / "model")
    metrics = trainer.evaluate()
    assert metrics["eval_mean_iou"] == scores[best]
    again = evaluate_model(VideoSegmenter.from_pretrained(tmp_path / "model", "cpu"), root, "val")
    for key in ("mean_iou", "frequency_weighted_iou", "pixel_accuracy", "mean_accuracy", "vc8"):
        assert metrics[f"eval_{key}"] == again[key], key
    assert again["vc16"] is None and "eval_vc16" not in metrics  # 10 frames hold no clip of 16


# --- settings


def test_warm_up_and_polynomial_decay(root, tmp_path):
    trainer = make_trainer(
        root,
        tmp_path,
        max_steps=10,
        learning_rate=1e-2,
        backbone_learning_rate=1e-3,
        warmup_steps=4,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"power": 0.9, "lr_end": 0.0},
    )
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    expected = [1e-2 * (t / 4 if t < 4 else (1 - (t - 4) / 6) ** 0.9) for t in range(10)]
    assert logged == pytest.approx(expected, rel=1e-6)  # the rate of the heads, not of the backbone
    rates = {group["name"]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == {"heads": 1e-2, "heads_no_decay": 1e-2, "backbone": 1e-3, "backbone_no_decay": 1e-3}


def test_bf16_on_the_cpu(root, tmp_path):
    """Master weights stay float32 and the curve stays near that of float32."""
    curves = []
    for bf16 in (False, True):
        trainer = make_trainer(root, tmp_path, bf16=bf16, ema_decay=0.5, max_steps=4)
        trainer.train()
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        curves.append(losses(trainer))
    assert curves[0] == pytest.approx(curves[1], abs=0.05) and curves[0] != curves[1]


def test_gradient_checkpointing_of_swin(root, tmp_path):
    """The same steps, with activations computed more than once."""
    swin = {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 2],
        "num_heads": [2, 2],
        "window_size": 4,
        "drop_path_rate": 0.0,
        "out_features": ["stage1", "stage2"],
    }
    runs = []
    for checkpointing in (False, True):
        model = tiny_model(root, backbone_config=copy.deepcopy(swin))
        trainer = make_trainer(root, tmp_path, model=model, max_steps=3, gradient_checkpointing=checkpointing)
        forwards = []
        block = model.backbone.swin.encoder.layers[0].blocks[0]
        block.layernorm_before.register_forward_hook(lambda *_, seen=forwards: seen.append(1))
        trainer.train()
        runs.append((losses(trainer), len(forwards)))
    assert runs[0][1] == 3 and runs[1][1] > 3  # it was in fact switched on
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5)


def test_channels_last_gives_the_same_numbers(root, tmp_path):
    runs = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = tiny_model(root).to(memory_format=memory_format)
        trainer = make_trainer(root, tmp_path, model=model, optim="sgd", ema_decay=0.5)
        trainer.train()
        runs.append((losses(trainer), state_of(model)))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-4)
    for name, tensor in runs[0][1].items():
        torch.testing.assert_close(runs[1][1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_checkpoint_is_a_model_folder(root, tmp_path):
    """And holds nothing pickled but the Trainer's own optimizer, schedule and random numbers."""
    trainer = make_trainer(root, tmp_path, max_steps=1, save_strategy="steps", save_steps=1, ema_decay=0.5)
    trainer.train()
    folder = tmp_path / "checkpoint-1"
    loaded = OCRNetForSemanticSegmentation.from_pretrained(folder)
    assert_same_state(state_of(trainer.model), state_of(loaded))
    assert loaded.config.id2label == tiny_config(root).id2label
    assert loaded.config.backbone_config.hidden_sizes == RESNET["hidden_sizes"]
    pickled = {path.name for path in folder.iterdir() if path.suffix in (".pt", ".pth", ".bin")}
    assert pickled == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 1
