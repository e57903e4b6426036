"""Video Swin as a backbone: time slots, and weights inflated from a Swin for images."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoBackbone, ResNetConfig, ResNetModel, SwinBackbone, SwinConfig, SwinForImageClassification

from vss_hf.modeling.backbone import build_backbone, load_backbone_weights
from vss_hf.modeling.backbone_presets import backbone_fields
from vss_hf.modeling.configuration_segmenter import backbone_config_from_dict
from vss_hf.modeling.configuration_swin3d import Swin3DConfig
from vss_hf.modeling.configuration_upernet import UperNetConfig
from vss_hf.modeling.inflate_swin import inflate_swin
from vss_hf.modeling.modeling_swin3d import Swin3DBackbone


STAGES = ["stage1", "stage2", "stage3", "stage4"]
SMALL = dict(embed_dim=8, depths=[2, 1, 2, 2], num_heads=[1, 2, 2, 4], out_features=STAGES)
# Larger than the window at every stage: where torchvision makes windows smaller, transformers pads the maps.
SIZE = (75, 69)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomised(module):
    """In eval mode, with large weights, so that attention is not uniform and every bias and norm matters."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def build(**changes):
    return randomised(Swin3DBackbone(Swin3DConfig(**{**SMALL, "window_size": [4, 2, 2], **changes})))


def maps(backbone, pixels):
    with torch.no_grad():
        return backbone(pixels).feature_maps


def close(ours, expected, atol=1e-5):
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


# --- weights of a Swin for images


@pytest.mark.parametrize(("patch", "num_frames"), [(1, 1), (1, 4), (2, 2), (2, 4), (2, 3)])
@pytest.mark.parametrize("size", [(96, 96), SIZE], ids=str)
def test_inflated_it_computes_on_equal_frames_what_the_image_network_computes(patch, num_frames, size, tmp_path):
    """Liu et al. 2022, section 3.3: a softmax over T copies of the keys gives the same mixture."""
    image_network = randomised(SwinBackbone(SwinConfig(**SMALL, window_size=2)))
    image_network.save_pretrained(tmp_path)
    backbone = build(patch_size=[patch, 4, 4])
    assert load_backbone_weights(backbone, str(tmp_path)) == []
    frame = torch.randn(2, 3, *size)
    expected = maps(image_network, frame)
    close(maps(backbone, frame.unsqueeze(1).expand(-1, num_frames, -1, -1, -1)), expected)
    if num_frames > 1:
        other = torch.cat([torch.randn(2, num_frames - 1, 3, *size), frame.unsqueeze(1)], dim=1)
        assert (maps(backbone, other)[3] - expected[3]).abs().max() > 0.01


def test_a_classifier_leaves_the_norms_of_the_maps_new(tmp_path):
    classifier = randomised(SwinForImageClassification(SwinConfig(**SMALL, window_size=2)))
    classifier.save_pretrained(tmp_path)
    backbone = build_backbone(Swin3DConfig(**SMALL, window_size=[4, 2, 2]))
    new = load_backbone_weights(backbone, str(tmp_path))
    assert new == [f"hidden_states_norms.{stage}.{kind}" for stage in STAGES for kind in ("bias", "weight")]
    qkv = backbone.features[4][1].attn.qkv
    attention = classifier.swin.encoder.layers[2].blocks[1].attention
    expected = [getattr(attention, f"{part}_proj").weight for part in "qkv"]
    assert torch.equal(qkv.weight, torch.cat(expected))


def test_windows_of_another_side_get_resized_biases():
    """Linear functions of the offset nearly stay so under bicubic resizing, away from the edges."""
    config = Swin3DConfig(**SMALL, window_size=[3, 7, 7])
    rows = torch.linspace(-1, 1, 23).repeat_interleave(23)  # (2 * 12 - 1) ** 2
    name = "swin.encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table"
    own = inflate_swin({name: rows.unsqueeze(1)}, config)["features.0.0.attn.relative_position_bias_table"]
    table = own.view(5, 13, 13)
    assert torch.equal(table, table[:1].expand(5, -1, -1))  # alike at every distance in time
    # pixel centres: 23 samples over [-1, 1] as 13 wider ones
    centres = ((torch.arange(13) + 0.5) / 13 * 23 - 0.5) / 22 * 2 - 1
    torch.testing.assert_close(table[0, 2:-2], centres[2:-2, None].expand(-1, 13), rtol=0, atol=0.01)


