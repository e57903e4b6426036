"""Metrics against numbers that the public implementations gave on one fixture of 106 frames (float64, 1e-9)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from rows import Row, compare_exactly, compare_numbers

from vss_hf.metrics import ConfusionMatrix, VideoConsistency


EXACT = 1e-9
WINDOWS = (2, 8, 16)
# our protocol -> (key of the reference's numbers, our score: their name)
PROTOCOLS = {
    "evaluate": (
        "hf_evaluate_transformed",
        {
            "mean_iou": "mean_iou",
            "mean_accuracy": "mean_accuracy",
            "pixel_accuracy": "overall_accuracy",
            "per_class_iou": "per_category_iou",
            "per_class_accuracy": "per_category_accuracy",
        },
    ),
    "vspw": (
        "vspw_evaluator",
        {
            "mean_iou": "mIoU",
            "frequency_weighted_iou": "fwIoU",
            "pixel_accuracy": "Acc",
            "mean_accuracy": "Acc_class",
        },
    ),
}
Videos = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def compare_metrics(folder: Path) -> list[Row]:
    """Scores of all frames and of each video, areas, video consistency in all variants."""
    values = json.loads((folder / "values.json").read_text())
    videos = read_videos(folder, values)
    rows = compare_confusion(confusion(*videos.values()), values)
    for name, expected in values["vspw_evaluator"]["per_video"].items():
        scores = confusion(videos[name]).compute("vspw")
        rows += [compare_scores(f"vspw {name} ", scores, expected, ours, theirs) for ours, theirs in
                 (("mean_iou", "mIoU"), ("frequency_weighted_iou", "fwIoU"))]  # fmt: skip
    return rows + compare_consistency(videos, values["vspw_vc"])


def read_videos(folder: Path, values: dict[str, Any]) -> Videos:
    """name -> (predictions, raw disk values, labels), each uint8 (T, H, W)."""
    stored = np.load(folder / "labels.npz")
    table = np.full(256, values["ignore_index"], dtype=np.uint8)
    table[1 : values["num_labels"] + 1] = np.arange(values["num_labels"])
    raw = {name: stored[f"gt_raw/{name}"] for name in values["videos"]}
    return {name: (stored[f"pred/{name}"], maps, table[maps]) for name, maps in raw.items()}


def confusion(*videos: tuple[np.ndarray, np.ndarray, np.ndarray]) -> ConfusionMatrix:
    """The counts of all frames."""
    matrix = ConfusionMatrix(124)
    for predictions, _, labels in videos:
        matrix.update(predictions, labels)
    return matrix


def compare_confusion(matrix: ConfusionMatrix, values: dict[str, Any]) -> list[Row]:
    """Every score of every protocol, and the areas per class."""
    rows = []
    for protocol, (key, names) in PROTOCOLS.items():
        scores = matrix.compute(protocol)
        rows += [compare_scores(f"{protocol} ", scores, values[key], *pair) for pair in names.items()]
    area, counts = values["mmseg_iou_metric"]["area"], matrix.counts.double()
    ours = {"intersect": counts.diagonal(), "pred": counts.sum(0), "label": counts.sum(1) + matrix.missed}
    return rows + [compare_exactly(f"area {name}", ours[name].tolist(), area[name]) for name in ours]


def compare_scores(prefix: str, scores: dict[str, Any], expected: dict[str, Any], ours: str, theirs: str) -> Row:
    """One score, or one per class."""
    numbers = [found if isinstance(found, list) else [found] for found in (scores[ours], expected[theirs])]
    return compare_numbers(prefix + ours, *numbers, EXACT)


def consistency_of(videos: Videos, protocol: str, space: str, extra_frame: bool = False) -> tuple[Any, Any]:
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


def compare_consistency(videos: Videos, expected: dict[str, Any]) -> list[Row]:
    """VC of the script, of the evaluation loop, of the paper, of the script with the window that it leaves out."""
    # The script reads PNG files, so that void 0 and void 255 are two constants; in the loop's memory both are 255.
    script, script_windows = consistency_of(videos, "vspw-official", "raw")
    loop, loop_windows = consistency_of(videos, "vspw-official", "labels")
    paper, _ = consistency_of(videos, "paper", "labels")
    complete, _ = consistency_of(videos, "vspw-official", "raw", extra_frame=True)
    rows = [compare_exactly("videos", script["videos"], len(videos))]
    for n in WINDOWS:
        key, reference = f"vc{n}", expected[f"VC{n}"]
        scores = {
            "of the script": (script, "official_VC_perclip_score"),
            "of the evaluation loop": (loop, "in_memory_test_clip_score_transformed"),
            "of the paper": (paper, "NOT_official_also_requires_pred_equal_gt_nonvoid"),
            "with the last window": (complete, "NOT_official_all_windows_len_minus_n_plus_1"),
        }
        rows += [
            compare_numbers(f"{key} {whose}", [result[key]], [reference[name]], EXACT)
            for whose, (result, name) in scores.items()
        ]
        per_video = [None if None in video else np.mean(video) for video in script_windows[key].values()]
        rows.append(compare_numbers(f"{key} per video", per_video, reference["official_per_video_printed"], EXACT))
        rows += compare_windows(key, script, loop_windows[key], reference)
    return rows + compare_pooled_windows(videos, expected)


def compare_windows(key: str, script: Any, ours: dict[str, list[Any]], reference: dict[str, Any]) -> list[Row]:
    """How many windows there are and how many do not count, and each window of the evaluation loop."""
    dropped = reference["num_nan_windows"]
    assert ours.keys() == reference["per_window_transformed"].keys()
    return [
        compare_exactly(f"{key} dropped windows", script["dropped_clips"][key], dropped),
        compare_exactly(f"{key} windows", script["clips"][key], reference["num_windows"] - dropped),
        *(
            compare_numbers(f"{key} windows of {video}", ours[video], numbers, EXACT)
            for video, numbers in reference["per_window_transformed"].items()
        ),
    ]


def compare_pooled_windows(videos: Videos, expected: dict[str, Any]) -> list[Row]:
    """DVIS: its VC_n is the mean over the windows of n and of every window length before it."""
    result, _ = consistency_of(videos, "dvis-legacy", "raw")
    rows, total, windows = [], 0.0, 0
    for n in WINDOWS:
        official = expected[f"VC{n}"]
        scored = official["num_windows"] - official["num_nan_windows"]
        total += official["official_VC_perclip_score"] * scored
        windows += scored
        rows.append(compare_numbers(f"vc{n} of DVIS", [result[f"vc{n}"]], [total / windows], EXACT))
        rows.append(compare_exactly(f"vc{n} windows of DVIS", result["clips"][f"vc{n}"], windows))
    return rows
