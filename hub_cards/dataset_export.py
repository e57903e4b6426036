"""What a folder of `vss-hf data parquet` says of itself, for its card and its push.

`vss_hf.data.parquet` writes and reads these folders; what is read here are the facts at the top of its index.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub.utils import tqdm

from .dataset_terms import Terms, terms_of
from .push import digest


INDEX_FILE, LABEL_FILE = "vss_hf_dataset.json", "label_num_dic_final.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """A Parquet file of an export, by its path in the folder."""

    file: str
    split: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Export:
    """A folder of shards with its index.

    Args:
        folder: where it is.
        name: of the folder that was packed.
        source: its layout.
        splits: per split the numbers of "videos", "frames", "masks", "shards" and "bytes".
        shards: in order.
        classes: class names with the values that stand for them in the masks, in the order of the values.
        license: of the data, in a few words; None: not stated.
        created_by, created: which version of vss_hf made it, and when.
    """

    folder: Path
    name: str
    source: str
    splits: Mapping[str, Mapping[str, int]]
    shards: tuple[Shard, ...]
    classes: Mapping[str, int]
    license: str | None
    created_by: str
    created: str

    @cached_property
    def terms(self) -> Terms | None:
        """The terms of the data set that was packed, if it is one of the known ones."""
        return terms_of(self.source, self.name, list(self.classes))

    def check_shards(self) -> dict[str, str]:
        """SHA-256 of every shard by its path, after it was compared with the file; with a bar on a terminal.

        Raises:
            FileNotFoundError: a shard is missing.
            ValueError: a shard is not the file that was written.
        """
        total = sum(shard.size for shard in self.shards)
        with tqdm(total=total, desc="checksums", unit="B", unit_scale=True, leave=False, disable=None) as bar:
            for shard in self.shards:
                path = self.folder / shard.file
                if not path.is_file():
                    raise FileNotFoundError(
                        f"{path} is missing: {INDEX_FILE} lists it; run `vss-hf data parquet` again"
                    )
                if path.stat().st_size != shard.size or digest(path, large=True) != shard.sha256:
                    raise ValueError(
                        f"{path}: not the file that was written (its SHA-256 is not that of {INDEX_FILE}); run "
                        "`vss-hf data parquet` again, which keeps the shards that are right"
                    )
                bar.update(shard.size)
        return {shard.file: shard.sha256 for shard in self.shards}


def read_export(folder: str | Path) -> Export:
    """Read what an export says of itself; opens no shard.

    Raises:
        FileNotFoundError: no folder, or not a finished export.
        ValueError: the index or the class list cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one that `vss-hf data parquet` made")
    index, path = _read(folder, INDEX_FILE), folder / INDEX_FILE
    if index.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path}: has format {index.get('format_version')!r}, expected {FORMAT_VERSION}")
    try:
        shards = tuple(
            Shard(str(entry["file"]), entry["split"], int(entry["bytes"]), str(entry["sha256"]))
            for entry in index["shards"]
        )
        splits = {
            name: {key: int(counts[key]) for key in ("videos", "frames", "masks", "shards", "bytes")}
            for name, counts in index["splits"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not the index of a packed data set ({error!r})") from error
    outside = [shard.file for shard in shards if Path(shard.file).parent != Path("data")]
    if outside or {shard.split for shard in shards} != set(splits):
        raise ValueError(f"{path}: not the index of a packed data set ({outside or 'its splits are not its shards'})")
    return Export(
        folder=folder,
        name=str(index.get("name", folder.resolve().name)),
        source=str(index.get("source", "")),
        splits=splits,
        shards=shards,
        classes=_classes(folder),
        license=index.get("license"),
        created_by=str(index.get("created_by", "")),
        created=str(index.get("created", "")),
    )


def _classes(folder: Path) -> dict[str, int]:
    """Names and values of the classes; the values 0 and 255 are void, whatever they are called."""
    ids = _read(folder, LABEL_FILE)
    if not ids or not all(type(value) is int for value in ids.values()):
        raise ValueError(f"{folder / LABEL_FILE}: expected class names with the values in the masks")
    return {name: value for name, value in sorted(ids.items(), key=lambda item: item[1]) if 0 < value < 255}


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no {name}, so not an export that is finished; `vss-hf data parquet DIR {folder}` makes one"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}); run `vss-hf data parquet` again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected named values")
    return content
