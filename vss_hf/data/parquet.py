"""Video data sets packed into Parquet shards: opening and checking them. `parquet_writer.py` makes them.

    out/data/<split>-00000-of-00012.parquet     one row per frame, one row group per video, encoded files untouched
    out/label_num_dic_final.json                the class list, as in the folder that was packed
    out/vss_hf_dataset.json                     the index; an interrupted export has none

`datasets.load_dataset` reads the shards by themselves. This package opens a split by the index alone and reads single
files by their place (packed.py), from a folder or from a repository on the Hub. In the index stand

    format_version  name (of the folder packed)  source ("vspw": its layout)  license (or null)  created_by  created
    num_classes     splits {split: {shards, videos, frames, masks, bytes}}
    shards [{file, split, bytes, sha256, source_state, videos: [
        {name, row_group, range: [first byte, end], images: [[file name, first byte, size], ...], masks: likewise}
    ]}]
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from .findings import Finding
from .labels import LABEL_FILE, ClassList
from .masks import LabelReader
from .packed import packed_path
from .splits import LabelledSplit
from .vspw import FrameRecord, VSPWVideo, is_file_name


INDEX_FILE = "vss_hf_dataset.json"
FORMAT_VERSION = 1
MAY_PASS = (408, 429, 500, 502, 503, 504)
WAITS = (1, 2, 4, 8)  # seconds between tries to ask the Hub what there is
_Result = TypeVar("_Result")

_SHARD = re.compile(r"data/\w[\w.-]*\.parquet")
_HUB_ID = re.compile(r"(hf:/{1,2}datasets/)?([A-Za-z0-9][\w.-]*)/([\w.-]+)(?:@(.+))?", re.ASCII)


def is_parquet(root: str | Path) -> bool:
    """Whether a data set is packed: a folder with the index in it, or the id of a data set on the Hub."""
    return os.path.isfile(os.path.join(root, INDEX_FILE)) or hub_id(root) is not None


def hub_id(root: str | Path) -> tuple[str, str | None] | None:
    """(repository, revision or None) of "owner/name" or "owner/name@revision"; None for a folder or another path.

    What lies here, or would lie in a folder that is here, is a path; "hf://datasets/owner/name" never is.
    """
    match = _HUB_ID.fullmatch(str(root))
    if match is None:
        return None
    explicit, owner, name, revision = match.groups()
    if not explicit and (os.path.lexists(root) or os.path.isdir(owner)):
        return None
    return f"{owner}/{name}", revision


def pinned(root: str | Path) -> str:
    """The id of a data set on the Hub with the commit that it is at now, "owner/name@commit".

    Raises:
        FileNotFoundError, ValueError, OSError: as `open_parquet_split`.
    """
    named = hub_id(root)
    if named is None:
        raise ValueError(f"{root}: not the id of a data set on the Hub, such as owner/name")
    with _naming_repo(*named):
        commit = _index_folder(*named).name
    return f"{str(root).partition('@')[0]}@{commit}"


# --- opening


def open_parquet_split(root: str | Path, split: str, *, classes: ClassList | None = None) -> LabelledSplit:
    """Lists the files of a packed split by the index; reads no shard.

    Args:
        root: a folder that `write_parquet` made, or a data set on the Hub, "owner/name" or "owner/name@revision".
            From the Hub the files are read when they are decoded, all from the commit that is there now.
        split: its name.
        classes: the class list; default is the data set's own.

    Raises:
        FileNotFoundError: no such folder or repository, no index in it, or a shard is absent.
        ValueError: unknown split, an index that cannot be used, or a shard that is not the one the index describes.
        OSError: the Hub cannot be reached.
    """
    named = hub_id(root)
    folder, base, on_hub = _on_hub(*named) if named else (Path(root), Path(root), None)
    shards = _shards_of(folder, split, root)
    for shard in shards:
        _check_shard(base / shard["file"], shard, on_hub)
    with _naming_index(folder):
        videos = tuple(_video(base, shard, entry) for shard in shards for entry in shard["videos"])
    classes = ClassList.from_root(folder) if classes is None else classes
    reader, checksums = LabelReader.of_classes(classes), tuple(shard["sha256"] for shard in shards)
    return LabelledSplit(base, split, classes, reader, videos, source="parquet", checksums=checksums)


def read_index(folder: str | Path) -> dict[str, Any]:
    """The index of a Parquet folder. It may come from anybody: its shards are files in data/ and nowhere else.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no index, or of a newer format.
    """
    path = Path(folder) / INDEX_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `vss-hf data parquet` writes it beside the shards")
    with _naming_index(folder):
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["format_version"]
        if version == FORMAT_VERSION:
            _check_index(index)
    if version != FORMAT_VERSION:
        raise ValueError(f"{path}: has format {version!r}, this version of vss_hf reads format {FORMAT_VERSION}")
    return index


@contextmanager
def _naming_index(folder: str | Path) -> Iterator[None]:
    """Turns what a wrong index raises where it is used into one line that names it."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        path = Path(folder) / INDEX_FILE
        raise ValueError(f"{path}: not the index of a packed data set ({error!r})") from None


