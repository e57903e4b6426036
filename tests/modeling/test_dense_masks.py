"""Label maps of mask classification models: equal to the definition, and never a map of all classes at full size."""

import pytest
import torch
from test_dense import LargestTensor
from torch.nn import functional as F

from vss_hf.modeling import dense
from vss_hf.modeling.dense_masks import upsampled_mask_argmax, upsampled_mask_scores
from vss_hf.modeling.image_processing_vss import VSSImageProcessor


def make(queries=6, num_labels=5, size=(9, 13), batch=2):
    generator = torch.Generator().manual_seed(0)
    classes = 3 * torch.randn(batch, queries, num_labels + 1, generator=generator)
    return classes, 3 * torch.randn(batch, queries, *size, generator=generator)


def naive_scores(classes, masks, size):
    """The definition in float64."""
    upsampled = F.interpolate(masks.double(), size=size, mode="bilinear", align_corners=False)
    return torch.einsum("bqk,bqhw->bkhw", classes.double().softmax(-1)[..., :-1], upsampled.sigmoid())


@pytest.mark.parametrize("size", [(33, 47), (9, 13), (5, 70)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_are_the_argmax_of_the_scores(monkeypatch, size, dtype):
    monkeypatch.setattr(dense, "_BLOCK_BYTES_CPU", 4 * 6 * 47 * 3)  # three rows at a time
    classes, masks = (tensor.to(dtype) for tensor in make())
    expected = naive_scores(classes, masks, size)
    torch.testing.assert_close(upsampled_mask_scores(classes, masks, size).double(), expected, rtol=1e-5, atol=1e-6)
    labels = upsampled_mask_argmax(classes, masks, size)
    best, second = expected.topk(2, dim=1).values.unbind(dim=1)
    clear = best - second > 1e-5
    assert labels.dtype == torch.uint8 and clear.float().mean() > 0.99
    assert torch.equal(labels.long()[clear], expected.argmax(dim=1)[clear])


def test_neither_masks_nor_scores_exist_at_full_size(monkeypatch):
    monkeypatch.setattr(dense, "_BLOCK_BYTES_CPU", 40_000)
    classes, masks = make(queries=20, num_labels=20, size=(8, 9))
    with LargestTensor() as largest:
        upsampled_mask_argmax(classes, masks, (64, 72))
    assert largest.elements <= 20_000 < 20 * 64 * 72


def test_the_image_processor_makes_label_maps_of_queries_and_masks():
    classes, masks = make()
    outputs = type("Output", (), {"class_queries_logits": classes, "masks_queries_logits": masks})()
    maps = VSSImageProcessor().post_process_semantic_segmentation(outputs, [(33, 47), (20, 21)])
    for i, (size, labels) in enumerate(zip([(33, 47), (20, 21)], maps, strict=True)):
        expected = naive_scores(classes[i : i + 1], masks[i : i + 1], size).argmax(1)[0]
        assert labels.shape == size and (labels == expected).float().mean() > 0.999
