"""Losses of one head against their formulas at full resolution in float64, and mmsegmentation's numbers."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from largest_tensor import LargestTensor
from safetensors.torch import load_file
from torch.nn import functional as F

from vss_hf.modeling import dense
from vss_hf.training.confusion_focal import ConfusionFocalLoss
from vss_hf.training.loss_terms import dice_loss, focal_loss, lovasz_loss, weighted_cross_entropy


FIXTURE = Path(__file__).resolve().parents[2] / "../shared/parity/11_losses"
needs_fixture = pytest.mark.skipif(not FIXTURE.is_dir(), reason="reference numbers are not here")
SIZE = (31, 53)
WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.0, 7.0], dtype=torch.float64)
CONFUSION = torch.tensor(
    [[9, 5, 0, 0, 1], [2, 4, 1, 0, 0], [0, 30, 8, 2, 0], [1, 0, 2, 6, 3], [0, 0, 0, 9, 0]], dtype=torch.float64
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def small_blocks(monkeypatch):
    """A few rows each."""
    monkeypatch.setattr(dense, "_BLOCK_BYTES_CPU", 30_000)


# --- the formulas, of logits (N, K, H, W) and labels (N, H, W)


def parts(upsampled, labels):
    """Of the labelled pixels: probabilities (pixels, K), cross entropies, true and predicted classes."""
    chosen = upsampled.movedim(1, -1)[labels != 255]
    label = labels[labels != 255]
    return chosen.softmax(1), F.cross_entropy(chosen, label, reduction="none"), label, chosen.argmax(1)


def naive_weighted(upsampled, labels, maximum=False, by_weights=False):
    _, losses, label, predicted = parts(upsampled, labels)
    weights = torch.maximum(WEIGHTS[label], WEIGHTS[predicted]) if maximum else WEIGHTS[label]
    return (weights * losses).sum() / (WEIGHTS[label].sum() if by_weights else len(label))


def naive_focal(upsampled, labels, gamma=2.0, weights=None):
    p, losses, label, _ = parts(upsampled, labels)
    p = p.gather(1, label[:, None])[:, 0]
    return ((1 if weights is None else weights[label]) * (1 - p) ** gamma * losses).mean()


def naive_sigmoid_focal(upsampled, labels, gamma=2.0, alpha=0.25, weights=None):
    chosen, label = upsampled.movedim(1, -1)[labels != 255], labels[labels != 255]
    true = F.one_hot(label, upsampled.shape[1])
    p = chosen.sigmoid()
    p_right = torch.where(true == 1, p, 1 - p)
    losses = torch.where(true == 1, alpha, 1 - alpha) * (1 - p_right) ** gamma * -p_right.log()
    return (losses if weights is None else losses * weights).mean()


def naive_confusion_focal(upsampled, labels, floor=1.0, cap=10.0):
    p, losses, label, predicted = parts(upsampled, labels)
    right = CONFUSION.diagonal()
    factors = torch.empty(len(label), dtype=torch.float64)
    for i, (y, other) in enumerate(zip(label.tolist(), predicted.tolist(), strict=True)):
        least = min(right[y], right[other])
        ratio = CONFUSION[y, other] / least if least else (math.inf if CONFUSION[y, other] else 0)
        factors[i] = 1 if y == other else min(max(ratio, floor), cap)
    return (factors * (1 - p.gather(1, label[:, None])[:, 0]) ** 2 * losses).mean()


def naive_dice(upsampled, labels, smooth=1.0):
    p, _, label, _ = parts(upsampled, labels)
    true = F.one_hot(label, upsampled.shape[1])
    dice = (2 * (p * true).sum(0) + smooth) / (p.sum(0) + true.sum(0) + smooth)
    return (1 - dice)[true.sum(0) > 0].mean()


def naive_lovasz(upsampled, labels, classes="present", per_image=False):
    """With Jaccard losses from set sizes, for every beginning of the sorted errors."""
    if per_image:
        return sum(naive_lovasz(upsampled[[i]], labels[[i]], classes) for i in range(len(labels))) / len(labels)
    p, _, label, _ = parts(upsampled, labels)
    losses = []
    for c in range(upsampled.shape[1]):
        inside = (label == c).double()
        if classes == "all" or inside.any():
            errors, order = (inside - p[:, c]).abs().sort(descending=True)
            missed, false = inside[order].cumsum(0), (1 - inside[order]).cumsum(0)
            jaccard = 1 - (inside.sum() - missed) / (inside.sum() + false)
            losses.append((errors * jaccard.diff(prepend=torch.zeros(1))).sum())
    return sum(losses) / len(losses)


confusion_focal = ConfusionFocalLoss(CONFUSION, 5)
literal_confusion_focal = ConfusionFocalLoss(CONFUSION, 5, floor=0.0, cap=1e6)
# name -> (ours, formula); the first kind are means over pixels
MEANS = {
    "weights": (partial(weighted_cross_entropy, class_weights=WEIGHTS), naive_weighted),
    "larger weight": (
        partial(weighted_cross_entropy, class_weights=WEIGHTS, max_with_predicted=True),
        partial(naive_weighted, maximum=True),
    ),
    "focal": (focal_loss, naive_focal),
    "focal 0.5": (partial(focal_loss, gamma=0.5), partial(naive_focal, gamma=0.5)),
    "focal weighted": (partial(focal_loss, class_weights=WEIGHTS), partial(naive_focal, weights=WEIGHTS)),
    "sigmoid focal": (partial(focal_loss, alpha=0.25), naive_sigmoid_focal),
    "sigmoid focal weighted": (
        partial(focal_loss, alpha=0.75, gamma=1.5, class_weights=WEIGHTS),
        partial(naive_sigmoid_focal, alpha=0.75, gamma=1.5, weights=WEIGHTS),
    ),
    "confusion focal": (confusion_focal, naive_confusion_focal),
    "literal confusion focal": (literal_confusion_focal, partial(naive_confusion_focal, floor=0.0, cap=1e6)),
}
OTHERS = {
    "by weights": (
        partial(weighted_cross_entropy, class_weights=WEIGHTS, reduction="weights"),
        partial(naive_weighted, by_weights=True),
    ),
    "dice": (dice_loss, naive_dice),
    "dice 0.01": (partial(dice_loss, smooth=0.01), partial(naive_dice, smooth=0.01)),
    "lovasz": (lovasz_loss, naive_lovasz),
    "lovasz all": (partial(lovasz_loss, classes="all"), partial(naive_lovasz, classes="all")),
    "lovasz per image": (partial(lovasz_loss, per_image=True), partial(naive_lovasz, per_image=True)),
}
CASES = {**MEANS, **OTHERS}


def make(shape=(2, 5, 4, 7), size=SIZE, dtype=torch.float64, classes=5):
    """Logits and labels, of which a fifth is void; the class 3 is absent."""
    labels = torch.randint(0, classes, (shape[0], *size))
    labels[labels == 3] = 2
    labels[torch.rand(labels.shape) < 0.2] = 255
    return (3 * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_(), labels


def value_and_gradient(loss, logits):
    value = loss(logits)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def assert_same(case, logits, labels, relative, align_corners=False):
    ours, formula = CASES[case]
    value, gradient = value_and_gradient(lambda x: ours(x, labels, align_corners=align_corners), logits)
    expected, expected_gradient = value_and_gradient(
        lambda x: formula(F.interpolate(x, labels.shape[1:], mode="bilinear", align_corners=align_corners), labels),
        logits.detach().double().requires_grad_(),
    )
    assert gradient.dtype == logits.dtype and expected > 0
    assert abs(value - expected) <= min(relative, 1e-5) * expected
    assert (gradient - expected_gradient).abs().max() <= relative * expected_gradient.abs().max()


# --- all of them


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape, size", [((2, 5, 4, 7), SIZE), ((1, 5, 7, 3), (7, 5)), ((3, 5, 1, 1), (2, 3))])
def test_equals_its_formula(small_blocks, case, shape, size):
    for align_corners in (False, True):
        assert_same(case, *make(shape, size), 1e-9, align_corners)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_precision_of_the_logits(case, dtype, relative):
    """Computed in float32, autocast or not; only the gradient is rounded to the logits' own precision."""
    logits, labels = make(dtype=dtype)
    assert_same(case, logits, labels, relative)
    with torch.autocast("cpu", torch.bfloat16):
        value = CASES[case][0](logits, labels)
    assert value.dtype == torch.float32 and value == CASES[case][0](logits, labels)