def _check_index(index: dict[str, Any]) -> None:
    """Raise one of the errors that `_naming_index` knows unless splits and shards are as this file's head says."""
    for shard in index["shards"]:
        if not _SHARD.fullmatch(shard["file"]):
            raise ValueError(f"a shard {shard['file']!r}")
        if type(shard["bytes"]) is not int or not isinstance(shard["sha256"], str):
            raise ValueError(f"bytes and sha256 of {shard['file']}")
    for split, counts in index["splits"].items():
        if not all(type(counts[key]) is int for key in ("videos", "frames", "masks")):
            raise ValueError(f"counts of split {split!r}")
    if set(index["splits"]) != {shard["split"] for shard in index["shards"]}:
        raise ValueError("its splits are not those of its shards")


def _shards_of(folder: Path, split: str, root: str | Path) -> list[dict[str, Any]]:
    """The index's entries for the shards of a split; `root` is for the message."""
    index = read_index(folder)
    if split not in index["splits"]:
        raise ValueError(f"unknown split {split!r} of {root}; found: {', '.join(index['splits'])}")
    return [shard for shard in index["shards"] if shard["split"] == split]


def _check_shard(path: Path, shard: dict[str, Any], on_hub: dict[str, RepoFile] | None) -> None:
    """Raise for a shard that is absent or clearly not that of the index; `on_hub`: what the Hub says of its files."""
    if on_hub is None:
        size, sha256 = path.stat().st_size if path.is_file() else None, None
    else:
        file = on_hub.get(shard["file"])
        size, sha256 = (file.size, file.lfs.sha256 if file.lfs else None) if file else (None, None)
    if size is None:
        raise FileNotFoundError(f"{path}: no such file, but the data set's {INDEX_FILE} lists this shard")
    if size != shard["bytes"] or sha256 not in (None, shard["sha256"]):
        raise ValueError(
            f"{path}: {size:,} bytes{f', SHA-256 {sha256}' if sha256 else ''}; {INDEX_FILE} is of a shard with "
            f"{shard['bytes']:,} bytes, SHA-256 {shard['sha256']}. Write the data set again: `vss-hf data parquet` "
            "keeps the shards that are right"
        )


def _video(base: Path, shard: dict[str, Any], entry: dict[str, Any]) -> VSPWVideo:
    """A video of the index, with virtual paths; errors for `_naming_index` where names or places are impossible."""
    first, end = entry["range"]
    if not 0 <= first <= end <= shard["bytes"] or not is_file_name(entry["name"]) or not entry["images"]:
        raise ValueError(f"video {entry['name']!r} at {first}..{end} with {len(entry['images'])} frames")

    def path(kind: str, file: tuple[str, int, int]) -> Path:
        name, start, size = file
        if not (first <= start <= start + size <= end and is_file_name(name)):
            raise ValueError(f"{kind} {name!r} with {size} bytes at {start}")
        return Path(f"{base}{os.sep}{shard['file']}{packed_path((first, end), (start, start + size), kind, name)}")

    masks = [path("mask", file) for file in entry["masks"]] or [None] * len(entry["images"])
    frames = (
        FrameRecord(os.path.splitext(file[0])[0], path("image", file), mask)
        for file, mask in zip(entry["images"], masks, strict=True)
    )
    return VSPWVideo(entry["name"], tuple(frames))


# --- the Hub


def _on_hub(repo: str, revision: str | None) -> tuple[Path, Path, dict[str, RepoFile]]:
    """(local folder with index and class list, "path" of the repository at its commit, what it says of its shards)."""
    with _naming_repo(repo, revision):
        folder = _index_folder(repo, revision)
        commit = folder.name  # in the Hub's cache; the branch may move on, this data set does not
        _patiently(lambda: hf_hub_download(repo, LABEL_FILE, repo_type="dataset", revision=commit))
        tree = HfApi().list_repo_tree(repo, "data", repo_type="dataset", revision=commit)
        shards = {file.path: file for file in tree if isinstance(file, RepoFile)}
    return folder, Path(f"hf://datasets/{repo}@{commit}"), shards


