"""OHEM against its definition at full resolution and mmsegmentation's numbers; the Trainer's loss of every model."""

import json
import math
from pathlib import Path

import pytest
import torch
from largest_tensor import LargestTensor
from safetensors.torch import load_file
from tiny import CALM, FrozenNorms, losses, make_default_data, make_trainer, state_of, tiny_model
from tiny import training_data as tiny_data
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from vss_hf.modeling import dense
from vss_hf.modeling.losses import mean_cross_entropy
from vss_hf.training.draws import Source, TrainingDraws
from vss_hf.training.loss_terms import ohem_cross_entropy


FIXTURE = Path(__file__).resolve().parents[2] / "../shared/parity/11_losses"
SIZE = (31, 53)
REDUCTIONS = ["kept", "labelled", "all"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def small_blocks(monkeypatch):
    """A few rows each."""
    monkeypatch.setattr(dense, "_BLOCK_BYTES_CPU", 4000)


def make(shape=(2, 5, 4, 7), size=SIZE, dtype=torch.float64):
    """Logits with a probability of the true class from near 0 to near 1, and labels of which a fifth is void."""
    labels = torch.randint(0, shape[1], (shape[0], *size))
    logits = 3 * torch.randn(shape, dtype=torch.float64)
    labels[torch.rand(labels.shape) < 0.2] = 255
    return logits.to(dtype).requires_grad_(), labels


def naive_hard(upsampled, labels, threshold, min_kept):
    """By sorting: bool (N, H, W)."""
    probability = upsampled.softmax(1).gather(1, labels.where(labels != 255, 0)[:, None])[:, 0]
    kept = probability < threshold
    places = (labels != 255).flatten().nonzero()[:, 0]
    hardest = places[probability.flatten()[places].argsort()[: min_kept * len(labels)]]
    kept.view(-1)[hardest] = True
    return kept & (labels != 255)


def naive(logits, labels, threshold=0.7, min_kept=0, reduction="kept", class_weights=None):
    upsampled = F.interpolate(logits.double(), size=labels.shape[1:], mode="bilinear")
    hard = naive_hard(upsampled, labels, threshold, min_kept)
    total = F.cross_entropy(upsampled.movedim(1, -1)[hard], labels[hard], class_weights, reduction="sum")
    if class_weights is None:
        assert torch.allclose(
            total, F.cross_entropy(upsampled, labels.where(hard, 255), ignore_index=255) * hard.sum()
        )
    return total / {"kept": hard.sum(), "labelled": (labels != 255).sum(), "all": labels.numel()}[reduction]


def value_and_gradient(loss, logits):
    value = loss(logits)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def assert_same(ours, reference, logits, relative=1e-6):
    value, gradient = value_and_gradient(ours, logits)
    expected, expected_gradient = value_and_gradient(reference, logits.detach().double().requires_grad_())
    assert expected > 0 and gradient.dtype == logits.dtype
    assert abs(value - expected) <= relative * expected
    assert (gradient - expected_gradient).abs().max() <= relative * expected_gradient.abs().max()


# --- OHEM itself


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("threshold", "min_kept"), [(0.7, 0), (0.3, 900), (0.7, 100), (0.0, 50), (1.0, 0), (0.5, 10**6)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_its_definition(small_blocks, threshold, min_kept, reduction, weighted):
    logits, labels = make()
    settings = dict(threshold=threshold, min_kept=min_kept, reduction=reduction)
    weights = torch.rand(5, dtype=torch.float64) + 0.1 if weighted else None
    assert_same(
        lambda x: ohem_cross_entropy(x, labels, class_weights=weights, **settings),
        lambda x: naive(x, labels, class_weights=weights, **settings),
        logits,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_of_the_logits(dtype):
    """Computed in float32; only the gradient is rounded to the logits' own precision."""
    logits, labels = make(dtype=dtype)
    relative = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    settings = dict(threshold=0.4, min_kept=700)
    loss = ohem_cross_entropy(logits, labels, **settings)
    expected = naive(logits.detach(), labels, **settings)
    assert loss.dtype == torch.float32 and abs(loss - expected) <= 1e-6 * expected
    assert_same(
        lambda x: ohem_cross_entropy(x, labels, **settings), lambda x: naive(x, labels, **settings), logits, relative
    )


def test_align_corners_ignore_index_and_uint8_labels():
    logits, labels = make()
    settings = dict(threshold=0.4, min_kept=700)
    for ignore_index in (255, -100):
        other = labels.where(labels != 255, ignore_index)
        ours = ohem_cross_entropy(logits, other, **settings, ignore_index=ignore_index)
        assert ours == ohem_cross_entropy(logits, labels.to(torch.uint8), **settings)
    upsampled = F.interpolate(logits, size=SIZE, mode="bilinear", align_corners=True)
    loss = ohem_cross_entropy(logits, labels, **settings, align_corners=True)
    assert loss.item() == pytest.approx(naive(upsampled, labels, **settings).item(), rel=1e-9)


def test_dropped_pixels_send_no_gradient():
    """The left half is easy, the right half hard: logits that only the left half reads get exactly nothing."""
    labels = torch.zeros(1, 16, 32, dtype=torch.long)
    logits = torch.zeros(1, 2, 4, 8)
    logits[:, 0, :, :4], logits[:, 0, :, 4:] = 5.0, -5.0
    _, gradient = value_and_gradient(lambda x: ohem_cross_entropy(x, labels, min_kept=0), logits.requires_grad_())
    assert not gradient[..., :3].any() and gradient[..., 4:].all()
    _, gradient = value_and_gradient(lambda x: ohem_cross_entropy(x, labels, min_kept=10**6), logits)
    assert gradient.all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("min_kept", [0, 3, 10**6])
def test_nothing_labelled(reduction, min_kept):
    logits, labels = make()
    labels.fill_(255)
    for items in (None, 0, 7):
        settings = dict(min_kept=min_kept, reduction=reduction, num_items_in_batch=items)
        value, gradient = value_and_gradient(
            lambda x, settings=settings: ohem_cross_entropy(x, labels, **settings), logits
        )
        assert value == 0 and not gradient.any()


def test_nothing_hard():
    logits = torch.tensor([20.0, -20.0]).view(1, 2, 1, 1).requires_grad_()
    value, gradient = value_and_gradient(
        lambda x: ohem_cross_entropy(x, torch.zeros(1, 8, 8, dtype=torch.long), min_kept=0), logits
    )
    assert value == 0 and not gradient.any()


def test_ties_are_kept_together():
    """A flat prediction that is good everywhere: the last of `min_kept` pixels is like all others."""
    logits = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1).expand(2, 2, 4, 4).clone().requires_grad_()
    labels = torch.zeros(2, 16, 16, dtype=torch.long)
    expected = -math.log(torch.tensor([3.0, 0.0]).softmax(0)[0])
    assert ohem_cross_entropy(logits, labels, min_kept=10).item() == pytest.approx(expected, rel=1e-6)
    assert ohem_cross_entropy(logits, labels, min_kept=10, reduction="all").item() == pytest.approx(expected, rel=1e-6)
    assert ohem_cross_entropy(logits, labels, min_kept=0) == 0


def test_fewer_labelled_pixels_than_min_kept_are_all_kept():
    logits, labels = make()
    loss = ohem_cross_entropy(logits, labels, threshold=0.0, min_kept=10**6)
    assert loss.item() == pytest.approx(mean_cross_entropy(logits, labels).item(), rel=1e-9)


def test_min_kept_counts_over_the_batch():
    """An easy image leaves its share to the others, as in mmsegmentation."""
    logits, labels = make()
    logits = torch.cat([logits.detach()[:1], torch.zeros_like(logits[:1])])
    logits[1, 0], labels[1] = 9.0, 0
    both = ohem_cross_entropy(logits, labels, threshold=0.0, min_kept=200)
    assert both.item() == pytest.approx(ohem_cross_entropy(logits[:1], labels[:1], threshold=0.0, min_kept=400).item())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    """Else a run that diverges would look like one that has learnt everything."""
    logits, labels = make()
    logits.data[0, 0] = bad
    for min_kept in (0, 50):
        assert not ohem_cross_entropy(logits, labels, min_kept=min_kept).isfinite()


def test_unknown_reduction():
    with pytest.raises(ValueError, match="reduction must be one of kept, labelled, all; got 'mean'"):
        ohem_cross_entropy(*make(), reduction="mean")


def test_no_tensor_of_all_classes_and_pixels_is_ever_made(small_blocks):
    logits, labels = make((2, 20, 8, 9), (64, 72), dtype=torch.float32)
    with LargestTensor() as largest:
        ohem_cross_entropy(logits, labels, min_kept=500).backward()
    assert largest.elements <= 2 * labels.numel()  # int64 labels; with all classes 20 times as many


# --- mmsegmentation


@pytest.mark.skipif(not FIXTURE.is_dir(), reason="reference numbers are not here")
@pytest.mark.parametrize("kept", [100, 400, 700, 100_000, "thr0.3_kept50", "thrNone_kept150"])
def test_mmsegmentation_pixel_sampler(kept):
    """min_kept beyond the labelled pixels drops the easiest of them there: a loss of 5e-4 among 1,316."""
    name = kept if isinstance(kept, str) else f"thr0.7_kept{kept}"
    threshold, min_kept = name.removeprefix("thr").split("_kept")
    settings = dict(threshold=0.0 if threshold == "None" else float(threshold), min_kept=int(min_kept))
    case = json.loads((FIXTURE / "config.json").read_text())["results"]
    tensors = load_file(FIXTURE / "tensors.safetensors")
    logits, labels = tensors["logits"].requires_grad_(), tensors["labels"]
    all_kept = case[f"ohem_kept/{name}"]["kept"] == 1315
    for reduction, suffix in (("all", ""), ("labelled", "_avg_non_ignore")):
        value, gradient = value_and_gradient(
            lambda x, reduction=reduction: ohem_cross_entropy(x, labels, reduction=reduction, **settings), logits
        )
        assert value.item() == pytest.approx(case[f"ohem_{name}{suffix}"]["loss"], rel=1e-6)
        expected = tensors[f"grad/ohem_{name}{suffix}"]
        wrong = (gradient - expected).abs().amax(1) > 1e-6 * expected.abs().max()
        assert wrong.sum() == (1 if all_kept else 0)
        if not all_kept:
            assert torch.equal((gradient != 0).any(1), tensors[f"ohem_weight/{name}"] > 0)


@pytest.mark.skipif(not FIXTURE.is_dir(), reason="reference numbers are not here")
@pytest.mark.parametrize("min_kept", [100, 1400])
def test_mmsegmentation_mean_over_kept_pixels(min_kept):
    """Its OhemCrossEntropy, with class weights; `min_kept` is of the batch of two there."""
    case = json.loads((FIXTURE / "config.json").read_text())["results"]
    tensors = load_file(FIXTURE / "tensors.safetensors")
    logits, labels = tensors["logits"].requires_grad_(), tensors["labels"]
    value, gradient = value_and_gradient(lambda x: ohem_cross_entropy(x, labels, min_kept=min_kept // 2), logits)
    name = f"ohem_cross_entropy_thr0.7_min{min_kept}"
    expected, expected_gradient = case[name]["loss"], tensors[f"grad/{name}"]
    if min_kept == 1400:  # all 1,316 labelled pixels; there without the easiest
        easiest = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")[labels != 255].min()
        expected = (expected * 1315 + easiest.item()) / 1316
        expected_gradient = expected_gradient * 1315 / 1316
    assert value.item() == pytest.approx(expected, rel=1e-6)
    wrong = (gradient - expected_gradient).abs().amax(1) > 1e-6 * expected_gradient.abs().max()
    assert wrong.sum() == (1 if min_kept == 1400 else 0)


# --- in the Trainer


SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
    "out_features": ["stage3", "stage4"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


def video_model(**changes):
    """An ST-PPM for clips of three frames and the three classes of the tiny data."""
    torch.manual_seed(0)
    fields = dict(backbone_config=dict(SWIN), in_index=1, auxiliary_in_index=0, channels=8, auxiliary_channels=8)
    fields |= dict(frame_offsets=[-2, -1], classifier_dropout=0.0, supervise_references=True)
    config = AutoConfig.for_model("vss_st_ppm", **{**fields, **changes}, id2label={0: "a", 1: "b", 2: "c"})
    return AutoModel.from_config(config).train()


def clips(**changes):
    """Two clips of three frames with labels of all."""
    labels = torch.randint(0, 3, (2, 3, 64, 40))
    labels[torch.rand(labels.shape) < 0.2] = 255
    batch = {"labels": labels[:, -1], "reference_labels": labels[:, :-1]}
    return {"pixel_values_videos": torch.randn(2, 3, 3, 64, 40), **batch}


VIDEO_CASES = {
    "all frames supervised": ({}, True),
    "no labels of the others": ({}, False),
    "the last frame supervised": ({"supervise_references": False}, True),
    "others without gradient": ({"detach_references": True}, True),
    "single frames": ({"frame_offsets": []}, False),
    "no auxiliary loss": ({"auxiliary_loss_weight": 0.0}, True),
}


def batch_of(root, model):
    samples = [tiny_data(root)[draw] for draw in range(3)]
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def full_resolution_loss(model, outputs, batch, items):
    """Cross entropy in float64, of the last frames and of all frames that the auxiliary head is compared with."""
    labels = batch["labels"]
    heads = [(outputs.logits, labels, 1, 1.0)]
    for logits in outputs.auxiliary_logits or ():
        if logits.ndim == 4:
            heads.append((logits, labels, 1, 0.4))
        elif logits.shape[1] == 1 or "reference_labels" not in batch:
            heads.append((logits[:, -1], labels, 1, 0.4))
        else:
            every = torch.cat([batch["reference_labels"], labels[:, None]], dim=1)
            heads.append((logits.flatten(0, 1), every.flatten(0, 1), 3, 0.4))
    assert len(heads) == 1 + (model.config.auxiliary_loss_weight > 0)
    total = 0
    for logits, head_labels, frames, weight in heads:
        upsampled = F.interpolate(logits.detach().double(), size=labels.shape[1:], mode="bilinear")
        mean = F.cross_entropy(upsampled, head_labels, ignore_index=255)
        total += weight * mean * (1 if items is None else (head_labels != 255).sum() / (items * frames))
    return total


@pytest.mark.parametrize("case", ["image", *VIDEO_CASES])
@pytest.mark.parametrize("items", [None, 1234])
def test_weights_of_one_change_nothing(root, tmp_path, case, items):
    """Models compute their own loss; with class weights the Trainer does, from the same forward pass."""
    if case == "image":
        model, batch = tiny_model(root), batch_of(root, "image")
    else:
        changes, with_references = VIDEO_CASES[case]
        model, batch = video_model(**changes), clips()
        if not with_references:
            del batch["reference_labels"]
        if "frame_offsets" in changes:
            batch["pixel_values_videos"] = batch["pixel_values_videos"][:, -1:]
    found = []
    for given in ([], [{"name": "cross_entropy", "class_weights": [1.0, 1.0, 1.0]}]):
        trainer = make_trainer(root, tmp_path, model=model, losses=given)
        loss, outputs = trainer.compute_loss(model, batch, return_outputs=True, num_items_in_batch=items)
        assert (outputs.loss is None) == bool(given)  # never computed twice
        model.zero_grad()
        loss.backward()
        found.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (own, own_gradients), (ours, our_gradients) = found
    assert own.item() == pytest.approx(full_resolution_loss(model, outputs, batch, items).item(), rel=1e-5)
    assert own > 0 and ours.item() == pytest.approx(own.item(), rel=1e-6)
    assert own_gradients.keys() == our_gradients.keys()
    for name, gradient in own_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("items", [None, 5000])
def test_ohem_of_main_and_auxiliary_heads(root, tmp_path, video, weighted, items):
    """Each head chooses its own hard pixels, over all frames that it is compared with."""
    model, batch = (video_model(), clips()) if video else (tiny_model(root).train(), batch_of(root, "image"))
    weights = [0.5, 2.0, 7.0] if weighted else None
    ohem = {"name": "ohem", "threshold": 0.35, "min_kept": 100, "class_weights": weights}
    trainer = make_trainer(root, tmp_path, model=model, losses=[ohem])
    loss, outputs = trainer.compute_loss(model, dict(batch), return_outputs=True, num_items_in_batch=items)
    heads = [(outputs.logits, batch["labels"], 1, 1.0)]
    if video:
        (logits,) = outputs.auxiliary_logits
        labels = torch.cat([batch["reference_labels"], batch["labels"][:, None]], dim=1)
        heads.append((logits.flatten(0, 1), labels.flatten(0, 1), 3, 0.4))
    else:
        heads.append((outputs.auxiliary_logits[0], batch["labels"], 1, 0.4))
    expected = 0
    for logits, labels, frames, head_weight in heads:
        doubles = None if weights is None else torch.tensor(weights).double()
        mean = naive(logits, labels, threshold=0.35, min_kept=100, class_weights=doubles)
        share = 1 if items is None else (labels != 255).sum() / (items * frames)
        expected += head_weight * mean * share
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_ohem_is_no_smaller_than_cross_entropy_and_still_learns(root, tmp_path):
    """On frames that are learnt by heart: the mean over hard pixels lies above the mean over all."""
    curves = {}
    for loss, entry in (("cross_entropy", {}), ("ohem", {"min_kept": 300})):
        trainer = make_trainer(
            root,
            tmp_path / loss,
            data=tiny_data(root, **CALM),
            max_steps=20,
            per_device_train_batch_size=7,
            learning_rate=2e-2,
            losses=[{"name": loss, **entry}],
        )
        trainer.train()
        curves[loss] = losses(trainer)
        batch = batch_of(root, "image")
        with torch.no_grad():
            outputs = trainer.model(batch["pixel_values"])
        for logits in (outputs.logits, *outputs.auxiliary_logits):
            hard = ohem_cross_entropy(logits, batch["labels"], min_kept=300)
            assert hard > mean_cross_entropy(logits, batch["labels"])
    assert curves["ohem"][-1] < 0.5 * curves["ohem"][0]
    assert curves["ohem"][0] >= curves["cross_entropy"][0]  # of the same weights
    assert trainer.evaluate((root, "train"))["eval_mean_iou"] > 0.5


def uneven_data(root):
    """Frames with different numbers of labelled pixels."""
    data = tiny_data(root, **CALM)
    samples = [data.sources[0].samples[index] for index in range(7)]
    for index, sample in enumerate(samples):
        sample["labels"] = sample["labels"].clone()
        sample["labels"][:, : 4 * index] = 255
    return TrainingDraws([Source(samples)], data.transform, seed=42)


def run(root, folder, batch_size, accumulation, **ohem):
    trainer = make_trainer(
        root,
        folder,
        model=tiny_model(root, FrozenNorms),
        data=uneven_data(root),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        losses=[{"name": "ohem", **ohem}],
        optim="sgd",
        learning_rate=0.1,
        max_steps=3,
    )
    trainer.train()
    return losses(trainer), state_of(trainer.model)


def test_micro_batches_by_threshold_are_one_batch(root, tmp_path):
    """Where no pixel's fate depends on others: no `min_kept`, and the mean over labelled pixels."""
    settings = dict(min_kept=0, threshold=0.4, reduction="labelled")
    (curve, state), (other, other_state) = (
        run(root, tmp_path / str(size), size, 8 // size, **settings) for size in (8, 2)
    )
    assert other == pytest.approx(curve, abs=1e-5) and max(curve) - min(curve) > 1e-3
    for name, tensor in state.items():
        torch.testing.assert_close(other_state[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_micro_batches_choose_by_themselves(root, tmp_path):
    """The step's loss is then the mean of their means, weighted by their labelled pixels."""
    model = tiny_model(root, FrozenNorms).train()
    settings = dict(threshold=0.4, min_kept=50)
    curve, _ = run(root, tmp_path, 2, 2, **settings)
    trainer = make_trainer(root, tmp_path, per_device_train_batch_size=2, data=uneven_data(root))
    batches = iter(trainer.get_train_dataloader())
    micro, weights = [], []
    for batch in (next(batches), next(batches)):
        with torch.no_grad():
            outputs = model(batch["pixel_values"])
        labels = batch["labels"]
        micro.append(
            naive(outputs.logits, labels, **settings) + 0.4 * naive(outputs.auxiliary_logits[0], labels, **settings)
        )
        weights.append((labels != 255).sum())
    expected = (micro[0] * weights[0] + micro[1] * weights[1]) / sum(weights)
    assert weights[0] != weights[1]
    assert curve[0] == pytest.approx(expected.item(), rel=1e-5)


# --- losses that count as they go


RUNNING = [{"name": "cross_entropy"}, {"name": "confusion_focal", "weight": 0.5, "momentum": 0.5}]


def test_a_running_confusion_goes_on_after_a_resume(root, tmp_path):
    """To the last bit; and micro-batches of a step count together."""
    settings = dict(losses=RUNNING, save_strategy="steps", save_steps=2, max_steps=4)
    whole = make_trainer(root, tmp_path / "whole", **settings)
    whole.train()
    again = make_trainer(root, tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    found, expected = (trainer.pixel_loss.terms[1][1].matrix for trainer in (again, whole))
    assert expected.sum().item() == pytest.approx(1 - 0.5**4, rel=1e-5) and torch.equal(found, expected)
    assert losses(again)[-2:] == losses(whole)[-2:]

    matrices = []
    for size in (8, 2):
        settings = dict(per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, max_steps=1)
        trainer = make_trainer(
            root, tmp_path / str(size), model=tiny_model(root, FrozenNorms), losses=RUNNING, **settings
        )
        trainer.train()
        matrices.append(trainer.pixel_loss.terms[1][1].matrix)
    torch.testing.assert_close(*matrices)
