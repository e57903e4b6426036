"""HRNet against timm's where both must agree, the exchange of maps, and its configuration.

What it has in common with ResNet is in test_conv_backbones.py, mmsegmentation's numbers in tests/parity.
"""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from timm.models.hrnet import HighResolutionModule, HighResolutionNet
from timm.models.resnet import BasicBlock
from torch import nn
from torch.nn import functional as F

from vss_hf.modeling.configuration_hrnet import HRNET_SIZES, HRNetConfig
from vss_hf.modeling.modeling_hrnet import HRNetBackbone, exchange, timm_fields


TINY = dict(
    stage1_channels=4,
    hidden_sizes=[4, 6, 8, 10],
    num_modules=[1, 1, 2, 1],
    num_blocks=[[1], [1, 1], [1, 1, 1], [1, 1, 1, 1]],
)


def test_same_maps_as_timm_when_timm_enlarges_bilinearly():
    """At multiples of 32, where timm's factors are exact."""
    torch.manual_seed(0)
    config = HRNetConfig(**TINY)
    ours = HRNetBackbone(config).eval()
    theirs = HighResolutionNet(timm_fields(config), num_classes=0, head="").eval()
    theirs.load_state_dict(ours.network.state_dict())
    for module in theirs.modules():
        if isinstance(module, nn.Upsample):
            module.mode = "bilinear"
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for own, other in zip(ours(pixels).feature_maps, theirs(pixels), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


def test_exchange_adds_every_branch_at_the_size_of_each():
    """The definition on two branches: twofold, then to the odd size; and a convolution with stride 2 downwards."""
    torch.manual_seed(0)
    network = HRNetBackbone(HRNetConfig(**TINY)).eval().network
    module = network.stage2[0]
    assert isinstance(module, HighResolutionModule) and isinstance(module.branches[0][0], BasicBlock)
    fine, coarse = torch.randn(1, 4, 5, 7), torch.randn(1, 6, 3, 4)
    with torch.no_grad():
        ours = exchange(module, fine, coarse)
        fine, coarse = module.branches[0](fine), module.branches[1](coarse)
        convolution, norm, _ = module.fuse_layers[0][1]
        up = F.interpolate(norm(convolution(coarse)), size=(6, 8), mode="bilinear")
        up = F.interpolate(up, size=(5, 7), mode="bilinear")
        down = module.fuse_layers[1][0](fine)
    torch.testing.assert_close(ours[0], F.relu(fine + up))
    torch.testing.assert_close(ours[1], F.relu(down + coarse))


@pytest.mark.parametrize(("size", "millions"), [("hrnet-w18", 9.6), ("hrnet-w48", 65.3)])
def test_parameters_of_the_published_sizes(size, millions):
    with torch.device("meta"):
        backbone = HRNetBackbone(HRNetConfig(**HRNET_SIZES[size]))
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert sum(backbone.channels) == {"hrnet-w18": 270, "hrnet-w48": 720}[size]


def test_all_four_branches_by_default():
    assert HRNetConfig().out_features == ["stage1", "stage2", "stage3", "stage4"]
    assert HRNetConfig(out_indices=[1]).out_features == ["stage1"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(hidden_sizes=[18, 36, 72]), r"hidden_sizes=\[18, 36, 72\]: expected 4 numbers"),
        (dict(hidden_sizes=[18, 36, 72, 0]), r"expected 4 numbers from 1 up"),
        (dict(hidden_sizes=[18, 36, 72, 2**40]), r"expected at most 65536 channels"),
        (dict(num_modules=[1, 1, 4]), r"num_modules=\[1, 1, 4\]: expected 4 numbers"),
        (dict(num_modules=[2, 1, 4, 3]), r"the first stage has one module"),
        (dict(num_modules=[1, 1, 4, 10**9]), r"more than 1000"),
        (dict(num_blocks=[[4], [4], [4, 4], [4, 4]]), r"expected four lists, of 1, 2, 3 and 4 numbers"),
        (dict(num_blocks=[[4], [4, 0], [4, 4, 4], [4, 4, 4, 4]]), r"numbers from 1 up"),
        (dict(stage1_channels=0), r"stage1_channels=0: expected at least 1"),
        (dict(num_block=[[1]]), r"no field 'num_block'; did you mean 'num_blocks'"),
    ],
)
def test_wrong_configurations(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        HRNetConfig(**fields)
