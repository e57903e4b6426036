"""Label maps of any kind: counted, read and trained on as a pixel by pixel computation says, or refused by name."""

import functools
import io
import math

import numpy as np
import pytest
import torch
from fuzzing import (
    DTYPES,
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    integer_maps,
    outcome,
    png,
    png_pictures,
    strange_maps,
    whole_numbers,
)
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from vss_hf.data.labels import ClassList, palette_of
from vss_hf.data.transforms import AugmentationConfig, TrainTransform
from vss_hf.data.vspw import read_image, read_mask
from vss_hf.metrics import ConfusionMatrix, VideoConsistency
from vss_hf.metrics.confusion import value_table
from vss_hf.metrics.mean_iou.mean_iou import MeanIoU
from vss_hf.modeling.dense import upsampled_argmax, upsampled_confusion
from vss_hf.modeling.image_processing_vss import VSSImageProcessor, VSSImageProcessorPil
from vss_hf.modeling.losses import dense_segmentation_loss
from vss_hf.scoring import score_predictions


NAMES = ("road", "sky", "tree")
CLASSES = ClassList(NAMES, palette_of(NAMES), (1, 2, 5))
IGNORE = st.sampled_from([255, 255, 255, 0, 1, 254, 256, -1, -100, 300, 511, -300])
NUM_LABELS = st.sampled_from([1, 3, 3, 5, 255, 256, 300])


def containers(array):
    """The same map as the kinds of objects that people hand over."""
    kinds = [array, array.tolist()] if array.size else [array]
    if array.dtype.isnative and array.dtype.kind in "biufc":
        kinds.append(torch.from_numpy(np.array(array)))
    if array.ndim == 2 and array.size and array.dtype in (np.uint8, np.bool_):
        kinds.append(Image.fromarray(np.ascontiguousarray(array)))
    return kinds


# --- confusion matrix


def naive_counts(predictions, references, num_labels, ignore_index):
    """Rows of counts, the last column for "no class"; None when a value is neither a class nor ignore_index."""
    counts = [[0] * (num_labels + 1) for _ in range(num_labels)]
    for guess, truth in zip(predictions, references, strict=True):
        if truth == ignore_index:
            continue
        if guess == ignore_index and not 0 <= ignore_index < num_labels:
            guess = num_labels
        elif not 0 <= guess < num_labels:
            return None
        if not 0 <= truth < num_labels:
            return None
        counts[truth][guess] += 1
    return counts


def check_confusion(predictions, references, num_labels, ignore_index, kind):
    guesses, truths = (containers(array)[kind % len(containers(array))] for array in (predictions, references))
    expected = None
    if predictions.shape == references.shape:
        expected = naive_counts(whole_numbers(predictions), whole_numbers(references), num_labels, ignore_index)
    matrix = ConfusionMatrix(num_labels, ignore_index)
    _, error = outcome(matrix.update, guesses, truths)
    if expected is None:
        assert isinstance(error, ValueError) and (
            "hold" in str(error) or "shape" in str(error) or "dtype" in str(error)
        )
        assert not matrix._state.any()  # refused as a whole
    elif error is not None and max(whole_numbers(predictions)) >= 2**63:  # refused even where the pixel is ignored
        assert "from 2^63" in str(error) or "dtype" in str(error)
    elif error is not None:  # nested lists of Python integers that need more than 64 bits together
        assert kind % 4 == 1 and "dtype" in str(error), error
    else:
        assert matrix._state.tolist() == expected


def a(values, dtype):
    return np.array(values, dtype)


CONFUSION_KNOWN = [
    # compared in their own small type, -1 was 255 and 156 was -100
    (a([0, 1], "uint8"), a([-1, 1], "int8"), 3, 255, 0),
    (a([0, 300], "int64"), a([156, 1], "uint8"), 301, -100, 0),
    (a([0, 1], "int8"), a([255, 1], "uint8"), 300, 511, 0),
    (a([-1, 1], "int8"), a([255, 1], "uint8"), 300, 511, 0),
    # beyond int64 the value wrapped round to a negative one, here ignore_index
    (a([0, 1], "uint8"), a([2**64 - 1, 1], "uint64"), 3, -1, 0),
    (a([2**64 - 100, 1], "uint64"), a([1, 1], "uint8"), 3, -100, 2),
]


