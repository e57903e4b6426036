"""Dense operations on low-resolution logits that never hold a (batch, num_labels, height, width) tensor.

A segmentation head gives logits (B, K, h, w); labels have (B, H, W), often 8 x 8 times as many pixels. Upsampling the
logits first costs B*K*H*W floats several times over (the upsampled logits, their log-softmax, the gradients of both).
Here the upsampled logits exist for a few rows of one image at a time:

    block (rows, K, W)  =  wy (rows, span)  @  image (span, K, w)  @  wx^T (w, W)          `_upsampled_blocks`

with wy, wx the bilinear weights and `span` the few source rows that the block touches. A loss takes its value and its
gradient from the block while it is in cache, and sends the gradient back through the transposed products.

Letters: B images, K classes (num_labels), h x w size of the logits, H x W size of the labels.

All functions here run eagerly: under `torch.compile` they are a graph break (so not `fullgraph=True`).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


# Bytes of one (rows, K, W) block: on the CPU small enough for the cache, elsewhere enough to hide kernel launches.
_BLOCK_BYTES_CPU = 6 * 2**20
_BLOCK_BYTES_ACCELERATOR = 64 * 2**20

_REDUCTIONS = ("mean", "valid", "sum", "none")

# (probability of the true class, predicted class, label), each (rows, W) -> weights (rows, W), of value and gradient
# alike or (of the value, of the gradient)
PixelWeightFunction = Callable[[Tensor, Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]


# --- bilinear upsampling in blocks of rows


def _source_coordinates(in_size: int, out_size: int, align_corners: bool, like: Tensor) -> Tensor:
    """Where each output position lies on the input axis, in 0..in_size-1; rounded in `like`'s dtype as torch does."""
    position = torch.arange(out_size, dtype=like.dtype, device=like.device)
    if align_corners:
        scale = position.new_full((), in_size - 1) / max(out_size - 1, 1)
        return (position * scale).clamp(0, in_size - 1)
    scale = position.new_full((), in_size) / out_size
    return ((position + 0.5) * scale - 0.5).clamp(0, in_size - 1)


def bilinear_weights(in_size: int, out_size: int, align_corners: bool, like: Tensor) -> Tensor:
    """Interpolation along one axis as a matrix (out_size, in_size), in the convention of `F.interpolate`.

    Linear interpolation weighs an input by 1 minus its distance, down to 0: at most two inputs per output count.
    """
    coordinates = _source_coordinates(in_size, out_size, align_corners, like)
    inputs = torch.arange(in_size, dtype=like.dtype, device=like.device)
    return (1 - (coordinates[:, None] - inputs).abs()).clamp(min=0)


class _Block(NamedTuple):
    rows: slice  # rows of the output
    span: slice  # rows of the input that they are interpolated from
    wy: Tensor  # (rows, span)
    wx: Tensor  # (W, w)
    logits: Tensor  # (rows, K, W), free to be overwritten

    def pull_back(self, gradient: Tensor) -> Tensor:
        """The gradient (rows, K, W) of the block's logits as a gradient (span, K, w) of the image they came from."""
        rows, num_labels, width = gradient.shape
        by_span = self.wy.t() @ gradient.view(rows, num_labels * width)  # (span, K * W)
        return by_span.view(-1, num_labels, width) @ self.wx  # (span, K, w)


class UpsampledRows:
    """Bilinear upsampling of one image's logits, of which any rows can be had without the others.

    Args:
        image: (h, K, w), contiguous, fp32 or fp64; see `rows_first`.
        size: (H, W) wanted.
        align_corners: as in `F.interpolate`.
    """

    def __init__(self, image: Tensor, size: tuple[int, int], align_corners: bool = False):
        in_height, _, in_width = image.shape
        self.image = image
        self.wy = bilinear_weights(in_height, size[0], align_corners, image)  # (H, h)
        self.wx = bilinear_weights(in_width, size[1], align_corners, image)  # (W, w)
        # On the CPU, so that choosing the source rows of a block does not wait for the device.
        like = torch.empty(0, dtype=image.dtype)
        self.source = _source_coordinates(in_height, size[0], align_corners, like).tolist()

    def block(self, start: int, stop: int) -> _Block:
        """Rows start..stop-1 of the upsampled image, with what they were made of."""
        in_height, num_labels, _ = self.image.shape
        span = slice(int(self.source[start]), min(int(self.source[stop - 1]) + 2, in_height))
        wy = self.wy[start:stop, span]
        wide = self.image[span] @ self.wx.t()  # (span, K, W)
        logits = (wy @ wide.view(len(wide), -1)).view(stop - start, num_labels, -1)  # (rows, K, W)
        return _Block(slice(start, stop), span, wy, self.wx, logits)


