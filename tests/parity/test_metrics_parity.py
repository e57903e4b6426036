"""Metrics against numbers that the public implementations gave on one fixture of 106 frames (float64, 1e-9)."""

import json
from pathlib import Path

import numpy as np
import pytest

from vss_hf.metrics import ConfusionMatrix, VideoConsistency


FIXTURE = Path(__file__).resolve().parents[2] / "../shared/parity/12_metrics"
pytestmark = pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"reference numbers {FIXTURE.name} are not here")
EXACT = {"abs": 1e-9}  # with abs alone pytest uses no relative tolerance
WINDOWS = (2, 8, 16)


@pytest.fixture(scope="module")
def values():
    return json.loads((FIXTURE / "values.json").read_text())


@pytest.fixture(scope="module")
def videos(values):
    """name -> (predictions, raw disk values, labels), each uint8 (T, H, W)."""
    stored = np.load(FIXTURE / "labels.npz")
    table = np.full(256, 255, dtype=np.uint8)
    table[1:125] = np.arange(124)
    raw = {name: stored[f"gt_raw/{name}"] for name in values["videos"]}
    return {name: (stored[f"pred/{name}"], maps, table[maps]) for name, maps in raw.items()}


@pytest.fixture(scope="module")
def matrix(videos):
    matrix = ConfusionMatrix(124)
    for predictions, _, labels in videos.values():
        matrix.update(predictions, labels)
    return matrix


def test_evaluate_mean_iou(matrix, values):
    scores, expected = matrix.compute("evaluate"), values["hf_evaluate_transformed"]
    assert scores["mean_iou"] == pytest.approx(expected["mean_iou"], **EXACT)
    assert scores["mean_accuracy"] == pytest.approx(expected["mean_accuracy"], **EXACT)
    assert scores["pixel_accuracy"] == pytest.approx(expected["overall_accuracy"], **EXACT)
    assert scores["per_class_iou"] == pytest.approx(expected["per_category_iou"], **EXACT)
    assert scores["per_class_accuracy"] == pytest.approx(expected["per_category_accuracy"], **EXACT)


def test_vspw_evaluator(matrix, values):
    scores, expected = matrix.compute("vspw"), values["vspw_evaluator"]
    assert scores["mean_iou"] == pytest.approx(expected["mIoU"], **EXACT)
    assert scores["frequency_weighted_iou"] == pytest.approx(expected["fwIoU"], **EXACT)
    assert scores["pixel_accuracy"] == pytest.approx(expected["Acc"], **EXACT)
    assert scores["mean_accuracy"] == pytest.approx(expected["Acc_class"], **EXACT)


def test_vspw_evaluator_per_video(videos, values):
    for name, expected in values["vspw_evaluator"]["per_video"].items():
        matrix = ConfusionMatrix(124)
        matrix.update(videos[name][0], videos[name][2])
        scores = matrix.compute("vspw")
        assert scores["mean_iou"] == pytest.approx(expected["mIoU"], **EXACT)
        assert scores["frequency_weighted_iou"] == pytest.approx(expected["fwIoU"], **EXACT)


def test_areas(matrix, values):
    area = values["mmseg_iou_metric"]["area"]
    counts = matrix.counts.double()
    assert counts.diagonal().tolist() == area["intersect"]
    assert counts.sum(0).tolist() == area["pred"]
    assert (counts.sum(1) + matrix.missed).tolist() == area["label"]


def consistency_of(videos, protocol, space, extra_frame=False):
    """Scores with references in `space`, "raw" or "labels"; `extra_frame` repeats the last frame of each video."""
    consistency, windows = VideoConsistency(WINDOWS, protocol), {}
    for name, (predictions, raw, labels) in videos.items():
        references = raw if space == "raw" else labels
        order = [*range(len(raw)), *([len(raw) - 1] if extra_frame else [])]
        for t in order:
            for key, value in consistency.add_frame(predictions[t], references[t]).items():
                windows.setdefault(key, {}).setdefault(name, []).append(value)
        consistency.end_video()
    return consistency.compute(), windows


@pytest.mark.parametrize("n", WINDOWS)
def test_video_consistency_of_the_script(videos, values, n):
    """VC_perclip.py reads PNG files, so that void 0 and void 255 are two constants."""
    result, windows = consistency_of(videos, "vspw-official", "raw")
    expected = values["vspw_vc"][f"VC{n}"]
    assert result[f"vc{n}"] == pytest.approx(expected["official_VC_perclip_score"], **EXACT)
    assert result["dropped_clips"][f"vc{n}"] == expected["num_nan_windows"]
    assert result["clips"][f"vc{n}"] == expected["num_windows"] - expected["num_nan_windows"]
    assert result["videos"] == 6
    per_video = [None if None in video else np.mean(video) for video in windows[f"vc{n}"].values()]
    assert per_video == pytest.approx(expected["official_per_video_printed"], **EXACT)


@pytest.mark.parametrize("n", WINDOWS)
def test_video_consistency_of_the_evaluation_loop(videos, values, n):
    """test_clip.py has labels in memory, so that both voids are 255."""
    result, windows = consistency_of(videos, "vspw-official", "labels")
    expected = values["vspw_vc"][f"VC{n}"]
    assert result[f"vc{n}"] == pytest.approx(expected["in_memory_test_clip_score_transformed"], **EXACT)
    assert windows[f"vc{n}"].keys() == expected["per_window_transformed"].keys()
    for name, per_window in expected["per_window_transformed"].items():
        assert windows[f"vc{n}"][name] == pytest.approx(per_window, **EXACT)


@pytest.mark.parametrize("n", WINDOWS)
def test_video_consistency_of_the_paper(videos, values, n):
    result, _ = consistency_of(videos, "paper", "labels")
    expected = values["vspw_vc"][f"VC{n}"]["NOT_official_also_requires_pred_equal_gt_nonvoid"]
    assert result[f"vc{n}"] == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("n", WINDOWS)
def test_only_the_last_window_is_missing_in_the_script(videos, values, n):
    """One frame more completes the window that the script leaves out."""
    result, _ = consistency_of(videos, "vspw-official", "raw", extra_frame=True)
    expected = values["vspw_vc"][f"VC{n}"]["NOT_official_all_windows_len_minus_n_plus_1"]
    assert result[f"vc{n}"] == pytest.approx(expected, **EXACT)


def test_video_consistency_of_dvis_pools_windows(videos, values):
    """Its VC_n is the mean over the windows of n and of every window length before it."""
    result, _ = consistency_of(videos, "dvis-legacy", "raw")
    total = windows = 0
    for n in WINDOWS:
        official = values["vspw_vc"][f"VC{n}"]
        scored = official["num_windows"] - official["num_nan_windows"]
        total += official["official_VC_perclip_score"] * scored
        windows += scored
        assert result[f"vc{n}"] == pytest.approx(total / windows, **EXACT)
        assert result["clips"][f"vc{n}"] == windows