def test_confusion_matrix(fuzz):
    maps = st.sampled_from([(), (0,), (0, 5), (1, 1), (3, 4), (1, 200), (2, 3, 4)]).flatmap(
        lambda shape: st.tuples(integer_maps([shape]), integer_maps([shape]))
    )
    fuzz(
        lambda pair, num_labels, ignore_index, kind: check_confusion(*pair, num_labels, ignore_index, kind),
        maps, NUM_LABELS, IGNORE, st.integers(0, 3),
        quick=150, slow=6000, known=[((p, r), *rest) for p, r, *rest in CONFUSION_KNOWN],
    )  # fmt: skip


def test_confusion_matrix_of_different_shapes(fuzz):
    fuzz(check_confusion, integer_maps(), integer_maps(), NUM_LABELS, IGNORE, st.integers(0, 3), quick=60, slow=2000)


def test_what_is_no_label_map(fuzz):
    def check(strange, other, swap):
        pair = (strange, np.ones(strange.shape, "uint8"))
        for one, two in ((pair, pair[::-1])[swap], (strange, strange), (strange, other)):
            matrix, consistency = ConfusionMatrix(3), VideoConsistency()
            for method in (matrix.update, consistency.add_frame, value_table):
                _, error = outcome(method, one, two)
                assert isinstance(error, ValueError) and ("dtype" in str(error) or "shape" in str(error)), error
            assert not matrix._state.any()

    fuzz(check, strange_maps(), integer_maps(), st.integers(0, 1), quick=60, slow=2000)