def block_rows(num_labels: int, width: int, like: Tensor) -> int:
    """How many rows of `width` pixels a block should have, for numbers of `like`'s type and device."""
    block_bytes = _BLOCK_BYTES_CPU if like.device.type == "cpu" else _BLOCK_BYTES_ACCELERATOR
    return max(1, block_bytes // (num_labels * width * like.element_size()))


def _upsampled_blocks(image: Tensor, size: tuple[int, int], align_corners: bool) -> Iterator[_Block]:
    """Bilinear upsampling of one image (h, K, w), contiguous, to `size` = (H, W), a block of rows at a time."""
    height, width = size
    if width == 0:
        return  # no pixels, no blocks
    upsampled = UpsampledRows(image, size, align_corners)
    rows = block_rows(image.shape[1], width, image)
    for start in range(0, height, rows):
        yield upsampled.block(start, min(start + rows, height))


def rows_first(logits: Tensor) -> Tensor:
    """One image's logits (K, h, w) of any dtype and layout as (h, K, w), contiguous, float32 (float64 stays)."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.detach().transpose(0, 1).to(dtype).contiguous()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in float32 whatever autocast, TF32 or `set_float32_matmul_precision` say.

    The products here interpolate: with 10-bit mantissas predictions would differ from `F.interpolate` at borders.
    """
    backends = (
        torch.backends.cuda.matmul,
        torch.backends.mkldnn.matmul,  # pyright: ignore[reportAttributeAccessIssue]  (made at import)
    )
    previous = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, previous, strict=True):
            backend.fp32_precision = precision


# --- cross entropy


@torch.compiler.disable()
def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | PixelWeightFunction | None = None,
    align_corners: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of bilinearly upsampled logits, without the upsampled logits.

    Equal, in value and gradient (to about 1e-6 of the largest in float32), to
    `F.cross_entropy(F.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear"), labels, ...)`.
    The gradient is computed together with the value, so backward only scales it (with `reduction="none"` backward
    goes over the blocks again). Works under autocast (computes in float32; float64 logits in float64), gradient
    checkpointing and distributed training; second derivatives are refused.

    Args:
        logits: (B, K, h, w), finite, any floating dtype and memory layout.
        labels: (B, H, W) integer, 0..K-1 or `ignore_index`. H, W may be larger or smaller than h, w.
        class_weights: (K,), a factor for every pixel by its true class.
        pixel_weights: A further factor for every pixel: either (B, H, W), or a function
            `(probability, predicted, label) -> weights` that is called without gradient on rows of one image. All are
            (rows, W): the probability of the true class, the class with the highest logit, and the true class
            (int64; 0 on ignored pixels, whose weight is 0 whatever the function returns).
            Weights are constants: the gradient is Σ weight · ∂cross_entropy, also where the weight depends on the
            prediction. A function whose weight does not count as one, such as focal loss's (1 - p)^2, returns a pair:
            the weights, and the derivatives of weight · cross_entropy by the cross entropy.
        align_corners: As in `F.interpolate`.
        reduction: With ce the cross entropy and c = class_weights[label] (or 1) of the pixels that are not ignored:
            "mean": Σ c·weight·ce / Σ c, as torch does, pixel weights not in the denominator;
            "valid": Σ c·weight·ce / number of pixels that are not ignored;
            "sum": Σ c·weight·ce;
            "none": c·weight·ce of every pixel, (B, H, W), 0 where ignored. For weights that need the whole image
            first, such as OHEM's k-th hardest pixel: exp(-loss) is the probability of the true class.

    Returns:
        A scalar (or (B, H, W) for "none"), float32 or float64. 0 with zero gradient if every pixel is ignored.

    Raises:
        ValueError: Shapes, dtypes or the reduction do not fit, or a label is neither in 0..K-1 nor `ignore_index`.
            Label values are checked on the CPU only; on CUDA, where looking would wait for the device, a wrong label
            trips the indexing kernel's device-side assert.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    labels = _checked_labels(logits, labels, ignore_index)
    _check_weights(logits, labels, class_weights, pixel_weights)

    arguments = (logits, labels, ignore_index, class_weights, pixel_weights, align_corners)
    if reduction == "none":
        return _CrossEntropyMap.apply(*arguments)
    with_gradient = logits.requires_grad and torch.is_grad_enabled()
    total = _CrossEntropySum.apply(*arguments, with_gradient)
    if reduction == "sum":
        return total

    valid = labels != ignore_index
    if reduction == "valid" or class_weights is None:
        denominator = valid.sum()
    else:
        denominator = (class_weights.to(total.dtype)[labels * valid] * valid).sum()
    return total / torch.where(denominator > 0, denominator, 1)


