"""What the page says, against the model's own numbers and against what `vss-hf predict` writes."""

import io
import json
import zipfile

import av
import numpy as np
import pytest
import torch
from demo_clip import FRAMES
from PIL import Image
from torch.nn import functional as F

from vss_hf.demo import answers
from vss_hf.demo.flicker_plot import flicker_plot
from vss_hf.demo.kept_scores import kept_scores, load_scores, save_scores, scores_at
from vss_hf.inference import VideoSegmenter, predict
from vss_hf.inference.score_maps import DenseScores, LogitScores, MaskScores, WeightedScores
from vss_hf.video_io import read_frames
from vss_hf.visualize import overlay


@pytest.fixture(scope="module")
def predicted(folders, clip, tmp_path_factory):
    """By model, the bytes of the label PNGs of `vss-hf predict`."""
    files = []
    for folder in folders:
        out = tmp_path_factory.mktemp("predicted")
        predict(VideoSegmenter.from_pretrained(folder, "cpu"), clip, out)
        files.append({path.name: path.read_bytes() for path in sorted(out.glob("*/*.png"))})
    return files


def label_maps(files):
    return [np.array(Image.open(io.BytesIO(data))) for data in files.values()]


def test_the_zip_holds_what_predict_writes(result, models, predicted, tmp_path):
    with zipfile.ZipFile(answers.write_masks(result, models, tmp_path / "masks.zip")) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    classes = json.loads(members.pop("classes.json"))
    assert [one["name"] for one in classes] == models.classes and [one["value"] for one in classes] == [0, 1, 2, 3, 4]
    assert [tuple(one["color"]) for one in classes] == [tuple(color) for color in models.palette]
    expected = {
        f"{folder}/my_clip/{name}": data
        for folder, files in zip(["1_still-ocrnet", "2_st-ppm"], predicted, strict=True)
        for name, data in files.items()
    }
    assert len(expected) == 2 * FRAMES and members == expected


@pytest.mark.parametrize("number", [None, 0, 3])
def test_shares_of_classes(result, models, predicted, number):
    counted = np.zeros((2, len(models.classes)))
    for model, files in enumerate(predicted):
        maps = label_maps(files)
        for labels in maps if number is None else [maps[number]]:
            for value in labels.ravel():
                counted[model, value] += 1
    shares = {one.label: one.shares for one in answers.class_shares(result, number)}
    assert set(shares) == set(np.flatnonzero(counted.sum(axis=0)))
    for label, found in shares.items():
        assert found == pytest.approx(counted[:, label] / counted.sum(axis=1))
    sums = [sum(found) for found in shares.values()]
    assert sums == sorted(sums, reverse=True)


@pytest.mark.parametrize("model", [0, 1])
def test_flicker(result, predicted, model):
    maps = label_maps(predicted[model])
    expected = []
    for number in range(1, FRAMES):
        changed = sum(int(a != b) for a, b in zip(maps[number - 1].flat, maps[number].flat, strict=True))
        expected.append((number, changed / maps[number].size))
    assert answers.flicker(result, model) == expected
    assert any(share > 0 for _, share in expected)


def test_agreement(result, predicted):
    first, second = (label_maps(files)[2] for files in predicted)
    assert answers.agreement(result, 2) == pytest.approx(np.mean([a == b for a, b in zip(first.flat, second.flat)]))  # noqa: B905


def probabilities(segmenter, image):
    """Of an image model, float64 (num_labels, H, W), by the definition."""
    inputs = segmenter.processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = segmenter.model(inputs).logits.double()
    return F.interpolate(logits, size=image.shape[:2], mode="bilinear").softmax(dim=1)[0].numpy()


PIXELS = [(0, 0), (47, 63), (20, 31), (33, 7), (11, 50)]


@pytest.mark.parametrize("number", [0, 4])
def test_confidence_at_a_pixel(result, models, clip, number):
    image = [image for _, image in read_frames(clip)][number]
    expected = probabilities(models.segmenters[0], image)
    for y, x in PIXELS:
        answer = answers.at_pixel(result, number, y, x)[0]
        order = np.argsort(-expected[:, y, x])
        assert answer.label == order[0]
        assert answer.confidence == pytest.approx(expected[answer.label, y, x], abs=1e-3)
        assert [label for label, _ in answer.next_best] == list(order[1:4])
        assert [share for _, share in answer.next_best] == pytest.approx(expected[order[1:4], y, x], abs=1e-3)


def test_confidence_of_a_video_model_knows_the_frames_before(result, models, clip):
    segmenter = models.segmenters[1]
    segmenter.reset()
    for number, (_, image) in enumerate(read_frames(clip)):
        expected = segmenter.score_maps([image])[0].dense().double().numpy()
        for y, x in PIXELS:
            answer = answers.at_pixel(result, number, y, x)[1]
            assert answer.confidence == pytest.approx(expected[answer.label, y, x], abs=1e-3)
            assert answer.label == int(expected[:, y, x].argmax())


