"""Dense operations against their full-resolution definitions: F.interpolate first, then the loss or the argmax."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from largest_tensor import LargestTensor
from torch.utils.checkpoint import checkpoint

from vss_hf.modeling import dense
from vss_hf.modeling.dense import (
    upsampled_argmax,
    upsampled_confusion,
    upsampled_cross_entropy,
)


# (B, K, h, w), (H, W): odd sizes, single rows, columns and pixels, equal size, enlarging and shrinking
SHAPES = [
    ((2, 5, 4, 7), (31, 53)),
    ((1, 3, 1, 1), (5, 6)),
    ((1, 2, 1, 4), (9, 4)),
    ((3, 4, 5, 3), (5, 3)),
    ((2, 6, 9, 11), (4, 5)),
    ((1, 3, 8, 2), (3, 17)),
    ((2, 3, 3, 5), (1, 1)),
    ((1, 300, 3, 4), (13, 15)),
]


@pytest.fixture(autouse=True)
def _seed_and_small_blocks(monkeypatch):
    torch.manual_seed(0)
    # A few rows per block at the shapes above, so that every test crosses block borders.
    monkeypatch.setattr(dense, "_BLOCK_BYTES_CPU", 4000)
    monkeypatch.setattr(dense, "_BLOCK_BYTES_ACCELERATOR", 4000)


def make(shape, size, ignored=0.2, dtype=torch.float64, ignore_index=255):
    logits = (3 * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_()
    labels = torch.randint(0, shape[1], (shape[0], *size))
    labels[torch.rand(labels.shape) < ignored] = ignore_index
    return logits, labels


def interpolate(logits, size, align_corners=False):
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


def value_and_gradient(loss_function, logits):
    loss = loss_function(logits)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


def assert_same_loss(ours, naive, logits, relative=1e-6, naive_logits=None):
    """Values and gradients within `relative` of the largest one of the float64 definition."""
    value, gradient = value_and_gradient(ours, logits)
    reference = logits.detach().double().requires_grad_()
    naive_value, naive_gradient = value_and_gradient(naive, reference)
    assert (value - naive_value).abs().max() <= relative * naive_value.abs().max()
    assert (gradient - naive_gradient).abs().max() <= relative * naive_gradient.abs().max()
    assert gradient.dtype == logits.dtype and gradient.shape == logits.shape


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("shape, size", SHAPES)
def test_cross_entropy_equals_interpolate_then_cross_entropy(shape, size, align_corners):
    logits, labels = make(shape, size, ignore_index=-100)
    labels[0, 0, 0] = 0  # at least one pixel counts
    class_weights = torch.rand(shape[1], dtype=torch.float64) + 0.1
    for weights, reduction in itertools.product((None, class_weights), ("mean", "sum", "none")):
        arguments = {"ignore_index": -100, "reduction": reduction}
        assert_same_loss(
            lambda x, w=weights, a=arguments: upsampled_cross_entropy(
                x, labels, class_weights=w, align_corners=align_corners, **a
            ),
            lambda x, w=weights, a=arguments: F.cross_entropy(
                interpolate(x, size, align_corners), labels, weight=w, **a
            ),
            logits,
        )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("in_size, out_size", [(1, 1), (1, 5), (4, 1), (3, 3), (60, 480), (107, 853), (30, 7)])
def test_bilinear_weights_follow_torch(in_size, out_size, align_corners):
    identity = torch.eye(in_size)[:, None, :, None]  # every input position as one image (in_size, 1, in_size, 1)
    expected = interpolate(identity, (out_size, 1), align_corners)[:, 0, :, 0].t()
    weights = dense.bilinear_weights(in_size, out_size, align_corners, identity)
    # Both round the coordinate (up to in_size) in float32
    torch.testing.assert_close(weights, expected, rtol=0, atol=2 * in_size * torch.finfo(torch.float32).eps)


def test_float32_agrees_with_interpolate_in_float32():
    """The coordinates are rounded as torch rounds them: at 853 columns that matters more than 1e-6."""
    logits, labels = make((1, 4, 6, 107), (48, 853), dtype=torch.float32)
    value, gradient = value_and_gradient(lambda x: upsampled_cross_entropy(x, labels), logits)
    naive_value, naive_gradient = value_and_gradient(
        lambda x: F.cross_entropy(interpolate(x, labels.shape[1:]), labels, ignore_index=255), logits
    )
    torch.testing.assert_close(value, naive_value, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, naive_gradient, rtol=0, atol=1e-6 * naive_gradient.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_logits_are_computed_in_float32(dtype, autocast):
    logits, labels = make((2, 5, 4, 7), (31, 53), dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value, gradient = value_and_gradient(lambda x: upsampled_cross_entropy(x, labels), logits)
    naive_value, naive_gradient = value_and_gradient(
        lambda x: F.cross_entropy(interpolate(x, (31, 53)), labels, ignore_index=255),
        logits.detach().double().requires_grad_(),
    )
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(value.double(), naive_value, rtol=1e-6, atol=0)
    # The gradient is rounded once, at the end
    torch.testing.assert_close(gradient.double(), naive_gradient, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_float16_gradient_of_the_mean_survives_a_large_image():
    """Every source pixel gathers more than float16's 65504 before the mean divides it."""
    logits = torch.zeros(1, 2, 1, 1, dtype=torch.float16, requires_grad=True)
    labels = torch.zeros(1, 400, 400, dtype=torch.uint8)
    upsampled_cross_entropy(logits, labels).backward()
    torch.testing.assert_close(logits.grad.flatten(), torch.tensor([-0.5, 0.5], dtype=torch.float16))