class _CrossEntropySum(torch.autograd.Function):
    """Σ weight · cross entropy over all pixels; value and gradient in one pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *arguments: Any) -> Tensor:
        *settings, with_gradient = arguments
        losses, weights, _, gradient = _cross_entropy_blocks(logits, *settings, with_gradient=with_gradient)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.logits_dtype = logits.dtype
        return (losses * weights).sum()

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        (gradient,) = ctx.saved_tensors
        # Scaled before it is rounded to the logits' dtype: the sum over an image overflows float16, its mean does not.
        return (gradient * output_gradient).to(ctx.logits_dtype), *(None,) * 6


class _CrossEntropyMap(torch.autograd.Function):
    """weight · cross entropy of every pixel; backward computes the blocks again, with their weights."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *arguments: Any) -> Tensor:
        losses, weights, slopes, _ = _cross_entropy_blocks(logits, *arguments, with_gradient=False)
        labels, ctx.ignore_index, _, _, ctx.align_corners = arguments
        ctx.save_for_backward(logits, labels, slopes)
        return losses * weights

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        logits, labels, slopes = ctx.saved_tensors
        weights = slopes * output_gradient  # class weights are in there already
        settings = (labels, ctx.ignore_index, None, weights, ctx.align_corners)
        *_, gradient = _cross_entropy_blocks(logits, *settings, with_gradient=True)
        assert gradient is not None
        return gradient.to(logits.dtype), *(None,) * 5


def _refuse_second_derivative() -> None:
    # Autograd's own once_differentiable lets a loss on the gradient pass when the incoming gradient is a constant.
    if torch.is_grad_enabled():
        raise RuntimeError("losses of upsampled logits have no second derivative: backward with create_graph=False")


