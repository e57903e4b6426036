"""ResNet and HRNet files of torchvision, timm, CSAIL and mmsegmentation, and mmsegmentation's configurations."""

import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.hrnet import HighResolutionNet
from torch import nn

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.mmseg_config import mmseg_hrnet_config, mmseg_resnet_config
from vss_hf.modeling.backbone import load_backbone_weights
from vss_hf.modeling.configuration_hrnet import HRNetConfig
from vss_hf.modeling.configuration_resnet import RESNET_SIZES, DilatedResNetConfig
from vss_hf.modeling.modeling_hrnet import HRNetBackbone, timm_fields
from vss_hf.modeling.modeling_resnet import DilatedResNetBackbone


ALL_MAPS = ["stem", "stage1", "stage2", "stage3", "stage4"]
NARROW = dict(block="basic", depths=[1, 1, 1, 1], hidden_sizes=[4, 6, 8, 10])
TINY_HRNET = dict(
    stage1_channels=4,
    hidden_sizes=[4, 6, 8, 10],
    num_modules=[1, 1, 1, 1],
    num_blocks=[[1], [1] * 2, [1] * 3, [1] * 4],
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def without_counters(tensors):
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def test_torchvision_resnet():
    theirs = torchvision.models.resnet18()
    ours = DilatedResNetBackbone(DilatedResNetConfig(**RESNET_SIZES["resnet18"]))
    report = load_reference_state_dict(ours, theirs.state_dict(), "torchvision")
    assert set(report.loaded) == set(ours.state_dict()) and not report.kept
    assert report.unused == {"fc.weight": "the classifier", "fc.bias": "the classifier"}
    assert torch.equal(ours.layer3[1].conv2.weight, theirs.layer3[1].conv2.weight)


def test_files_from_before_batches_were_counted():
    ours = DilatedResNetBackbone(DilatedResNetConfig(**NARROW))
    old = without_counters(ours.state_dict())
    report = load_reference_state_dict(ours, old, "torchvision")
    assert set(report.loaded) == set(old) and set(report.kept) == set(ours.state_dict()) - set(old)
    assert all("0.4.1" in reason for reason in report.kept.values())
    del old["layer4.0.bn1.running_mean"]
    with pytest.raises(ValueError, match="missing: layer4.0.bn1.running_mean"):
        load_reference_state_dict(ours, old, "torchvision")


@pytest.mark.parametrize("name", ["resnet18", "resnet50c.gluon_in1k", "resnet50d"])
def test_timm_resnet(name):
    with torch.device("meta"):
        theirs = timm.create_model(name)
        deep = "." in name or name.endswith("d")
        size = RESNET_SIZES[f"resnet{'50c' if deep else '18'}"]
        ours = DilatedResNetBackbone(DilatedResNetConfig(**size, avg_down=name.endswith("d")))
    report = load_reference_state_dict(ours, theirs.state_dict(), "timm")
    assert set(report.loaded) == set(ours.state_dict()) and set(report.unused) == {"fc.weight", "fc.bias"}


def csail_maps(tensors, pixels):
    """CSAIL's ResNet of one undilated basic block per stage, from its own tensor names."""

    def conv_norm(x, conv, norm, stride=1):
        weight = tensors[f"{conv}.weight"]
        x = nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        statistics = [tensors[f"{norm}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")]
        return nn.functional.batch_norm(x, *statistics)

    x = pixels
    for index in (1, 2, 3):
        x = conv_norm(x, f"conv{index}", f"bn{index}", stride=2 if index == 1 else 1).relu()
    maps = [x]
    x = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
    for stage in (1, 2, 3, 4):
        block, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        shortcut = conv_norm(x, f"{block}.downsample.0", f"{block}.downsample.1", stride)
        x = conv_norm(x, f"{block}.conv1", f"{block}.bn1", stride).relu()
        x = (conv_norm(x, f"{block}.conv2", f"{block}.bn2") + shortcut).relu()
        maps.append(x)
    return maps


def test_csail_resnet():
    config = DilatedResNetConfig(**NARROW, stem="3x3x3", stem_channels=12, out_features=ALL_MAPS)
    ours = DilatedResNetBackbone(config).eval()
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items() if name.startswith("layer")}
    channels = {1: (3, 6), 2: (6, 6), 3: (6, 12)}
    shapes |= {f"conv{i}.weight": (out, into, 3, 3) for i, (into, out) in channels.items()}
    for i, (_, out) in channels.items():
        shapes |= {f"bn{i}.{kind}": (out,) for kind in ("weight", "bias", "running_mean", "running_var")}
    # positive, for the variances
    theirs = without_counters({name: torch.rand(shape) + 0.5 for name, shape in shapes.items()})
    report = load_reference_state_dict(ours, {**theirs, "fc.weight": torch.rand(2, 10)}, "vspw_baseline")
    assert set(report.unused) == {"fc.weight"} and set(report.loaded) | set(report.kept) == set(ours.state_dict())
    pixels = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        for own, other in zip(ours(pixels).feature_maps, csail_maps(theirs, pixels), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


def test_timm_hrnet():
    config = HRNetConfig(**TINY_HRNET)
    ours, theirs = HRNetBackbone(config), HighResolutionNet(timm_fields(config), num_classes=5)
    report = load_reference_state_dict(ours, theirs.state_dict(), "timm")
    assert set(report.loaded) == set(ours.state_dict())
    assert {name.split(".")[0] for name in report.unused} == {
        "incre_modules",
        "downsamp_modules",
        "final_layer",
        "classifier",
    }


@pytest.mark.parametrize("name", ["stem.2.weight", "layer1.0.se.fc1.weight", "layer5.0.conv1.weight", "norm.weight"])
def test_tensors_of_other_networks_are_refused(name):
    ours = DilatedResNetBackbone(DilatedResNetConfig(**NARROW))
    with pytest.raises(ValueError, match=name):
        load_reference_state_dict(ours, {**ours.state_dict(), name: torch.zeros(1)}, "mmseg")


# --- mmsegmentation's configurations


def mmseg_resnet(**settings):
    return mmseg_resnet_config({"type": "ResNetV1c", "depth": 50, **settings})


def test_mmseg_resnet_dilations():
    os8 = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    config = mmseg_resnet(**os8, contract_dilation=True)
    assert config.strides_and_dilations() == ([1, 2, 1, 1], [[1] * 3, [1] * 4, [1] + [2] * 5, [2, 4, 4]])
    assert config.strides_and_dilations() == DilatedResNetConfig(output_stride=8).strides_and_dilations()
    assert mmseg_resnet(**os8).dilations[2:] == [[2] * 6, [4] * 3]
    # DeepLabV3's d16-mg124; FastFCN's strides without dilations and dilations without strides
    config = mmseg_resnet(
        strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), multi_grid=(1, 2, 4), contract_dilation=True, depth=101
    )
    assert config.output_stride == 16 and config.dilations[3] == [1, 2, 4] and len(config.dilations[2]) == 23
    config = mmseg_resnet(strides=(1, 2, 2, 2), dilations=(1, 1, 2, 4))
    assert config.strides_and_dilations() == ([1, 2, 2, 2], [[1] * 3, [1] * 4, [2] * 6, [4] * 3])


