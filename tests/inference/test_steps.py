"""Steps see every frame of one video after the other, whoever asks for the labels; options that stand for them."""

import json
import sys
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import NAMES, moving_frames, save_model

from vss_hf.cli import main
from vss_hf.inference import VideoSegmenter, predict
from vss_hf.inference.score_maps import DenseScores
from vss_hf.inference.views import TTA
from vss_hf.refinement.cascade_psp import CascadePSP, CascadePSPSettings
from vss_hf.refinement.ssa import SSA, SSASettings
from vss_hf.scoring import evaluate_model


class Average:
    """The mean of all scores so far, and a note of every call."""

    changes = "scores"

    def __init__(self, weight=0.5):
        self.settings = {"weight": weight}
        self.notes, self.before = [], None

    def reset(self):
        self.notes.append("reset")
        self.before = None

    def __call__(self, image, scores):
        assert image.dtype == np.uint8 and image.shape == (*scores.size, 3)
        self.notes.append(int(image.sum()))
        now = scores.dense()
        self.before = now if self.before is None else (self.before + now) / 2
        return DenseScores(self.before)


class Next:
    """The class after the right one; remembers how many frames it saw."""

    changes = "labels"

    def __init__(self):
        self.frames = 0

    def reset(self):
        self.frames = 0

    def __call__(self, image, labels, scores):
        assert labels.dtype == np.uint8 and image.shape == (*labels.shape, 3) and scores.size == labels.shape
        self.frames += 1
        return ((labels + 1) % len(NAMES)).astype(np.uint8)