def test_a_video_swin_with_other_windows_and_patches(tmp_path):
    """On two frames windows of two and of four slots are the same; a patch of two equal frames is that of one."""
    source = build(window_size=[4, 2, 2])
    source.save_pretrained(tmp_path / "long")
    short = build(window_size=[2, 2, 2])
    assert load_backbone_weights(short, str(tmp_path / "long")) == []
    clip = torch.randn(1, 2, 3, *SIZE)
    close(maps(short, clip), maps(source, clip))

    double = build(patch_size=[2, 4, 4])
    double.save_pretrained(tmp_path / "double")
    single = build(patch_size=[1, 4, 4])
    load_backbone_weights(single, str(tmp_path / "double"))
    close(maps(single, clip[:, :1]), maps(double, clip[:, :1].expand(-1, 2, -1, -1, -1)))


def test_sources_that_do_not_fit_are_named(tmp_path):
    backbone = build_backbone(Swin3DConfig(**SMALL))
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])).save_pretrained(
        tmp_path / "resnet"
    )
    with pytest.raises(ValueError, match="resnet: 'resnet' is no Swin; expected a model of type 'swin' or 'vss_swin"):
        load_backbone_weights(backbone, str(tmp_path / "resnet"))
    wider = {**SMALL, "embed_dim": 16}
    SwinBackbone(SwinConfig(**wider, window_size=7)).save_pretrained(tmp_path / "wider")
    with pytest.warns(UserWarning, match="wider' have another shape for features.0.0.attn.proj.bias"):
        load_backbone_weights(backbone, str(tmp_path / "wider"))
    absolute = SwinConfig(**SMALL, window_size=7, use_absolute_embeddings=True)
    SwinBackbone(absolute).save_pretrained(tmp_path / "absolute")
    with pytest.raises(ValueError, match="position_embeddings' has no place in a Video Swin"):
        load_backbone_weights(backbone, str(tmp_path / "absolute"))


# --- time


def test_in_windows_of_one_slot_frames_do_not_see_each_other():
    clip = torch.randn(1, 3, 3, *SIZE)
    last, mean = (build(window_size=[1, 2, 2], time_pooling=pooling) for pooling in ("last", "mean"))
    close(maps(last, clip), maps(last, clip[:, -1:]))
    assert not torch.allclose(maps(last, clip)[0], maps(last, clip[:, :1])[0])
    mean.load_state_dict(last.state_dict())
    with torch.no_grad():
        slots = [last(clip[:, i : i + 1], output_hidden_states=True).hidden_states for i in range(3)]
        pooled = mean(clip, output_hidden_states=True).hidden_states
    close(pooled, [torch.stack(same).mean(dim=0) for same in zip(*slots, strict=True)], atol=1e-4)


@pytest.mark.parametrize("num_frames", [1, 3])
def test_an_incomplete_patch_is_filled_with_the_first_frame(num_frames):
    backbone, clip = build(patch_size=[2, 4, 4]), torch.randn(1, num_frames, 3, *SIZE)
    close(maps(backbone, clip), maps(backbone, torch.cat([clip[:, :1], clip], dim=1)))


@pytest.mark.parametrize("patch", [1, 2])
def test_gradients_reach_every_frame_and_every_parameter(patch):
    backbone, clip = build(patch_size=[patch, 4, 4]).train(), torch.randn(1, 5, 3, 64, 64).requires_grad_()
    sum(feature_map.square().sum() for feature_map in backbone(clip).feature_maps).backward()
    assert all(clip.grad[0, index].abs().max() > 0 for index in range(5))
    assert not [name for name, parameter in backbone.named_parameters() if parameter.grad is None]


# --- what every backbone does


def test_strides_and_widths():
    backbone = build(out_features=["stage2", "stage4"])
    assert backbone.channels == [16, 64] and list(backbone.hidden_states_norms) == ["stage2", "stage4"]
    assert [tuple(m.shape) for m in maps(backbone, torch.randn(2, 3, 3, 33, 130))] == [(2, 16, 5, 17), (2, 64, 2, 5)]


