"""Masks of SAM's family: against transformers' pipeline where it runs, and against straight-line formulas."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import save_model
from tiny_sam import KINDS, SIZE, save_sam, save_video_sam
from transformers import Sam2Processor, pipeline

from vss_hf.refinement.mask_generation import (
    Mask,
    MaskGenerator,
    MaskSettings,
    crop_boxes,
    cut_off,
    point_grid,
    stability_scores,
    suppressed,
    tidy,
    without_small_regions,
)


EVERYTHING = dict(pred_iou_thresh=0.0, stability_score_thresh=0.0, min_mask_region_area=0)
SQUARE, WIDE = (150, 150), (143, 181)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save_sam(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blocks of colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (height // 11 + 1, width // 9 + 1, 3), dtype=np.uint8)
    return np.kron(colours, np.ones((11, 9, 1), np.uint8))[:height, :width]


def full(mask: Mask, size: tuple[int, int]) -> np.ndarray:
    pixels = np.zeros(size, bool)
    left, top, right, bottom = mask.box
    pixels[top:bottom, left:right] = mask.pixels
    return pixels


def pipeline_masks(generator: MaskGenerator, image: np.ndarray, **settings) -> list[np.ndarray]:
    """What the pipeline of transformers finds, without empty masks."""
    run = pipeline("mask-generation", model=generator.model, image_processor=generator.processor, device="cpu")
    masks = run(Image.fromarray(image), points_per_batch=16, **settings)["masks"]
    return [mask.numpy() for mask in masks if mask.any()]


def alike(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


# --- with the models


@pytest.mark.parametrize("kind", KINDS)
def test_as_the_pipeline(folders, kind):
    """One image, no crops: the same masks in the same order. SAM 2 and 3 get a square: see the next test."""
    settings = MaskSettings(
        points_per_side=6,
        points_per_batch=16,
        pred_iou_thresh=0.1,
        stability_score_thresh=0.02,
        box_nms_thresh=0.8,
        crop_n_layers=0,
        min_mask_region_area=0,
    )
    generator = MaskGenerator.from_pretrained(folders[kind], settings)
    image = picture(*(WIDE if kind in ("sam", "sam_hq") else SQUARE))
    masks = generator(image)
    wanted = pipeline_masks(
        generator,
        image,
        points_per_crop=6,
        pred_iou_thresh=0.1,
        stability_score_thresh=0.02,
        crops_nms_thresh=0.8,
    )
    assert len(masks) == len(wanted) > 3
    assert min(alike(full(mask, image.shape[:2]), right) for mask, right in zip(masks, wanted, strict=True)) > 0.98
    assert [mask.area for mask in masks] == [full(mask, image.shape[:2]).sum() for mask in masks]
    assert all(mask.predicted_iou > 0.1 and mask.stability_score >= 0.02 for mask in masks)


@pytest.mark.parametrize("kind", ["sam2_video", "sam3_video"])
def test_published_as_video_models(tmp_path, kind):
    """Of these the part is taken that needs no video; every weight comes from the file."""
    weights = save_video_sam(tmp_path, kind)
    generator = MaskGenerator.from_pretrained(tmp_path, MaskSettings(**EVERYTHING, points_per_side=2))
    own = generator.model.state_dict()
    assert len(own) > 100
    for name, tensor in own.items():
        if kind == "sam3_video":
            parts = {"vision_encoder.neck.": "tracker_neck.", "vision_encoder.": "detector_model.vision_encoder."}
            prefix = next((prefix for prefix in parts if name.startswith(prefix)), "")
            name = parts.get(prefix, "tracker_model.") + name.removeprefix(prefix)
        assert torch.equal(tensor, weights[name])
    assert generator(picture(*WIDE))


@pytest.mark.parametrize("kind", ["sam2", "sam3_tracker"])
def test_points_of_stretched_images(folders, kind):
    """SAM 2 and 3 stretch images to a square, and their points with them; transformers' pipeline scales the points as
    SAM does. So the points' masks are compared with those of `Sam2Processor`."""
    generator = MaskGenerator.from_pretrained(
        folders[kind], MaskSettings(**EVERYTHING, points_per_side=2, box_nms_thresh=1.0, crop_n_layers=0)
    )
    image = picture(90, 181)
    points = [[x * 181, y * 90] for y in (0.25, 0.75) for x in (0.25, 0.75)]
    processor = Sam2Processor(generator.processor, target_size=SIZE)
    inputs = processor(images=image, input_points=[[[point] for point in points]], return_tensors="pt")
    with torch.no_grad():
        outputs = generator.model(pixel_values=inputs.pixel_values, input_points=inputs.input_points)
    masks = processor.post_process_masks(outputs.pred_masks, inputs.original_sizes)[0].flatten(0, 1).numpy()
    order = outputs.iou_scores.flatten().argsort(descending=True, stable=True).tolist()
    wanted = [masks[i] for i in order if masks[i].any()]
    found = generator(image)
    assert len(found) == len(wanted) > 6
    assert min(alike(full(mask, (90, 181)), right) for mask, right in zip(found, wanted, strict=True)) > 0.98