COLOUR_MODES = ("RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "LAB", "La", "RGBX", "PA")


@pytest.mark.parametrize("mode", COLOUR_MODES)
def test_colour_pictures_are_no_label_maps(mode):
    picture = Image.new("RGB", (4, 3), (1, 1, 1))
    image = Image.new(mode, (4, 3))
    good = np.zeros((3, 4), np.uint8)
    for one, two in ((image, image), (image, good), (good, image)):
        for method in (ConfusionMatrix(3).update, VideoConsistency().add_frame, value_table):
            with pytest.raises(ValueError, match=f"mode {mode}|shape"):
                method(one, two)
    with pytest.raises(ValueError, match="mode"):
        ConfusionMatrix(3).update(image, image)
    for processor in (VSSImageProcessor(), VSSImageProcessorPil()):
        with pytest.raises(ValueError, match=r"segmentation_maps\[0\]"):
            processor(images=picture, segmentation_maps=image, return_tensors="pt")


# --- the evaluate module


@functools.cache
def mean_iou_module():
    return MeanIoU()  # not evaluate.load, whose copies and caches would outlive this test


def naive_mean_iou(counts, num_labels, protocol):
    """(mean IoU or None, classes scored) from the rows of `naive_counts`."""
    values = []
    for k in range(num_labels):
        hits, row, column = counts[k][k], sum(counts[k]), sum(counts[i][k] for i in range(num_labels))
        if (row if protocol == "vspw" else row + column - hits) > 0:
            values.append(hits / (row + column - hits))
    return (sum(values) / len(values) if values else math.nan), len(values)


def test_the_evaluate_module(fuzz):
    def check(pairs, num_labels, ignore_index, protocol, reduce_labels):
        metric = mean_iou_module()
        metric._start()
        refused = None
        for prediction, reference in pairs:
            _, refused = outcome(metric.add, prediction=prediction, reference=reference)
            bytes_only = all(0 <= v <= 255 for array in (prediction, reference) for v in whole_numbers(array))
            assert (refused is None) == bytes_only, refused
            if refused is not None:
                return
        guesses = [v for prediction, _ in pairs for v in whole_numbers(prediction)]
        truths = [v for _, reference in pairs for v in whole_numbers(reference)]
        if reduce_labels:
            truths = [255 if v in (0, 255) else v - 1 for v in truths]
        expected = naive_counts(guesses, truths, num_labels, ignore_index)
        settings = dict(num_labels=num_labels, ignore_index=ignore_index, protocol=protocol)
        result, error = outcome(metric.compute, reduce_labels=reduce_labels, **settings)
        if expected is None:
            assert isinstance(error, ValueError) and "hold the value" in str(error)
            return
        assert error is None, error
        mean, scored = naive_mean_iou(expected, num_labels, protocol)
        assert result["num_classes_scored"] == scored
        assert result["mean_iou"] == pytest.approx(mean, nan_ok=True)

    shapes = st.sampled_from([(1, 1), (3, 4), (1, 200), (0, 3)])
    pair = shapes.flatmap(lambda shape: st.tuples(integer_maps([shape]), integer_maps([shape])))
    fuzz(
        check, st.lists(pair, min_size=1, max_size=3), NUM_LABELS, IGNORE, st.sampled_from(["vspw", "evaluate"]),
        st.booleans(), quick=60, slow=2000,
    )  # fmt: skip


# --- video consistency


def naive_consistency(frames, lengths, protocol, ignore_index):
    """{n: (sum of the windows' values, windows scored, windows dropped)} over one video of integer arrays."""
    predictions = [np.array(whole_numbers(p), object) for p, _ in frames]
    references = [np.array(whole_numbers(r), object) for _, r in frames]
    totals = {}
    for n in lengths:
        total = scored = dropped = 0
        for start in range(len(frames) - n + (protocol == "paper")):
            window = range(start, start + n)
            constant = [i for i in range(references[0].size) if len({references[t][i] for t in window}) == 1]
            if protocol == "paper":
                constant = [i for i in constant if references[start][i] != ignore_index]
                steady = [i for i in constant if all(predictions[t][i] == references[t][i] for t in window)]
            else:
                steady = [i for i in constant if len({predictions[t][i] for t in window}) == 1]
            if constant:
                total, scored = total + len(steady) / len(constant), scored + 1
            else:
                dropped += 1
        totals[n] = (total, scored, dropped)
    return totals


def check_consistency(frames, protocol, ignore_index, bad):
    lengths = (2, 3)
    metric = VideoConsistency(lengths, protocol, ignore_index)
    for position, (prediction, reference) in enumerate(frames):
        if bad is not None and position == bad[0]:  # a frame that is refused leaves no trace
            for wrong in (bad[1], np.zeros((3, 5), np.uint8), np.zeros(3, np.uint8)):
                _, error = outcome(metric.add_frame, wrong, reference)
                assert isinstance(error, ValueError)
        metric.add_frame(prediction, reference)
    metric.end_video()
    result = metric.compute()
    total = scored = dropped = 0
    for n, one in naive_consistency(frames, lengths, protocol, ignore_index).items():
        if protocol == "dvis-legacy":
            total, scored, dropped = total + one[0], scored + one[1], dropped + one[2]
        else:
            total, scored, dropped = one
        assert result[f"vc{n}"] == (pytest.approx(total / scored) if scored else None)
        assert (result["clips"][f"vc{n}"], result["dropped_clips"][f"vc{n}"]) == (scored, dropped)


def test_video_consistency(fuzz):
    few = st.sampled_from([(0, 1), (0, 255), (1,), (0, 1, 2, 255)])
    maps = few.flatmap(lambda values: integer_maps([(3, 4)], mostly=values))
    frames = st.lists(st.tuples(maps, maps), min_size=1, max_size=6)
    bad = st.none() | st.tuples(st.integers(0, 3), strange_maps([(3, 4)]))
    one = np.ones((3, 4), np.uint8)
    known = [
        ([(one, np.full((3, 4), -1, np.int8))] * 3, "paper", 255, None),  # -1 was taken for 255, and so for void
        ([(one, np.full((3, 4), 156, np.uint8))] * 3, "paper", -100, None),
        ([(one, np.full((3, 4), 2**64 - 1, np.uint64))] * 3, "vspw-official", 255, None),
    ]
    protocols = st.sampled_from(["vspw-official", "paper", "dvis-legacy"])
    fuzz(check_known_or_refused, frames, protocols, IGNORE, bad, quick=80, slow=3000, known=known)


def check_known_or_refused(frames, protocol, ignore_index, bad):
    """`check_consistency`; values beyond int64 must be refused instead."""
    if any(value >= 2**63 for pair in frames for array in pair for value in whole_numbers(array)):
        metric = VideoConsistency((2, 3), protocol, ignore_index)
        with pytest.raises(ValueError, match="hold"):
            for pair in frames:
                metric.add_frame(*pair)
    else:
        check_consistency(frames, protocol, ignore_index, bad)


# --- files


def test_masks_are_read_as_stored_or_refused(fuzz, tmp_path):
    path = tmp_path / "mask.png"

    def check(picture):
        data, kind, depth, samples, _ = picture
        path.write_bytes(data)
        values, error = outcome(read_mask, path)
        if kind == PALETTE or (kind == GREY and depth == 8):
            assert values.dtype == np.uint8 and np.array_equal(values, samples[..., 0])
            lookup = {1: 0, 2: 1, 5: 2}
            assert CLASSES.lookup[values].ravel().tolist() == [lookup.get(v, 255) for v in samples.ravel().tolist()]
        else:
            assert isinstance(error, ValueError) and str(path) in str(error) and "index" in str(error)

    fuzz(check, png_pictures(), quick=100, slow=4000)


def test_frames_are_read_as_shown_or_refused(fuzz, tmp_path):
    path = tmp_path / "frame.png"

    def check(picture):
        data, kind, depth, samples, palette = picture
        path.write_bytes(data)
        pixels, error = outcome(read_image, path)
        if depth == 16 and kind == GREY and error is not None:
            assert isinstance(error, ValueError) and str(path) in str(error)
            return
        assert error is None, error
        if kind == PALETTE:
            expected = palette[samples[..., 0]]
        else:
            colours = samples[..., :1] if kind in (GREY, GREY_ALPHA) else samples[..., :3]
            expected = np.broadcast_to(colours * 255 / (2**depth - 1), (*samples.shape[:2], 3))
        assert pixels.shape == expected.shape and pixels.dtype == np.uint8
        assert np.abs(pixels.astype(int) - expected).max() <= (1 if depth == 16 else 0)  # 16 bits: upper byte

    fuzz(check, png_pictures(), quick=100, slow=4000)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I", "F", "I;16"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_every_mode_and_format_by_pil(tmp_path, mode, kind):
    values = np.random.default_rng(0).integers(0, 3, (5, 7), dtype=np.uint8)
    image = Image.fromarray(values)
    image = image.convert(mode) if mode != "P" else Image.fromarray(values, mode="P")
    if mode == "P":
        image.putpalette([9] * 3 + [90] * 3 + [200] * 3)
    try:
        image.save(tmp_path / "mask.png", kind)
    except (OSError, ValueError) as error:
        pytest.skip(str(error))
    read, error = outcome(read_mask, tmp_path / "mask.png")
    if kind == "PNG" and mode in ("L", "P"):
        assert np.array_equal(read, values)
    else:
        assert error is not None and "mask.png" in str(error)


# --- prediction files


@pytest.fixture(scope="module")
def scored_tree(tmp_path_factory):
    """One video of two frames (5, 7) with known masks."""
    root = tmp_path_factory.mktemp("scored")
    rng = np.random.default_rng(1)
    masks = [rng.choice(np.array([0, 1, 2, 5, 77, 255], np.uint8), (5, 7)) for _ in range(2)]
    for number, mask in enumerate(masks):
        for folder, array in (("origin", np.zeros((5, 7, 3), np.uint8)), ("mask", mask)):
            (root / "data/v" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / "data/v" / folder / f"{number}.png")
    (root / "val.txt").write_text("v\n")
    (root / "label_num_dic_final.json").write_text('{"road": 1, "sky": 2, "tree": 5}')
    return root, masks


def test_prediction_files(fuzz, scored_tree, tmp_path):
    root, masks = scored_tree
    (tmp_path / "v").mkdir()
    good = np.random.default_rng(2).integers(0, 3, (5, 7))
    lookup = {1: 0, 2: 1, 5: 2}

    def check(picture, low_values, jpeg):
        data, kind, depth, samples, palette = picture
        if low_values:  # so that about half of the usable files are scored
            samples = samples % 3 if 2**depth > 2 else samples
            data = png(samples, kind, depth, palette=palette)
        if jpeg:
            data = as_jpeg(samples, kind, depth)
        (tmp_path / "v/0.png").write_bytes(data)
        Image.fromarray(good.astype(np.uint8)).save(tmp_path / "v/1.png")
        results, error = outcome(score_predictions, tmp_path, root)
        usable = not jpeg and (kind == PALETTE or (kind == GREY and depth == 8))
        truths = [lookup.get(v, 255) for mask in masks for v in mask.ravel().tolist()]
        if usable:
            expected = naive_counts(samples.ravel().tolist() + good.ravel().tolist(), truths, 3, 255)
            usable = expected is not None
        if not usable:
            assert isinstance(error, ValueError) and "0.png" in str(error), error
            return
        assert error is None, error
        mean, scored = naive_mean_iou(expected, 3, "vspw")
        assert results["mean_iou"] == pytest.approx(mean) and results["classes_scored"] == scored

    fuzz(check, png_pictures(), st.booleans(), st.integers(0, 9).map(lambda n: n == 0), quick=60, slow=2000)


def as_jpeg(samples, kind, depth):
    channels = {GREY: 1, PALETTE: 1, GREY_ALPHA: 1, RGB: 3}.get(kind, 3)
    file = io.BytesIO()
    Image.fromarray((samples[..., :channels] % 3).astype(np.uint8).squeeze(-1) if channels == 1 else
                    (samples[..., :3] % 3).astype(np.uint8)).save(file, "JPEG")  # fmt: skip
    return file.getvalue()


# --- transforms

CALM = AugmentationConfig(
    crop_size=(6, 8), scale_mode="none", cat_max_ratio=1.0, horizontal_flip_prob=0.0, photometric_prob=0.0
)
SAMPLE_SHAPES = ((5, 7), (1, 1), (1, 300), (300, 1), (6, 8), (9, 3))


@st.composite
def samples(draw):
    """A data sample: frames and labels as they should be, or something else in one of the two places."""
    height, width = draw(st.sampled_from(SAMPLE_SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    frames = torch.from_numpy(
        rng.integers(0, 256, (draw(st.sampled_from([1, 1, 3])), 3, height, width), dtype=np.uint8)
    )
    labels = torch.from_numpy(rng.choice(np.array([0, 1, 2, 200, 255], np.uint8), (height, width)))
    sample = {"frames": frames, "labels": labels, "video": "v", "frame": "0001"}
    strange = st.one_of(
        integer_maps(((), (0,), (height, width), (width, height), (0, width), (1, height,
        width))).map(as_tensor_or_array),
        strange_maps(((height, width),)), st.none(), st.just("labels"), st.just([[0]]), st.just(3),
        st.just(labels.numpy()), st.just(labels.float()), st.just(labels.long()), st.just(labels.bool()),
    )  # fmt: skip
    wrong_frames = st.sampled_from([
        frames[0], frames.float(), frames[:0], frames[:, :1], frames[:, :, :0], frames[..., :0], frames.numpy(), None,
        [],
        frames.permute(0, 2, 3, 1), frames.bool(),
    ])  # fmt: skip
    place = draw(st.sampled_from(["nothing", "nothing", "labels", "frames", "no labels", "no frames"]))
    if place in sample:
        sample[place] = draw(strange if place == "labels" else wrong_frames)
    elif place != "nothing":
        del sample[place.removeprefix("no ")]
    return sample


def as_tensor_or_array(array):
    return torch.from_numpy(np.array(array)) if array.dtype.isnative else array


def is_good(sample):
    frames, labels = sample.get("frames"), sample.get("labels")
    return (
        isinstance(frames, torch.Tensor) and frames.dtype == torch.uint8 and frames.ndim == 4
        and frames.shape[1] == 3 and frames.numel() > 0
        and isinstance(labels, torch.Tensor) and labels.dtype == torch.uint8 and labels.shape == frames.shape[2:]
    )  # fmt: skip


def test_transform_without_chance_is_plain_arithmetic(fuzz):
    def check(sample):
        result, error = outcome(TrainTransform(CALM), sample, 0)
        if not is_good(sample):
            assert isinstance(error, ValueError) and ("labels" in str(error) or "frames" in str(error)), error
            return
        assert error is None, error
        frames, labels = sample["frames"], sample["labels"]
        pixels = result["pixel_values"][None] if len(frames) == 1 else result["pixel_values_videos"]
        # crops of frames larger than 6 x 8 lie anywhere: find the place on the labels' side by trying all
        height, width = min(6, frames.shape[2]), min(8, frames.shape[3])
        mean, std = (torch.tensor(v)[:, None, None] for v in (CALM.image_mean, CALM.image_std))
        fits = False
        for top in range(frames.shape[2] - height + 1):
            for left in range(frames.shape[3] - width + 1):
                window = (slice(top, top + height), slice(left, left + width))
                if torch.equal(result["labels"][:height, :width], labels[window].long()):
                    expected = (frames[(..., *window)] / 255 - mean) / std
                    fits |= bool(torch.allclose(pixels[..., :height, :width], expected, atol=1e-5))
        assert fits
        assert result["labels"].shape == (6, 8) and (result["labels"][height:] == 255).all()
        assert (result["labels"][:, width:] == 255).all()
        assert (pixels[..., height:, :] == 0).all() and (pixels[..., width:] == 0).all()

    fuzz(check, samples(), quick=80, slow=3000)


def test_transform_invents_no_label(fuzz):
    configs = st.builds(
        AugmentationConfig,
        crop_size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        base_size=st.sampled_from([None, 0.5, 2, (6, 9), [9, 6]]),
        scale_mode=st.sampled_from(["betterthing", "range", "none"]),
        scale_range=st.sampled_from([(0.5, 2.0), (1, 1)]),
        aspect_jitter=st.floats(0, 0.9),
        cat_max_ratio=st.floats(0, 1),
        horizontal_flip_prob=st.floats(0, 1),
        photometric_prob=st.floats(0, 1),
        hue=st.floats(0, 0.5),
    )

    def check(sample, config, seed):
        result, error = outcome(TrainTransform(config), sample, seed)
        if not is_good(sample):
            assert isinstance(error, ValueError)
            return
        assert error is None, error
        assert result["labels"].shape == tuple(config.crop_size) and result["labels"].dtype == torch.int64
        assert set(result["labels"].unique().tolist()) <= {*sample["labels"].unique().tolist(), 255}
        pixels = next(iter(result.values()))
        assert pixels.shape[-2:] == tuple(config.crop_size) and pixels.isfinite().all()
        again = TrainTransform(config)(sample, seed)
        assert all(torch.equal(result[key], again[key]) for key in result)

    fuzz(check, samples(), configs, st.integers(-(2**63), 2**64 - 1), quick=60, slow=3000)


# --- image processor


@pytest.mark.parametrize("processor_class", [VSSImageProcessor, VSSImageProcessorPil])
def test_image_processor(fuzz, processor_class):
    picture = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    shapes = (
        (33, 47),
        (33, 47),
        (33, 47),
        (1, 1),
        (3, 4),
        (),
        (0,),
        (0, 5),
        (1, 33, 47),
        (33, 47, 3),
        (33, 47, 1),
        (3, 33, 47),
    )

    def check(array, resize, kind):
        settings = {"do_resize": True, "size": {"shortest_edge": 40}} if resize else {}
        many = containers(array)
        given = many[kind % len(many)] if kind % len(many) != 1 else array  # a nested list is a list of maps
        features, error = outcome(
            processor_class(**settings), images=[picture], segmentation_maps=[given], return_tensors="pt"
        )
        values = whole_numbers(array) if array.dtype.kind in "iub" else []
        good = array.ndim == 2 and values and all(0 <= v <= 255 for v in values)
        if not good:
            # larger numbers are fine for models of more than 255 classes
            many_classes = array.ndim == 2 and values and 0 <= min(values) and 255 < max(values) <= 2**24
            if error is None and many_classes and not resize:
                assert np.array_equal(features["labels"][0].numpy(), array.astype(np.int64))
                return
            if error is None and many_classes:
                assert set(features["labels"].unique().tolist()) <= set(values)
                return
            assert isinstance(error, ValueError), (error, features)
            assert "segmentation_maps[0]" in str(error) or many_classes, error
            return
        assert error is None, error
        labels = features["labels"]
        assert labels.dtype == torch.int64 and len(labels) == 1
        if resize:
            assert set(labels.unique().tolist()) <= set(values)
            if array.shape == (33, 47):
                assert labels.shape[-2:] == features["pixel_values"].shape[-2:]
        else:
            assert np.array_equal(labels[0].numpy(), array.astype(np.int64))

    known = [
        (np.full((33, 47), 1.5), False, 0),
        (np.full((33, 47), -1), False, 0),
        (np.full((33, 47, 3), 1), False, 0),
    ]
    fuzz(
        check, integer_maps(shapes) | strange_maps(shapes), st.booleans(), st.integers(0, 3), quick=60, slow=2000,
        known=known,
    )  # fmt: skip


# --- the loss


@st.composite
def loss_inputs(draw):
    batch, num_labels = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 5]))
    size = draw(st.sampled_from([(1, 1), (3, 4), (1, 9), (2, 2)]))
    shape = draw(st.sampled_from([(5, 7), (1, 1), (3, 4), (1, 60), (0, 4), (4, 0), (2,), ()]))
    labels = draw(integer_maps([(batch, *shape)], DTYPES, mostly=(0, min(1, num_labels - 1), 255)))
    seed = draw(st.integers(0, 999))
    return np.random.default_rng(seed).normal(size=(batch, num_labels, *size)), np.array(labels)