def test_precision_settings_of_the_user_change_nothing_and_are_put_back():
    logits, labels = make((1, 64, 40, 40), (80, 80), dtype=torch.float32)
    with torch.no_grad():
        expected = upsampled_cross_entropy(logits, labels, reduction="none")
        torch.set_float32_matmul_precision("medium")
        try:
            assert torch.equal(upsampled_cross_entropy(logits, labels, reduction="none"), expected)
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("reduction", ["mean", "valid", "sum", "none"])
def test_pixel_weights_tensor(reduction):
    size = (31, 53)
    logits, labels = make((2, 5, 4, 7), size)
    class_weights = torch.rand(5, dtype=torch.float64) + 0.1
    pixel_weights = torch.rand(labels.shape)
    valid = labels != 255
    denominator = {
        "mean": class_weights[labels.where(valid, 0)][valid].sum(),
        "valid": valid.sum(),
        "sum": 1,
        "none": 1,
    }[reduction]

    def naive(x):
        losses = F.cross_entropy(
            interpolate(x, size), labels, weight=class_weights, ignore_index=255, reduction="none"
        )
        losses = losses * pixel_weights / denominator
        return losses if reduction == "none" else losses.sum()

    assert_same_loss(
        lambda x: upsampled_cross_entropy(
            x, labels, class_weights=class_weights, pixel_weights=pixel_weights, reduction=reduction
        ),
        naive,
        logits,
    )


# The three published losses whose weights depend on the prediction
RARITY = torch.tensor([0.3, 1.0, 4.0, 0.7, 2.0])
CONFUSION = torch.rand(5, 5, generator=torch.Generator().manual_seed(1)) + 0.1


def larger_of_true_and_predicted(probability, predicted, label):
    return torch.maximum(RARITY[label], RARITY[predicted])


def confusion_focal(probability, predicted, label):
    smaller = torch.minimum(CONFUSION.diag()[label], CONFUSION.diag()[predicted])
    return CONFUSION[label, predicted] / smaller * (1 - probability) ** 2


def hard_pixels(probability, predicted, label):
    return probability < 0.7


@pytest.mark.parametrize("reduction", ["valid", "none"])
@pytest.mark.parametrize("function", [larger_of_true_and_predicted, confusion_focal, hard_pixels])
def test_pixel_weights_function(function, reduction):
    size = (31, 53)
    logits, labels = make((2, 5, 4, 7), size)
    valid = labels != 255
    safe = labels.where(valid, 0)

    def naive(x):
        upsampled = interpolate(x, size)
        with torch.no_grad():
            probability = upsampled.softmax(1).gather(1, safe[:, None])[:, 0]
            weights = function(probability, upsampled.argmax(1), safe)
        losses = weights * F.cross_entropy(upsampled, labels, ignore_index=255, reduction="none")
        return losses if reduction == "none" else losses.sum() / valid.sum()

    assert_same_loss(
        lambda x: upsampled_cross_entropy(x, labels, pixel_weights=function, reduction=reduction), naive, logits
    )