@pytest.mark.parametrize("size", [SQUARE, WIDE])
def test_crops_as_the_pipeline(folders, size):
    """As many points in crops as in the image, and nothing suppressed: what comes from each crop."""
    settings = MaskSettings(
        points_per_side=4,
        pred_iou_thresh=0.1,
        stability_score_thresh=0.05,
        box_nms_thresh=1.0,
        crop_nms_thresh=1.0,
        crop_n_layers=1,
        crop_n_points_downscale_factor=1,
        min_mask_region_area=0,
    )
    generator = MaskGenerator.from_pretrained(folders["sam"], settings)
    image = picture(*size)
    left = [full(mask, size) for mask in generator(image)]
    wanted = pipeline_masks(
        generator,
        image,
        points_per_crop=4,
        crops_n_layers=1,
        pred_iou_thresh=0.1,
        stability_score_thresh=0.05,
        crops_nms_thresh=1.0,
    )
    assert len(left) == len(wanted) > 10
    for right in wanted:
        overlaps = [alike(mask, right) for mask in left]
        assert max(overlaps) > 0.98
        left.pop(int(np.argmax(overlaps)))


def published(generator: MaskGenerator, image: np.ndarray, settings: MaskSettings) -> list[np.ndarray]:
    """`SamAutomaticMaskGenerator` step by step, with full-size masks and all points at once, for SAM and one layer of
    crops of numbers by hand; without the small regions."""
    height, width = image.shape[:2]
    overlap = int(settings.crop_overlap_ratio * min(height, width))
    w, h = math.ceil((overlap + width) / 2), math.ceil((overlap + height) / 2)
    corners = [(0, 0), (0, h - overlap), (w - overlap, 0), (w - overlap, h - overlap)]
    crops = [(0, 0, width, height)] + [(x, y, min(x + w, width), min(y + h, height)) for x, y in corners]
    kept: list[tuple[float, list[float], np.ndarray]] = []
    for number, (left, top, right, bottom) in enumerate(crops):
        side = settings.points_per_side // (1 if number == 0 else settings.crop_n_points_downscale_factor)
        within = image[top:bottom, left:right]
        inputs = generator.processor(images=within, return_tensors="pt")
        scale = SIZE / max(within.shape[:2])
        points = [
            [
                (x + 0.5) / side * int(within.shape[1] * scale + 0.5),
                (y + 0.5) / side * int(within.shape[0] * scale + 0.5),
            ]
            for y in range(side)
            for x in range(side)
        ]
        with torch.no_grad():
            outputs = generator.model(
                pixel_values=inputs["pixel_values"], input_points=torch.tensor(points)[None, :, None]
            )
        logits = generator.processor.post_process_masks(
            outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"], binarize=False
        )
        found = []
        for mask, iou in zip(logits[0].flatten(0, 1).numpy(), outputs.iou_scores.flatten().tolist(), strict=True):
            if iou <= settings.pred_iou_thresh or not (mask > 0).any():
                continue
            if (mask > 1).sum() / (mask > -1).sum() < settings.stability_score_thresh:
                continue
            pixels = np.zeros((height, width), bool)
            pixels[top:bottom, left:right] = mask > 0
            ys, xs = np.nonzero(pixels)
            box = [xs.min(), ys.min(), xs.max(), ys.max()]
            sides = zip(box, (left, top, right, bottom), (0, 0, width, height), strict=True)
            if any(abs(b - c) <= 20 and abs(b - i) > 20 for b, c, i in sides):
                continue
            found.append((iou, box, pixels))
        chosen = naive_nms([(box, iou) for iou, box, _ in found], settings.box_nms_thresh)
        area = (right - left) * (bottom - top)
        kept += [(1 / area, *found[i][1:]) for i in chosen]
    return [kept[i][2] for i in naive_nms([(box, score) for score, box, _ in kept], settings.crop_nms_thresh)]


