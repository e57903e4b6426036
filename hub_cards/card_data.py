"""What a model's card says of data sets: what was trained on, its tags, and the terms of the known ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .card_text import cell, last_part, number
from .dataset_terms import Terms, terms_of
from .eval_results import HUB_ID, slug


LOCAL_FOLDERS = (".", "..", "data", "datasets", "runs", "out", "outputs", "models", "checkpoints")


def recorded_sources(trained: Mapping[str, Any], flat: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """What was trained on, as far as it is recorded: fields of `train_results.json`, whose path is for messages."""
    if "sources" in trained:
        sources = trained["sources"]
        if not isinstance(sources, list) or not all(
            isinstance(source, dict) and isinstance(source.get("dataset"), str) for source in sources
        ):
            raise ValueError(f"{path}: sources is {str(sources)[:80]}, expected a list of fields with a dataset")
        return sources
    dataset = trained.get("dataset") or flat.get("data.root")  # of earlier versions, and of others
    if not dataset:
        return []
    name = hub_id(str(dataset)) or last_part(str(dataset))
    return [{"dataset": name, "split": trained.get("train_split"), "frames": trained.get("train_frames")}]


def source_in_words(source: Mapping[str, Any], alone: bool) -> str:
    """'VSPW_480p, split train, 198244 labelled frames', as far as recorded."""
    parts = [source["dataset"]]
    if source.get("split"):
        parts.append(f"split {source['split']}")
    if source.get("source") not in (None, "vspw"):
        parts.append(f"read as {source['source']}")
    if source.get("table"):
        parts.append(f"labels turned into VSPW's classes by remap table {source['table']}")
    if share := number(source.get("min_labelled")):
        parts.append(f"frames with at least {100 * share:g} % labelled pixels")
    if source.get("frames") is not None:
        parts.append(f"{source['frames']} labelled frames")
    if not alone and (share := number(source.get("share"))) is not None:
        parts.append(f"{100 * share:.3g} % of the samples")
    return ", ".join(map(cell, parts))


def dataset_tags(
    sources: list[dict[str, Any]], results: Mapping[str, Any] | None, dataset_id: str | None
) -> list[str] | None:
    """What was trained on, for the head; `dataset_id` stands for the data set that was evaluated on."""
    if not sources:
        return [dataset_id] if dataset_id else None
    evaluated = results["dataset"] if results else sources[0]["dataset"]
    names = [source["dataset"] for source in sources]
    tags = [dataset_id if dataset_id and name == evaluated else hub_id(name) or slug(name) for name in names]
    return list(dict.fromkeys(tags))


def known_terms(data: Sequence[Mapping[str, Any]]) -> list[Terms]:
    """The terms of the data sets that are known ones, each once; by name, and by layout where it is recorded."""
    found = (terms_of(str(item.get("source") or ""), str(item["dataset"])) for item in data)
    return list({terms.name: terms for terms in found if terms is not None}.values())


def hub_id(value: Any) -> str | None:
    """The value, if it can only be "owner/name" on the Hub; a relative path of two parts looks just the same."""
    if not isinstance(value, str) or not HUB_ID.fullmatch(value):
        return None
    return None if value.split("/")[0] in LOCAL_FOLDERS or Path(value).exists() else value