def test_a_pixel_outside_is_moved_to_the_edge(result):
    assert answers.at_pixel(result, 0, -5, 1000) == answers.at_pixel(result, 0, 0, 63)


@pytest.mark.parametrize("normalised", [False, True])
def test_scores_of_masks_and_of_sums_are_kept(tmp_path, normalised):
    torch.manual_seed(0)
    size, classes, masks, logits = (21, 33), torch.randn(7, 5) * 3, torch.randn(7, 6, 9) * 4, torch.randn(4, 5, 8) * 6
    both = WeightedScores(
        [(0.5, MaskScores(classes, masks, size, normalised=normalised)), (2.0, LogitScores(logits, size))]
    )
    save_scores(kept_scores(both), tmp_path / "scores.npz")
    kept = load_scores(tmp_path / "scores.npz")
    wide = F.interpolate(masks.double()[None], size=size, mode="bilinear")[0].sigmoid()
    of_masks = torch.einsum("qk,qhw->khw", classes.double().softmax(dim=1)[:, :-1], wide)
    if normalised:
        of_masks /= of_masks.sum(dim=0)
    of_logits = F.interpolate(logits.double()[None], size=size, mode="bilinear")[0].softmax(dim=0)
    expected = 0.5 * of_masks + 2 * of_logits
    expected /= expected.sum(dim=0)
    for y, x in [(0, 0), (20, 32), (7, 19)]:
        assert scores_at(kept, y, x) == pytest.approx(expected[:, y, x].numpy(), abs=5e-4)


def test_logits_beyond_half_precision_are_kept():
    logits = torch.full((3, 4, 4), 1e6)
    logits[1] += 1
    logits[2] = -1e9
    expected = torch.tensor([0.0, 1.0]).softmax(dim=0).tolist()
    assert scores_at(kept_scores(LogitScores(logits, (8, 8))), 3, 3) == pytest.approx([*expected, 0], abs=1e-6)


def test_other_maps_are_not_kept():
    assert kept_scores(DenseScores(torch.ones(3, 4, 4))) is None


# --- pictures


def test_opacity_and_a_single_class(result, models, monkeypatch):
    image, labels = result.image(1), result.labels(1, 0)
    assert (answers.painted(result, 1, 0, 0.0) == image).all()
    assert (answers.painted(result, 1, 0, 0.7) == overlay(image, labels, models.palette, 0.7)).all()
    label = int(labels[20, 31])
    monkeypatch.setattr(result, "only", label)
    alone = answers.painted(result, 1, 0, 1.0)
    assert (alone[labels == label] == models.palette[label]).all()
    assert (alone[labels != label] == image[labels != label] // 3).all()


def test_the_mark_is_around_its_pixel(result, monkeypatch):
    plain = answers.painted(result, 0, 0, 0.5)
    monkeypatch.setattr(result, "mark", (24, 30))
    marked = answers.painted(result, 0, 0, 0.5)
    rows, columns = np.nonzero((plain != marked).any(axis=2))
    assert (rows.min() + rows.max()) / 2 == 24 and (columns.min() + columns.max()) / 2 == 30
    assert (plain[22:27, 28:33] == marked[22:27, 28:33]).all()
    monkeypatch.setattr(result, "mark", (0, 63))  # in a corner
    answers.painted(result, 0, 0, 0.5)


def test_large_frames_are_shown_in_whole_steps():
    assert [answers.shrink(size) for size in [(480, 853), (720, 1280), (1080, 1920), (2160, 3840)]] == [1, 1, 2, 3]


def test_overlay_video(result, models, tmp_path):
    told = []
    path = answers.write_overlay(result, models, 0, 0.5, tmp_path / "overlay", lambda *at: told.append(at))
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert path.suffix == ".mp4" and times == pytest.approx([number / 15 for number in range(FRAMES)], abs=1e-3)
    assert told[-1] == (FRAMES, FRAMES)


# --- without a mouse, and without colours


def test_the_mark_moves_by_steps_and_stays_inside():
    size = (100, 200)
    assert answers.moved(size, None, "left") == answers.moved(size, (3, 3), "middle") == (50, 100)
    assert [answers.moved(size, (50, 100), move) for move in ("left", "right", "up", "down")] == [
        (50, 96),
        (50, 104),
        (46, 100),
        (54, 100),
    ]
    assert answers.moved(size, (1, 199), "up") == (0, 199) and answers.moved(size, (1, 199), "right") == (1, 199)


def test_the_plot_says_its_numbers():
    html = flicker_plot(["<b>one", "two"], [[(1, 0.02), (2, 0.04)], [(1, 0.1), (2, 0.0)]])
    assert "&lt;b&gt;one: 3.0 % on average, at most 4.0 % (frame 2)" in html
    assert "two: 5.0 % on average, at most 10.0 % (frame 1)" in html
    assert 'class="vss-line0" points="0.0,80.0 1000.0,60.0"' in html  # of a scale up to 10 %
    assert 'class="vss-line1" points="0.0,0.0 1000.0,100.0"' in html
    assert "No frame has one" in flicker_plot(["one"], [[]])