def naive_nms(scored_boxes: list, threshold: float) -> list[int]:
    """Greedy suppression, pair by pair."""
    kept: list[int] = []
    for i in sorted(range(len(scored_boxes)), key=lambda i: -scored_boxes[i][1]):
        a = scored_boxes[i][0]
        for j in kept:
            b = scored_boxes[j][0]
            both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
            either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
            if both > threshold * either:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("size", [SQUARE, WIDE, (181, 95)])
def test_fewer_points_in_crops(folders, size):
    """The published setting, which transformers' pipeline cannot run, with lower thresholds."""
    settings = MaskSettings(
        points_per_side=8,
        points_per_batch=13,
        pred_iou_thresh=0.1,
        stability_score_thresh=0.05,
        crop_nms_thresh=0.6,
        min_mask_region_area=0,
    )
    assert settings.crop_n_layers == 1 and settings.crop_n_points_downscale_factor == 2
    generator = MaskGenerator.from_pretrained(folders["sam"], settings)
    image = picture(*size)
    with pytest.raises(RuntimeError, match="equal size"):
        pipeline_masks(generator, image, points_per_crop=8, crops_n_layers=1, crop_n_points_downscale_factor=2)
    prompts = []
    hook = generator.model.prompt_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: prompts.append(kwargs["input_points"].shape[1]), with_kwargs=True
    )
    masks = generator(image)
    hook.remove()
    assert prompts == [13, 13, 13, 13, 12] + [13, 3] * 4
    wanted = published(generator, image, settings)
    assert len(masks) == len(wanted) > 8
    assert min(alike(full(mask, size), right) for mask, right in zip(masks, wanted, strict=True)) > 0.98


def test_small_regions_of_all_masks(folders):
    """The masks, tidied, and suppressed once more with those first that did not change."""
    size = (100, 131)
    settings = dict(points_per_side=6, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    generator = MaskGenerator.from_pretrained(folders["sam2"], MaskSettings(**settings, min_mask_region_area=0))
    image = picture(*size)
    new, changed = zip(*[naive_tidy(full(mask, size), 25) for mask in generator(image)], strict=True)
    assert 8 < sum(changed) < len(changed)
    spans = [(np.flatnonzero(one.any(axis=0)), np.flatnonzero(one.any(axis=1))) for one in new]
    boxes = [[xs[0], ys[0], xs[-1], ys[-1]] for xs, ys in spans]
    wanted = [new[i] for i in naive_nms([(box, not one) for box, one in zip(boxes, changed, strict=True)], 0.7)]
    generator.settings = MaskSettings(**settings, min_mask_region_area=25)
    masks = generator(image)
    assert len(masks) == len(wanted) < len(new)
    assert all(np.array_equal(full(mask, size), right) for mask, right in zip(masks, wanted, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (41, 3), (97, 161)])
def test_any_size(folders, kind, size):
    generator = MaskGenerator.from_pretrained(folders[kind], MaskSettings(**EVERYTHING, points_per_side=2))
    for mask in generator(picture(*size)):
        left, top, right, bottom = mask.box
        assert 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0] and mask.area == mask.pixels.sum() > 0