@pytest.mark.parametrize("case", CASES)
def test_ignored_pixels_send_nothing(case):
    """Columns from 8 on are void: they alone read the columns from 3 on of the logits."""
    logits, labels = torch.randn(1, 5, 4, 4, requires_grad=True), torch.randint(0, 3, (1, 16, 16))
    labels[:, :, 8:] = 255
    ours = CASES[case][0]
    value, gradient = value_and_gradient(lambda x: ours(x, labels), logits)
    assert gradient[..., :3].any() and not gradient[..., 3:].any()
    with torch.no_grad():
        logits[..., 3:] += 5
        assert torch.equal(ours(logits, labels), value)
        assert torch.equal(ours(logits, labels.where(labels != 255, -100), ignore_index=-100), value)
        assert torch.equal(ours(logits, labels.byte()), value)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nothing_labelled(case, dtype):
    logits, labels = make(dtype=dtype)
    labels.fill_(255)
    for items in (None, 0, 7):
        value, gradient = value_and_gradient(
            lambda x, n=items: CASES[case][0](x, labels, num_items_in_batch=n), logits
        )
        assert value == 0 and not gradient.any()


@pytest.mark.parametrize("case", CASES)
def test_certain_predictions(case):
    """Where everything is right, and where everything is wrong, by as much as float32 can hold."""
    labels = torch.randint(0, 2, (2, 6, 6))
    logits = 1e4 * (2 * F.one_hot(labels, 5).movedim(-1, 1).float() - 1)
    ours = CASES[case][0]
    for wrong in (False, True):
        value, gradient = value_and_gradient(
            lambda x, w=wrong: ours(x, labels, align_corners=w), (-logits if wrong else logits).requires_grad_()
        )
        assert value.isfinite() and gradient.isfinite().all()
        assert value > 0.1 if wrong else value.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_finite_is_not_hidden(case):
    logits, labels = make()
    logits.data[0, 0] = math.nan
    assert not CASES[case][0](logits, labels).isfinite()


