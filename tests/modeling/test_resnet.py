"""DilatedResNet against torchvision's and timm's ResNets, and its configuration.

What it has in common with HRNet is in test_conv_backbones.py, mmsegmentation's numbers in tests/parity.
"""

import pytest
import torch
import torchvision
from huggingface_hub.errors import StrictDataclassError
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from vss_hf.modeling.configuration_resnet import RESNET_SIZES, DilatedResNetConfig
from vss_hf.modeling.modeling_resnet import DilatedResNetBackbone


STAGES = ["stage1", "stage2", "stage3", "stage4"]


def random_norms(model):
    """In eval mode, and no norm at its initial state."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def assert_same_maps(ours, theirs):
    """Equal up to the order of additions."""
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize(
    ("size", "output_stride"), [("resnet18", 32), ("resnet50", 32), ("resnet50", 16), ("resnet50", 8)]
)
def test_same_maps_as_torchvision(size, output_stride):
    torch.manual_seed(0)
    dilated = {32: [False, False, False], 16: [False, False, True], 8: [False, True, True]}[output_stride]
    options = {} if size == "resnet18" else {"replace_stride_with_dilation": dilated}
    theirs = random_norms(getattr(torchvision.models, size)(**options))
    layers = {f"layer{i}": f"stage{i}" for i in (1, 2, 3, 4)}
    config = DilatedResNetConfig(**RESNET_SIZES[size], output_stride=output_stride, out_features=STAGES)
    ours = DilatedResNetBackbone(config).eval()
    ours.load_state_dict({name: t for name, t in theirs.state_dict().items() if not name.startswith("fc.")})
    pixels = torch.randn(1, 3, 65, 47)
    with torch.no_grad():
        assert_same_maps(ours(pixels).feature_maps, IntermediateLayerGetter(theirs, layers)(pixels).values())


@pytest.mark.parametrize(
    ("block", "output_stride", "avg_down"),
    [
        *[(block, stride, False) for block in ("basic", "bottleneck") for stride in (32, 16, 8)],
        ("bottleneck", 32, True),  # dilated, timm averages 2x2 pixels also where no stride is; mmsegmentation does not
    ],
)
def test_same_maps_as_timm_with_the_deep_stem(block, output_stride, avg_down):
    torch.manual_seed(0)
    widths = (4, 6, 8, 10)
    theirs = ResNet(
        {"basic": BasicBlock, "bottleneck": Bottleneck}[block],
        (2, 2, 3, 3),
        num_classes=0,
        stem_type="deep",
        stem_width=4,
        channels=widths,
        output_stride=output_stride,
        avg_down=avg_down,
    )
    random_norms(theirs)
    config = DilatedResNetConfig(
        block=block,
        stem="3x3x3",
        stem_channels=8,
        depths=[2, 2, 3, 3],
        hidden_sizes=[width * (4 if block == "bottleneck" else 1) for width in widths],
        output_stride=output_stride,
        avg_down=avg_down,
        out_features=["stem", *STAGES],
    )
    ours = DilatedResNetBackbone(config).eval()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(1, 3, 65, 47)
    with torch.no_grad():
        assert_same_maps(ours(pixels).feature_maps, theirs.forward_intermediates(pixels, intermediates_only=True))


def dilations_of(config):
    """Dilations of the 3x3 convolutions of the last two stages, block by block."""
    backbone = DilatedResNetBackbone(config)
    return [
        [conv.dilation[0] for conv in (block.conv1, block.conv2) if conv.kernel_size == (3, 3)]
        for stage in (backbone.layer3, backbone.layer4)
        for block in stage
    ]


NARROW = dict(depths=[1, 1, 2, 3], hidden_sizes=[4, 4, 4, 4])


def test_dilations_of_every_codebase():
    # Bottlenecks: the only 3x3 convolution. Contracted (mmsegmentation, CSAIL, timm):
    config = DilatedResNetConfig(**NARROW, output_stride=8)
    assert dilations_of(config) == [[1], [2], [2], [4], [4]]
    # CascadePSP leaves the first blocks undilated; mmsegmentation without contract_dilation dilates them fully.
    config = DilatedResNetConfig(**NARROW, output_stride=8, dilations=[[1], [1], [1, 2], [1, 4, 4]])
    assert dilations_of(config) == [[1], [2], [1], [4], [4]]
    config = DilatedResNetConfig(**NARROW, output_stride=16, dilations=[[1], [1], [1, 1], [1, 2, 4]])
    assert dilations_of(config) == [[1], [1], [1], [2], [4]]
    # Basic blocks: CSAIL and timm dilate both convolutions, mmsegmentation the first alone.
    config = DilatedResNetConfig(**NARROW, block="basic", output_stride=8)
    assert dilations_of(config) == [[1, 2], [2, 2], [2, 4], [4, 4], [4, 4]]
    config = DilatedResNetConfig(**NARROW, block="basic", output_stride=8, dilate_second_conv=False)
    assert dilations_of(config) == [[1, 1], [2, 1], [2, 1], [4, 1], [4, 1]]


@pytest.mark.parametrize(
    ("size", "millions"), [("resnet18", 11.18), ("resnet50", 23.51), ("resnet101", 42.50), ("resnet101c", 42.52)]
)
def test_parameters_of_the_published_sizes(size, millions):
    """torchvision's numbers without the classifier (11.69 - 0.51, 25.56 - 2.05, 44.55 - 2.05)."""
    with torch.device("meta"):
        backbone = DilatedResNetBackbone(DilatedResNetConfig(**RESNET_SIZES[size]))
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(stem="5x5"), r"stem='5x5': expected one of \('7x7', '3x3x3'\)"),
        (dict(block="bottle"), r"block='bottle'"),
        (dict(output_stride=4), r"output_stride=4: expected one of \(8, 16, 32\)"),
        (dict(depths=[3, 4, 0, 3]), r"depths=\[3, 4, 0, 3\]: expected 1 to 1000 blocks"),
        (dict(depths=[3, 4, 10**9, 3]), r"expected 1 to 1000 blocks in all"),
        (dict(depths=[]), r"depths=\[\]"),
        (dict(hidden_sizes=[256, 512, 1024]), r"expected 4 widths, as depths"),
        (dict(hidden_sizes=[256, 510, 1024, 2048]), r"expected multiples of 4"),
        (dict(hidden_sizes=[256, 512, 1024, 2**40]), r"up to 65536"),
        (dict(stem_channels=0), r"stem_channels=0: expected at least 1"),
        (dict(stem="3x3x3", stem_channels=9), r"an even number of stem channels"),
        (dict(dilations=[[1], [1], [1], [1]]), r"expected numbers from 1 up, 3 \+ 4 \+ 6 \+ 3 of them"),
        (dict(dilations=[[1] * 3, [1] * 4, [1] * 6, [2, 0, 2]]), r"expected numbers from 1 up"),
        (dict(depth=50), r"no field 'depth'; did you mean 'depths'"),
        (dict(out_features=["stage5"]), r"out_features must be a subset of stage_names"),
    ],
)
def test_wrong_configurations(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        DilatedResNetConfig(**fields)