def test_none_lets_ohem_choose_over_the_whole_image():
    """The 200 hardest pixels, averaged: a weight that no single block can know."""
    size = (31, 53)
    logits, labels = make((2, 5, 4, 7), size)

    def mean_of_hardest(losses):
        return losses.flatten().topk(200).values.mean()

    assert_same_loss(
        lambda x: mean_of_hardest(upsampled_cross_entropy(x, labels, reduction="none")),
        lambda x: mean_of_hardest(F.cross_entropy(interpolate(x, size), labels, ignore_index=255, reduction="none")),
        logits,
    )


@pytest.mark.parametrize("reduction", ["mean", "valid", "sum", "none"])
@pytest.mark.parametrize("class_weights", [None, torch.ones(5)])
def test_all_pixels_ignored_gives_zero(reduction, class_weights):
    logits, labels = make((2, 5, 4, 7), (9, 11), ignored=1.1)
    value, gradient = value_and_gradient(
        lambda x: upsampled_cross_entropy(
            x, labels, class_weights=class_weights, pixel_weights=lambda p, *_: 1 / (p - p), reduction=reduction
        ),
        logits,
    )
    assert not value.any() and not gradient.any()


def test_ignored_pixels_send_no_gradient():
    logits, labels = make((1, 3, 4, 4), (16, 16), ignored=0)
    labels[:, :, 8:] = 255  # columns 8.. of the output touch columns 1.. of the input, columns ..7 touch 0..2
    _, gradient = value_and_gradient(lambda x: upsampled_cross_entropy(x, labels), logits)
    assert gradient[..., :3].abs().amin() > 0 and not gradient[..., 3:].any()


def test_gradcheck():
    logits, labels = make((2, 3, 2, 3), (5, 7))
    class_weights = torch.rand(3) + 0.1
    for reduction in ("mean", "none"):
        assert torch.autograd.gradcheck(
            lambda x, r=reduction: upsampled_cross_entropy(x, labels, class_weights=class_weights, reduction=r), logits
        )


def test_second_derivative_is_refused():
    logits, labels = make((1, 3, 2, 3), (5, 7))
    for reduction in ("mean", "none"):
        loss = upsampled_cross_entropy(logits, labels, reduction=reduction).sum()
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(loss, logits, create_graph=True)


@pytest.mark.parametrize("block_bytes", [1, 3000, 10**9])
def test_block_size_changes_nothing(monkeypatch, block_bytes):
    logits, labels = make((2, 5, 4, 7), (31, 53))
    naive = interpolate(logits, (31, 53))
    monkeypatch.setattr(dense, "_BLOCK_BYTES_CPU", block_bytes)
    assert_same_loss(
        lambda x: upsampled_cross_entropy(x, labels),
        lambda x: F.cross_entropy(interpolate(x, (31, 53)), labels, ignore_index=255),
        logits,
        relative=1e-12,
    )
    assert torch.equal(upsampled_argmax(logits, (31, 53)).long(), naive.argmax(1))


def test_extreme_logits_stay_finite():
    logits = torch.tensor([6e4, -6e4, 0.0]).view(1, 3, 1, 1).half().requires_grad_()
    labels = torch.ones(1, 2, 2, dtype=torch.uint8)
    value, gradient = value_and_gradient(lambda x: upsampled_cross_entropy(x, labels), logits)
    assert value.item() == pytest.approx(2 * logits[0, 0].item(), rel=1e-6)
    torch.testing.assert_close(gradient.flatten(), torch.tensor([1.0, -1.0, 0.0]).half())


def test_memory_layout_and_label_dtype_do_not_matter():
    logits, labels = make((2, 5, 4, 6), (17, 19), dtype=torch.float32)
    expected = value_and_gradient(lambda x: upsampled_cross_entropy(x, labels), logits)
    layouts = {
        "channels last": logits.detach().to(memory_format=torch.channels_last),
        "transposed": logits.detach().transpose(2, 3).contiguous().transpose(2, 3),
        "strided": logits.detach().repeat_interleave(2, dim=3)[..., ::2],
    }
    for name, layout in layouts.items():
        for dtype in (torch.uint8, torch.int32, torch.int64):
            actual = value_and_gradient(
                lambda x, d=dtype: upsampled_cross_entropy(x, labels.to(d)), layout.requires_grad_()
            )
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9, msg=f"{name}, {dtype}")


