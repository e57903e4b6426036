"""TBN-ViT: its layers written down once more, what it shares with BiSeNet, and the start of a video.

What every video model must do alike is in test_every_video_model.py and test_clip_streaming.py.
"""

import pytest
import torch
from test_bisenet import TINY as MMSEG_BISENET
from test_bisenet import reference_names
from tiny_video_models import RESNET, TINY, build, build_config
from torch.nn import functional as F
from transformers import AutoModel

import vss_hf
from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.mmseg_model_config import segmenter_config_from_mmseg
from vss_hf.modeling.architectures import config_from_preset
from vss_hf.modeling.configuration_bisenet import BiSeNetConfig
from vss_hf.modeling.configuration_tbn_vit import TBNViTConfig
from vss_hf.modeling.modeling_bisenet import BiSeNetForSemanticSegmentation
from vss_hf.modeling.modeling_tbn_vit import TBNViTForVideoSemanticSegmentation


NAMES = {i: f"class {i}" for i in range(124)}


def by_definition(model, video):
    """Logits and auxiliary logits of the last of (T, 3, H, W), in float64: Figure 1 and section 2.1 of the paper.

    The backbone's maps are taken from it. Where the paper says nothing: see configuration_tbn_vit.py.
    """
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def norm(x, name):
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        scale = w[f"{name}.weight"] / (variance + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + w[f"{name}.bias"][:, None, None]

    def layer(x, name, stride=1):
        kernel = w[f"{name}.0.weight"]
        return norm(F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2), f"{name}.1").clamp(min=0)

    def attended(x, name):
        x = layer(x, f"{name}.conv")
        pooled = F.conv2d(x.mean(dim=(2, 3), keepdim=True), w[f"{name}.attention.1.weight"])
        return x * norm(pooled, f"{name}.attention.2").sigmoid()

    def nearest(x, size):
        for axis, length in zip((2, 3), size, strict=True):
            x = x.index_select(axis, torch.arange(length) * x.shape[axis] // length)
        return x

    def fused(frame):
        spatial = frame.double()
        for index in range(3):
            spatial = layer(spatial, f"spatial_path.{index}", stride=2)
        map_16, map_32 = (maps.double() for maps in model.backbone(frame).feature_maps)
        average = layer(map_32.mean(dim=(2, 3), keepdim=True), "context_path.average.1")
        context_32 = attended(map_32, "context_path.refine_coarse") + average
        context_16 = layer(nearest(context_32, map_16.shape[-2:]), "context_path.conv_coarse")
        context_16_refined = attended(map_16, "context_path.refine_fine") + context_16
        context_8 = layer(nearest(context_16_refined, spatial.shape[-2:]), "context_path.conv_fine")
        joined = layer(torch.cat([spatial, context_8], dim=1), "fusion.merge")
        weights = layer(joined.mean(dim=(2, 3), keepdim=True), "fusion.attention.1").sigmoid()
        return joined + joined * weights, context_8, context_16

    def classified(x, name, kernel=None):
        x = F.conv2d(x, w[f"{name}.convs.0.0.weight"] if kernel is None else kernel, padding=1)
        x = norm(x, f"{name}.convs.0.1").clamp(min=0)
        return F.conv2d(x, w[f"{name}.classifier.weight"], w[f"{name}.classifier.bias"])

    *others, (last, context_8, context_16) = (fused(frame.unsqueeze(0)) for frame in video)
    concatenated = torch.cat([last, torch.stack([other for other, *_ in others]).mean(dim=0)], dim=1)
    kernel = torch.cat([w["decode_head.convs.0.0.weight"], w["decode_head.context_conv.weight"]], dim=1)
    logits = classified(concatenated, "decode_head", kernel)
    return logits, classified(context_8, "auxiliary_heads.0"), classified(context_16, "auxiliary_heads.1")


@pytest.mark.parametrize("size", [(64, 96), (33, 47)])
def test_logits_are_those_of_the_layers_written_down(size):
    model, video = build("vss_tbn_vit"), torch.randn(2, 4, 3, *size)
    with torch.no_grad():
        output = model(video, output_auxiliary_logits=True)
        assert output.logits.shape == (2, 5, -(-size[0] // 8), -(-size[1] // 8))
        for index in range(2):
            ours = (output.logits[index], *(part[index, 0] for part in output.auxiliary_logits))
            for logits, expected in zip(ours, by_definition(model, video[index]), strict=True):
                torch.testing.assert_close(logits.double(), expected[0], rtol=1e-4, atol=1e-4)


def test_without_time_it_is_bisenet():
    """The ablation's bilateral network, under either name."""
    image_model = BiSeNetForSemanticSegmentation(BiSeNetConfig(**TINY["vss_tbn_vit"], num_labels=5)).eval()
    model = build("vss_tbn_vit", frame_offsets=[])
    model.load_state_dict(image_model.state_dict())
    frames = torch.randn(2, 3, 33, 47)
    with torch.no_grad():
        expected = image_model(frames, output_auxiliary_logits=True)
        output = model(frames.unsqueeze(1), output_auxiliary_logits=True)
        step, _ = model.step(frames, model.init_state())
    assert torch.equal(output.logits, expected.logits) and torch.equal(step.logits, expected.logits)
    for ours, theirs in zip(output.auxiliary_logits, expected.auxiliary_logits, strict=True):
        assert torch.equal(ours[:, 0], theirs)


def test_a_bisenet_is_continued(tmp_path):
    """One tensor is new. It starts from zeros, so the video model begins as good as the image model, and learns."""
    torch.manual_seed(0)
    image_model = BiSeNetForSemanticSegmentation(BiSeNetConfig(**TINY["vss_tbn_vit"], num_labels=5)).eval()
    image_model.save_pretrained(tmp_path)
    model, report = TBNViTForVideoSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {"decode_head.context_conv.weight"}
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.config.frame_offsets == [-9, -6, -3] and model.config.spatial_channels == [6, 8, 10]
    clips = torch.randn(2, 4, 3, 33, 47)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(clips).logits, image_model(clips[:, -1]).logits)
    config = TBNViTConfig.from_pretrained(tmp_path, frame_offsets=[-1])  # through the Auto class
    assert type(AutoModel.from_pretrained(tmp_path, config=config)) is type(model)

    model.train()(clips, labels=torch.randint(0, 5, (2, 33, 47))).loss.backward()
    assert model.decode_head.context_conv.weight.grad.abs().max() > 0
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    model.save_pretrained(tmp_path / "trained")
    again = AutoModel.from_pretrained(tmp_path / "trained")
    assert torch.equal(again.decode_head.context_conv.weight, model.decode_head.context_conv.weight)
    assert again.decode_head.context_conv.weight.any()


def test_mmsegmentations_weights_are_a_start():
    image_config = segmenter_config_from_mmseg(MMSEG_BISENET)
    image_model = BiSeNetForSemanticSegmentation(image_config).eval()
    fields = {name: value for name, value in image_config.to_dict().items() if name != "model_type"}
    model = TBNViTForVideoSemanticSegmentation(TBNViTConfig(**fields)).eval()
    report = load_reference_state_dict(model, reference_names(image_model), "mmseg")
    assert list(report.kept) == ["decode_head.context_conv.weight"] and not report.unused
    clips = torch.randn(1, 2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(clips).logits, image_model(clips[:, -1]).logits)


def test_a_frame_without_others_is_its_own_average():
    """The first frame of a video, with "existing" as with "repeat"."""
    frame = torch.randn(1, 3, 33, 47)
    first = {}
    for clip_start in ("existing", "repeat"):
        model = build("vss_tbn_vit", clip_start=clip_start)
        first[clip_start] = model.step(frame, model.init_state())[0].logits
    torch.testing.assert_close(first["existing"], first["repeat"], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        expected, *_ = by_definition(model, frame.expand(2, -1, -1, -1))
    torch.testing.assert_close(first["repeat"].double(), expected, rtol=1e-4, atol=1e-4)


def test_without_auxiliary_heads():
    model = build("vss_tbn_vit", use_auxiliary_heads=False).train()
    output = model(torch.randn(2, 3, 3, 33, 47), labels=torch.randint(0, 5, (2, 33, 47)))
    output.loss.backward()
    assert output.auxiliary_logits is None and output.loss.isfinite()


def test_any_backbone_gives_the_context():
    """Here a ResNet with four maps; the heads read the last two."""
    model = build("vss_tbn_vit", backbone_config=RESNET, in_indices=[2, 3])
    with torch.no_grad():
        assert model(torch.randn(1, 3, 3, 33, 70)).logits.shape == (1, 5, 5, 9)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_presets_have_three_convolutions_and_are_their_image_models(size):
    config = config_from_preset(f"tbn-vit-swin-{size}", id2label=NAMES)
    image_config = config_from_preset(f"bisenet-swin-{size}", id2label=NAMES)
    with torch.device("meta"):
        model, image_model = AutoModel.from_config(config), BiSeNetForSemanticSegmentation(image_config)
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert own.pop("decode_head.context_conv.weight") == (256, 256, 3, 3)
    assert own == {name: tensor.shape for name, tensor in image_model.state_dict().items()}
    strides = [layer[0].stride for layer in model.spatial_path]
    assert strides == [(2, 2)] * 3 and config.frame_offsets == [-9, -6, -3]


def test_the_size_of_the_heads():
    """Millions of parameters beside Swin-L, with mmsegmentation's widths and 124 classes, counted on its layers."""
    config = config_from_preset("tbn-vit-swin-large", spatial_channels=[64, 64, 64, 128], id2label=NAMES)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    beside = [p for n, p in model.named_parameters() if not n.startswith(("backbone.", "auxiliary_heads."))]
    assert sum(p.numel() for p in beside) / 1e6 == pytest.approx(4.62, abs=0.005)


def test_the_small_preset_takes_mmsegmentations_weights():
    config = config_from_preset("tbn-resnet18")
    assert config.spatial_channels == config_from_preset("bisenet-resnet18").spatial_channels == [64, 64, 64, 128]
    assert type(vss_hf.TBNViTForVideoSemanticSegmentation(config)) is TBNViTForVideoSemanticSegmentation


def test_new_models_begin_without_the_others():
    """Zeros only where nothing was loaded, and only there."""
    torch.manual_seed(0)
    head = AutoModel.from_config(build_config("vss_tbn_vit")).decode_head
    assert not head.context_conv.weight.any() and head.convs[0][0].weight.abs().min() > 0
