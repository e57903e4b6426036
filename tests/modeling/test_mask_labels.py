"""Masks and classes from label maps, against a slow loop over pixels."""

import pytest
import torch

from vss_hf.modeling.mask_labels import masks_from_labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_class_becomes_one_mask_and_void_none(dtype):
    torch.manual_seed(0)
    labels = torch.randint(0, 7, (3, 5, 8))
    labels[torch.rand(labels.shape) < 0.2] = 255
    masks, classes = masks_from_labels(labels.to(dtype), num_labels=7)
    for image, own_masks, own_classes in zip(labels.tolist(), masks, classes, strict=True):
        present = sorted({value for row in image for value in row} - {255})
        assert own_classes.tolist() == present and own_classes.dtype == torch.int64
        assert own_masks.dtype == torch.bool
        assert own_masks.tolist() == [[[value == label for value in row] for row in image] for label in present]


def test_ids_are_never_shifted():
    """0 is a class: it must not become void (`reduce_labels` of the image processors would do that)."""
    labels = torch.tensor([[[0, 0], [123, 255]]], dtype=torch.uint8)
    masks, classes = masks_from_labels(labels, num_labels=124)
    assert classes[0].tolist() == [0, 123]
    assert masks[0].sum(dim=(1, 2)).tolist() == [2, 1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_an_image_without_any_class_has_empty_lists(dtype):
    masks, classes = masks_from_labels(torch.full((1, 4, 6), 255, dtype=dtype), num_labels=5)
    assert masks[0].shape == (0, 4, 6) and classes[0].shape == (0,) and classes[0].dtype == torch.int64


def test_another_ignore_index():
    masks, classes = masks_from_labels(torch.tensor([[[0, 1, 2]]]), num_labels=3, ignore_index=0)
    assert classes[0].tolist() == [1, 2] and masks[0].tolist() == [[[False, True, False]], [[False, False, True]]]


@pytest.mark.parametrize(("value", "dtype"), [(5, torch.int64), (5, torch.uint8), (-1, torch.int64)])
def test_a_value_that_is_no_class_is_named(value, dtype):
    with pytest.raises(ValueError, match=rf"hold the value {value}: each must be in 0\.\.4 or ignore_index = 255"):
        masks_from_labels(torch.tensor([[[0, value]]]).to(dtype), num_labels=5)


@pytest.mark.parametrize("labels", [torch.zeros(4, 6), torch.zeros(1, 4, 6), torch.zeros(1, 1, 4, 6).long()])
def test_labels_of_another_shape_or_kind_are_refused(labels):
    with pytest.raises(ValueError, match=r"integers \(batch, height, width\)"):
        masks_from_labels(labels, num_labels=5)