def test_uint8_labels_do_not_wrap_around():
    logits = torch.randn(1, 300, 2, 3)
    labels = torch.tensor([156, 255]).to(torch.uint8).view(1, 1, 2)  # as uint8, -100 is 156
    expected = F.cross_entropy(interpolate(logits, (1, 2)), labels.long())
    torch.testing.assert_close(upsampled_cross_entropy(logits, labels, ignore_index=-100), expected)
    assert upsampled_confusion(logits, labels, ignore_index=-100).sum() == 2


def test_without_gradient_no_gradient_is_computed(monkeypatch):
    logits, labels = make((1, 3, 2, 3), (5, 7))
    expected = upsampled_cross_entropy(logits, labels)
    monkeypatch.setattr(dense._Block, "pull_back", None)  # calling it would raise
    with torch.no_grad():
        assert torch.equal(upsampled_cross_entropy(logits, labels), expected)
    with torch.inference_mode():
        assert torch.equal(upsampled_cross_entropy(logits, labels), expected)
    assert torch.equal(upsampled_cross_entropy(logits.detach(), labels), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_inside_gradient_checkpointing(use_reentrant):
    logits, labels = make((1, 3, 2, 3), (5, 7))

    def loss_function(x):
        return upsampled_cross_entropy(x * 2, labels)

    expected = value_and_gradient(loss_function, logits)
    loss = checkpoint(loss_function, logits, use_reentrant=use_reentrant)
    loss.backward()
    torch.testing.assert_close((loss.detach(), logits.grad), expected)


def test_inside_a_compiled_model():
    logits, labels = make((1, 3, 2, 3), (5, 7))

    def loss_function(x):
        return upsampled_cross_entropy((x * 2).relu(), labels) * 3

    expected = value_and_gradient(loss_function, logits)
    compiled = torch.compile(loss_function, backend="aot_eager")  # the graph breaks are the same as for inductor
    torch.testing.assert_close(value_and_gradient(compiled, logits), expected)


# --- predictions


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("shape, size", SHAPES)
def test_argmax_and_confusion_equal_the_naive(shape, size, align_corners):
    logits, labels = make(shape, size)
    expected = interpolate(logits, size, align_corners).argmax(1)
    predictions = upsampled_argmax(logits, size, align_corners=align_corners)
    assert torch.equal(predictions.long(), expected)
    assert predictions.dtype == (torch.uint8 if shape[1] <= 255 else torch.int64)

    ignore_index = 255
    if shape[1] > 255:
        labels[labels == 255] = ignore_index = -1
    counts = torch.zeros(shape[1], shape[1], dtype=torch.int64)
    for label, prediction in zip(labels.flatten().tolist(), expected.flatten().tolist(), strict=True):
        if label != ignore_index:
            counts[label, prediction] += 1
    actual = upsampled_confusion(logits, labels, ignore_index=ignore_index, align_corners=align_corners)
    assert actual.dtype == torch.int64 and torch.equal(actual, counts)


def test_argmax_first_class_wins_ties():
    # Small integers at a factor of 4: every weight and product is exact in float32, so ties are real ties
    logits = torch.randint(0, 3, (2, 6, 5, 5)).float()
    upsampled = interpolate(logits, (20, 20))
    assert (upsampled == upsampled.amax(1, keepdim=True)).sum() > upsampled.amax(1).numel()
    assert torch.equal(upsampled_argmax(logits, (20, 20)).long(), upsampled.argmax(1))


def test_argmax_under_autocast_keeps_float32():
    logits = torch.randn(1, 7, 5, 6)
    expected = interpolate(logits, (40, 47)).argmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upsampled_argmax(logits, (40, 47)).long(), expected)


def test_confusion_takes_uint8_labels_and_255_classes():
    logits, labels = make((1, 255, 3, 4), (13, 15), dtype=torch.float32)
    counts = upsampled_confusion(logits, labels.to(torch.uint8))
    assert counts.sum() == (labels != 255).sum()
    assert torch.equal(counts.sum(1), torch.bincount(labels[labels != 255], minlength=255))


