"""Video Swin's classifiers: torchvision's own network computes the same features, and nothing is dropped unseen."""

import pytest
import torch
from torchvision.models.video.swin_transformer import SwinTransformer3d

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.checkpoint import convert_checkpoint
from vss_hf.modeling.configuration_swin3d import Swin3DConfig
from vss_hf.modeling.modeling_swin3d import Swin3DBackbone


STAGES = ["stage1", "stage2", "stage3", "stage4"]
PATCH, WINDOW, DEPTHS, HEADS = [2, 4, 4], [2, 3, 3], [2, 1, 2, 1], [1, 2, 2, 4]


def classifier():
    """A narrow `swin3d_t` with large random weights."""
    torch.manual_seed(0)
    model = SwinTransformer3d(PATCH, 8, DEPTHS, HEADS, WINDOW, num_classes=5).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def backbone(**changes):
    fields = dict(patch_size=PATCH, window_size=WINDOW, depths=DEPTHS, num_heads=HEADS, out_features=STAGES)
    return Swin3DBackbone(Swin3DConfig(embed_dim=8, **{**fields, **changes})).eval()


def as_mmaction(tensors):
    """torchvision's tensors under the names of Video-Swin-Transformer's recogniser, written from its modules."""
    renamed = {}
    for name, tensor in tensors.items():
        part, *rest = name.split(".")
        if part == "features" and int(rest[0]) % 2:
            name = f"backbone.layers.{int(rest[0]) // 2}.downsample.{'.'.join(rest[1:])}"
        elif part == "features":
            inner = ".".join(rest[2:]).replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
            name = f"backbone.layers.{int(rest[0]) // 2}.blocks.{rest[1]}.{inner}"
        elif part == "head":
            name = f"cls_head.fc_cls.{rest[0]}"
        else:
            name = f"backbone.{name}"
        renamed[name] = tensor
    return renamed


def taps(model, clip):
    """The last time slot behind each of torchvision's stages, normalised as a new map norm does."""
    hidden, found = model.patch_embed(clip.transpose(1, 2)), []
    for index, layer in enumerate(model.features):
        hidden = layer(hidden)
        if index % 2 == 0:
            found.append(torch.nn.functional.layer_norm(hidden[:, -1], hidden.shape[-1:]).permute(0, 3, 1, 2))
    return found


@pytest.mark.parametrize(("source", "names"), [("torchvision", dict), ("video_swin", as_mmaction)])
def test_features_are_those_of_the_reference(source, names):
    reference, model = classifier(), backbone()
    report = load_reference_state_dict(model, names(reference.state_dict()), source)
    assert set(report.unused.values()) == {
        "computed from the window size",
        "the classifier's last norm",
        "the classifier",
    }
    assert len(report.loaded) == len([*reference.parameters()]) - 4
    assert set(report.kept) == {name for name in model.state_dict() if name.startswith("hidden_states_norms.")}
    for size in ((4, 64, 96), (6, 101, 115), (2, 33, 47)):
        clip = torch.randn(1, size[0], 3, *size[1:])
        with torch.no_grad():
            for ours, expected in zip(model(clip).feature_maps, taps(reference, clip), strict=True):
                torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_a_backbone_without_its_recogniser():
    tensors = {
        name.removeprefix("backbone."): tensor
        for name, tensor in as_mmaction(classifier().state_dict()).items()
        if name.startswith("backbone.")
    }
    assert load_reference_state_dict(backbone(), tensors, "video_swin").loaded


@pytest.mark.parametrize(("source", "names"), [("torchvision", dict), ("video_swin", as_mmaction)])
def test_it_is_strict(source, names):
    tensors = names(classifier().state_dict())
    lost = next(name for name in tensors if name.endswith("1.mlp.3.weight") or name.endswith("1.mlp.fc2.weight"))
    with pytest.raises(ValueError, match="missing: features.0.1.mlp.3.weight"):
        load_reference_state_dict(backbone(), {n: t for n, t in tensors.items() if n != lost}, source)
    with pytest.raises(ValueError, match="belong to no layer known here: backbone.extra.weight"):
        load_reference_state_dict(backbone(), {**tensors, "backbone.extra.weight": torch.zeros(1)}, source)
    with pytest.raises(ValueError, match="other shape: patch_embed.proj.weight"):
        load_reference_state_dict(backbone(patch_size=[1, 4, 4]), tensors, source)
    shallow = backbone(depths=DEPTHS[:3], num_heads=HEADS[:3], out_features=STAGES[:3])
    with pytest.raises(ValueError, match="unexpected: |belong to no layer known here: "):
        load_reference_state_dict(shallow, tensors, source)


def test_a_file_becomes_a_folder(tmp_path, monkeypatch):
    """Under the name of a published size, which is small here."""
    from vss_hf.modeling import backbone_presets

    small = dict(embed_dim=8, depths=DEPTHS, num_heads=HEADS, window_size=WINDOW)
    monkeypatch.setitem(backbone_presets.SIZES, "swin3d-tiny", small)
    reference = classifier()
    torch.save(reference.state_dict(), tmp_path / "swin3d_t.pth")
    converted = convert_checkpoint(tmp_path / "swin3d_t.pth", "torchvision", "swin3d-tiny", tmp_path / "out")
    model, clip = Swin3DBackbone.from_pretrained(tmp_path / "out").eval(), torch.randn(1, 4, 3, 64, 64)
    assert converted.num_labels is None
    with torch.no_grad():
        for ours, expected in zip(model(clip).feature_maps, taps(reference, clip), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
