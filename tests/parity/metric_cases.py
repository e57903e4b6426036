"""Metrics against numbers that the public implementations gave on one fixture of 106 frames (float64, 1e-9)."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rows import Row, compare_exactly, compare_numbers

from vss_hf.data.labels import LABEL_FILE, VSPW
from vss_hf.metrics import ConfusionMatrix, VideoConsistency
from vss_hf.scoring import score_predictions


EXACT = 1e-9
FLOAT32 = 1e-6  # mmseg and torchmetrics divide in fp32
PERCENT = 1e-5  # numbers of mmseg that are rounded to 0.01 % and stored in fp32
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
    rows += compare_areas(confusion(*videos.values()), values)
    rows += compare_one_pass(folder, values)
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


def compare_areas(matrix: ConfusionMatrix, values: dict[str, Any]) -> list[Row]:
    """What other libraries make of the pixels of each class; 0 / 0 is left out of their means."""
    hits, truth, predicted = (pixels.astype(np.float64) for pixels in matrix.class_pixels())
    union = truth + predicted - hits
    mmseg, torchmetrics = values["mmseg_iou_metric"], values["torchmetrics"]
    with np.errstate(invalid="ignore"):
        scores = {"IoU": hits / union, "Acc": hits / truth, "Dice": 2 * hits / (truth + predicted)}
        scores |= {"Precision": hits / predicted, "Recall": hits / truth}
        scores["Fscore"] = 2 * scores["Precision"] * scores["Recall"] / (scores["Precision"] + scores["Recall"])
    means = {"aAcc": hits.sum() / truth.sum(), **{name: np.nanmean(of) for name, of in scores.items()}}
    rows = [compare_exactly("area union", union.tolist(), mmseg["area"]["union"])]
    for name, of in scores.items():
        of = [None if np.isnan(value) else value for value in of]
        rows.append(compare_numbers(f"mmseg {name} per class", of, mmseg["per_class"][name], FLOAT32))
    for name, mean in means.items():
        rows.append(compare_numbers(f"mmseg {name}", [mean], [mmseg["unrounded_mean"][name]], FLOAT32))
        rounded = mmseg["official_rounded_percent"][name if name == "aAcc" else f"m{name}"]
        rows.append(compare_numbers(f"mmseg {name} in percent", [round(100 * mean, 2)], [rounded], PERCENT))
    occurs = union > 0
    ours = {
        "jaccard_macro": np.nanmean(scores["IoU"]),
        "jaccard_micro": hits.sum() / union.sum(),
        "jaccard_weighted": matrix.compute()["frequency_weighted_iou"],
        "accuracy_macro": np.nan_to_num(scores["Acc"])[occurs].mean(),
        "accuracy_micro": means["aAcc"],
    }
    rows += [compare_numbers(f"torchmetrics {name}", [of], [torchmetrics[name]], FLOAT32) for name, of in ours.items()]
    per_class = np.nan_to_num(scores["IoU"])
    rows.append(compare_numbers("torchmetrics jaccard_none", per_class, torchmetrics["jaccard_none"], FLOAT32))
    # `beforeval` of VSPW's evaluator: predictions of classes that the truth does not have are dropped
    kept = np.where(truth > 0, matrix.counts.numpy(), 0).astype(np.float64)
    union = kept.sum(1) + kept.sum(0) - hits  # and with them the pixels of the truth that were predicted so
    mean = (hits / np.maximum(union, 1))[truth > 0].mean()
    expected = values["vspw_evaluator"]["mIoU_after_beforeval"]
    return [*rows, compare_numbers("vspw mean_iou after beforeval", [mean], [expected], EXACT)]


def complete_data_set(root: Path, layout: Path) -> None:
    """The fixture's masks as a data set: with a class list, and frames, which nobody opens."""
    (root / LABEL_FILE).write_text(json.dumps(dict(zip(VSPW.names, VSPW.disk_ids, strict=True))))
    (root / "val.txt").write_text("\n".join(sorted(path.name for path in (layout / "data").iterdir())))
    for masks in (layout / "data").glob("*/mask"):
        frames = root / "data" / masks.parent.name / "origin"
        frames.mkdir(parents=True)
        frames.with_name("mask").symlink_to(masks.resolve())
        for mask in masks.iterdir():
            (frames / f"{mask.stem}.jpg").touch()


def compare_one_pass(folder: Path, values: dict[str, Any]) -> list[Row]:
    """`score_predictions` on the fixture's PNG files: every protocol and every video from one pass."""
    with TemporaryDirectory() as root:
        complete_data_set(Path(root), folder / "vspw_layout")
        results = score_predictions(folder / "vspw_layout/predicts", root)
    evaluator, windows = values["vspw_evaluator"], values["vspw_vc"]
    found = {name: scores["mean_iou"] for name, scores in results["mean_iou_protocols"].items()}
    pairs = {
        "mean_iou vspw": (found["vspw"], evaluator["mIoU"]),
        "mean_iou evaluate": (found["evaluate"], values["hf_evaluate_transformed"]["mean_iou"]),
        "video mIoU": (results["mean_iou_over_videos"], evaluator["video_mIoU"]),
        "video fwIoU": (results["frequency_weighted_iou_over_videos"], evaluator["video_fwIoU"]),
    }
    for n in (8, 16):
        of, key = windows[f"VC{n}"], f"vc{n}"
        consistency = {name: scores[key] for name, scores in results["consistency"].items()}
        pairs[f"{key} official"] = consistency["vspw-official"], of["official_VC_perclip_score"]
        pairs[f"{key} paper"] = consistency["paper"], of["NOT_official_also_requires_pred_equal_gt_nonvoid"]
    rows = [compare_numbers(f"one pass, {name}", [ours], [theirs], EXACT) for name, (ours, theirs) in pairs.items()]
    for video in results["per_video"]:
        expected, name = evaluator["per_video"][video["video"]], f"one pass, {video['video']}"
        ours = [video["mean_iou"], video["frequency_weighted_iou"]]
        rows.append(compare_numbers(name, ours, [expected["mIoU"], expected["fwIoU"]], EXACT))
    for n in (8, 16):  # the script prints a video's mean where it has windows; NaN where one of them is
        printed = windows[f"VC{n}"]["official_per_video_printed"]
        long = [video for video in results["per_video"] if video["frames"] > n]
        ours = [video["consistency"]["vspw-official"][f"vc{n}"] for video in long]
        rows.append(compare_numbers(f"one pass, vc{n} of each video", ours, printed, EXACT))
    return rows


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