def test_mmseg_resnet_kinds():
    plain, c, d = (mmseg_resnet(type=kind) for kind in ("ResNet", "mmseg.ResNetV1c", "ResNetV1d"))
    assert [config.stem for config in (plain, c, d)] == ["7x7", "3x3x3", "3x3x3"]
    assert [config.avg_down for config in (plain, c, d)] == [False, False, True]
    small = mmseg_resnet(depth=18, base_channels=8, stem_channels=16, num_stages=3, strides=(1, 2, 2),
                         dilations=(1, 1, 1), out_indices=(1, 2))  # fmt: skip
    assert (small.block, small.hidden_sizes, small.out_features) == ("basic", [8, 16, 32], ["stage2", "stage3"])
    assert not small.dilate_second_conv
    # settings of training do not matter
    settings = dict(norm_cfg=dict(type="SyncBN", requires_grad=True), norm_eval=True, with_cp=True, frozen_stages=1)
    assert mmseg_resnet(**settings, pretrained="open-mmlab://resnet50_v1c").to_dict() == mmseg_resnet().to_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(type="ResNeXt"), "type='ResNeXt': expected ResNet, ResNetV1c, ResNetV1d"),
        (dict(depth=26), "depth=26, expected 18, 34, 50, 101 or 152"),
        (dict(style="caffe"), "style='caffe', expected 'pytorch'"),
        (dict(dcn=dict(type="DCNv2")), "dcn=.*expected None"),
        (dict(plugins=[dict(cfg=dict(type="ContextBlock"))]), "plugins="),
        (dict(groups=32), "no counterpart here for groups"),
        (dict(strides=(1, 1, 1, 1)), r"strides=\(1, 1, 1, 1\)"),
        (dict(strides=(2, 2, 2, 1)), r"strides=\(2, 2, 2, 1\)"),
        (dict(norm_cfg=dict(type="GN", num_groups=32)), "expected BatchNorm"),
        (dict(norm_cfg=dict(type="BN", eps=1e-3)), "eps 1e-5"),
    ],
)
def test_mmseg_resnets_that_we_do_not_have(settings, message):
    with pytest.raises(ValueError, match=message):
        mmseg_resnet(**settings)


