"""Weights of an ensemble, searched on labelled videos: `vss-hf ensemble search`.

The scores of each member are stored once (scores.py), then weights (weights.py) are tried on them (counts.py) for the
mean IoU of some of the videos. Whether they are better on the others, too, is what the report says (report.py): USTC
(VSPW 2021, fifth, table 3) gained 3.8 mIoU over its best model on the videos that were searched, and 1.5 on the test
set.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vss_hf.files import write_json
from vss_hf.inference.processes import check_same_everywhere, failing_together, is_first
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.scoring.ground_truth import GroundTruth, data_set_name, open_ground_truth, pinned_everywhere

from .counts import WeightedCounts
from .ensemble import REPORT, check_place, class_names, create_ensemble, ensemble_of, member_source
from .report import report_of
from .scores import MemberScores, Sampling, bytes_to_store, weight_files
from .weights import SearchSettings


def search_ensemble(
    members: Sequence[dict[str, Any]],
    out: str | Path,
    root: str | Path,
    split: str = "val",
    *,
    groups: dict[str, float] | None = None,
    source: str = "vspw",
    table: str | Path | None = None,
    scores: str | Path | None = None,
    sampling: Sampling | None = None,
    settings: SearchSettings | None = None,
    device: str | None = None,
    batch_size: int = 4,
    num_workers: int = 0,
    tell: Callable[[str], None] = lambda line: None,
    progress: Callable[[Iterator, int, str], Iterator] | None = None,
) -> dict[str, Any]:
    """Search weights and write the ensemble that has them.

    Members whose best weight is 0 are left out of it. With groups, the weights of groups are searched, and members
    keep theirs inside their group. Where torch.distributed runs, the processes share the videos of the first part.

    Args:
        members, groups: as for `create_ensemble`; with other than equal weights, those are measured, too.
        out: the ensemble's folder, with the report in search.json.
        root, split, source, table: labelled videos, as for `evaluate_model`.
        scores: where scores are stored; None: `out` with ".scores" behind it. What is there already is used.
        sampling: which scores are stored.
        settings: how weights are searched.
        device, batch_size, num_workers: of the pass over the frames.
        tell: takes lines for people.
        progress: wraps an iterator of frames, given with their number and a member's name.

    Returns:
        What stands in search.json; see `report_of`.

    Raises:
        ValueError, FileNotFoundError: as `create_ensemble` and `open_ground_truth`.
        OSError: the scores or the folder cannot be written.
    """
    sampling, settings, out = sampling or Sampling(), settings or SearchSettings(), Path(out)
    began = time.perf_counter()
    root = pinned_everywhere([root]).get(str(root), root)
    with failing_together():
        check_place(out)
        config = ensemble_of(members, groups)
        names = class_names(config)
        truth = open_ground_truth(root, split, source, table, names)
        if truth.counts_as is not None:
            raise ValueError(f"{root} has other classes than the models: name a --table that gives it theirs")
        settings.splits(len(truth.split.videos))
    folder = Path(f"{out}.scores") if scores is None else Path(scores)
    stores = [stored_scores(member, folder, truth, sampling) for member in members]
    check_same_everywhere(
        f"{truth.split.fingerprint} {[store.folder.name for store in stores]}", f"{root} or a member"
    )
    if is_first():
        tell(what_is_missing(stores, truth, sampling, len(names), folder))
    for member, store in zip(members, stores, strict=True):
        wrapped = None if progress is None else lambda items, n, name=member["name"]: progress(items, n, f"{name}")
        store.store(
            lambda member=member: open_member(member, device),
            batch_size=batch_size,
            num_workers=num_workers,
            progress=wrapped,
        )
    stored = time.perf_counter()
    report: dict[str, Any] = {}
    with failing_together():
        if is_first():
            counts = read_counts(stores, len(names))
            read = time.perf_counter()
            report = report_of(config, counts, settings)
            seconds = {"scores": stored - began, "reading": read - stored, "search": time.perf_counter() - read}
            report |= {"seconds": seconds, "split": split, "dataset": data_set_name(root), "table": truth.table}
            report["settings"] = {**asdict(sampling), **asdict(settings)}
            best, best_groups = with_weights(members, groups, report["weights"])
            create_ensemble(out, best, best_groups)
            write_json(out / REPORT, report)
    return report


def stored_scores(member: dict[str, Any], folder: Path, truth: GroundTruth, sampling: Sampling) -> MemberScores:
    """Where a member's scores are, or will be."""
    source = member_source(member["name"], Path())
    described = {
        "name": source,
        "revision": member.get("revision"),
        "tta": None if "tta" not in member else views_of(member).settings(),
        "files": weight_files(source),
    }
    return MemberScores(folder, source, described, truth, sampling)


def views_of(member: dict[str, Any]) -> Any:
    """A member's own views."""
    from vss_hf.inference.views import parse_tta

    return parse_tta(member["tta"], f"tta of member '{member['name']}'")


def open_member(member: dict[str, Any], device: str | None) -> VideoSegmenter:
    """The member alone, with its views."""
    tta = None if "tta" not in member else views_of(member)
    source = member_source(member["name"], Path())
    return VideoSegmenter.from_pretrained(source, device, member.get("revision"), tta=tta)


def what_is_missing(
    stores: Sequence[MemberScores], truth: GroundTruth, sampling: Sampling, num_labels: int, folder: Path
) -> str:
    """One line: what is stored, what will be, and how large that becomes at most."""
    videos = len(truth.split.videos)
    missing = sum(len(store.missing()) for store in stores)
    size = bytes_to_store(truth.split, sampling, num_labels)
    return (
        f"{folder}: scores of {len(stores)} members on {videos} videos, at most {size / 1e6:,.1f} MB for each member "
        f"before packing; {missing} of {videos * len(stores)} files are still to be made"
    )


def read_counts(stores: Sequence[MemberScores], num_labels: int) -> WeightedCounts:
    """The stored scores as counts for any weights, a video at a time.

    Raises:
        ValueError: two members' files have other pixels, or one is damaged.
    """
    videos = len(stores[0].truth.split.videos)
    counts = WeightedCounts(num_labels, videos, len(stores))
    for video in range(videos):
        samples = [store.load(video) for store in stores]
        for store, sample in zip(stores, samples, strict=True):
            if not np.array_equal(sample.labels, samples[0].labels):
                raise ValueError(f"{store.path(video)}: other pixels than in {stores[0].path(video)}; remove both")
        counts.add(video, samples[0].labels, [one.classes for one in samples], [one.scores for one in samples])
    return counts


def with_weights(
    members: Sequence[dict[str, Any]], groups: dict[str, float] | None, weights: Sequence[float]
) -> tuple[list[dict[str, Any]], dict[str, float] | None]:
    """Members and groups with the weights that were found, without those of weight 0."""
    if groups is None:
        found = [{**member, "weight": weight} for member, weight in zip(members, weights, strict=True)]
        return [member for member in found if member["weight"] > 0], None
    kept = {name: weight for name, weight in zip(groups, weights, strict=True) if weight > 0}
    return [member for member in members if member["group"] in kept], kept