def test_nothing_found(folders):
    generator = MaskGenerator.from_pretrained(folders["sam"], MaskSettings(points_per_side=4, pred_iou_thresh=1.0))
    generator.model.mask_decoder.iou_prediction_head.proj_out.bias.data.fill_(-100)
    assert generator(picture(*WIDE)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_in_half_precision(folders, kind):
    """The encoder computes in bfloat16, the decoder in fp32."""
    settings = MaskSettings(**EVERYTHING, points_per_side=2, crop_n_layers=0, encoder_dtype="bfloat16")
    generator = MaskGenerator.from_pretrained(folders[kind], settings)
    pixels = torch.randn(1, 3, SIZE, SIZE)
    half = generator._embeddings(pixels)
    generator.settings = MaskSettings(**EVERYTHING, points_per_side=2, crop_n_layers=0)
    whole = generator._embeddings(pixels)
    pairs = [(half[name], whole[name]) for name in whole]
    for one, other in [(a, b) if torch.is_tensor(a) else (a[-1], b[-1]) for a, b in pairs]:
        assert one.dtype == other.dtype == torch.float32 and not torch.equal(one, other)
        assert (one - other).norm() < 0.05 * other.norm()


# --- parts


def test_point_grid():
    assert point_grid(1).tolist() == [[0.5, 0.5]]
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    grid = point_grid(64)
    assert grid.shape == (4096, 2) and torch.allclose(grid[64 * 3 + 5], torch.tensor([5.5, 3.5]) / 64)


def test_crop_boxes():
    """VSPW's size by hand: an overlap of int(480 * 512 / 1500) = 163, crops of ceil(1016 / 2) by ceil(643 / 2)."""
    crops = crop_boxes((480, 853), 1, 512 / 1500)
    assert crops == [
        (0, (0, 0, 853, 480)),
        (1, (0, 0, 508, 322)),
        (1, (0, 159, 508, 480)),
        (1, (345, 0, 853, 322)),
        (1, (345, 159, 853, 480)),
    ]
    # Layer 2: an overlap of int(480 * 512 / 1500 / 2) = 81; ceil((243 + 853) / 4) by ceil((243 + 480) / 4).
    second = [box for layer, box in crop_boxes((480, 853), 2, 512 / 1500) if layer == 2]
    assert len(second) == 16 and second[:2] == [(0, 0, 274, 181), (0, 100, 274, 281)]
    assert second[-1] == (579, 300, 853, 480)


@pytest.mark.parametrize("size", [(97, 161), (480, 853), (640, 480), (31, 400)])
@pytest.mark.parametrize("layers,ratio", [(0, 0.3), (1, 512 / 1500), (3, 0.1), (2, 0.0)])
def test_crop_boxes_as_the_processor(folders, size, layers, ratio):
    generator = MaskGenerator.from_pretrained(folders["sam"])
    wanted, *_ = generator.processor.generate_crop_boxes(np.zeros((*size, 3), np.uint8), SIZE, layers, ratio, 4, 1)
    assert [list(box) for _, box in crop_boxes(size, layers, ratio)] == wanted.int().tolist()


def test_cut_off():
    crop, size = (100, 50, 300, 250), (250, 400)
    boxes = {
        (150, 100, 200, 200): False,
        (120, 100, 200, 200): True,  # 20 pixels from the left border of the crop
        (121, 100, 200, 200): False,
        (150, 100, 200, 249): False,  # the bottom of the crop is that of the image
        (150, 60, 200, 200): True,
        (150, 100, 290, 200): True,
    }
    assert cut_off(torch.tensor(list(boxes)), crop, size).tolist() == list(boxes.values())
    # The whole image has no inner border; nor has a crop that ends within 20 pixels of the image's end.
    assert not cut_off(torch.tensor([[0, 0, 399, 249]]), (0, 0, 400, 250), size).any()
    assert not cut_off(torch.tensor([[100, 100, 389, 200]]), (10, 0, 390, 250), size).any()
    assert cut_off(torch.zeros(0, 4), crop, size).tolist() == []


@pytest.mark.parametrize("offset", [1.0, 0.25])
def test_stability(offset):
    logits = torch.randn(7, 13, 17, generator=torch.Generator().manual_seed(0)) * 2
    logits[3] = -5
    values = logits.double().numpy()
    wanted = [(one > offset).sum() / (one > -offset).sum() if (one > -offset).any() else math.nan for one in values]
    np.testing.assert_allclose(stability_scores(logits, offset).numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.31, 0.57])  # no box has just that
