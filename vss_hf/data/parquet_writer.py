"""Packs a data set in VSPW's layout into Parquet shards; parquet.py says what they are like and reads them."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vss_hf.files import full_disk_error, replacing, write_bytes, write_json, write_text

from .labels import LABEL_FILE, ClassList
from .parquet import FORMAT_VERSION, INDEX_FILE, checksum_bar, file_sha256, is_parquet
from .vspw import FrameRecord, VSPWVideo, check_frame_mode, naming_damage, open_image, open_mask, scan_split


FEATURES = Features(
    {"video": Value("string"), "index": Value("int32"), "frame": Value("string"), "image": Image(), "mask": Image()}
)
RECORDS = ".vss_hf_parquet"  # what is known of the shards that are ready, while others are not
_LARGEST_VIDEO = 2**31 - 2**20  # bytes; Arrow counts those of a column with 32 bits


@dataclass(frozen=True)
class _Shard:
    """A shard to write.

    Args:
        file: its path in the folder.
        split: whose videos it holds.
        videos: those.
        size: bytes of all their files.
        state: digest of what is packed; files count by name, size and time.
    """

    file: str
    split: str
    videos: tuple[VSPWVideo, ...]
    size: int
    state: str


def write_parquet(
    root: str | Path,
    out: str | Path,
    *,
    splits: Sequence[str] | None = None,
    shard_bytes: int = 500_000_000,
    license: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Packs a data set into Parquet shards of whole videos, the files of frames and masks as they are.

    Every file is decoded once, so that no damage is packed. Shards are whole or not there; called again after an
    interruption, it keeps those that are ready. The bytes of a shard depend on the data and on versions only.

    Args:
        root: the data set folder, in VSPW's layout.
        out: the folder to write; must be new, empty, or begun by this function.
        splits: which; default is those of train, val and test that exist.
        shard_bytes: a shard ends before the video that would make it larger.
        license: the data set's licence, in a few words, for the metadata.
        progress: draws bars on stderr when that is a terminal.

    Returns:
        The index (see parquet.py) without its videos, and "written": the number of shards that were not there yet.

    Raises:
        FileNotFoundError: as `scan_split`; or no class list.
        FileExistsError: `out` holds something else.
        ValueError: as `scan_split`; a damaged file, a mask of another size than its frame, ...
        OSError: the disk is full, if possible before anything is written.
    """
    root, out = Path(root), Path(out)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; expected a data set in VSPW's layout")
    if is_parquet(root):
        raise ValueError(f"{root}: packed already; expected a data set in VSPW's layout")
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes is {shard_bytes}; expected at least 1")
    classes = ClassList.from_root(root)
    if splits is None:
        splits = [split for split in ("train", "val", "test") if (root / f"{split}.txt").is_file()]
    if not splits or len(set(splits)) != len(splits):
        raise ValueError(f"splits is {list(splits)}; expected different ones, such as train and val, with a list file")
    about = {"format_version": FORMAT_VERSION, "name": root.resolve().name, "source": "vspw", "license": license}
    plan = [
        shard for split in splits for shard in _plan(root, split, repr((about, split, classes.names)), shard_bytes)
    ]
    about["created_by"] = f"vss_hf {version('vss-hf')}"
    schemas = {split: _schema({**about, "split": split}, classes) for split in splits}
    _check_out(out, plan)

    ready = _ready(out, plan, progress)
    missing = [shard for shard in plan if shard.file not in ready]
    if not missing and (out / INDEX_FILE).is_file():
        return _summary(json.loads((out / INDEX_FILE).read_text(encoding="utf-8")), written=0)
    _check_space(out, missing)
    (out / "data").mkdir(parents=True, exist_ok=True)
    (out / RECORDS).mkdir(exist_ok=True)
    for record in ready.values():
        _write_record(out, record)
    (out / INDEX_FILE).unlink(missing_ok=True)  # it does not describe what comes now
    bar = Progress(
        TextColumn("packing"), BarColumn(), MofNCompleteColumn(), TextColumn("videos"), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True, disable=not progress,
    )  # fmt: skip
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        task = bar.add_task("packing", total=sum(len(shard.videos) for shard in missing))
        for shard in missing:
            with replacing(out / shard.file, shard.size) as partial:
                with _writer(partial, schemas[shard.split]) as writer:
                    for video in shard.videos:
                        writer.write_table(_rows(root, video, schemas[shard.split], pool), row_group_size=2**31)
                        bar.advance(task)
                videos = _places(partial, shard.videos)
            ready[shard.file] = _record(out / shard.file, shard, videos)
            _write_record(out, ready[shard.file])
    return _finish(root, out, about, classes, [ready[shard.file] for shard in plan], len(missing))


# --- what to write


