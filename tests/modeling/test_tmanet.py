"""TMANet: its attention by formula, its convolutions for each place in the clip, its configuration."""

import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_video_models import RESNET, build, build_config
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.mmseg_model_config import segmenter_config_from_mmseg
from vss_hf.modeling.architectures import config_from_preset
from vss_hf.modeling.clip_frames import CLIP_STARTS
from vss_hf.modeling.modeling_tmanet import read_memory


def tmanet(**changes):
    return build("vss_tmanet", **changes)


def scores(model, clip):
    with torch.no_grad():
        return model(clip).logits


# --- the head by formula


def conv_norm_relu(features, tensors, name):
    """Convolution, BatchNorm with running statistics and ReLU, from their definitions."""
    weight = tensors[f"{name}.0.weight"]
    output = F.conv2d(features, weight, padding=weight.shape[-1] // 2)
    norm = {
        part: tensors[f"{name}.1.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    }
    output = (output - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt()
    return (output * norm["weight"] + norm["bias"]).relu()


def embed(features, tensors, name):
    return conv_norm_relu(conv_norm_relu(features, tensors, f"{name}.0"), tensors, f"{name}.1")


def logits_by_definition(model, maps):
    """From the maps of the frames, oldest first: one pixel of the labelled frame after the other, in float64."""
    tensors = {name: tensor.double() for name, tensor in model.decode_head.state_dict().items()}
    *others, last = [part.double() for part in maps]
    last_conv = model.config.num_memory_convs - 1
    keys, values = [], []
    for back, features in enumerate(reversed(others or [last])):
        conv = last_conv if model.config.share_memory_convs else last_conv - back
        keys.append(embed(features, tensors, f"memory_key.{conv}"))
        values.append(embed(features, tensors, f"memory_value.{conv}"))
    query, own = embed(last, tensors, "query_key"), embed(last, tensors, "query_value")
    read = torch.zeros_like(own)
    for y in range(own.shape[2]):
        for x in range(own.shape[3]):
            products = torch.cat([(query[:, :, y, x, None, None] * key).sum(1).flatten(1) for key in keys], dim=1)
            if model.config.scale_attention:
                products = products / model.config.key_channels**0.5
            weights = products.exp() / products.exp().sum(1, keepdim=True)
            read[:, :, y, x] = (weights.unsqueeze(1) * torch.cat([v.flatten(2) for v in values], dim=2)).sum(2)
    merged = conv_norm_relu(torch.cat([own, read], dim=1), tensors, "merge")
    return F.conv2d(merged, tensors["classifier.weight"], tensors["classifier.bias"])


@pytest.mark.parametrize("changes", [{}, {"share_memory_convs": True}, {"scale_attention": True}], ids=str)
@pytest.mark.parametrize("num_frames", [3, 2, 1])
def test_logits_by_definition(changes, num_frames):
    """Clips of the whole length, and shorter ones with the frames nearest to the labelled one."""
    model = tmanet(backbone_config={**RESNET, "output_stride": 8}, **changes)
    clip = torch.randn(2, num_frames, 3, 65, 97)
    with torch.no_grad():
        maps = [model.backbone(clip[:, i]).feature_maps[3] for i in range(num_frames)]
        expected = logits_by_definition(model, maps)
    assert expected.shape == (2, 5, 9, 13)
    torch.testing.assert_close(scores(model, clip), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key_channels, value_channels", [(6, 10), (10, 6), (8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_attention_keeps_the_precision_of_its_tensors(key_channels, value_channels, dtype):
    """Products up to about 1000: in half precision itself they would be off by 2, weights by a factor of 7."""
    torch.manual_seed(0)
    query = (12 * torch.rand(2, key_channels, 5, 7)).to(dtype)
    keys = [(12 * torch.rand(2, key_channels, 5, 7)).to(dtype) for _ in range(3)]
    values = [torch.randn(2, value_channels, 5, 7).to(dtype) for _ in range(3)]
    pixels, memory = query.double().flatten(2), torch.cat([key.double().flatten(2) for key in keys], dim=2)
    weights = (pixels.transpose(1, 2) @ memory).softmax(dim=2)
    expected = torch.cat([value.double().flatten(2) for value in values], dim=2) @ weights.transpose(1, 2)
    read = read_memory(query, keys, values)
    assert read.shape == (2, value_channels, 5, 7) and read.dtype == dtype
    rounding = torch.finfo(dtype).eps * expected.abs().max().item()
    limit = 4 * rounding if dtype != torch.float32 else 1e-3  # fp32: a product of 1000 is off by 1e-4
    assert (read.flatten(2).double() - expected).abs().max() < limit


def test_under_autocast_the_softmax_is_in_fp32():
    """As with fp32 tensors, up to the rounding of what goes in."""
    model, clip = tmanet(), torch.randn(1, 3, 3, 64, 96)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours = model(clip).logits
    exact = scores(model, clip)
    assert (ours - exact).abs().mean() < 0.05 * exact.abs().mean()


class LargestTensor(TorchDispatchMode):
    """Sees every tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for part in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(part, torch.Tensor):
                self.elements = max(self.elements, part.numel())
        return output


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("key_channels, value_channels", [(6, 10), (10, 6), (8, 8)])
def test_the_matrix_of_weights_is_never_made(learns, key_channels, value_channels):
    query = torch.rand(1, key_channels, 24, 40, requires_grad=learns)
    keys = [torch.rand(1, key_channels, 24, 40, requires_grad=learns) for _ in range(4)]
    values = [torch.rand(1, value_channels, 24, 40, requires_grad=learns) for _ in range(4)]
    with LargestTensor() as seen:
        output = read_memory(query, keys, values)
        if learns:
            output.sum().backward()
    assert seen.elements == 4 * 960 * max(key_channels, value_channels) < 960 * 4 * 960


# --- places in the clip


def copy_of_shared(shared, **changes):
    """A model whose convolutions are the same at every place."""
    model = tmanet(share_memory_convs=False, **changes)
    tensors = {}
    for name in model.state_dict():
        of_shared = re.sub(r"(memory_(?:key|value))\.\d+", r"\1.0", name)
        tensors[name] = shared.state_dict()[of_shared]
    model.load_state_dict(tensors)
    return model


def test_the_same_convolutions_at_every_place_are_shared_ones():
    shared, clip = tmanet(share_memory_convs=True), torch.randn(2, 3, 3, 47, 65)
    model = copy_of_shared(shared)
    torch.testing.assert_close(scores(model, clip), scores(shared, clip))
    assert sum(p.numel() for p in model.parameters()) > sum(p.numel() for p in shared.parameters())
    with torch.no_grad():  # what only the older frame passes through
        model.decode_head.memory_value[0][1][0].weight.mul_(-1)
    assert (scores(model, clip) - scores(shared, clip)).abs().max() > 1e-3


def test_a_shorter_clip_has_the_nearest_places():
    """The convolutions of the older place are not read, those of the nearer one are."""
    model, clip = tmanet(), torch.randn(1, 3, 3, 64, 96)
    expected = {frames: scores(model, clip[:, list(frames)]) for frames in ((2,), (1, 2), (0, 1, 2))}
    for place, changed in ((0, {(0, 1, 2)}), (1, set(expected))):
        other = tmanet()
        with torch.no_grad():
            other.decode_head.memory_value[place][1][0].weight.mul_(-1)
        for frames, before in expected.items():
            differs = not torch.equal(scores(other, clip[:, list(frames)]), before)
            assert differs == (frames in changed), (place, frames)


def test_the_labelled_frame_is_not_in_its_memory():
    """Keys and values of the last frame of a clip are never asked for; of a single frame's clip they are."""
    model, seen = tmanet(), []
    model.decode_head.memory_key[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    clip = torch.randn(1, 3, 3, 64, 96)
    with torch.no_grad():
        maps = [model.backbone(clip[:, i]).feature_maps[3] for i in range(3)]
    scores(model, clip)
    scores(model, clip[:, 2:])
    torch.testing.assert_close(seen[0], maps[1])
    torch.testing.assert_close(seen[1], maps[2])


def test_the_order_counts_only_with_convolutions_for_each_place():
    clip = torch.randn(1, 3, 3, 64, 96)
    for shared in (True, False):
        model = tmanet(share_memory_convs=shared)
        difference = (scores(model, clip[:, [1, 0, 2]]) - scores(model, clip)).abs().max()
        assert (difference < 1e-4) == shared


@pytest.mark.parametrize("clip_start", CLIP_STARTS)
@pytest.mark.parametrize("offsets", [[-4, -3, -1], [-2], []], ids=str)
def test_with_shared_convolutions_a_stream_keeps_keys_and_values(clip_start, offsets):
    model = tmanet(frame_offsets=offsets, clip_start=clip_start, share_memory_convs=True)
    video, state = torch.randn(2, 7, 3, 33, 47), model.init_state()
    for index in range(7):
        output, state = model.step(video[:, index], state)
        expected = scores(model, video[:, model.config.clip_indices(index)])
        torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5, msg=f"frame {index}")
    assert all([part.shape[1] for part in frame] == [6, 10] for frame in state.frames)
    assert len(state.frames) == model.config.num_past_frames


def test_shared_convolutions_take_clips_of_any_length():
    model = tmanet(share_memory_convs=True, clip_start="repeat")
    clip = torch.randn(1, 6, 3, 33, 47)
    lengths = [scores(model, clip[:, -count:]) for count in range(1, 7)]
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(lengths[:-1], lengths[1:], strict=True))


# --- training


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_the_memory_learns_also_from_detached_frames(shared, detach):
    """Its convolutions get gradients, the backbone from the labelled frame only."""
    model = tmanet(share_memory_convs=shared, detach_references=detach).train()
    clip = torch.randn(2, 3, 3, 64, 96, requires_grad=True)
    model(clip, labels=torch.randint(0, 5, (2, 64, 96))).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.decode_head.parameters())
    reached = [clip.grad[:, i].abs().max() > 0 for i in range(3)]
    assert reached == [not detach, not detach, True]


# --- configuration and converter


@pytest.mark.parametrize(
    "clip_start, frames, message",
    [
        ("repeat", 2, r"have 1 frames before .*: expected 2, one for each of frame_offsets=\[-4, -1\].*share_memory"),
        ("mirror", 1, "have 0 frames before the labelled one: expected 2"),
        ("existing", 4, "have 3 frames before the labelled one: expected at most 2"),
    ],
)
def test_clips_of_another_length_are_named(clip_start, frames, message):
    with pytest.raises(ValueError, match=message):
        tmanet(clip_start=clip_start)(torch.zeros(1, frames, 3, 33, 47))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(in_index=4), "in_index=4: expected indices from 0 to 3"),
        (dict(key_channels=0), "key_channels=0: expected at least 1"),
        (dict(value_channels=10**9), "value_channels=1000000000: expected at most"),
        (dict(channels=-3), "channels=-3: expected at least 1"),
        (dict(key_chanels=3), "no field 'key_chanels'; did you mean 'key_channels'"),
        (dict(share_memory_convs="no"), "share_memory_convs"),
    ],
)
def test_wrong_fields_are_named(wrong, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        build_config("vss_tmanet", **wrong)


@pytest.mark.parametrize(
    "preset, parameters, frames", [("tmanet-resnet50-cityscapes", 6.27, 2), ("tmanet-resnet50", 8.84, 4)]
)
def test_the_heads_have_the_published_sizes(preset, parameters, frames):
    """Millions of parameters of the decode head, counted on the original code with 124 classes."""
    config = config_from_preset(preset, id2label={i: str(i) for i in range(124)})
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert sum(p.numel() for p in model.decode_head.parameters()) / 1e6 == pytest.approx(parameters, abs=0.01)
    assert config.frame_offsets == list(range(-frames, 0))
    config = config_from_preset("tmanet-swin-large", share_memory_convs=True)
    with torch.device("meta"):
        assert len(AutoModel.from_config(config).decode_head.memory_key) == 1


def reference_names(model):
    """The tensors of a tiny model under the names of TMANet's code."""
    renames = (
        (r"decode_head\.memory_(\w+)\.(\d)\.(\d)\.0\.", r"decode_head.memory_\1_conv.\3.\2.conv."),
        (r"decode_head\.memory_(\w+)\.(\d)\.(\d)\.1\.", r"decode_head.memory_\1_conv.\3.\2.bn."),
        (r"decode_head\.query_(\w+)\.(\d)\.0\.", r"decode_head.query_\1_conv.\2.conv."),
        (r"decode_head\.query_(\w+)\.(\d)\.1\.", r"decode_head.query_\1_conv.\2.bn."),
        (r"decode_head\.merge\.0\.", "decode_head.bottleneck.conv."),
        (r"decode_head\.merge\.1\.", "decode_head.bottleneck.bn."),
        (r"auxiliary_head\.convs\.0\.0\.", "auxiliary_head.convs.0.conv."),
        (r"auxiliary_head\.convs\.0\.1\.", "auxiliary_head.convs.0.bn."),
        (r"classifier", "conv_seg"),
    )
    tensors = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in renames:
            name = re.sub(ours, theirs, name)
        tensors[name] = tensor.clone()
    return tensors


@pytest.mark.parametrize("source", ["tmanet", "mmseg"])
def test_a_checkpoint_fits_one_number_of_frames(source):
    reference, clip = reference_names(tmanet()), torch.randn(1, 3, 3, 33, 47)
    other = AutoModel.from_config(build_config("vss_tmanet")).eval()
    assert not torch.equal(scores(other, clip), scores(tmanet(), clip))
    report = load_reference_state_dict(other, reference, source)
    assert set(report.loaded) == set(other.state_dict()) and not report.kept and not report.unused
    assert torch.equal(scores(other, clip), scores(tmanet(), clip))
    for offsets, message in (([-1], "unexpected: .*memory_key_conv.0.1"), ([-3, -2, -1], "missing: .*memory_key.2.0")):
        longer = AutoModel.from_config(build_config("vss_tmanet", frame_offsets=offsets))
        with pytest.raises(ValueError, match=message):
            load_reference_state_dict(longer, reference, source)


def test_mmsegmentations_settings():
    """What the fixture does not have: full widths, the wide keys of the base settings, no auxiliary head."""
    resnet = dict(type="ResNetV1c", depth=50, num_stages=4, out_indices=(0, 1, 2, 3), dilations=(1, 1, 2, 4))
    resnet |= dict(strides=(1, 2, 1, 1), norm_cfg=dict(type="SyncBN"), style="pytorch", contract_dilation=True)
    head = dict(type="TMAHead", in_channels=2048, in_index=3, channels=512, sequence_num=2, key_channels=256)
    head |= dict(value_channels=1024, dropout_ratio=0.1, num_classes=19, norm_cfg=dict(type="SyncBN"))
    config = segmenter_config_from_mmseg(dict(type="EncoderDecoder", backbone=resnet, decode_head=head))
    expected = config_from_preset("tmanet-resnet50", frame_offsets=[-2, -1], key_channels=256, value_channels=1024)
    expected.use_auxiliary_head = False
    expected.id2label = {i: f"LABEL_{i}" for i in range(19)}
    ours, theirs = expected.backbone_config, config.backbone_config
    assert (
        theirs.strides_and_dilations() == ours.strides_and_dilations() and theirs.stem_channels == ours.stem_channels
    )
    expected.backbone_config = theirs  # the same, but with its dilations written out
    assert config.to_dict() == expected.to_dict()
    with pytest.raises(ValueError, match="TMAHead.*memory_size"):
        segmenter_config_from_mmseg(
            dict(type="EncoderDecoder", backbone=resnet, decode_head={**head, "memory_size": 3})
        )
