"""Class scores and label maps of our model and of transformers' own per-pixel and mask classification models."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    DetrConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from vss_hf.inference import semantic_labels, semantic_scores
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation


NUM_LABELS = 7
LABELS = {"id2label": {i: f"class {i}" for i in range(NUM_LABELS)}}


def tiny_resnet():
    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def segformer(_):
    return SegformerForSemanticSegmentation(
        SegformerConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, decoder_hidden_size=16, **LABELS)
    )


def upernet(_):
    return UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=tiny_resnet(), hidden_size=16, pool_scales=[1, 2], auxiliary_in_channels=16, **LABELS
        )
    )


def maskformer(_):
    detr = DetrConfig(
        d_model=32, decoder_layers=1, encoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, num_queries=6
    )
    swin = {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1] * 4,
        "num_heads": [1] * 4,
        "window_size": 4,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    return MaskFormerForInstanceSegmentation(
        MaskFormerConfig(
            backbone_config=swin, decoder_config=detr, fpn_feature_size=32, mask_feature_size=32, **LABELS
        )
    )


def mask2former(_):
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=tiny_resnet(),
            hidden_dim=32,
            feature_size=32,
            mask_feature_size=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_feedforward_dim=32,
            dim_feedforward=32,
            num_attention_heads=2,
            num_queries=6,
            **LABELS,
        )
    )


def ocrnet(make_config):
    return OCRNetForSemanticSegmentation(make_config("swin", num_labels=NUM_LABELS))


@pytest.mark.parametrize("build", [ocrnet, segformer, upernet, maskformer, mask2former], ids=lambda b: b.__name__)
def test_scores_are_probabilities_and_labels_their_argmax(tiny_ocrnet_config, build):
    torch.manual_seed(0)
    model = build(tiny_ocrnet_config).eval()
    with torch.no_grad():
        outputs = model(pixel_values=torch.randn(2, 3, 64, 96))
    for name in ("logits", "class_queries_logits", "masks_queries_logits"):  # new weights give nearly flat scores
        if getattr(outputs, name, None) is not None:
            setattr(outputs, name, 3 * torch.randn_like(getattr(outputs, name)))
    scores = semantic_scores(model, outputs, (97, 161))
    assert scores.shape == (2, NUM_LABELS, 97, 161) and scores.dtype == torch.float32
    assert (scores >= 0).all()
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(2, 97, 161))
    labels = semantic_labels(model, outputs, (97, 161))
    assert labels.shape == (2, 97, 161) and labels.dtype == torch.uint8
    best, second = scores.topk(2, dim=1).values.unbind(dim=1)
    clear = best - second > 1e-6
    assert clear.float().mean() > 0.99
    assert torch.equal(labels.long()[clear], scores.argmax(dim=1)[clear])


def test_per_pixel_scores_are_the_softmax_of_upsampled_logits(tiny_ocrnet_config):
    for align_corners in (False, True):
        model = OCRNetForSemanticSegmentation(tiny_ocrnet_config(align_corners=align_corners)).eval()
        with torch.no_grad():
            outputs = model(torch.randn(1, 3, 33, 47))
        outputs.logits = 3 * torch.randn_like(outputs.logits)
        upsampled = F.interpolate(outputs.logits, size=(33, 47), mode="bilinear", align_corners=align_corners)
        assert torch.equal(semantic_scores(model, outputs, (33, 47)), upsampled.softmax(dim=1))
        agree = semantic_labels(model, outputs, (33, 47)).long() == upsampled.argmax(dim=1)
        assert agree.float().mean() > 0.999


def test_mask_scores_by_a_slow_loop():
    """Per pixel the sum over queries of P(class of query) * P(pixel in its mask), without "no object", normalised."""
    torch.manual_seed(0)
    classes, masks = torch.randn(1, 4, NUM_LABELS + 1), torch.randn(1, 4, 3, 5)
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    scores = semantic_scores(SimpleNamespace(), outputs, (6, 10))
    upsampled = F.interpolate(masks.double(), size=(6, 10), mode="bilinear")[0]
    expected = torch.zeros(NUM_LABELS, 6, 10, dtype=torch.float64)
    for query in range(4):
        probabilities = classes[0, query].double().exp() / classes[0, query].double().exp().sum()
        for label in range(NUM_LABELS):
            expected[label] += probabilities[label] / (1 + (-upsampled[query]).exp())
    torch.testing.assert_close(scores[0].double(), expected / expected.sum(0), rtol=1e-5, atol=1e-6)


def test_many_classes_keep_their_numbers():
    masks = torch.full((1, 1, 2, 2), 5.0)  # (comparisons in int64: a uint8 tensor equals 299 where it holds 43)
    classes = torch.zeros(1, 1, 301)
    classes[0, 0, 299] = 9
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    assert (semantic_labels(SimpleNamespace(), outputs, (4, 4)).long() == 299).all()
    logits = torch.zeros(1, 300, 2, 2)
    logits[:, 299] = 9
    model = SimpleNamespace(config=SimpleNamespace())
    assert (semantic_labels(model, SimpleNamespace(logits=logits), (4, 4)).long() == 299).all()


def test_half_precision_outputs_are_scored_in_fp32(tiny_ocrnet_config):
    logits = torch.randn(1, 5, 8, 8).to(torch.bfloat16)
    model = SimpleNamespace(config=SimpleNamespace())
    scores = semantic_scores(model, SimpleNamespace(logits=logits), (32, 32))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.sum(1), torch.ones(1, 32, 32))


def test_another_kind_of_output_is_refused():
    with pytest.raises(TypeError, match="SimpleNamespace.*neither 'logits' nor 'class_queries_logits'"):
        semantic_scores(object(), SimpleNamespace(last_hidden_state=torch.zeros(1)), (8, 8))
    with pytest.raises(TypeError, match="semantic segmentation model"):
        semantic_labels(object(), SimpleNamespace(logits=None), (8, 8))