def _schema(about: dict[str, Any], classes: ClassList) -> pa.Schema:
    """The columns, with what `datasets` and people want to know."""
    ids = dict(zip(classes.names, classes.disk_ids, strict=True))
    own = json.dumps({**about, "classes": ids}, ensure_ascii=False)
    return FEATURES.arrow_schema.with_metadata({**FEATURES.arrow_schema.metadata, b"vss_hf": own.encode()})


def _plan(root: Path, split: str, about: str, shard_bytes: int) -> list[_Shard]:
    """The shards of a split: whole videos, in the order of the list file."""
    if not re.fullmatch(r"\w+(\.\w+)*", split):
        raise ValueError(f"split {split!r}: `datasets` wants letters, digits and underscores; rename {split}.txt")
    groups: list[list[tuple[VSPWVideo, int, list[str]]]] = [[]]
    for video in scan_split(root, split):
        size, state = 0, [video.name]
        for path in (path for frame in video.frames for path in frame[1:] if path is not None):
            found = path.stat()
            size += found.st_size
            state.append(f"{path.name} {found.st_size} {found.st_mtime_ns}")
        if size > _LARGEST_VIDEO:
            raise ValueError(f"video {video.name}: {size:,} bytes; a row group holds up to {_LARGEST_VIDEO:,}")
        if groups[-1] and sum(entry[1] for entry in groups[-1]) + size > shard_bytes:
            groups.append([])
        groups[-1].append((video, size, state))
    digests = [about + repr([state for _, _, state in group]) for group in groups]
    return [
        _Shard(
            file=f"data/{split}-{number:05d}-of-{len(groups):05d}.parquet",
            split=split,
            videos=tuple(video for video, _, _ in group),
            size=sum(size for _, size, _ in group),
            state=hashlib.sha256(digest.encode()).hexdigest(),
        )
        for number, (group, digest) in enumerate(zip(groups, digests, strict=True))
    ]


def _check_out(out: Path, plan: list[_Shard]) -> None:
    """Raise for a folder with files that are not ours; dotfiles and a README.md may be there."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: a file; expected a folder")
    ours = {INDEX_FILE, LABEL_FILE, "README.md", *(shard.file for shard in plan)}
    for path in sorted(out.rglob("*")):
        place = path.relative_to(out)
        hidden = any(part.startswith(".") for part in place.parts)
        if path.is_file() and not hidden and place.as_posix().removesuffix(".part") not in ours:
            raise FileExistsError(
                f"{path}: not a file of this packed data set (other splits or another size of shards make others); "
                "choose a new folder, or empty this one"
            )


def _check_space(out: Path, missing: list[_Shard]) -> None:
    """Raise if the shards do not fit on the disk."""
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    needed = sum(shard.size for shard in missing)
    if needed > shutil.disk_usage(folder).free:
        raise full_disk_error(out, needed)


# --- one shard


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    options: dict[str, Any] = {"use_dictionary": ["video"], "write_statistics": ["video", "index", "frame"]}
    return pq.ParquetWriter(path, schema, compression="none", **options)  # images are compressed already


def _rows(root: Path, video: VSPWVideo, schema: pa.Schema, pool: ThreadPoolExecutor) -> pa.Table:
    """The row group of a video."""
    try:
        files = list(pool.map(_intact, video.frames))
    except ValueError as error:
        raise ValueError(f"{error} (`vss-hf data verify {root}` lists all such files)") from error
    columns = {
        "video": [video.name] * len(files),
        "index": list(range(len(files))),
        "frame": [frame.stem for frame in video.frames],
        "image": [image for image, _ in files],
        "mask": [mask for _, mask in files],
    }
    return pa.Table.from_pydict(columns, schema=schema)


def _intact(frame: FrameRecord) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The files of a frame as they are, after they could be decoded."""
    with open_image(frame.image_path) as image:
        check_frame_mode(frame.image_path, image)
        size = image.size
        image.draft("L", (1, 1))  # JPEG: all data is still parsed, but an eighth of the height and width is made
        with naming_damage(frame.image_path):
            image.load()
    packed = {"bytes": frame.image_path.read_bytes(), "path": frame.image_path.name}
    if frame.mask_path is None:
        return packed, None
    mask = open_mask(frame.mask_path)
    if mask.size != size:
        raise ValueError(
            f"{frame.mask_path}: {mask.size[0]}x{mask.size[1]} pixels, its frame has {size[0]}x{size[1]}; "
            "mask and frame must have one size"
        )
    return packed, {"bytes": frame.mask_path.read_bytes(), "path": frame.mask_path.name}