def test_suppression(threshold):
    """Of equal scores the first stays."""
    random = np.random.default_rng(0)
    masks, scores = [], []
    for _ in range(60):
        y, x, h, w = random.integers(0, 8, 4)
        masks.append(Mask.of(np.ones((h + 5, w + 5), bool), int(x), int(y)))
        scores.append(float(random.integers(0, 5)))
    inclusive = [[b[0], b[1], b[2] - 1, b[3] - 1] for b in (mask.box for mask in masks)]
    wanted = naive_nms(list(zip(inclusive, scores, strict=True)), threshold)
    found = suppressed(masks, scores, threshold)
    assert 5 < len(found) < 55 and [id(mask) for mask in found] == [id(masks[i]) for i in wanted]
    assert suppressed([], [], threshold) == []


def test_mask():
    """Bits of the box hold exactly the pixels, whatever the width."""
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (5, 8), (7, 9), (12, 33)):
        pixels = random.random((height, width)) < 0.1
        pixels[height // 2, width // 3] = True
        mask = Mask.of(np.pad(pixels, ((2, 3), (1, 4))), 10, 20, predicted_iou=0.5)
        whole = np.zeros((60, 60), bool)
        whole[22 : 22 + height, 11 : 11 + width] = pixels
        ys, xs = np.nonzero(whole)
        assert mask.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert mask.area == pixels.sum() and mask.predicted_iou == 0.5
        assert np.array_equal(full(mask, (60, 60)), whole)
        for start in range(mask.box[1], mask.box[3]):
            rows = mask.rows(start, mask.box[3])
            assert np.array_equal(rows, whole[start : mask.box[3], mask.box[0] : mask.box[2]])
    large = Mask.of(np.ones((480, 853), bool))
    assert large.bits.nbytes == 480 * 107


def naive_regions(pixels: np.ndarray) -> list[set]:
    """Connected parts, corners included, by flooding."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(pixels), strict=True)}
    parts = []
    while left:
        part, edge = set(), {left.pop()}
        while edge:
            part |= edge
            edge = {(y + dy, x + dx) for y, x in edge for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= edge
        parts.append(part)
    return parts


def naive_tidy(pixels: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    pixels = pixels.copy()
    holes = [part for part in naive_regions(~pixels) if len(part) < min_area]
    for part in holes:
        pixels[tuple(zip(*part, strict=True))] = True
    islands = naive_regions(pixels)
    small = [part for part in islands if len(part) < min_area]
    gone = sorted(small, key=len)[:-1] if len(small) == len(islands) else small
    for part in gone:
        pixels[tuple(zip(*part, strict=True))] = False
    return pixels, bool(holes or small)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("min_area", [1, 3, 12])
def test_tidy(seed, min_area):
    """Noise at a share of pixels where parts of all sizes occur, within the image and at its borders."""
    random = np.random.default_rng(seed)
    size = (25, 31)
    pixels = np.zeros(size, bool)
    top, left = random.integers(0, 9, 2)
    pixels[top : top + 16, left : left + 22] = random.random((16, 22)) < (0.25, 0.7)[seed % 2]
    mask = Mask.of(pixels)
    wanted, changed = naive_tidy(pixels, min_area)
    sizes = sorted(len(part) for part in naive_regions(wanted))
    if len(sizes) > 1 or not changed or sizes[0] >= min_area:  # otherwise one of several small parts is kept: any
        assert np.array_equal(full(tidy(mask, size, min_area), size), wanted)
    assert (tidy(mask, size, min_area) is not mask) == changed


def test_tidy_by_hand():
    size = (60, 80)
    ring = np.zeros(size, bool)
    ring[10:40, 10:40] = True
    ring[20:25, 20:25] = False  # a hole of 25 pixels
    ring[50, 70] = True  # an island
    mask = Mask.of(ring, predicted_iou=0.9)
    assert tidy(mask, size, 1) is mask
    without_island = tidy(mask, size, 20)
    assert without_island.box == (10, 10, 40, 40) and without_island.area == 900 - 25
    tidied = tidy(mask, size, 26)
    assert tidied.area == 900 and tidied.predicted_iou == 0.9
    # A corner of the image that the mask cuts off is a hole, too, and what it fills may make the box larger.
    corner = np.ones(size, bool)
    corner[:3, :] = False
    assert tidy(Mask.of(corner), size, 241).box == (0, 0, 80, 60)
    assert tidy(Mask.of(corner), size, 240).box == (0, 3, 80, 60)
    # Small as it is, the largest part stays.
    dots = np.zeros(size, bool)
    dots[5, 5] = dots[30:32, 50] = True
    assert tidy(Mask.of(dots), size, 100).box == (50, 30, 51, 32)


def test_tidied_masks_are_suppressed():
    """Two boxes that differ by an island become the same; that which was whole before stays."""
    first, second = np.zeros((50, 50), bool), np.zeros((50, 50), bool)
    first[10:30, 10:30] = second[10:30, 10:30] = True
    first[45, 45] = True
    masks = [Mask.of(first, predicted_iou=0.9), Mask.of(second, predicted_iou=0.8)]
    assert without_small_regions(masks, (50, 50), 10, 0.7) == [masks[1]]
    assert len(suppressed(masks, [1.0, 1.0], 0.7)) == 2


# --- what cannot be


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(points_per_side=0), "points_per_side: expected a whole number from 1; found 0"),
        (dict(points_per_batch=-1), "points_per_batch: expected a whole number from 1; found -1"),
        (dict(crop_n_layers=-1), "crop_n_layers: expected a whole number from 0; found -1"),
        (dict(min_mask_region_area=-1), "min_mask_region_area: expected a whole number from 0"),
        (dict(pred_iou_thresh=86.0), "pred_iou_thresh: expected a number from 0 to 1; found 86.0"),
        (dict(box_nms_thresh=math.nan), "box_nms_thresh: expected a number from 0 to 1; found nan"),
        (dict(stability_score_offset=0.0), "stability_score_offset: expected a number above 0; found 0.0"),
        (dict(crop_overlap_ratio=1.0), "crop_overlap_ratio: expected a number from 0, below 1; found 1.0"),
        (dict(points_per_side=3, crop_n_layers=2), "crop_n_layers: 3 points per side, divided 2 times by 2, are less"),
        (dict(encoder_dtype="float61"), "encoder_dtype: there is no 'float61'; did you mean 'float16'?"),
    ],
)
def test_settings_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        MaskSettings(**fields)


def test_models_that_cannot_be(tmp_path):
    folder = save_model(tmp_path / "segmenter")
    with pytest.raises(ValueError, match=r"segmenter: a model of type 'vss_ocrnet' takes no points; expected one of"):
        MaskGenerator.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="no-model: no such model folder"):
        MaskGenerator.from_pretrained(tmp_path / "no-model")
    broken = save_sam(tmp_path / "broken", "sam")
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        MaskGenerator.from_pretrained(broken)