def download_split(root: str | Path, split: str) -> Path:
    """Downloads the shards of a split of a data set on the Hub, those that are not in the Hub's cache yet.

    Args:
        root: "owner/name" or "owner/name@revision".
        split: its name.

    Returns:
        A folder for `open_parquet_split`.

    Raises:
        FileNotFoundError, ValueError, OSError: as `open_parquet_split`.
    """
    named = hub_id(root)
    if named is None:
        raise ValueError(f"{root}: not the id of a data set on the Hub, such as owner/name")
    with _naming_repo(*named):
        folder = _index_folder(*named)
    wanted = [INDEX_FILE, LABEL_FILE, *(shard["file"] for shard in _shards_of(folder, split, root))]
    with _naming_repo(*named):
        _patiently(
            lambda: snapshot_download(named[0], repo_type="dataset", revision=folder.name, allow_patterns=wanted)
        )
    return folder


def _index_folder(repo: str, revision: str | None) -> Path:
    """Downloads the index; its folder has the name of the commit."""
    path = _patiently(lambda: hf_hub_download(repo, INDEX_FILE, repo_type="dataset", revision=revision))
    return Path(path).parent


def _patiently(call: Callable[[], _Result]) -> _Result:
    """Calls again when the Hub is busy or a connection broke: the client itself does so for some requests only."""
    for wait in WAITS:
        try:
            return call()
        except HTTPError as error:
            response = getattr(error, "response", None)
            if response is not None and response.status_code not in MAY_PASS:
                raise  # a plain answer
        time.sleep(wait)
    return call()


@contextmanager
def _naming_repo(repo: str, revision: str | None) -> Iterator[None]:
    """Turns the client's errors into one line that says what is wrong with which data set."""
    name = f"data set {repo}@{revision}" if revision else f"data set {repo}"
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo}: no such folder, and not the id of a data set on the Hub ({error})") from None
    except RevisionNotFoundError:
        raise FileNotFoundError(f"{name}: the Hub has the data set, but no such revision") from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{repo}: no such folder, and no such data set on the Hub; for a private one log in (`hf auth login`)"
        ) from None
    except RemoteEntryNotFoundError:
        raise FileNotFoundError(
            f"{name}: holds no {INDEX_FILE}, so it was not made by `vss-hf data parquet`; `datasets.load_dataset` may "
            "read it"
        ) from None
    except (OSError, HTTPError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise OSError(f"{name}: no such folder, and the Hub cannot be read: {reason}") from error


# --- checking


def verify_parquet(out: str | Path, *, progress: bool = True) -> list[Finding]:
    """Compares every shard with its checksum, which proves the files in it: they were decoded before they were packed.

    Args:
        out: a folder that `write_parquet` made.
        progress: draws a bar on stderr when that is a terminal.

    Returns:
        What is wrong: "bad_index", "no_class_list", "missing_shard", "wrong_checksum", "unlisted_shard"; [] if nothing
        is. Damage is never raised.
    """
    out = Path(out)
    try:
        index = read_index(out)
    except (OSError, ValueError) as error:
        return [Finding.of("bad_index", out / INDEX_FILE, error)]
    findings = []
    try:
        ClassList.from_root(out)
    except (OSError, ValueError) as error:
        findings.append(Finding.of("no_class_list", out / LABEL_FILE, error))
    with checksum_bar(sum(shard["bytes"] for shard in index["shards"]), progress) as advance:
        for shard in index["shards"]:
            path = out / shard["file"]
            if not path.is_file():
                findings.append(Finding.of("missing_shard", path, "no such file, but the index lists it"))
            elif path.stat().st_size != shard["bytes"] or file_sha256(path, advance) != shard["sha256"]:
                findings.append(Finding.of("wrong_checksum", path, "not the file that was written; pack it again"))
    listed = {shard["file"] for shard in index["shards"]}
    for path in sorted((out / "data").glob("*.parquet")):
        if f"data/{path.name}" not in listed and not path.name.startswith("."):
            findings.append(Finding.of("unlisted_shard", path, "not in the index, but others would read it"))
    return findings


def file_sha256(path: Path, advance: Callable[[int], None] = lambda size: None) -> str:
    """The SHA-256 of a file in hexadecimal; `advance` is told the bytes that were read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


@contextmanager
def checksum_bar(size: int, progress: bool) -> Iterator[Callable[[int], None]]:
    """A bar over bytes; yields what to call with the number of those that were read."""
    bar = Progress(
        TextColumn("checksums"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True, disable=not progress,
    )  # fmt: skip
    with bar:
        task = bar.add_task("checksums", total=size)
        yield lambda count: bar.advance(task, count)
