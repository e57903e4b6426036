"""Video Swin for segmentation: its heads are those of UperNet and OCRNet, its streams keep frames."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_video_models import NAMES, SWIN3D, build, build_config
from transformers import AutoModel

from vss_hf.modeling.architectures import MODELS, config_from_preset, configuration_class, model_class
from vss_hf.modeling.configuration_swin3d import Swin3DConfig
from vss_hf.modeling.configuration_video_swin import PRESETS, VideoSwinConfig
from vss_hf.modeling.inflate_swin import inflate_swin


STAGES = ["stage1", "stage2", "stage3", "stage4"]
DEEP = {**SWIN3D, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "out_features": STAGES}
UPERNET = dict(hidden_size=8, auxiliary_channels=8)


def upernet(**changes):
    """A small one with UperNet's head, in eval mode; the tests that every video model shares have the OCR head's."""
    torch.manual_seed(0)
    fields = dict(backbone_config=DEEP, frame_offsets=[-4, -1], id2label=dict(enumerate(NAMES)), **UPERNET)
    model = AutoModel.from_config(VideoSwinConfig(**{**fields, **changes})).eval()
    for name, parameter in model.named_parameters():
        if "classifier" in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize(
    ("decode_head", "model_type", "fields"),
    [
        ("upernet", "vss_upernet", UPERNET),
        ("ocr", "vss_ocrnet", dict(in_indices=[1, 2, 3], channels=8, ocr_channels=8, coarse_num_convs=2)),
        ("ocr", "vss_ocrnet", dict(in_indices=[2, 3], coarse_in_indices=[2], channels=8, ocr_channels=8)),
    ],
)
def test_on_equal_frames_it_is_the_image_model_on_swin(decode_head, model_type, fields, patch):
    """The heads have the image model's names; the backbone is inflated from its Swin."""
    torch.manual_seed(0)
    assert model_type in MODELS
    sizes = dict(embed_dim=8, depths=[2, 1, 1, 1], num_heads=[1, 2, 2, 2], out_features=STAGES)
    shared = dict(id2label=dict(enumerate(NAMES)), classifier_dropout=0.1, **fields)
    image_config = configuration_class(model_type)(
        backbone_config={"model_type": "swin", "window_size": 2, **sizes}, **shared
    )
    image_model = model_class(model_type)(image_config).eval()
    trunk = Swin3DConfig(window_size=[4, 2, 2], patch_size=[patch, 4, 4], **sizes)
    video_model = AutoModel.from_config(VideoSwinConfig(backbone_config=trunk, decode_head=decode_head, **shared))
    for parameter in image_model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tensors = image_model.state_dict()
    heads = {name: tensor for name, tensor in tensors.items() if not name.startswith("backbone.")}
    inflated = inflate_swin(image_model.backbone.state_dict(), trunk)
    video_model.load_state_dict({**heads, **{f"backbone.{name}": tensor for name, tensor in inflated.items()}})

    frame, labels = torch.randn(2, 3, 75, 69), torch.randint(0, 5, (2, 75, 69))
    clip = frame.unsqueeze(1).expand(-1, 4, -1, -1, -1)
    with torch.no_grad():
        ours = video_model.eval()(clip, labels, output_auxiliary_logits=True)
        expected = image_model(frame, labels, output_auxiliary_logits=True)
    scale = expected.logits.abs().max().item()
    torch.testing.assert_close(ours.logits, expected.logits, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(ours.auxiliary_logits[0][:, 0], expected.auxiliary_logits[0], rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(ours.loss, expected.loss, rtol=1e-4, atol=1e-5)


def test_upernet_head_is_saved_streamed_and_trained(tmp_path):
    model, video = upernet(), torch.randn(2, 6, 3, 33, 47)
    model.save_pretrained(tmp_path)
    again, state = AutoModel.from_pretrained(tmp_path).eval(), model.init_state()
    assert again.config.decode_head == "upernet" and again.config.frame_offsets == [-4, -1]
    for index in range(video.shape[1]):
        output, state = model.step(video[:, index], state)
        with torch.no_grad():
            expected = again(video[:, model.config.clip_indices(index)]).logits
        torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-4)
    labels = torch.randint(0, 5, (2, 33, 47))
    model.train()(video[:, :3], labels=labels).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_without_an_auxiliary_head():
    model = upernet(use_auxiliary_head=False).train()
    assert model(torch.randn(2, 2, 3, 64, 64)).auxiliary_logits is None


def test_a_stream_keeps_the_frames_in_the_models_precision():
    model = build("vss_video_swin", frame_offsets=[-2, -1]).bfloat16()
    frames, state = torch.randn(4, 1, 3, 33, 47), model.init_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for frame in frames:
            _, state = model.step(frame, state)
    assert [kept[0].dtype for kept in state.frames] == [torch.bfloat16] * 2
    for (kept,), frame in zip(state.frames, frames[2:], strict=True):
        assert torch.equal(kept, frame.bfloat16())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_built(name):
    config = config_from_preset(name)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
        assert model.eval()(torch.empty(1, 4, 3, 64, 64)).logits.shape[1] == config.num_labels
    trunk = config.backbone_config
    assert trunk.patch_size[0] == 1 and trunk.window_size[0] == len(config.frame_offsets) + 1
    # Tables of biases that reach beyond the clip would never learn.
    assert len(model.backbone.hidden_states_norms) == (3 if name.endswith("-ocr") else 4)


# --- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decode_head": "fcn"}, r"decode_head='fcn': expected one of .'upernet', 'ocr'"),
        ({"hidden_size": 8}, "hidden_size=8: is a field of decode_head='upernet', but it is 'ocr'; leave it out"),
        ({"decode_head": "upernet", "auxiliary_in_index": 0}, "is a field of decode_head='ocr', but it is 'upernet'"),
        ({"detach_references": True}, "detach_references=True: expected False; a Video Swin encodes the frames of a"),
        ({"supervise_references": True}, "supervise_references=True: expected False"),
        ({"neck": "unet"}, "neck='unet'"),
        ({"in_indices": [0, 2]}, r"in_indices=\[0, 2\]: expected indices from 0 to 1"),
        ({"channels": 0}, "channels=0: expected at least 1"),
        (
            {"backbone_config": {"model_type": "swin"}},
            "backbone_config: 'swin' takes single images; expected vss_swin3",
        ),
    ],
    ids=str,
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        build_config("vss_video_swin", **changes)


def test_the_other_heads_index_fields_do_not_matter():
    """Two maps are enough for the OCR head; the auxiliary head of UperNet would read a third one."""
    assert build_config("vss_video_swin").auxiliary_in_index == 2
    two = {**DEEP, "out_features": STAGES[2:]}
    config = VideoSwinConfig(backbone_config=two, auxiliary_in_index=0, **UPERNET)
    assert config.in_indices == [0, 1, 2]
    with pytest.raises((ValueError, StrictDataclassError), match="auxiliary_in_index=2: expected indices from 0 to 1"):
        VideoSwinConfig(backbone_config=two, **UPERNET)