@pytest.mark.parametrize("case", CASES)
def test_micro_batches(case):
    """Means over pixels: those of the micro-batches are parts of the big batch's. The others: means, weighted."""
    logits, labels = make((3, 5, 4, 7))
    labels[0, :20] = 255
    ours = CASES[case][0]
    items = (labels != 255).sum()
    total, gradient = value_and_gradient(
        lambda x: sum(ours(x[part], labels[part], num_items_in_batch=items) for part in (slice(0, 1), slice(1, 3))),
        logits,
    )
    if case in MEANS:
        whole, whole_gradient = value_and_gradient(lambda x: ours(x, labels), logits)
        assert torch.allclose(gradient, whole_gradient, rtol=1e-9, atol=1e-15)
    else:
        shares = [(labels[part] != 255).sum().double() / items for part in (slice(0, 1), slice(1, 3))]
        whole = shares[0] * ours(logits[:1], labels[:1]) + shares[1] * ours(logits[1:], labels[1:])
    assert total.item() == pytest.approx(whole.item(), rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_no_tensor_of_all_classes_and_pixels_is_ever_made(small_blocks, case):
    logits, labels = make((2, 5, 8, 9), (64, 72), dtype=torch.float32)
    with LargestTensor() as largest:
        CASES[case][0](logits, labels).backward()
    assert labels.numel() <= largest.elements <= 2 * labels.numel()  # int64 labels; with all classes 5 times as many


@pytest.mark.parametrize("case", ["focal", "sigmoid focal", "dice", "lovasz"])
def test_second_derivative_is_refused(case):
    logits, labels = make()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(CASES[case][0](logits, labels), logits, create_graph=True)


# --- single ones


def test_focal_of_gamma_0_is_the_cross_entropy():
    logits, labels = make()
    expected, expected_gradient = value_and_gradient(lambda x: weighted_cross_entropy(x, labels), logits)
    value, gradient = value_and_gradient(lambda x: focal_loss(x, labels, gamma=0), logits)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-9)


def test_the_larger_weight_is_the_papers_reading():
    """A road pixel (light) taken for a lamp (heavy) costs as a lamp; rightly labelled it stays light."""
    weights = torch.tensor([0.5, 8.0])
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    for logit, factor in ((1.0, 0.5), (-1.0, 8.0)):
        logits = torch.tensor([logit, 0.0]).view(1, 2, 1, 1)
        loss = weighted_cross_entropy(logits, labels, class_weights=weights, max_with_predicted=True)
        assert loss.item() == pytest.approx(factor * math.log(1 + math.exp(-logit)), rel=1e-6)


def test_dice_of_millions_of_pixels():
    """Probabilities that are added to a large fp32 sum one by one are forgotten in part."""
    logits = torch.tensor([-1.2, 0.0, 0.0]).view(1, 3, 1, 1)
    labels = torch.zeros(1, 960, 1706, dtype=torch.long)
    value, exact = dice_loss(logits, labels), dice_loss(logits.double(), labels)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)


def test_lovasz_of_hard_predictions_is_one_minus_the_mean_iou():
    labels, predicted = torch.randint(0, 4, (2, 3, 9, 9))
    labels[:, 0] = 255
    logits = 100 * F.one_hot(predicted, 4).movedim(-1, 1).double()
    valid = labels != 255
    ious = [
        ((labels == c) & (predicted == c))[valid].sum() / ((labels == c) | (predicted == c))[valid].sum()
        for c in range(4)
    ]
    assert lovasz_loss(logits, labels).item() == pytest.approx(1 - sum(ious).item() / 4, rel=1e-6)