# --- memory


def test_no_tensor_of_the_upsampled_size_is_ever_made():
    batch, num_labels, height, width = 2, 20, 64, 72
    logits, labels = make((batch, num_labels, 8, 9), (height, width), dtype=torch.float32)
    labels = labels.to(torch.uint8)
    full = batch * num_labels * height * width
    functions = {
        "loss": lambda: upsampled_cross_entropy(logits, labels, pixel_weights=confusion_free).backward(),
        "map": lambda: upsampled_cross_entropy(logits, labels, reduction="none").sum().backward(),
        "argmax": lambda: upsampled_argmax(logits, (height, width)),
        "confusion": lambda: upsampled_confusion(logits, labels),
    }
    for name, function in functions.items():
        with LargestTensor() as largest:
            function()
        assert largest.elements <= full / num_labels * 2, name  # int64 labels count twice


def confusion_free(probability, predicted, label):
    return 1 + (predicted != label) * probability


def test_the_largest_tensor_counter_sees_the_naive_one():
    logits = torch.randn(2, 20, 8, 9)
    with LargestTensor() as largest:
        interpolate(logits, (64, 72))
    assert largest.elements == 2 * 20 * 64 * 72


# --- errors


@pytest.mark.parametrize("value", [-1, 5, 254])
def test_label_out_of_range_is_named(value):
    logits, labels = make((2, 5, 4, 7), (31, 53))
    labels[1, 2, 3] = value
    for function in (upsampled_cross_entropy, upsampled_confusion):
        with pytest.raises(ValueError, match=rf"value {value}: each must be in 0\.\.4 or ignore_index = 255"):
            function(logits, labels)


def test_wrong_arguments_are_named():
    logits, labels = make((2, 5, 4, 7), (8, 9))
    for arguments, message in [
        ((logits[0], labels), "logits must be"),
        ((logits.long(), labels), "logits must be"),
        ((logits, labels[:1]), "B = 2"),
        ((logits, labels.double()), "labels must be integers"),
        ((logits, labels[:, None]), "labels must be integers"),
    ]:
        with pytest.raises(ValueError, match=message):
            upsampled_cross_entropy(*arguments)
    for keywords, message in [
        ({"reduction": "pixels"}, "mean, valid, sum, none, got 'pixels'"),
        ({"class_weights": torch.ones(4)}, r"class_weights must be \(5,\)"),
        ({"pixel_weights": torch.ones(2, 4, 7)}, r"pixel_weights must be \(2, 8, 9\)"),
        ({"pixel_weights": torch.ones(2, 8, 9, requires_grad=True)}, "pixel_weights.detach"),
    ]:
        with pytest.raises(ValueError, match=message):
            upsampled_cross_entropy(logits, labels, **keywords)
    with pytest.raises(ValueError, match="logits must be"):
        upsampled_argmax(logits[0], (8, 9))


# --- CUDA


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape, size", SHAPES[:-1])
def test_cuda_equals_cpu(shape, size, dtype):
    logits, labels = make(shape, size, dtype=dtype)
    labels[0, 0, 0] = 0
    on_cuda = logits.detach().cuda().requires_grad_()
    weights = torch.rand(shape[1]) + 0.1
    for reduction in ("mean", "none"):
        expected = value_and_gradient(
            lambda x, r=reduction: upsampled_cross_entropy(x, labels, class_weights=weights, reduction=r), logits
        )
        with torch.autocast("cuda", torch.float16):
            value, gradient = value_and_gradient(
                lambda x, r=reduction: upsampled_cross_entropy(
                    x, labels.cuda(), class_weights=weights.cuda(), reduction=r
                ),
                on_cuda,
            )
        torch.testing.assert_close(value.cpu(), expected[0], rtol=1e-5, atol=1e-5)
        tolerance = max(1e-5, torch.finfo(dtype).eps)
        torch.testing.assert_close(gradient.cpu(), expected[1], rtol=tolerance, atol=tolerance)
    counts = upsampled_confusion(on_cuda, labels.cuda())
    assert counts.device.type == "cuda"
    assert (counts.cpu() - upsampled_confusion(logits, labels)).abs().sum() <= 2  # a near tie may fall either way
