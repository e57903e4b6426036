"""Voting of classes under masks: against the original's numbers, against sums pixel by pixel, and as an option."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from largest_tensor import LargestTensor
from PIL import Image
from safetensors.numpy import load_file
from test_mask_generation import full, picture
from tiny_models import NAMES, moving_frames, save_model
from tiny_sam import save_sam

import vss_hf.modeling.dense as dense
from vss_hf.cli import main
from vss_hf.inference import VideoSegmenter
from vss_hf.inference.score_maps import DenseScores, LogitScores
from vss_hf.refinement.mask_generation import Mask, MaskGenerator, MaskSettings
from vss_hf.refinement.ssa import (
    SSA,
    classes_by_count,
    classes_by_probability,
    largest_first,
    parse,
    with_masks,
)


FIXTURE = Path(__file__).resolve().parents[2] / "../shared/parity/13_ssa_voting"
LOW = dict(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0, min_mask_region_area=20)


def voting(masks: list[Mask], vote: str) -> SSA:
    """The step, with these masks for every image."""
    model = SimpleNamespace(eval=lambda: None)
    generator = MaskGenerator(model, None)
    step = SSA(generator, vote)
    step.generator = lambda image: masks
    return step


def blobs(size: tuple[int, int], count: int, seed: int) -> list[Mask]:
    """Masks of all sizes that overlap; some with holes, some of one pixel."""
    random = np.random.default_rng(seed)
    masks = []
    for number in range(count):
        y, x = (int(random.integers(0, length)) for length in size)
        h, w = (int(random.integers(1, length - start + 1)) for length, start in zip(size, (y, x), strict=True))
        pixels = np.zeros(size, bool)
        pixels[y : y + h, x : x + w] = random.random((h, w)) < (1.0 if number % 2 else 0.6)
        pixels[y, x] = True
        masks.append(Mask.of(pixels))
    return masks


def image_of(size: tuple[int, int]) -> np.ndarray:
    return np.zeros((*size, 3), np.uint8)


# --- voting


@pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"{FIXTURE}: the numbers of the original code are not here")
@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_original(case):
    """`semantic_segment_anything_inference` of the original repository, exactly."""
    stored = load_file(FIXTURE / "tensors.safetensors")
    said = json.loads((FIXTURE / "config.json").read_text())["cases"][case]
    masks = [Mask.of(pixels) for pixels in stored[f"masks/{case}"]]
    labels = stored[f"semantic_in/{case}"].astype(np.uint8)
    assert [mask.area for mask in masks] == said["areas"]
    ordered = largest_first(masks)
    assert [next(i for i, mask in enumerate(masks) if mask is one) for one in ordered] == said["processing_order"]
    scores = DenseScores(torch.zeros(124, *labels.shape))
    voted = voting(masks, "count")(image_of(labels.shape), labels, scores)
    assert voted.dtype == np.uint8 and np.array_equal(voted, stored[f"semantic_out/{case}"])
    assert not np.array_equal(voted, labels)


def naive(labels: np.ndarray, masks: list[Mask], votes: np.ndarray) -> np.ndarray:
    """Votes (num_labels, H, W) added up mask by mask in fp64; the masks painted over, the largest first."""
    voted = labels.copy()
    for mask in sorted(masks, key=lambda mask: -mask.area):
        pixels = full(mask, labels.shape)
        sums = votes[:, pixels].sum(axis=1)
        if sums.any():
            voted[pixels] = sums.argmax()
    return voted


@pytest.mark.parametrize("size", [(37, 53), (1, 29), (64, 16)])
@pytest.mark.parametrize("seed", [0, 1])
def test_votes_one_by_one(size, seed, monkeypatch):
    """Both votes, with scores that are computed some rows at a time."""
    monkeypatch.setattr(dense, "_BLOCK_BYTES_CPU", 5 * 7 * size[1] * 4)  # five rows of seven classes
    masks = blobs(size, 12, seed)
    generator = torch.Generator().manual_seed(seed)
    scores = LogitScores(torch.randn(7, 9, 13, generator=generator) * 3, size)
    assert len(list(scores.blocks())) == -(-size[0] // 5)
    labels = scores.labels().numpy()
    one_each = (labels == np.arange(7)[:, None, None]).astype(np.float64)
    by_count = voting(masks, "count")(image_of(size), labels, scores)
    by_probability = voting(masks, "probability")(image_of(size), labels, scores)
    assert np.array_equal(by_count, naive(labels, masks, one_each))
    assert np.array_equal(by_probability, naive(labels, masks, scores.dense().double().numpy()))
    assert by_count.dtype == by_probability.dtype == np.uint8


def test_the_votes_differ():
    """Two pixels barely of one class against one that is certainly of the other."""
    scores = DenseScores(torch.tensor([[[0.51, 0.51, 0.0]], [[0.49, 0.49, 1.0]]]))
    labels, mask = scores.labels().numpy(), Mask.of(np.ones((1, 3), bool))
    assert labels.tolist() == [[0, 0, 1]]
    assert voting([mask], "count")(image_of((1, 3)), labels, scores).tolist() == [[0, 0, 0]]
    assert voting([mask], "probability")(image_of((1, 3)), labels, scores).tolist() == [[1, 1, 1]]


def test_ties_void_and_no_masks():
    labels = np.array([[3, 3, 1, 1, 255, 255, 255, 2]], np.uint8)
    masks = [Mask.of(np.ones((1, width), bool), left) for left, width in ((0, 4), (3, 4), (4, 3), (7, 1))]
    # The lowest of equal ones; void has no vote, but takes the class of its mask; where all is void, it stays.
    assert classes_by_count(labels, masks, 4) == [1, 1, None, 2]
    assert with_masks(labels, masks[:1], [1]).tolist() == [[1, 1, 1, 1, 255, 255, 255, 2]]
    assert with_masks(labels, masks, [1, 1, None, 2]).tolist() == [[1, 1, 1, 1, 1, 1, 1, 2]]
    assert labels.tolist() == [[3, 3, 1, 1, 255, 255, 255, 2]]
    equal = DenseScores(torch.full((4, 1, 8), 0.25))
    assert classes_by_probability(equal, masks) == [0, 0, 0, 0]
    for vote in ("count", "probability"):
        assert np.array_equal(voting([], vote)(image_of((1, 8)), labels, equal), labels)


def test_order():
    """Votes read the labels from before; small masks cover large ones, later ones those of the same area."""
    labels = np.array([[0, 0, 0, 0, 1, 1]], np.uint8)
    small, large = Mask.of(np.ones((1, 3), bool), 3), Mask.of(np.ones((1, 5), bool), 0)
    scores = DenseScores(torch.zeros(2, 1, 6))
    assert voting([small, large], "count")(image_of((1, 6)), labels, scores).tolist() == [[0, 0, 0, 1, 1, 1]]
    first, second = Mask.of(np.ones((1, 2), bool), 2), Mask.of(np.ones((1, 2), bool), 4)
    across = Mask.of(np.ones((1, 2), bool), 3)  # a tie: class 0
    assert voting([second, across, first], "count")(image_of((1, 6)), labels, scores).tolist() == [[0, 0, 0, 0, 0, 1]]
    assert [mask.box[0] for mask in largest_first([second, across, first])] == [4, 3, 2]


def test_no_tensor_of_all_scores():
    """480 x 853, 124 classes: 51 million numbers. Nothing is that large, nor the masks at full size together."""
    size = (480, 853)
    masks = blobs(size, 40, 0)
    scores = LogitScores(torch.randn(124, 15, 27), size)
    with LargestTensor() as largest:
        classes_by_probability(scores, masks)
    assert largest.elements < 124 * 480 * 853 / 8


# --- with models


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    return save_sam(tmp_path_factory.mktemp("sam"), "sam2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two frames of a VSPW root, of an odd size."""
    root = tmp_path_factory.mktemp("root")
    names = {"others": 0, **{name: i + 1 for i, name in enumerate(NAMES)}}
    (root / "label_num_dic_final.json").write_text(json.dumps(names))
    (root / "val.txt").write_text("one\n")
    for kind in ("origin", "mask"):
        (root / "data" / "one" / kind).mkdir(parents=True)
    for number, frame in enumerate(moving_frames(2, 97, 161)):
        Image.fromarray(frame).save(root / f"data/one/origin/{number:08d}.png")
        Image.fromarray(frame[..., 0] % 5 + 1).save(root / f"data/one/mask/{number:08d}.png")
    return root