def test_running_matrix_follows_the_training():
    """Counts of two micro-batches and two heads are one step's; no counting without gradient."""
    loss = ConfusionFocalLoss(None, 5, momentum=0.75, cap=4.0)
    assert torch.equal(loss.factors, torch.ones(5, 5))  # nothing known: a plain focal loss
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for _ in range(3):
        counts = torch.zeros(5, 5, dtype=torch.float64)
        for _ in range(2):
            logits, labels = make(dtype=torch.float32)
            before = loss(logits, labels)
            with torch.no_grad():
                loss(logits, labels)
            upsampled = F.interpolate(logits, SIZE, mode="bilinear").argmax(1)
            for label, predicted in zip(
                labels[labels != 255].tolist(), upsampled[labels != 255].tolist(), strict=True
            ):
                counts[label, predicted] += 1
        assert torch.equal(loss(logits.detach().requires_grad_(), labels), before)  # constant during a step
        loss.counts = counts.long()
        loss.end_step(lambda x: 2 * x)  # as if two processes had the same
        expected = 0.75 * expected + 0.25 * counts / counts.sum()
        torch.testing.assert_close(loss.matrix.double(), expected, rtol=1e-5, atol=1e-7)
    off = (expected[0, 1] / min(expected[0, 0], expected[1, 1])).clamp(1, 4)
    assert loss.factors[0, 1].item() == pytest.approx(off.item(), rel=1e-5) and loss.factors[1, 1] == 1


def test_factors_where_nothing_was_counted():
    """Also on devices that take the smallest numbers for 0."""
    assert torch.set_flush_denormal(True)
    try:
        expected = torch.full((3, 3), 0.5).fill_diagonal_(1)
        for matrix in (None, torch.zeros(3, 3)):
            assert torch.equal(ConfusionFocalLoss(matrix, 3, floor=0.5).factors, expected)
    finally:
        torch.set_flush_denormal(False)


# --- mmsegmentation


def fixture(name):
    results = json.loads((FIXTURE / "config.json").read_text())["results"]
    tensors = load_file(FIXTURE / "tensors.safetensors")
    return tensors, results[name]["loss"], tensors.get(f"grad/{name}")


def assert_equals_fixture(name, loss, factor=1.0):
    tensors, expected, expected_gradient = fixture(name)
    value, gradient = value_and_gradient(
        lambda x: loss(x, tensors["labels"], tensors), tensors["logits"].requires_grad_()
    )
    assert value.item() * factor == pytest.approx(expected, rel=2e-6)
    if expected_gradient is not None:
        assert (gradient * factor - expected_gradient).abs().max() <= 1e-4 * expected_gradient.abs().max()


LABELLED_SHARE = 1316 / 1702  # mmsegmentation's means go over all pixels


@needs_fixture
@pytest.mark.parametrize(
    ("name", "gamma", "alpha", "weighted"),
    [("g2_a0.5", 2.0, 0.5, False), ("g2_a0.25", 2.0, 0.25, False), ("g1.5_a0.5_cw", 1.5, 0.5, True)],
)
def test_mmsegmentation_focal(name, gamma, alpha, weighted):
    assert_equals_fixture(
        f"focal_{name}",
        lambda x, labels, t: focal_loss(
            x, labels, gamma=gamma, alpha=alpha, class_weights=t["class_weight"] if weighted else None
        ),
        LABELLED_SHARE,
    )


@needs_fixture
@pytest.mark.parametrize("name", ["present", "present_per_image", "all"])
def test_mmsegmentation_lovasz(name):
    settings = dict(classes=name.split("_")[0], per_image=name.endswith("per_image"))
    assert_equals_fixture(f"lovasz_{name}", lambda x, labels, _: lovasz_loss(x, labels, **settings))


@needs_fixture
@pytest.mark.parametrize(
    ("name", "reduction", "factor"),
    [
        ("ce_mean", "pixels", LABELLED_SHARE),
        ("ce_mean_avg_non_ignore", "pixels", 1.0),
        ("torch_ce_class_weight_255", "weights", 1.0),
        ("mmseg0x_ce_class_weight_255", "pixels", LABELLED_SHARE),
        ("mmseg0x_ce_class_weight_255_avg_non_ignore", "pixels", 1.0),
    ],
)
def test_mmsegmentation_cross_entropy(name, reduction, factor):
    assert_equals_fixture(
        name,
        lambda x, labels, t: weighted_cross_entropy(
            x, labels, class_weights=t["class_weight"] if "weight" in name else None, reduction=reduction
        ),
        factor,
    )