def test_saved_and_loaded_without_the_index_tables(tmp_path):
    backbone, clip = build(), torch.randn(1, 3, 3, *SIZE)
    assert not [name for name in backbone.state_dict() if "relative_position_index" in name]
    backbone.save_pretrained(tmp_path)
    again = Swin3DBackbone.from_pretrained(tmp_path)
    for (name, buffer), (_, other) in zip(backbone.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(buffer, other), name
    close(maps(again, clip), maps(backbone, clip))
    half = Swin3DBackbone.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for ours, exact in zip(maps(half, clip.bfloat16()), maps(backbone, clip), strict=True):
        assert ours.dtype == torch.bfloat16 and (ours.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_on_the_meta_device():
    with torch.device("meta"):
        backbone = AutoBackbone.from_config(Swin3DConfig(**SMALL))
        shapes = [tuple(m.shape[1:]) for m in backbone.eval()(torch.empty(1, 4, 3, 64, 96)).feature_maps]
    assert all(tensor.is_meta for tensor in (*backbone.parameters(), *backbone.buffers()))
    assert shapes == [(8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)]


def test_gradient_checkpointing_draws_the_same_stochastic_depth():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = build(drop_path_rate=0.5).train()
        if checkpointing:
            backbone.gradient_checkpointing_enable()
        clip = torch.randn(2, 2, 3, 64, 64)
        torch.manual_seed(1)
        sum(feature_map.square().mean() for feature_map in backbone(clip).feature_maps).backward()
        gradients.append({name: parameter.grad for name, parameter in backbone.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    with torch.no_grad():
        first, second = backbone(clip).feature_maps[3], backbone(clip).feature_maps[3]
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    torch.compiler.reset()
    backbone = build(depths=[1, 2], num_heads=[1, 2], out_features=["stage2"])
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    for size in ((64, 96), (33, 47)):  # the second with sizes as symbols
        clip = torch.randn(1, 3, 3, *size)
        close(maps(compiled, clip), maps(backbone, clip))


@pytest.mark.parametrize(("size", "published"), [("tiny", 28158070), ("small", 49816678), ("base", 88048984)], ids=str)
def test_the_sizes_are_the_published_ones(size, published):
    """torchvision tells the parameters of its classifiers for 400 classes."""
    config = backbone_config_from_dict(backbone_fields(f"swin3d-{size}"))
    with torch.device("meta"):
        backbone = build_backbone(config)
    width, own = backbone.channels[-1], sum(p.numel() for p in backbone.parameters())
    norms = sum(p.numel() for p in backbone.hidden_states_norms.parameters())
    assert own - norms == published - 2 * width - (width + 1) * 400


# --- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": [4, 4]}, r"patch_size=\[4, 4\]: expected 3 numbers from 1 up"),
        ({"window_size": [0, 7, 7]}, r"window_size=\[0, 7, 7\]: expected 3 numbers from 1 up"),
        ({"num_heads": [1, 2]}, r"num_heads=\[1, 2\]: expected 4 numbers from 1 up"),
        ({"num_heads": [3, 2, 2, 2]}, r"num_heads=\[3, 2, 2, 2\]: expected divisors of the widths \[8, 16, 32, 64\]"),
        ({"depths": [1], "num_heads": [1], "out_features": ["stage1"]}, "expected two blocks or more in all"),
        ({"time_pooling": "first"}, "time_pooling='first': expected one of .'last', 'mean'"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0: expected 0 <= value < 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0: expected a positive number"),
        ({"window_sise": [8, 7, 7]}, "did you mean 'window_size'"),
    ],
    ids=str,
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        Swin3DConfig(**{**SMALL, **changes})


def test_images_are_refused():
    with pytest.raises(ValueError, match=r"pixel_values_videos is \(1, 3, 64, 64\): expected \(batch, num_frames, 3,"):
        build()(torch.zeros(1, 3, 64, 64))
    with pytest.raises(
        (ValueError, StrictDataclassError), match="UperNetConfig.backbone_config: 'vss_swin3d' takes w"
    ):
        UperNetConfig(backbone_config={"model_type": "vss_swin3d", **SMALL})
