"""`--smooth` of predict and evaluate, and that both do what the steps do."""

import json

import numpy as np
import pytest
from PIL import Image
from test_flow import texture
from tiny_models import NAMES, save_model

from vss_hf.cli import main
from vss_hf.inference import VideoSegmenter
from vss_hf.refinement.smoothing import parse


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def videos():
    """By name, the frames of two videos in which a camera pans."""
    return {
        name: [texture(48, 90, seed)[:, start : start + 64] for start in (20, 17, 14, 11)]
        for seed, name in enumerate(("one", "two"))
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory, videos):
    root = tmp_path_factory.mktemp("root")
    names = {"others": 0, **{name: i + 1 for i, name in enumerate(NAMES)}}
    (root / "label_num_dic_final.json").write_text(json.dumps(names))
    (root / "val.txt").write_text("one\ntwo\n")
    for name, frames in videos.items():
        for kind in ("origin", "mask"):
            (root / "data" / name / kind).mkdir(parents=True)
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(root / f"data/{name}/origin/{number:08d}.png")
            Image.fromarray(frame[..., 0] % 5 + 1).save(root / f"data/{name}/mask/{number:08d}.png")
    return root


def run(*words) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def by_steps(folder, frames, given):
    """The labels when a video is fed to the steps one frame after the other, without the segmenter's part in it."""
    steps, labelled = parse(given), []
    for frame, scores in zip(frames, VideoSegmenter.from_pretrained(folder, "cpu").score_maps(frames), strict=True):
        for step in steps:
            if step.changes == "scores":
                scores = step(frame, scores)
        labels = scores.labels().numpy()
        for step in steps:
            if step.changes == "labels":
                labels = step(frame, labels, scores)
        labelled.append(labels)
    return labelled


@pytest.mark.parametrize(
    "word,given",
    [
        ("ema", "ema"),
        (
            '[{name: flow, photometric: null}, {"name": "flicker", "frames": 2}]',
            [{"name": "flow", "photometric": None}, {"name": "flicker", "frames": 2}],
        ),
    ],
)
def test_smooth(folder, root, videos, tmp_path, word, given):
    words = ["--smooth", word, "--device", "cpu"]
    assert (
        run("predict", folder, root, "--split", "val", "--out", tmp_path / "p", "--json", tmp_path / "p.json", *words)
        == 0
    )
    plain = [
        labels
        for frames in videos.values()
        for labels in VideoSegmenter.from_pretrained(folder, "cpu").label_video(frames)
    ]
    wanted = [labels for frames in videos.values() for labels in by_steps(folder, frames, given)]
    written = [np.array(Image.open(tmp_path / f"p/{name}/{number:08d}.png")) for name in videos for number in range(4)]
    assert np.array_equal(written, wanted) and not np.array_equal(written, plain)
    evaluated = ["--num-workers", "0", "--batch-size", "2", "--json", tmp_path / "e.json", *words]
    assert run("evaluate", folder, "--data", root, *evaluated) == 0
    assert run("score", "--predictions", tmp_path / "p", "--data", root, "--json", tmp_path / "s.json") == 0
    results, scored, predicted = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "esp")
    assert results["mean_iou"] == scored["mean_iou"]
    for one in (results, predicted):
        steps = [*one.get("score_steps", []), *one.get("label_steps", [])]
        assert [{"step": type(step).__name__, **step.settings} for step in parse(given)] == steps


def test_a_wrong_word(folder, root, tmp_path, capsys):
    assert run("predict", folder, root, "--out", tmp_path / "p", "--smooth", "{name: flow, momentum: 2}") == 2
    assert "--smooth.momentum: expected a number above 0 and below 1; found 2" in " ".join(
        capsys.readouterr().err.split()
    )
