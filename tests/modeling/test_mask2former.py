"""Mask2Former alone: deformable attention in fp32, deep supervision, InternImage, presets.

What it shares with MaskFormer is in test_mask_models.py.
"""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_mask_models import CLASSES, batch, fields, make
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation

from vss_hf.modeling.configuration_mask2former import VSSMask2FormerConfig
from vss_hf.modeling.mask_labels import masks_from_labels
from vss_hf.modeling.modeling_mask2former import DeformableAttention


INTERNIMAGE = {
    "model_type": "vss_internimage",
    "channels": 8,
    "depths": [1, 1, 2, 1],
    "groups": [1, 2, 4, 8],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_loss_is_the_sum_over_the_queries_and_all_layers():
    model, (pixels, labels) = make("mask2former", "resnet"), batch()
    torch.manual_seed(1)
    output = model(pixels, labels=labels, output_auxiliary_logits=True)
    assert len(output.auxiliary_logits) == 3  # the queries, and two layers; the third is the output
    torch.manual_seed(1)
    targets = masks_from_labels(labels, 5)
    expected = 0
    for each in (output, *output.auxiliary_logits):
        parts = model.criterion(each["masks_queries_logits"], each["class_queries_logits"], *targets)
        expected += 2 * parts["loss_cross_entropy"] + 5 * parts["loss_mask"] + 5 * parts["loss_dice"]
    torch.testing.assert_close(output.loss, expected)


def test_without_deep_supervision_only_the_last_layer_counts():
    """transformers stumbles over this setting even when it segments."""
    model, (pixels, labels) = make("mask2former", "resnet", use_auxiliary_loss=False), batch()
    torch.manual_seed(1)
    output = model(pixels, labels=labels)
    torch.manual_seed(1)
    parts = model.criterion(output.masks_queries_logits, output.class_queries_logits, *masks_from_labels(labels, 5))
    expected = 2 * parts["loss_cross_entropy"] + 5 * parts["loss_mask"] + 5 * parts["loss_dice"]
    torch.testing.assert_close(output.loss, expected)


def pixel_decoder_with_offsets():
    """A pixel decoder whose sampling points move with the features, as after training."""
    model = make("mask2former", "resnet", encoder_layers=4)
    decoder = model.model.pixel_level_module.decoder
    for layer in decoder.encoder.layers:
        nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.1)
        nn.init.normal_(layer.self_attn.attention_weights.weight, std=0.3)
    pixels = 3 * F.interpolate(torch.randn(1, 3, 60, 107), size=(480, 853), mode="bilinear")
    with torch.no_grad():
        return decoder, list(model.backbone(pixels).feature_maps)


@pytest.mark.parametrize("precision", ["autocast", "bf16"])
def test_deformable_attention_samples_in_fp32(precision):
    """In bf16 the places are wrong by parts of a pixel, and the pixel embeddings by 10 %."""
    decoder, maps = pixel_decoder_with_offsets()
    with torch.no_grad():
        expected = decoder(maps).mask_features
        if precision == "bf16":
            half = copy.deepcopy(decoder).to(torch.bfloat16)([each.to(torch.bfloat16) for each in maps]).mask_features
        else:
            with torch.autocast("cpu", torch.bfloat16):
                half = decoder(maps).mask_features
    assert (half.float() - expected).std() <= 0.04 * expected.std()


def test_deformable_attention_by_definition():
    """Bilinear samples around each place's own centre, weighted and summed: a slow loop in float64."""
    heads, levels, points, width = 2, 3, 4, 8
    attention = DeformableAttention(width, heads, levels, points).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    shapes = [(2, 3), (3, 5), (5, 9)]
    places = sum(rows * columns for rows, columns in shapes)
    features, positions = torch.randn(2, 1, places, width, dtype=torch.float64)
    with torch.no_grad():
        ours, _ = attention(features, features, positions, shapes)
        queries = (features + positions)[0]
        values = attention.value_proj(features)[0].view(places, heads, -1)
        offsets = attention.sampling_offsets(queries).view(places, heads, levels, points, 2)
        weights = attention.attention_weights(queries).view(places, heads, -1).softmax(-1)
        weights = weights.view(places, heads, levels, points)
        context = torch.zeros(places, heads, width // heads, dtype=torch.float64)
        centres = [((x + 0.5) / columns, (y + 0.5) / rows)
                   for rows, columns in shapes for y in range(rows) for x in range(columns)]  # fmt: skip
        starts = [0, 6, 21]
        for place, (x, y) in enumerate(centres):
            for head in range(heads):
                for level, (rows, columns) in enumerate(shapes):
                    for point in range(points):
                        dx, dy = offsets[place, head, level, point].tolist()
                        column, row = x * columns + dx - 0.5, y * rows + dy - 0.5
                        weight = weights[place, head, level, point]
                        for r in (int(row // 1), int(row // 1) + 1):
                            for c in (int(column // 1), int(column // 1) + 1):
                                if 0 <= r < rows and 0 <= c < columns:
                                    area = (1 - abs(row - r)) * (1 - abs(column - c))
                                    value = values[starts[level] + r * columns + c, head]
                                    context[place, head] += weight * area * value
        expected = attention.output_proj(context.flatten(1))
    torch.testing.assert_close(ours[0], expected)


def test_points_come_from_torchs_generator():
    model, (pixels, labels) = make("mask2former", "resnet"), batch()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(pixels, labels=labels).loss)
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_on_internimage(tmp_path):
    model, (pixels, labels) = make("mask2former", INTERNIMAGE), batch((97, 161), count=1)
    model.train()(pixels, labels=labels).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    loaded = copy.deepcopy(loaded)  # a mapped file lies otherwise in memory, where sums may run in another order
    with torch.no_grad():
        assert torch.equal(loaded(pixels).masks_queries_logits, model(pixels).masks_queries_logits)


@pytest.mark.parametrize(
    ("preset", "num_labels", "millions", "tolerance"),
    [
        ("mask2former-internimage-h", 19, 1094, 0.5),  # InternImage's Cityscapes table: 1094M
        ("mask2former-internimage-h-wide", 150, 1310, 5),  # its ADE20K table: 1.31B
    ],
)
def test_internimage_presets_have_the_published_size(preset, num_labels, millions, tolerance):
    config = VSSMask2FormerConfig.from_preset(preset, num_labels=num_labels)
    with torch.device("meta"):
        model = CLASSES["mask2former"][1](config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=tolerance)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_size": 48}, "feature_size=48: expected a multiple of 32"),
        ({"num_attention_heads": 3}, "feature_size=64: expected a multiple of 3, num_attention_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"decoder_layers": 1}, "decoder_layers=1: expected 2"),
        ({"encoder_layers": 0}, "encoder_layers=0"),
        ({"num_queries": 0}, "num_queries=0"),
        ({"importance_sample_ratio": 1.5}, "importance_sample_ratio=1.5"),
        ({"common_stride": 8}, "common_stride=8"),
    ],
)
def test_wrong_configurations_are_named(changes, message):
    with pytest.raises(StrictDataclassError, match=message):
        VSSMask2FormerConfig(**{**fields("mask2former"), **changes})
