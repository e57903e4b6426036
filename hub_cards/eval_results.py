"""One evaluation JSON, in the two forms that the Hub reads: `model-index` in the card, and `.eval_results/*.yaml`.

Every value is a fraction in 0..1, as in the JSON; every entry names its protocol. The older `model-index` is still
shown on model pages; `.eval_results` feeds the leaderboards of benchmark data sets
(https://huggingface.co/docs/hub/eval-results).
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from vss_hf.files import write_text
from vss_hf.metrics.made_by import beside_the_model


# Key in the JSON, name for people, which of the two protocols it follows.
METRICS = (
    ("mean_iou", "mean IoU", "protocol"),
    ("frequency_weighted_iou", "frequency-weighted IoU", "protocol"),
    ("pixel_accuracy", "pixel accuracy", "protocol"),
    ("mean_accuracy", "mean class accuracy", "protocol"),
    ("vc8", "video consistency over 8 frames (VC8)", "vc_protocol"),
    ("vc16", "video consistency over 16 frames (VC16)", "vc_protocol"),
)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_index(results: Mapping[str, Any], dataset_id: str | None = None) -> list[EvalResult]:
    """The results for `ModelCardData(eval_results=...)`; metrics without a value are left out.

    Args:
        results: what `vss-hf evaluate --json` wrote; metrics are fractions in 0..1.
        dataset_id: the data set's id on the Hub, where it has one; otherwise its plain name is used.

    Returns:
        One `EvalResult` per metric, in a fixed order.

    Raises:
        ValueError: if the data set's name is missing or a metric is not a fraction.
    """
    identifier = _identifier(results, dataset_id)  # asked for even where no metric has a value
    coverage = {key: results[key] for key in ("videos", "frames", "source", "table") if results.get(key) is not None}
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Video semantic segmentation",
            dataset_type=identifier,
            dataset_name=", ".join(filter(None, (_dataset_name(results), other_classes(results)))),
            dataset_split=results.get("split"),
            dataset_args=coverage or None,
            metric_type=key,
            metric_name=f"{name}, protocol {_protocol(results, which)}",
            metric_value=value,
            metric_args={"protocol": _protocol(results, which)},
        )
        for key, name, which, value in scored(results)
    ]


def write_eval_results(folder: str | Path, results: Mapping[str, Any], dataset_id: str | None = None) -> Path:
    """Write `.eval_results/<data set>-<split>.yaml` into a model folder.

    The Hub lists such values on the page of a *benchmark* data set, found by its Hub id. For a data set without one
    the file is written all the same, with the plain name as id and a note that says so: any program can read it, and
    the Hub passes over it.

    Args:
        folder: the model folder.
        results: what `vss-hf evaluate --json` wrote; metrics are fractions in 0..1.
        dataset_id: the data set's id on the Hub, "owner/name". Default: `results["dataset"]`.

    A score in other classes than the data set's own (`other_classes`) says so and never gets the Hub id: on the data
    set's page it would look like one in its own classes.

    Returns:
        The file written; the one for the same data set, classes and split is replaced.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: as `model_index`, or for a malformed `dataset_id`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such model folder: {folder}")
    if dataset_id is not None and not HUB_ID.fullmatch(dataset_id):
        raise ValueError(f"dataset_id={dataset_id!r}: expected the id of a data set on the Hub, 'owner/name'")
    identifier = _identifier(results, dataset_id)
    split = results.get("split")
    about = f"split {split or 'not stated'}, {_count(results, 'videos')}, {_count(results, 'frames')}"
    remarks = "a fraction in 0..1"
    if others := other_classes(results):
        remarks += f"; {others}: not comparable with scores in the data set's own classes"
    elif results.get("source"):
        remarks += f"; read from the layout {results['source']}"
    if made_by := beside_the_model(results):
        remarks += f"; with {made_by}"
    if "/" not in identifier:
        remarks += f"; '{identifier}' is a local data set without a Hub id"
    entries = [
        EvalResultEntry(
            dataset_id=identifier,
            task_id=key,
            value=value,
            date=results.get("date"),
            notes=f"{name}; protocol {_protocol(results, which)}; {about}; {remarks}",
        )
        for key, name, which, value in scored(results)
    ]
    path = folder / ".eval_results" / f"{slug(identifier)}-{slug(split or 'unknown')}.yaml"
    path.parent.mkdir(exist_ok=True)
    write_text(path, yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True))
    return path


def scored(results: Mapping[str, Any]) -> list[tuple[str, str, str, float]]:
    """(key, name, protocol key, value) of every metric that has a value.

    Raises:
        ValueError: if a value is not a number in 0..1.
    """
    found = []
    for key, name, which in METRICS:
        value = results.get(key)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValueError(f"evaluation results: {key}={value!r}, expected a fraction in 0..1 or null")
        found.append((key, name, which, float(value)))
    return found


def other_classes(results: Mapping[str, Any]) -> str:
    """In words, in which other classes than the data set's own the labels were scored; empty: in its own."""
    table, source = results.get("table"), results.get("source") or "vspw"
    if table is None:
        return ""
    if table == "reverse":
        return f"the classes of {source} that VSPW does not tell apart count as one"
    return f"labels turned into VSPW's classes by remap table '{table}' of {source}"


def slug(name: str) -> str:
    """A name as one safe word for ids and file names."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "unnamed"


def _identifier(results: Mapping[str, Any], dataset_id: str | None) -> str:
    """What stands for the data set: its Hub id, where it has one and is scored in its own classes, or a plain name."""
    dataset, table = _dataset_name(results), results.get("table")
    if table is not None:
        return slug(f"{dataset}-{table}")
    return dataset_id or (dataset if HUB_ID.fullmatch(dataset) else slug(dataset))


def _dataset_name(results: Mapping[str, Any]) -> str:
    dataset = results.get("dataset")
    if not isinstance(dataset, str) or not dataset.strip():
        raise ValueError(f"evaluation results: dataset={dataset!r}, expected the data set's name")
    return dataset


def _protocol(results: Mapping[str, Any], which: str) -> str:
    return str(results.get(which) or "not stated")


def _count(results: Mapping[str, Any], key: str) -> str:
    """'3 videos', '1 video' or 'videos not counted'."""
    count = results.get(key)
    return f"{key} not counted" if count is None else f"{count} {key if count != 1 else key[:-1]}"
