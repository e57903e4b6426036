"""A convolution of resized and concatenated maps, computed without resizing or concatenating them."""

import pytest
import torch
import torch.nn.functional as F

from vss_hf.modeling.layers import ResizedConv2d


PYRAMID = [(13, 21), (7, 11), (4, 6), (2, 3)]


def make(sizes, dtype=torch.float64, align_corners=False):
    """Maps of 3, 4, 5, ... channels, and the layer."""
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(2, 3 + i, *size, generator=generator, dtype=dtype).requires_grad_() for i, size in enumerate(sizes)
    ]
    torch.manual_seed(0)
    return maps, ResizedConv2d(sum(m.shape[1] for m in maps), 6, align_corners).to(dtype)


def written_out(maps, weight, align_corners=False):
    size = maps[0].shape[-2:]
    resized = [F.interpolate(m, size=size, mode="bilinear", align_corners=align_corners) for m in maps]
    return F.conv2d(torch.cat(resized, dim=1), weight, padding=1)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        PYRAMID,
        [(8, 8), (8, 8), (4, 4), (1, 1)],  # one of the same size; one single pixel
        [(5, 7), (9, 15)],  # a larger map
        [(1, 9), (1, 5)],
        [(6, 4)],
    ],
)
def test_value_and_gradients(sizes, align_corners):
    maps, conv = make(sizes, align_corners=align_corners)
    inputs = [*maps, conv.weight]
    expected, found = written_out(maps, conv.weight, align_corners), conv(maps)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    gradients = [torch.autograd.grad(output, inputs, gradient) for output in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_channels_last():
    maps, conv = make(PYRAMID)
    expected = conv(maps)
    conv = conv.to(memory_format=torch.channels_last)
    found = conv([m.contiguous(memory_format=torch.channels_last) for m in maps])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_as_exact_as_the_written_out_one(autocast):
    """Also at widths where bfloat16 could not count the columns."""
    sizes = [(12, 600), (6, 301)]
    maps, conv = make(sizes)
    expected = written_out(maps, conv.weight)
    conv = conv.float() if autocast else conv.bfloat16()
    maps = [m.to(conv.weight.dtype) for m in maps]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, usual = conv(maps), written_out(maps, conv.weight)
    assert found.dtype == usual.dtype == torch.bfloat16
    error, usual_error = ((x.double() - expected).abs() for x in (found, usual))
    assert error.mean() < 2 * usual_error.mean()
    assert error.max() < 2.5 * usual_error.max()


def test_no_more_than_half_of_the_arithmetic():
    from torch.utils.flop_counter import FlopCounterMode

    sizes = [(120, 214), (60, 107), (30, 54), (15, 27)]
    with torch.device("meta"):
        maps, conv = [torch.empty(1, 512, *size) for size in sizes], ResizedConv2d(2048, 512)
    counts = []
    for run in (lambda: conv(maps), lambda: written_out(maps, conv.weight)):
        with FlopCounterMode(display=False) as counter:
            run()
        counts.append(counter.get_total_flops())
    assert counts[0] < 0.5 * counts[1]