@pytest.fixture(scope="module", params=[False, True], ids=["image", "video"])
def folder(request, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), video=request.param)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two videos of a VSPW root."""
    root = tmp_path_factory.mktemp("root")
    names = {"others": 0, **{name: i + 1 for i, name in enumerate(NAMES)}}
    (root / "label_num_dic_final.json").write_text(json.dumps(names))
    (root / "val.txt").write_text("one\ntwo\n")
    for seed, name in enumerate(("one", "two")):
        for kind in ("origin", "mask"):
            (root / "data" / name / kind).mkdir(parents=True)
        for number, frame in enumerate(moving_frames(3, seed=seed)):
            Image.fromarray(frame).save(root / f"data/{name}/origin/{number:08d}.png")
            Image.fromarray(frame[..., 0] % 5 + 1).save(root / f"data/{name}/mask/{number:08d}.png")
    return root


def averaged(folder, frames):
    """Labels of the running mean, one class further, by hand."""
    mean, labels = None, []
    for scores in VideoSegmenter.from_pretrained(folder, "cpu").score_maps(frames):
        mean = scores.dense() if mean is None else (mean + scores.dense()) / 2
        labels.append((mean.argmax(0) + 1).numpy() % len(NAMES))
    return labels


def open_stepping(folder, **settings):
    score, label = Average(), Next()
    settings = {"score_steps": [score], "label_steps": [label], **settings}
    return VideoSegmenter.from_pretrained(folder, "cpu", **settings), score, label


def test_every_way_to_labels(folder):
    frames = moving_frames(5)
    wanted = averaged(folder, frames)
    assert len(np.unique(wanted)) > 1
    segmenter, score, label = open_stepping(folder)
    sums = [int(frame.sum()) for frame in frames]
    assert np.array_equal(segmenter.label_batch(frames), wanted)
    assert score.notes == ["reset", *sums] and label.frames == 5
    segmenter.reset()
    assert score.notes == ["reset", *sums, "reset"] and label.frames == 0 and score.before is None
    assert np.array_equal(list(segmenter.label_video(frames, batch_size=2)), wanted)
    assert score.notes == ["reset", *sums, "reset"] * 2
    assert np.array_equal([segmenter.step(frame) for frame in frames[:2]], wanted[:2])
    # As tensors, and the scores themselves.
    segmenter.reset()
    tensors = [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames]
    maps = segmenter.score_maps(tensors)
    assert np.array_equal([(one.labels() + 1) % len(NAMES) for one in maps], wanted)
    for frame, one in zip(segmenter.segment(frames, with_scores=True), maps, strict=True):
        torch.testing.assert_close(torch.from_numpy(frame.scores), one.dense(), atol=1e-5, rtol=0)


def test_two_videos_are_never_mixed(folder):
    first, second = moving_frames(4), moving_frames(4, seed=1)
    wanted = [averaged(folder, first), averaged(folder, second)]
    segmenter, _, _ = open_stepping(folder)
    for frames, right in zip((first, second), wanted, strict=True):
        assert np.array_equal(list(segmenter.label_video(frames)), right)
    one, other = segmenter.label_video(first), segmenter.label_video(second)
    assert np.array_equal([next(one), next(other), next(other)], [wanted[0][0], *wanted[1][:2]])
    with pytest.raises(RuntimeError, match="have gone on to another video"):
        next(one)
    assert np.array_equal(next(other), wanted[1][2])
    # `step` has a video of its own, too.
    assert np.array_equal(segmenter.step(first[0]), wanted[0][0])
    with pytest.raises(RuntimeError, match="have gone on to another video"):
        next(other)
    assert np.array_equal(segmenter.step(first[1]), wanted[0][1])
    # Without steps videos may run side by side.
    plain = VideoSegmenter.from_pretrained(folder, "cpu", tta=TTA(flip=True))
    alone = [list(plain.label_video(frames)) for frames in (first, second)]
    side_by_side = zip(plain.label_video(first), plain.label_video(second), strict=True)
    assert all(np.array_equal(pair, right) for pair, right in zip(side_by_side, zip(*alone, strict=True), strict=True))


def test_confidence_of_labels_that_are_a_mirrored_view(folder):
    class Mirror(Next):
        def __call__(self, image, labels, scores):
            return labels[:, ::-1]

    segmenter = VideoSegmenter.from_pretrained(folder, "cpu", label_steps=[Mirror()])
    plain = VideoSegmenter.from_pretrained(folder, "cpu")
    (frame,) = segmenter.segment(moving_frames(1), with_confidence=True)
    (wanted,) = plain.segment(moving_frames(1), with_scores=True)
    assert np.array_equal(frame.labels, wanted.labels[:, ::-1])
    chosen = np.take_along_axis(wanted.scores, frame.labels[None].astype(np.int64), 0)[0]
    np.testing.assert_allclose(frame.confidence, chosen, atol=1e-6)


def test_frames_of_another_size_begin_anew(folder):
    segmenter, score, label = open_stepping(folder)
    small = moving_frames(2, 40, 64)
    segmenter.label_batch(moving_frames(2))
    with pytest.warns(RuntimeWarning, match=r"frame 2 is 64x40 after frames of 64x48 .* Average, Next forgets those"):
        labels = segmenter.label_batch(small)
    assert np.array_equal(labels, averaged(folder, small)) and label.frames == 2
    assert score.notes.count("reset") == 2


def test_evaluation_and_prediction(folder, root, tmp_path):
    """Every video begins anew, steps and views are recorded, and the score is that of the files written."""
    segmenter, score, _ = open_stepping(folder, tta=TTA(flip=True))
    results = evaluate_model(segmenter, root, batch_size=2)
    wanted = {
        "tta": {**TTA(flip=True).settings()},
        "score_steps": [{"step": "Average", "weight": 0.5}],
        "label_steps": [{"step": "Next"}],
    }
    assert {key: results[key] for key in wanted} == wanted
    assert json.loads(json.dumps(results)) == results
    assert score.notes.count("reset") == 4 and score.before is None  # at the begin and at the end of each video
    evaluated = [note for note in score.notes if note != "reset"]
    score.notes.clear()
    written = predict(segmenter, root, tmp_path, split="val")
    assert {key: written[key] for key in wanted} == wanted
    assert [note for note in score.notes if note != "reset"] == evaluated and score.notes.count("reset") == 4
    plain = evaluate_model(VideoSegmenter.from_pretrained(folder, "cpu"), root)
    assert not {"tta", "score_steps", "label_steps"} & set(plain)


def run(*words) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.fixture
def kinds(monkeypatch):
    """Modules that stand for those of the options; what they were asked for."""
    asked = []

    def parse_with(step):
        return SimpleNamespace(parse=lambda value, device, place: asked.append((value, str(device), place)) or step())

    monkeypatch.setitem(sys.modules, "vss_hf.refinement.cascade_psp", parse_with(Next))
    monkeypatch.setitem(sys.modules, "vss_hf.refinement.ssa", parse_with(Next))
    monkeypatch.setitem(sys.modules, "vss_hf.refinement.smoothing", parse_with(Average))
    return asked


def test_options(folder, root, tmp_path, kinds, capsys):
    words = ["--tta", "{scales: [0.75, 1.0], flip: true}", "--smooth", '{"weight": 0.5}', "--device", "cpu"]
    words += ["--refine", "cascade-psp:some/folder", "--refine", "ssa:C:/other"]
    assert run("evaluate", folder, "--data", root, "--num-workers", 0, "--json", tmp_path / "e.json", *words) == 0
    assert '"flip": true' in " ".join(capsys.readouterr().out.split())
    assert (
        run("predict", folder, root, "--split", "val", "--out", tmp_path / "p", "--json", tmp_path / "p.json", *words)
        == 0
    )
    asked = [("some/folder", "cpu", "--refine cascade-psp"), ("C:/other", "cpu", "--refine ssa")]
    assert kinds == [*asked, ({"weight": 0.5}, "cpu", "--smooth")] * 2
    for name in ("e", "p"):
        results = json.loads((tmp_path / f"{name}.json").read_text())
        assert results["tta"] == TTA(scales=(0.75, 1.0), flip=True).settings()
        assert [step["step"] for step in results["label_steps"]] == ["Next", "Next"]
        assert results["score_steps"] == [{"step": "Average", "weight": 0.5}]


@pytest.mark.parametrize(
    "words,message",
    [
        (["--tta", "flipp"], "--tta: there is no setting 'flipp'; did you mean 'flip'?"),
        (["--tta", "{scale: [1]}"], "--tta has no field 'scale'; did you mean 'scales'?"),
        (["--tta", "{scales: ["], "--tta is not valid YAML"),
        (["--refine", "cascadepsp:folder"], "there is no refiner 'cascadepsp'; did you mean 'cascade-psp'?"),
        (["--refine", "ssa"], "--refine ssa: expected ssa:FOLDER"),
        (["--device", "gpu"], "--device gpu: expected cpu, cuda, cuda:1, ... that is there; torch: Expected one of"),
        (["--device", "cuda:1x"], "--device cuda:1x: expected cpu, cuda, cuda:1, ... that is there; torch: Invalid"),
    ],
)
def test_options_that_cannot_be(root, tmp_path, capsys, words, message):
    assert run("predict", tmp_path / "model", root, "--out", tmp_path / "out", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("step, settings", [(CascadePSP, CascadePSPSettings), (SSA, SSASettings)])
def test_memory_that_runs_out_in_a_step(folder, step, settings):
    """Frames are refined one by one, so the message has to name what the refiner itself can turn down."""

    class Greedy(Next):
        memory_options = step.memory_options

        def __call__(self, image, labels, scores):
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes")

    assert set(step.memory_options) <= {field.name for field in fields(settings)}
    segmenter = VideoSegmenter.from_pretrained(folder, "cpu", label_steps=[Greedy()])
    message = f"of 48x64 .* in Greedy: lower its {' or '.join(step.memory_options)}, label fewer frames at once"
    with pytest.raises(MemoryError, match=message):
        segmenter.label_batch(moving_frames(2))