def naive_loss(logits, labels, ignore_index):
    """Mean cross entropy over labelled pixels of torch's own upsampling, in float64, one pixel at a time."""
    upsampled = F.interpolate(torch.from_numpy(logits), size=labels.shape[1:], mode="bilinear").numpy()
    total = pixels = 0
    for (b, y, x), label in np.ndenumerate(labels):
        if int(label) != ignore_index:
            scores = upsampled[b, :, y, x]
            total += math.log(sum(math.exp(s - scores.max()) for s in scores)) - (scores[int(label)] - scores.max())
            pixels += 1
    return total / pixels if pixels else 0.0


def test_dense_loss_and_confusion(fuzz):
    def check(inputs, ignore_index, as_float):
        logits, labels = inputs
        num_labels = logits.shape[1]
        tensor = torch.from_numpy(labels.astype(labels.dtype.newbyteorder("=")))
        tensor = tensor.double() if as_float else tensor
        scores = torch.from_numpy(logits).requires_grad_()
        loss, error = outcome(
            dense_segmentation_loss, scores, (scores,), tensor, auxiliary_loss_weight=0.4, ignore_index=ignore_index
        )
        counts, count_error = outcome(upsampled_confusion, scores, tensor, ignore_index=ignore_index)
        values = whole_numbers(labels)
        good = labels.ndim == 3 and not as_float and all(v == ignore_index or 0 <= v < num_labels for v in values)
        if not good:
            assert isinstance(error, ValueError) and "labels" in str(error), error
            assert isinstance(count_error, ValueError) and "labels" in str(count_error), count_error
            return
        assert error is None and count_error is None, (error, count_error)
        expected = naive_loss(logits, labels, ignore_index) if values else 0.0
        assert loss.item() == pytest.approx(1.4 * expected, rel=1e-5, abs=1e-6)
        loss.backward()
        assert scores.grad.isfinite().all()
        if values:
            upsampled = F.interpolate(torch.from_numpy(logits), size=labels.shape[1:], mode="bilinear")
            guesses = upsampled.argmax(1).flatten().tolist()
            rows = naive_counts(guesses, values, num_labels, ignore_index if ignore_index >= num_labels else -1)
            if ignore_index >= num_labels:
                assert counts.tolist() == [row[:-1] for row in rows]

    known = [((np.zeros((1, 2, 3, 4)), np.zeros((1, 4, 0), np.uint8)), 255, False)]  # a division by zero
    fuzz(check, loss_inputs(), IGNORE, st.integers(0, 9).map(lambda n: n == 0), quick=80, slow=3000, known=known)


@pytest.mark.parametrize("shape", [(1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)])
def test_empty_logits_are_refused(shape):
    with pytest.raises(ValueError, match="logits"):
        upsampled_argmax(torch.zeros(shape), (4, 5))