def _cross_entropy_blocks(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    class_weights: Tensor | None,
    pixel_weights: Tensor | PixelWeightFunction | None,
    align_corners: bool,
    *,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Cross entropy (B, H, W), its weights (B, H, W), and the gradient (B, K, h, w) of Σ weights · cross entropy.

    Before the gradient the slopes (B, H, W) that it is made of: Σ slopes · ∂cross entropy. The very tensor of the
    weights, unless a function of weights gives them by themselves.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    height, width = labels.shape[1:]
    losses = torch.empty(labels.shape, dtype=dtype, device=logits.device)
    slopes = weights = torch.empty_like(losses)
    gradient = torch.zeros(logits.shape, dtype=dtype, device=logits.device) if with_gradient else None
    if class_weights is not None:
        class_weights = class_weights.to(logits.device, dtype)

    with full_precision(logits.device):
        for index in range(len(logits)):
            # In units of ln 2: softmax(x) = 2^(x / ln 2) / Σ, and exp2 is three times as fast as exp on the CPU.
            image = rows_first(logits[index]) / math.log(2)  # (h, K, w)
            for block in _upsampled_blocks(image, (height, width), align_corners):
                here = (index, block.rows)
                label = labels[here]  # (rows, W)
                valid = label != ignore_index
                label = label * valid  # 0 where ignored: any class will do, its weight is 0

                z = block.logits  # (rows, K, W), overwritten step by step
                highest = z.amax(dim=1)  # (rows, W)
                # Finding the class of the highest takes as long as the softmax: only for a function, else never read.
                predicted = z.max(dim=1).indices if callable(pixel_weights) else label
                z -= highest[:, None]
                true_z = z.gather(1, label[:, None])[:, 0]
                z.exp2_()
                total = z.sum(dim=1)  # (rows, W)
                loss = (total.log2() - true_z) * math.log(2)

                slope = weight = valid.to(dtype)
                if class_weights is not None:
                    slope = weight = weight * class_weights[label]
                if callable(pixel_weights):
                    factor = pixel_weights(loss.neg().exp(), predicted, label)
                    of_value, of_gradient = factor if isinstance(factor, tuple) else (factor, factor)
                    slope = torch.where(valid, weight * of_gradient, 0).to(dtype)
                    weight = torch.where(valid, weight * of_value, 0).to(dtype)
                    if of_gradient is not of_value and slopes is weights:
                        slopes = torch.empty_like(weights)
                elif pixel_weights is not None:
                    slope = weight = torch.where(valid, weight * pixel_weights[here], 0).to(dtype)
                losses[here] = loss
                weights[here] = weight
                slopes[here] = slope

                if gradient is not None:
                    # slope · (softmax - one hot)
                    z *= (slope / total)[:, None]
                    z.scatter_add_(1, label[:, None], -slope[:, None])
                    gradient[index, :, block.span] += block.pull_back(z).transpose(0, 1)
    return losses, weights, slopes, gradient


# --- predictions


@torch.compiler.disable()
def upsampled_argmax(logits: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Predicted class of every pixel: `F.interpolate(logits, size, mode="bilinear").argmax(1)`, in row blocks.

    Args:
        logits: (B, K, h, w), finite, any floating dtype and memory layout; interpolated in float32 (float64 stays).
        size: (H, W) of the result.
        align_corners: As in `F.interpolate`.

    Returns:
        (B, H, W), uint8 if K <= 255, else int64. The first class wins a tie.
    """
    _check_logits(logits)
    batch, num_labels = logits.shape[:2]
    dtype = torch.uint8 if num_labels <= 255 else torch.int64
    predictions = torch.empty((batch, *size), dtype=dtype, device=logits.device)
    with full_precision(logits.device):
        for index in range(batch):
            for block in _upsampled_blocks(rows_first(logits[index]), size, align_corners):
                # torch.max gives the first index of the maximum, as argmax does, in half the time on the CPU.
                predictions[index, block.rows] = block.logits.max(dim=1).indices
    return predictions


@torch.compiler.disable()
def upsampled_confusion(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, align_corners: bool = False
) -> Tensor:
    """Confusion matrix between the labels and the prediction at the labels' size.

    Args:
        logits: (B, K, h, w), finite, any floating dtype and memory layout.
        labels: (B, H, W) integer, 0..K-1 or `ignore_index`; these pixels are not counted.
        align_corners: As in `F.interpolate`.

    Returns:
        Pixel counts (K, K), int64, on the logits' device: rows are the ground truth, columns the prediction.

    Raises:
        ValueError: As `upsampled_cross_entropy`.
    """
    labels = _checked_labels(logits, labels, ignore_index)
    num_labels = logits.shape[1]
    height, width = labels.shape[1:]
    predictions = upsampled_argmax(logits, (height, width), align_corners=align_corners)
    valid = (labels != ignore_index).flatten()
    cells = labels.flatten() * num_labels + predictions.flatten()
    # Adding `valid` instead of selecting the valid pixels (or bincount): nothing waits for the device.
    counts = torch.zeros(num_labels * num_labels, dtype=torch.int64, device=logits.device)
    counts.scatter_add_(0, cells * valid, valid.long())
    return counts.view(num_labels, num_labels)


# --- checks


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 4 or not logits.is_floating_point() or 0 in logits.shape[1:]:
        raise ValueError(
            f"logits must be floating point (B, K, h, w) with K, h, w >= 1, got {logits.dtype} {tuple(logits.shape)}"
        )


def _checked_labels(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The labels as int64: in uint8 a comparison with -100 or with 300 classes would wrap around."""
    _check_logits(logits)
    if labels.ndim != 3 or len(labels) != len(logits) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be integers (B, H, W) with B = {len(logits)} as in the logits,"
            f" got {labels.dtype} {tuple(labels.shape)}"
        )
    if labels.device != logits.device:
        raise ValueError(f"labels are on {labels.device}, logits on {logits.device}: move the labels")
    labels = labels.long()
    if labels.device.type == "cpu":
        num_labels = logits.shape[1]
        wrong = ((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)
        if wrong.any():
            raise ValueError(
                f"labels hold the value {labels[wrong][0]}: each must be in 0..{num_labels - 1}"
                f" or ignore_index = {ignore_index}"
            )
    return labels


def _check_weights(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    pixel_weights: Tensor | PixelWeightFunction | None,
) -> None:
    num_labels = logits.shape[1]
    if class_weights is not None and class_weights.shape != (num_labels,):
        raise ValueError(f"class_weights must be ({num_labels},), one per class, got {tuple(class_weights.shape)}")
    if isinstance(pixel_weights, Tensor) and pixel_weights.shape != labels.shape:
        raise ValueError(
            f"pixel_weights must be {tuple(labels.shape)} as the labels, got {tuple(pixel_weights.shape)}"
        )
    for name, weights in (("class_weights", class_weights), ("pixel_weights", pixel_weights)):
        if isinstance(weights, Tensor) and weights.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} are constants here and get no gradient: pass {name}.detach()")
