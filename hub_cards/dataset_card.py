"""Writes the card of a data set that `vss-hf data parquet` made, from what its folder says of itself."""

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from .card_text import check_names, is_ours, kept_text, options_of, read_card, render, replace_card, with_stamp
from .dataset_export import LABEL_FILE, Export, read_export
from .push_result import size


TEMPLATE = Path(__file__).with_name("dataset_card.md")
CARD = "README.md"


def write_dataset_card(out: str | Path, **overrides: Any) -> Path:
    """Write `README.md` of a Parquet export, complete without editing.

    Text between the card's "keep" markers survives. A README.md that was edited elsewhere, or that something else
    wrote, is first copied to README.previous.md (then README.previous-2.md, ...), with a warning.

    Args:
        out: a folder that `vss-hf data parquet` made.
        overrides: keyword arguments of `render_dataset_card`.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: the folder is no finished export.
        ValueError: its index cannot be read, or the Hub would refuse an override.
    """
    path = Path(out) / CARD
    replace_card(path, render_dataset_card(out, notes=kept_text(read_card(path)), **overrides))
    return path


def dataset_card_for_repo(out: str | Path, repo_id: str, rights: str | None = None) -> str | None:
    """The text of an export's card for its place on the Hub; nothing is written.

    Args:
        out: as in `write_dataset_card`.
        repo_id: "owner/name" on the Hub.
        rights: as in `render_dataset_card`; default: what the card says already.

    Returns:
        The card; None if README.md was edited elsewhere, or written by something else: then it stays as it is.
    """
    old = read_card(Path(out) / CARD)
    if old is not None and not is_ours(old):
        return None
    options = options_of(old) | ({"rights": rights} if rights else {})
    return render_dataset_card(out, repo_id=repo_id, notes=kept_text(old), **options)


def render_dataset_card(
    out: str | Path,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    title: str | None = None,
    description: str | None = None,
    rights: str | None = None,
    notes: str = "",
) -> str:
    """The text of an export's card.

    Args:
        out: as in `write_dataset_card`.
        repo_id: "owner/name" on the Hub, used in title and code. Default: the folder's own name.
        license: identifier from the Hub's list, or "other" with `license_name` and `license_link`. Default: the terms
            of the data set where it is one of the known ones, else what the export says, else "unknown".
        license_name: name of a licence outside the Hub's list.
        license_link: where that licence can be read.
        title: default: the name of the repository, or of the folder that was packed.
        description: a paragraph of Markdown below the title.
        rights: on what ground the frames may be public, where the data set's terms alone forbid it.
        notes: Markdown for the section that later versions of the card keep.

    Returns:
        Markdown with its YAML head.
    """
    check_names(repo_id, license, license_name, license_link)
    export = read_export(out)
    options = dict(
        license=license, license_name=license_name, license_link=license_link, title=title, description=description,
        rights=rights,
    )  # fmt: skip
    terms = export.terms
    if license is None and terms is not None:
        license, license_name, license_link = "other", terms.licence, terms.link
    title = title or (repo_id.split("/")[-1] if repo_id else export.name)
    total = sum(counts["frames"] for counts in export.splits.values())
    # a split's name has no hyphen, so that no other split's shards fit
    data_files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in export.splits]
    metadata = DatasetCardData(
        license=license or "unknown",
        license_name=license_name,
        license_link=license_link,
        task_categories=["image-segmentation"],
        size_categories=[size_category(total)],
        pretty_name=title,
        tags=["vss_hf", "video-semantic-segmentation", "semantic-segmentation", "video"],
        configs=[{"config_name": "default", "data_files": data_files}],
        dataset_info=_dataset_info(export),
    )
    card = render(
        TEMPLATE,
        metadata=metadata.to_yaml(),
        title=title,
        description=description,
        origin=terms.name if terms else None,
        splits=export.splits,
        size=size,
        in_repo=repo_id is not None,
        source=repo_id or export.folder.resolve().name,
        first=next(iter(export.splits)),
        any_masks=any(counts["masks"] for counts in export.splits.values()),
        classes=[(label, value, name) for label, (name, value) in enumerate(export.classes.items())],
        label_file=LABEL_FILE,
        provenance=_provenance(export),
        shards=export.shards,
        license=license or "unknown",
        license_name=license_name,
        license_link=license_link,
        stated=export.license,
        notice=terms.notice if terms else None,
        rights=rights,
        notes=notes,
    )
    DatasetCard(card)  # the head must be what huggingface_hub can read back
    return with_stamp(card, options)


def size_category(rows: int) -> str:
    """The Hub's word for a number of rows: "1K<n<10K"."""
    if rows < 1000:
        return "n<1K"
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B"]
    place = len(str(rows)) - 4
    return f"{steps[place]}<n<{steps[place + 1]}"


def _dataset_info(export: Export) -> dict[str, Any]:
    """How much there is, which `datasets` compares with what it finds; the columns are described in the shards."""
    total = sum(counts["bytes"] for counts in export.splits.values())
    splits = [
        {"name": name, "num_bytes": counts["bytes"], "num_examples": counts["frames"]}
        for name, counts in export.splits.items()
    ]
    return {"splits": splits, "download_size": total, "dataset_size": total}


def _provenance(export: Export) -> list[tuple[str, str]]:
    rows = [
        ("packed from", export.name),
        ("its layout", export.source),
        ("made by", export.created_by),
        ("made on", export.created),
    ]
    return [(name, value) for name, value in rows if value]
