"""ST-PPM: its averages over frames by formula, and what it shares with PSPNet."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_video_models import RESNET, TINY, build, build_config
from transformers import AutoModel

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.tables import rename
from vss_hf.convert.vspw_clip import ST_PPM
from vss_hf.modeling.architectures import config_from_preset
from vss_hf.modeling.configuration_pspnet import PSPNetConfig
from vss_hf.modeling.modeling_pspnet import PSPNetForSemanticSegmentation


def pooled_maps(model, video):
    """The last frame's map, and for each grid the average of the frames' pooled maps by definition, in float64."""
    maps = [model.backbone(video[:, i]).feature_maps[1].double() for i in range(video.shape[1])]
    scores = [(model.frame_score.weight.double() @ m.flatten(2)).mean(2) for m in maps]  # 1x1 convolution, then mean
    weights = torch.stack(scores).softmax(dim=0)  # (T, B, 1)
    if model.config.frame_weights == "published":
        # Pooled maps are listed current frame first, weights current frame last; then the mean over frames.
        maps, last = [maps[-1], *maps[:-1]], maps[-1]
        weights = weights / len(maps)
    else:
        last = maps[-1]
    averages = []
    for scale in model.config.pool_scales:
        pooled = torch.stack([torch.nn.functional.adaptive_avg_pool2d(m, scale) for m in maps])
        averages.append((pooled * weights[..., None, None]).sum(dim=0))
    return last, averages


@pytest.mark.parametrize("frame_weights", ["learned", "published"])
def test_learned_weights_by_definition(frame_weights):
    model, video = build("vss_st_ppm", frame_weights=frame_weights), torch.randn(2, 4, 3, 64, 96)
    with torch.no_grad():
        logits = model(video).logits
        last, averages = pooled_maps(model, video)
        expected = model.double().decode_head.join(last, averages)
    torch.testing.assert_close(logits, expected.float(), rtol=1e-4, atol=1e-5)


def test_the_kinds_of_average_differ():
    video = torch.randn(1, 3, 3, 64, 96)
    outputs = {}
    for kind in (None, "learned", "published"):
        with torch.no_grad():
            outputs[kind] = build("vss_st_ppm", frame_weights=kind)(video).logits
    assert (outputs["learned"] - outputs["published"]).abs().max() > 1e-3
    equal = build("vss_st_ppm")
    torch.nn.init.zeros_(equal.frame_score.weight)  # every frame has the same score
    plain = build("vss_st_ppm", frame_weights=None)
    plain.load_state_dict({n: t for n, t in equal.state_dict().items() if n != "frame_score.weight"})
    with torch.no_grad():
        torch.testing.assert_close(equal(video).logits, plain(video).logits, rtol=1e-4, atol=1e-5)


def test_new_scores_start_small(tmp_path):
    """The weights begin nearly equal, also where a model without them is continued."""
    plain = build("vss_st_ppm", frame_weights=None)
    plain.save_pretrained(tmp_path)
    model, report = AutoModel.from_pretrained(tmp_path, frame_weights="learned", output_loading_info=True)
    assert set(report["missing_keys"]) == {"frame_score.weight"}
    assert 0 < model.frame_score.weight.abs().max() < 0.1


def test_weights_of_a_checkpoint_are_never_dropped():
    """A 1x1 convolution of the original becomes the linear layer, and without one there is no place for it."""
    score = torch.randn(1, 64, 1, 1)
    renamed = rename({"pspweight_conv.0.weight": score}, ST_PPM).tensors
    assert torch.equal(renamed["frame_score.weight"], score[:, :, 0, 0])
    config = build_config("vss_st_ppm", frame_weights=None, backbone_config=RESNET)
    with pytest.raises(ValueError, match="unexpected: pspweight_conv.0.weight"):
        load_reference_state_dict(AutoModel.from_config(config), {"pspweight_conv.0.weight": score}, "vspw_baseline")


def test_one_frame_is_pspnet():
    """PSPNet's tensors fit, and a clip of one frame gives its logits."""
    fields = {name: value for name, value in TINY["vss_st_ppm"].items() if name != "frame_weights"}
    image_model = PSPNetForSemanticSegmentation(PSPNetConfig(**fields, num_labels=5)).eval()
    video_model = build("vss_st_ppm", frame_weights=None)
    video_model.load_state_dict(image_model.state_dict())
    frames = torch.randn(2, 3, 33, 47)
    with torch.no_grad():
        expected = image_model(frames, output_auxiliary_logits=True)
        output = video_model(frames.unsqueeze(1), output_auxiliary_logits=True)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.auxiliary_logits[0][:, 0], expected.auxiliary_logits[0])


def test_without_an_auxiliary_head():
    model = build("vss_st_ppm", use_auxiliary_head=False).train()
    labels = torch.randint(0, 5, (2, 3, 33, 47))
    output = model(torch.randn(2, 3, 3, 33, 47), labels=labels[:, -1], reference_labels=labels[:, :-1])
    output.loss.backward()
    assert output.auxiliary_logits is None and output.loss.isfinite()


def test_wrong_weights_are_named():
    with pytest.raises((ValueError, StrictDataclassError), match="frame_weights='softmax': expected one of"):
        build_config("vss_st_ppm", frame_weights="softmax")


@pytest.mark.parametrize(
    "preset, parameters", [("st-ppm-resnet50", 27.92), ("st-ppm-resnet101", 27.92), ("st-ppm-swin-large", 22.4)]
)
def test_the_heads_have_the_published_sizes(preset, parameters):
    """Millions of parameters with 124 classes; counted on the original code (Swin-L: on its layers)."""
    config = config_from_preset(preset, id2label={i: str(i) for i in range(124)})
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    heads = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("backbone."))
    assert heads / 1e6 == pytest.approx(parameters, abs=0.05)