def hrnet_extra(**stage3):
    stages = {
        f"stage{n}": dict(
            num_modules=1,
            num_branches=n,
            block="BASIC" if n > 1 else "BOTTLENECK",
            num_blocks=[1] * n,
            num_channels=[8, 16, 32, 64][:n] if n > 1 else [4],
        )
        for n in (1, 2, 3, 4)
    }
    stages["stage3"] |= stage3
    return {"type": "HRNet", "extra": stages}


def test_mmseg_hrnets_that_we_do_not_have():
    config = mmseg_hrnet_config(hrnet_extra(num_blocks=(2, 1, 1)))
    assert (config.stage1_channels, config.hidden_sizes) == (4, [8, 16, 32, 64])
    assert config.num_blocks == [[1], [1, 1], [2, 1, 1], [1, 1, 1, 1]]
    for extra in (dict(block="BOTTLENECK"), dict(num_channels=[8, 16, 30]), dict(num_branches=2)):
        with pytest.raises(ValueError, match=r"extra\['stage3'\].*3 branches of BASIC blocks"):
            mmseg_hrnet_config(hrnet_extra(**extra))
    with pytest.raises(ValueError, match="multiscale_output=False, expected True"):
        mmseg_hrnet_config({**hrnet_extra(), "multiscale_output": False})


# --- pretrained backbones of timm


def timm_folder(folder, model, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def test_backbone_weights_from_a_timm_folder(tmp_path):
    theirs = timm.create_model("test_resnet.r160_in1k")
    folder = timm_folder(tmp_path / "timm", theirs, architecture="test_resnet", num_classes=1000)
    with torch.no_grad():
        maps = theirs.forward_intermediates(torch.ones(1, 3, 64, 64), intermediates_only=True)
    # test_resnet mixes basic and bottleneck blocks, so only a part has our names and shapes
    config = DilatedResNetConfig(**NARROW, stem="3x3x3", stem_channels=maps[0].shape[1], out_features=ALL_MAPS)
    ours = DilatedResNetBackbone(config)
    for source in (str(folder), f"local-dir:{folder}"):
        for module in ours.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.weight)
        with pytest.warns(UserWarning, match="another shape"):
            new = load_backbone_weights(ours, source)
        assert not any(name.startswith(("conv1.6", "bn1")) for name in new)
        assert torch.equal(ours.conv1[6].weight, theirs.conv1[6].weight)
    # a folder of our own is read as such
    ours.save_pretrained(tmp_path / "ours")
    again = DilatedResNetBackbone(config)
    assert load_backbone_weights(again, str(tmp_path / "ours")) == []
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))


def test_backbone_weights_by_timm_name(monkeypatch):
    config = HRNetConfig(**TINY_HRNET)
    theirs = HighResolutionNet(timm_fields(config), num_classes=5)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: theirs)  # the world outside
    ours = HRNetBackbone(config)
    assert load_backbone_weights(ours, "hrnet_w18.ms_in1k") == []
    for name, tensor in ours.network.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