def _places(path: Path, videos: tuple[VSPWVideo, ...]) -> list[dict[str, Any]]:
    """For each video of a written shard where its files lie: what the index says. Reads the whole shard back."""
    shard = pq.ParquetFile(path, memory_map=True)
    entries = []
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for number, video in enumerate(videos):
            rows = shard.read_row_group(number)
            images, masks = (list(_column_places(data, shard.metadata.row_group(number), rows, name))
                             for name in ("image", "mask"))  # fmt: skip
            last = (masks or images)[-1]
            entries.append(
                {
                    "name": video.name,
                    "row_group": number,
                    "range": [images[0][1], last[1] + last[2]],
                    "images": images,
                    "masks": masks,
                }
            )
    return entries


def _column_places(
    data: mmap.mmap, group: pq.RowGroupMetaData, rows: pa.Table, name: str
) -> Iterator[tuple[str, int, int]]:
    """(file name, first byte, size) of every file in a column."""
    column = next(
        column for column in map(group.column, range(group.num_columns)) if column.path_in_schema == f"{name}.bytes"
    )
    at, end = column.data_page_offset, column.data_page_offset + column.total_compressed_size
    for row in rows[name]:
        if not row.is_valid:
            continue
        value = row["bytes"].as_py()
        # PLAIN encoding: the length with 32 bits, then the bytes; between pages are headers
        found = data.find(struct.pack("<I", len(value)) + value, at, end)
        if found < 0:
            raise RuntimeError(f"{row['path']}: pyarrow {pa.__version__} did not store the file as it is")
        yield row["path"].as_py(), found + 4, len(value)
        at = found + 4 + len(value)


# --- what is ready


def _record(path: Path, shard: _Shard, videos: list[dict[str, Any]]) -> dict[str, Any]:
    """The index's entry for a shard that was written."""
    return {
        "file": shard.file,
        "split": shard.split,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "source_state": shard.state,
        "videos": videos,
    }


def _write_record(out: Path, record: dict[str, Any]) -> None:
    write_json(out / RECORDS / f"{Path(record['file']).stem}.json", record)


def _ready(out: Path, plan: list[_Shard], progress: bool) -> dict[str, dict[str, Any]]:
    """Entries of the shards that need not be written: of the same data, and undamaged."""
    entries = []
    for path in (out / INDEX_FILE, *sorted((out / RECORDS).glob("*.json"))):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            entries += found["shards"] if path.name == INDEX_FILE else [found]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # then its shards are written again
    known = {entry["file"]: entry for entry in entries}
    candidates = [
        shard
        for shard in plan
        if known.get(shard.file, {}).get("source_state") == shard.state and (out / shard.file).is_file()
    ]
    with checksum_bar(sum(known[shard.file]["bytes"] for shard in candidates), progress) as advance:
        return {
            shard.file: known[shard.file]
            for shard in candidates
            if file_sha256(out / shard.file, advance) == known[shard.file]["sha256"]
        }


def _finish(
    root: Path, out: Path, about: dict[str, Any], classes: ClassList, shards: list[dict[str, Any]], written: int
) -> dict[str, Any]:
    """Writes what stands beside the shards, the index last."""
    splits: dict[str, dict[str, Any]] = {}
    for shard in shards:
        counts = splits.setdefault(shard["split"], dict.fromkeys(("shards", "videos", "frames", "masks", "bytes"), 0))
        counts["shards"] += 1
        counts["videos"] += len(shard["videos"])
        counts["frames"] += sum(len(video["images"]) for video in shard["videos"])
        counts["masks"] += sum(len(video["masks"]) for video in shard["videos"])
        counts["bytes"] += shard["bytes"]
    index = {
        **about,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "num_classes": classes.num_labels,
        "splits": splits,
    }
    write_bytes(out / LABEL_FILE, (root / LABEL_FILE).read_bytes())
    write_text(out / INDEX_FILE, _index_text({**index, "shards": shards}))
    shutil.rmtree(out / RECORDS)
    return _summary({**index, "shards": shards}, written)


def _index_text(index: dict[str, Any]) -> str:
    """JSON with one line per shard and video; with one per number it would be several times as long."""
    head = json.dumps({key: value for key, value in index.items() if key != "shards"}, indent=2, ensure_ascii=False)
    shards = []
    for shard in index["shards"]:
        facts = json.dumps({key: value for key, value in shard.items() if key != "videos"}, ensure_ascii=False)
        videos = ",\n".join(json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in shard["videos"])
        shards.append(f'{facts[:-1]}, "videos": [\n{videos}\n]}}')
    return f'{head[:-2]},\n  "shards": [\n' + ",\n".join(shards) + "\n]\n}\n"


def _summary(index: dict[str, Any], written: int) -> dict[str, Any]:
    shards = [{key: value for key, value in shard.items() if key != "videos"} for shard in index["shards"]]
    return {**index, "shards": shards, "written": written}
