"""HFGD's extra encodings against plain functional calls in float64, evaluating and training; their first weights."""

import copy
import math

import pytest
import torch
from test_every_architecture import RESNET, build_config
from torch import nn
from torch.nn import functional as F

from vss_hf.modeling.configuration_hfgd import ENCODINGS
from vss_hf.modeling.high_level_encodings import build_encoding
from vss_hf.modeling.modeling_hfgd import HFGDForSemanticSegmentation


IN, WIDTH, CHANNELS, WIDE, K = 6, 10, 8, 14, 5  # widths: of the map, inside encodings, of class tokens, of the CAE
DILATED = {**RESNET, "output_stride": 8, "out_features": ["stage4"]}
each_encoding = pytest.mark.parametrize("name", ENCODINGS)


def encoding(name, upsampler="usfpn", **changes):
    """An encoding in float64, with random norms and statistics."""
    torch.manual_seed(0)
    widths = {"encoding_channels": WIDTH, "channels": CHANNELS, "wide_channels": WIDE, "key_channels": 4}
    config = build_config("vss_hfgd", **{"upsampler": upsampler, "extra_encoding": name, **widths, **changes})
    module = build_encoding(config, IN).double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.2, 0.5)
            nn.init.normal_(part.running_mean, 0, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module


class Written:
    """The layers of a paper as functional calls on the tensors of a module, by their names."""

    def __init__(self, module):
        self.training = module.training
        self.tensors = {**dict(module.named_buffers()), **dict(module.named_parameters())}

    def conv(self, x, name):
        """A 1x1 convolution with a bias."""
        return torch.einsum("bchw,oc->bohw", x, self.tensors[f"{name}.weight"][:, :, 0, 0]) + self.tensors[
            f"{name}.bias"
        ].view(-1, 1, 1)

    def cbr(self, x, name, size, dilation=1):
        """A convolution of this size without bias, BatchNorm, ReLU."""
        kernel = self.tensors[f"{name}.0.weight"]
        assert kernel.shape[2:] == (size, size)
        x = F.conv2d(x, kernel, padding=(size // 2) * dilation, dilation=dilation)
        mean, variance = (self.tensors[f"{name}.1.{word}"].view(-1, 1, 1) for word in ("running_mean", "running_var"))
        if self.training and x[:, 0].numel() > 1:
            mean = x.mean(dim=(0, 2, 3), keepdim=True)
            variance = (x - mean).square().mean(dim=(0, 2, 3), keepdim=True)
        weight, bias = (self.tensors[f"{name}.1.{word}"].view(-1, 1, 1) for word in ("weight", "bias"))
        return ((x - mean) / (variance + 1e-5).sqrt() * weight + bias).clamp(min=0)

    def attention(self, x):
        """x + self-attention of x, not scaled."""
        query, key, value = (self.conv(x, f"attention.{part}").flatten(2) for part in ("query", "key", "value"))
        weights = torch.einsum("bci,bcj->bij", query, key).softmax(dim=2)
        return x + torch.einsum("bij,bcj->bci", weights, value).view_as(x)

    # Each returns (high-level features, features for CAR, coarse logits): CAR's heads, and HFGD's section 3.2.

    def fcn(self, x):
        return self.cbr(self.cbr(x, "convs.0", 3), "convs.1", 1), None, None

    def projection(self, x):
        return self.cbr(x, "convs.0", 1), None, None

    def sa(self, x):
        return self.cbr(self.attention(self.cbr(x, "conv", 3)), "out", 3), None, None

    def sa_car(self, x):
        linear = self.conv(self.attention(self.cbr(x, "conv", 3)), "linear")
        return self.cbr(linear, "out", 1), linear, None

    def cae(self, x):
        wide = self.cbr(x, "wide_linear", 1)
        linear = self.conv(self.attention(self.cbr(wide, "narrow_linear", 1)), "linear")
        return self.cbr(linear, "out", 1), linear, None

    def cae_without_activation(self, x):
        linear = self.conv(self.attention(self.conv(self.conv(x, "wide_linear"), "narrow_linear")), "linear")
        return self.cbr(linear, "out", 1), linear, None

    def aspp(self, x, rates=(3, 6, 9)):
        mean = self.cbr(x.mean(dim=(2, 3), keepdim=True), "image_pool.1", 1).expand(-1, -1, *x.shape[2:])
        atrous = [self.cbr(x, f"branches.{i}", 3, rate) for i, rate in enumerate(rates, 1)]
        joined = torch.cat([mean, self.cbr(x, "branches.0", 1), *atrous], dim=1)
        assert joined.shape[1] == 5 * CHANNELS
        return self.cbr(joined, "out", 1), None, None

    def aspp_of_stride_16(self, x):
        return self.aspp(x, (6, 12, 18))

    def aspp_of_stride_8(self, x):
        return self.aspp(x, (12, 24, 36))

    def ocr(self, x):
        coarse = self.cbr(x, "coarse_head.convs.0", 3)
        assert coarse.shape == x.shape
        coarse = self.conv(coarse, "coarse_head.classifier")
        pixels = self.cbr(x, "pixel_conv", 3)
        regions = torch.einsum("bkhw,bchw->bck", coarse.flatten(2).softmax(dim=2).view_as(coarse), pixels)[..., None]
        query = self.cbr(self.cbr(pixels, "attention.query.0", 1), "attention.query.1", 1)
        key = self.cbr(self.cbr(regions, "attention.key.0", 1), "attention.key.1", 1)
        value = self.cbr(regions, "attention.value", 1)
        assert query.shape[1] == key.shape[1] == value.shape[1] == WIDTH // 2
        likeness = torch.einsum("bchw,bck->bkhw", query, key[..., 0]) / math.sqrt(WIDTH // 2)
        context = torch.einsum("bkhw,bck->bchw", likeness.softmax(dim=1), value[..., 0])
        context = self.cbr(context, "attention.out", 1)
        return self.cbr(torch.cat([context, pixels], dim=1), "attention.merge", 1), None, coarse

    def ppm(self, x):
        grids = [x]
        for i, cells in enumerate((1, 2, 3, 6)):
            edges = [
                [(math.floor(j * size / cells), math.ceil((j + 1) * size / cells)) for j in range(cells)]
                for size in x.shape[2:]
            ]
            means = [
                torch.stack([x[:, :, top:low, left:right].mean(dim=(2, 3)) for left, right in edges[1]], dim=2)
                for top, low in edges[0]
            ]
            pooled = self.cbr(torch.stack(means, dim=2), f"pools.{i}.1", 1)
            assert pooled.shape[1:] == (WIDTH, cells, cells)
            grids.append(F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=True))
        return self.cbr(torch.cat(grids, dim=1), "out", 3), None, None


# case -> (encoding, changes of the configuration, how it is written)
CASES = {
    "FCN": ("identity", {"upsampler": "none"}, Written.fcn),
    "FCN that guides": ("identity", {}, Written.fcn),
    "projection": ("identity", {"guidance": False}, Written.projection),
    "SA": ("sa", {"upsampler": "none"}, Written.sa),
    "SA before an upsampler": ("sa", {}, Written.sa),
    "SA + CAR": ("sa_car", {"upsampler": "none"}, Written.sa_car),
    "CAE": ("cae", {}, Written.cae),
    "CAE without activation": ("cae", {"linear_activation": False}, Written.cae_without_activation),
    "ASPP": ("aspp", {}, Written.aspp),
    "ASPP at stride 16": (
        "aspp",
        {"upsampler": "none", "backbone_config": {**RESNET, "out_features": ["stage3"]}},
        Written.aspp_of_stride_16,
    ),
    "ASPP at stride 8": ("aspp", {"upsampler": "none", "backbone_config": DILATED}, Written.aspp_of_stride_8),
    "ASPP on timm's": (
        "aspp",
        {
            "upsampler": "none",
            "backbone_config": {
                "model_type": "timm_backbone",
                "backbone": "test_resnet",
                "out_indices": [4],
                "output_stride": 8,
            },
        },
        Written.aspp_of_stride_8,
    ),
    "OCR": ("ocr", {"upsampler": "none"}, Written.ocr),
    "OCR before an upsampler": ("ocr", {}, Written.ocr),
    "PPM": ("ppm", {}, Written.ppm),
}


def with_gradients(outputs, leaves):
    """Outputs that are there, and the gradients of a fixed pattern of all of them."""
    outputs = [output for output in outputs if output is not None]
    total = sum((o * torch.arange(o.numel(), dtype=o.dtype).cos().view(o.shape)).sum() for o in outputs)
    return outputs, torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
@pytest.mark.parametrize("case", CASES)
def test_as_written_down(case, training):
    """Values and gradients, also of a map that is one place large, as of an image of 32 pixels."""
    name, changes, written = CASES[case]
    module = encoding(name, **copy.deepcopy(changes)).train(training)
    reach = 19 if name == "aspp" else 7
    exactness = 1e-3 if name == "ocr" else 1e-7  # its softmax over places is computed in float32
    for shape in ((2, IN, reach, reach - 2), (1, IN, 1, 1)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        leaves = [x, *module.parameters()]
        expected, gradients = with_gradients(written(Written(module), x), leaves)
        found, ours = with_gradients(module(x), leaves)
        own_width = changes.get("upsampler") == "none" and name in ("sa", "sa_car", "ocr")
        assert found[0].shape == (len(x), WIDTH if own_width else CHANNELS, *shape[2:]) and found[0].any()
        for mine, theirs in zip((*found, *ours), (*expected, *gradients), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=exactness, atol=exactness * 0.01)


@pytest.mark.parametrize("name", ["sa_car", "cae"])
def test_class_aware_regularisation_reads_the_linear_layer(name):
    """What it computes has no norm behind it, and is what the model passes on."""
    torch.manual_seed(0)
    model = HFGDForSemanticSegmentation(build_config("vss_hfgd", extra_encoding=name)).train()
    seen = []
    model.decode_head.encoding.linear.register_forward_hook(lambda module, inputs, output: seen.append(output))
    output = model(torch.randn(2, 3, 64, 96))
    assert output.regularised_features is seen[0] and seen[0].shape == (2, 8, 2, 3)
    model.eval()
    assert model(torch.randn(1, 3, 64, 96)).regularised_features is None


@pytest.mark.parametrize("name", ["identity", "aspp", "sa", "ppm", "ocr"])
def test_other_encodings_are_not_regularised(name):
    module = encoding(name)
    high_level, regularised, coarse_logits = module(torch.randn(1, IN, 4, 3, dtype=torch.float64))
    assert high_level.shape == (1, CHANNELS, 4, 3) and regularised is None
    assert (coarse_logits is not None) == (name == "ocr")


def test_coarse_logits_are_an_auxiliary_output_whether_they_are_wanted_or_not():
    torch.manual_seed(0)
    model = HFGDForSemanticSegmentation(build_config("vss_hfgd", extra_encoding="ocr")).eval()
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        without, with_them = model(pixels), model(pixels, output_auxiliary_logits=True)
    assert without.auxiliary_logits is None and torch.equal(without.logits, with_them.logits)
    assert [tuple(logits.shape) for logits in with_them.auxiliary_logits] == [(1, K, 2, 3)] * 2  # guidance, coarse


# --- the first weights


@pytest.mark.parametrize("name", ["sa", "cae"])
def test_queries_and_keys_start_alike(name, tmp_path):
    """Within Glorot's bounds; and what was learnt stays different when a model is loaded."""
    torch.manual_seed(0)
    widths = {"encoding_channels": 40, "wide_channels": 48, "key_channels": 16}
    model = HFGDForSemanticSegmentation(build_config("vss_hfgd", extra_encoding=name, channels=16, **widths))
    attention, axial = model.decode_head.encoding.attention, model.decode_head.attention
    for each in (attention, axial):
        assert torch.equal(each.query.weight, each.key.weight) and each.query.weight is not each.key.weight
    for projection in (attention.query, attention.value):
        bound = math.sqrt(6 / sum(projection.weight.shape[:2]))
        assert 0.95 * bound < projection.weight.abs().max() <= bound and not projection.bias.any()
        assert projection.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    attention.key.weight.data += 1
    model.save_pretrained(tmp_path)
    loaded = HFGDForSemanticSegmentation.from_pretrained(tmp_path).decode_head.encoding.attention
    assert torch.equal(loaded.key.weight, attention.key.weight)
    assert torch.equal(loaded.query.weight, attention.query.weight)
    plain = HFGDForSemanticSegmentation(build_config("vss_hfgd", extra_encoding="identity", channels=16, **widths))
    plain.save_pretrained(tmp_path / "plain")  # which has no such attention: the folder's weights go on with a new one
    begun = HFGDForSemanticSegmentation.from_pretrained(tmp_path / "plain", config=model.config).decode_head.encoding
    assert torch.equal(begun.attention.query.weight, begun.attention.key.weight)


@each_encoding
def test_classifiers_start_as_classifiers(name):
    """Small weights; everything before a norm as all heads' convolutions."""
    torch.manual_seed(0)
    model = HFGDForSemanticSegmentation(build_config("vss_hfgd", extra_encoding=name, channels=64, num_labels=K))
    classifiers = [part for name, part in model.decode_head.named_modules() if name.endswith("classifier")]
    assert len(classifiers) == (2 if name == "ocr" else 1)
    for classifier in classifiers:
        assert classifier.weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.3)
        assert not classifier.bias.any()
    out = {"identity": "convs.1", "ocr": "attention.merge"}.get(name, "out")
    kernel = model.decode_head.encoding.get_submodule(f"{out}.0").weight
    fan_out = kernel.shape[0] * kernel.shape[2] * kernel.shape[3]
    assert kernel.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.2)