@pytest.mark.parametrize(
    "kind,vote", [("sam", "count"), ("sam_hq", "probability"), ("sam2", "probability"), ("sam3_tracker", "count")]
)
def test_in_a_segmenter(model, tmp_path, kind, vote):
    """Frames through both models, beside the labels of the masks pixel by pixel."""
    folder = save_sam(tmp_path / kind, kind)
    step = parse({"model": str(folder), "vote": vote, **LOW}, torch.device("cpu"), "--refine ssa")
    segmenter = VideoSegmenter.from_pretrained(model, "cpu", label_steps=[step])
    plain = VideoSegmenter.from_pretrained(model, "cpu")
    frames = moving_frames(2, 97, 161)
    for frame, labels in zip(frames, segmenter.label_batch(frames), strict=True):
        masks = step.generator(frame)
        scores = plain.score_maps([frame])[0]
        before = scores.labels().numpy()
        one_each = (before == np.arange(len(NAMES))[:, None, None]).astype(np.float64)
        votes = one_each if vote == "count" else scores.dense().double().numpy()
        assert masks and np.array_equal(labels, naive(before, masks, votes)) and not np.array_equal(labels, before)


def run(*words) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code or 0


def test_as_an_option(model, sam, root, tmp_path):
    """`predict` and `evaluate`: with a folder the published setting, with fields those."""
    fields = json.dumps({"model": str(sam), "vote": "probability", **LOW})
    words = ["--device", "cpu", "--refine", f"ssa:{fields}"]
    out = tmp_path / "out"
    assert run("predict", model, root, "--split", "val", "--out", out, "--json", tmp_path / "p.json", *words) == 0
    evaluated = [model, "--data", root, "--num-workers", 0, "--json", tmp_path / "e.json"]
    assert run("evaluate", *evaluated, *words) == 0
    results = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in "pe"}
    recorded = [{"step": "SSA", "model": str(sam), "vote": "probability", **vars(MaskSettings(**LOW))}]
    assert results["p"]["label_steps"] == results["e"]["label_steps"] == recorded
    step = SSA(MaskGenerator.from_pretrained(sam, MaskSettings(**LOW)), "probability")
    segmenter = VideoSegmenter.from_pretrained(model, "cpu", label_steps=[step])
    counts = np.zeros((5, 5), int)
    for number, labels in enumerate(segmenter.label_video(moving_frames(2, 97, 161))):
        assert np.array_equal(np.asarray(Image.open(out / f"one/{number:08d}.png")), labels)
        truth = np.asarray(Image.open(root / f"data/one/mask/{number:08d}.png")) - 1
        counts += np.bincount(truth.ravel() * 5 + labels.ravel(), minlength=25).reshape(5, 5)
    union = counts.sum(axis=0) + counts.sum(axis=1) - counts.diagonal()
    assert results["e"]["mean_iou"] == pytest.approx((counts.diagonal() / union)[counts.any(axis=1)].mean())
    # The folder alone; this model expects an IoU of 0.86 of no mask.
    words = ["--device", "cpu", "--refine", f"ssa:{sam}", "--max-frames", 1, "--json", tmp_path / "d.json"]
    assert run("predict", model, root, "--split", "val", "--out", tmp_path / "published", *words) == 0
    (step,) = json.loads((tmp_path / "d.json").read_text())["label_steps"]
    assert step["vote"] == "count" and step["points_per_side"] == 64 and step["crop_n_layers"] == 1
    assert step["pred_iou_thresh"] == 0.86 and step["stability_score_thresh"] == 0.92
    assert step["crop_n_points_downscale_factor"] == 2 and step["min_mask_region_area"] == 100


