"""HFGD's upsamplers: each written down in float64, precisions, and every combination with encodings and guidance."""

import pytest
import torch
import torch.nn.functional as F
from test_hfgd import Written, build, build_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.model_cost import COUNTED_TOO
from vss_hf.modeling.configuration_hfgd import ENCODINGS, REGULARISED, UPSAMPLERS
from vss_hf.modeling.feature_alignment import DeformableConv
from vss_hf.modeling.modeling_hfgd import HFGDHead


WIDTHS = [8, 12, 16, 20]


def maps_of(size=(65, 97), dtype=torch.float64):
    """Maps of a backbone at strides 4, 8, 16 and 32."""
    torch.manual_seed(1)
    return [
        torch.randn(2, width, -(-size[0] // stride), -(-size[1] // stride), dtype=dtype).relu()
        for width, stride in zip(WIDTHS, (4, 8, 16, 32), strict=True)
    ]


class WrittenUpsamplers(Written):
    """What `Written` lacks."""

    semantic_fpn = Written.usfpn  # the kernels have the tensors' sizes

    def fapn(self, c2, c3, c4, h, stride):
        p4 = self.aligned(c4, h, "upsampler.alignments.2")
        p3 = self.aligned(c3, p4, "upsampler.alignments.1")
        p2 = self.aligned(c2, p3, "upsampler.alignments.0")
        return self.branches([p2, p3, p4, h], stride)

    def aligned(self, early, level, name):
        mean = early.mean((2, 3), keepdim=True)
        gate = self.conv(self.conv(mean, f"{name}.select.gate.1").clamp(min=0), f"{name}.select.gate.3")
        selected = self.conv(early * (1 + 1 / (1 + (-gate).exp())), f"{name}.select.project")
        level = self.up(level, early)
        guide = self.conv(torch.cat([selected, 2 * level], 1), f"{name}.guide")
        told = self.conv(guide, f"{name}.align.offset", padding=1)
        weight, bias = self.tensors[f"{name}.align.weight"], self.tensors[f"{name}.align.bias"]
        return moved_convolution(level, told, weight, bias).clamp(min=0) + selected

    def upernet(self, c2, c3, c4, h, stride):
        p4 = self.cbr(c4, "upsampler.lateral.2") + self.up(h, c4)
        p3 = self.cbr(c3, "upsampler.lateral.1") + self.up(p4, c3)
        p2 = self.cbr(c2, "upsampler.lateral.0") + self.up(p3, c2)
        levels = [self.cbr(p, f"upsampler.convs.{i}") for i, p in enumerate((p2, p3, p4))]
        return self.cbr(torch.cat([self.up(p, c2) for p in (*levels, h)], 1), "upsampler.merge")

    def deeplabv3plus(self, c2, c3, c4, h, stride):
        both = torch.cat([self.cbr(c2, "upsampler.low_level"), self.up(h, c2)], 1)
        return self.cbr(self.cbr(both, "upsampler.refine.0"), "upsampler.refine.1")


def moved_convolution(x, told, weight, bias):
    """A 3x3 convolution of nine samples of each place; `told`: (y, x) of each, then a number for its weight."""
    height, width = x.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    output = bias.view(1, -1, 1, 1).expand(len(x), -1, height, width).clone()
    for place in range(9):
        i, j = divmod(place, 3)
        y, x_ = rows + i - 1 + told[:, 2 * place], columns + j - 1 + told[:, 2 * place + 1]
        grid = torch.stack([2 * x_ / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
        sampled = F.grid_sample(x, grid, align_corners=True)  # zeros outside
        counts = 1 / (1 + (-told[:, 18 + place]).exp())
        output += torch.einsum("oc,bchw->bohw", weight[:, :, i, j], sampled * counts[:, None])
    return output


@pytest.mark.parametrize(
    ("upsampler", "stride"),
    [("semantic_fpn", 4), ("semantic_fpn", 2), ("fapn", 4), ("fapn", 2), ("upernet", 4), ("deeplabv3plus", 4)],
)
def test_upsamplers_as_written_down(upsampler, stride):
    head = build(upsampler=upsampler, output_stride=stride).decode_head.double()
    for module in head.modules():
        if isinstance(module, DeformableConv):
            nn.init.normal_(module.offset.weight, std=0.1)
            nn.init.normal_(module.offset.bias)
    earlier, high_level = maps_of()[:3], torch.randn(2, 8, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        ours = head.upsampler(earlier, high_level)
        expected = getattr(WrittenUpsamplers(head), upsampler)(*earlier, high_level, stride)
    assert ours.shape[-2:] == ((17, 25) if stride == 4 else (33, 49))
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_in_a_new_model_no_place_has_moved():
    """The alignment is a plain convolution whose samples count half (section 3.3)."""
    head = build(upsampler="fapn").decode_head
    align, x = head.upsampler.alignments[0].align, torch.randn(1, 8, 7, 9)
    with torch.no_grad():
        plain = F.conv2d(x, 0.5 * align.weight, align.bias, padding=1)
        torch.testing.assert_close(align(x, torch.randn(1, 8, 7, 9)), plain, rtol=1e-5, atol=1e-6)
    assert align.weight.any() and not align.bias.any()


@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
def test_places_move_in_full_precision(how):
    """Offsets of some 100 columns plus a bit, which bfloat16 rounds to the next half; every other column is 1."""
    torch.manual_seed(0)
    align = DeformableConv(4)
    nn.init.normal_(align.offset.bias, std=100)
    nn.init.zeros_(align.offset.bias[:18:2])  # rows
    align.bfloat16()
    stripes = (torch.arange(400) % 2).expand(1, 4, 3, 400).bfloat16()
    with torch.no_grad():
        expected = align.double()(stripes.double(), stripes.double())
        align = align.float() if how == "autocast" else align.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            ours = align(stripes, stripes)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - expected).abs().max() < 2**-8 * expected.abs().max()


def test_a_deformable_convolution_counts_as_a_plain_one():
    with torch.device("meta"):
        align, plain = DeformableConv(8), nn.Conv2d(8, 8 + 27, 3, padding=1)
        x = torch.empty(2, 8, 7, 9)
    with FlopCounterMode(display=False, custom_mapping=COUNTED_TOO) as counter:
        align(x, x)
    with FlopCounterMode(display=False) as other:
        plain(x)
    assert counter.get_total_flops() == other.get_total_flops() > 0


@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_every_combination(upsampler):
    """With every encoding, with guidance and without, it gives logits of its stride and learns."""
    labels = torch.randint(0, 5, (2, 65, 97))
    feature_maps = maps_of(dtype=torch.float32)
    for encoding in ENCODINGS:
        for guidance in (False, True) if upsampler != "none" else (False,):
            config = build_config(upsampler=upsampler, extra_encoding=encoding, guidance=guidance)
            head = HFGDHead(config, WIDTHS)
            logits, others, regularised = head(feature_maps, with_auxiliary_logits=True)
            case = (encoding, guidance)
            assert logits.shape == (2, 5, *((17, 25) if upsampler != "none" else (3, 4))), case
            assert [tuple(o.shape) for o in others] == [(2, 5, 3, 4)] * (guidance + (encoding == "ocr")), case
            assert (regularised is None) == (encoding not in REGULARISED), case
            loss = sum(F.cross_entropy(F.interpolate(o, labels.shape[1:]), labels) for o in (logits, *others))
            (loss if regularised is None else loss + regularised.square().mean()).backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters()), case
            assert config.high_level_channels == head.classifier.in_channels, case