@pytest.mark.parametrize(
    "words,message",
    [
        ("ssa:{model: SAM, votes: count}", "--refine ssa has no field 'votes'; did you mean 'vote'?"),
        ("ssa:{model: SAM, vote: counts}", "--refine ssa.vote: there is no 'counts'; did you mean 'count'?"),
        ("ssa:{vote: count}", "--refine ssa: the field 'model' is missing"),
        ("ssa:{model: SAM, points_per_side: many}", "--refine ssa.points_per_side: expected a whole number"),
        (
            "ssa:{model: SAM, points_per_side: 0}",
            "--refine ssa.points_per_side: expected a whole number from 1; found 0",
        ),
        ("ssa:[SAM]", "--refine ssa: expected fields; found ['SAM']"),
        ("ssa:{model: [", "--refine ssa is not valid YAML"),
        ("ssa:nothing-here", "nothing-here: no such model folder"),
    ],
)
def test_options_that_cannot_be(root, tmp_path, capsys, words, message):
    assert run("predict", tmp_path / "model", root, "--out", tmp_path / "out", "--refine", words) == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_picture_without_masks(sam):
    """A frame in which nothing is found keeps its labels."""
    step = SSA(MaskGenerator.from_pretrained(sam, MaskSettings(points_per_side=2, stability_score_thresh=1.0)))
    scores = LogitScores(torch.randn(5, 12, 20), (97, 161))
    labels = scores.labels().numpy()
    assert step.generator(picture(97, 161)) == []
    assert np.array_equal(step(picture(97, 161), labels, scores), labels)
