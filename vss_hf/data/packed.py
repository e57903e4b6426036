"""Files inside Parquet shards, read by a virtual path as if they lay in a folder.

    <shard>.parquet#<first>-<end>/<first>-<end>/<image|mask>/<file name>
                    of the video  of the file

Encoded images are stored in a shard as they are, so a file is a stretch of bytes of the shard, here named by its
absolute borders. Reading it needs neither Parquet's footer nor its decoder: from a local shard it is one read, as fast
as from a folder. A shard on the Hub is "hf://datasets/owner/name@commit/data/...parquet" (pathlib makes one slash of
two; both are understood). From there the whole video comes with one request and is kept for its other frames.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff


if TYPE_CHECKING:  # vspw.py imports this file
    from .vspw import VSPWVideo


CACHE_BYTES = 256 * 2**20  # per process, for videos from the Hub: 16 of the longest of VSPW at 480 lines
WINDOW = 16  # videos whose frames are mixed in a stream
TRIES = 9  # the client waits 1, 2, 4, ... 60 seconds between them: over three minutes in all
LONGEST_WAIT = 60

_PACKED = re.compile(r"(.+\.parquet)#(\d+)-(\d+)/(\d+)-(\d+)/(?:image|mask)/[^/]+", re.DOTALL)
_ON_HUB = re.compile(r"hf:/{1,2}datasets/([^/@]+/[^/@]+)@([^/]+)/(.+)", re.DOTALL)


class PackedFile(NamedTuple):
    """Where a packed file lies: its shard, and in it the first byte and the end of its video and of itself."""

    shard: str
    video_start: int
    video_end: int
    start: int
    end: int


def packed_path(video: tuple[int, int], file: tuple[int, int], kind: str, name: str) -> str:
    """The virtual path behind the shard's own; the opposite of `parse_packed`."""
    return f"#{video[0]}-{video[1]}/{file[0]}-{file[1]}/{kind}/{name}"


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a file inside a Parquet shard; folders may be called "a.parquet#b"."""
    path = os.fspath(path)
    return ".parquet#" in path and _PACKED.fullmatch(path) is not None


def parse_packed(path: str | os.PathLike[str]) -> PackedFile:
    """The parts of a virtual path; ValueError if it is none."""
    match = _PACKED.fullmatch(os.fspath(path))
    if match is None:
        raise ValueError(f"{path}: not a file in a Parquet shard; expected <shard>.parquet#A-B/C-D/image/<file name>")
    shard, *borders = match.groups()
    return PackedFile(shard, *map(int, borders))


def read_packed(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a packed file, as they were in the folder that was packed.

    Raises:
        FileNotFoundError: the shard is not there.
        ValueError: the path is no virtual path, or the shard ends before the file does.
        OSError: the Hub could not be reached for minutes, or refuses; the message names repository and shard.
    """
    file = parse_packed(path)
    on_hub = _ON_HUB.fullmatch(file.shard)
    if on_hub is None:
        return _read_local(file)
    video = _videos.get(file, *on_hub.groups())
    return video[file.start - file.video_start : file.end - file.video_start]


def _read_local(file: PackedFile) -> bytes:
    if not os.path.isfile(file.shard):
        raise FileNotFoundError(f"{file.shard}: no such file; it is a shard of the data set")
    with open(file.shard, "rb", buffering=0) as shard:
        shard.seek(file.start)
        data = shard.read(file.end - file.start)
    if len(data) != file.end - file.start:
        raise ValueError(
            f"{file.shard}: ends before byte {file.end:,}; the shard is incomplete (`vss-hf data verify` checks all)"
        )
    return data


# --- from the Hub


class _Videos:
    """The videos that this process fetched last, at most `CACHE_BYTES` of them, at least one."""

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[str, str, str, int], bytes] = OrderedDict()
        self.size = 0
        self.lock = threading.Lock()  # threads that want one video fetch it once

    def get(self, file: PackedFile, repo: str, revision: str, shard: str) -> bytes:
        key = (repo, revision, shard, file.video_start)
        with self.lock:
            if key not in self.kept:
                self.kept[key] = fetch_range(repo, revision, shard, file.video_start, file.video_end)
                self.size += len(self.kept[key])
                while self.size > CACHE_BYTES and len(self.kept) > 1:
                    self.size -= len(self.kept.popitem(last=False)[1])
            self.kept.move_to_end(key)
            return self.kept[key]


_videos = _Videos()


def _forget_videos() -> None:
    global _videos
    _videos = _Videos()


if hasattr(os, "register_at_fork"):  # a thread that the child does not have may hold the lock
    os.register_at_fork(after_in_child=_forget_videos)


def fetch_range(repo: str, revision: str, file: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file of a data set on the Hub.

    One plain request: `HfFileSystem` would ask the Hub for the repository and for the file in every process before,
    and the Hub answers only so many of those in five minutes. The client repeats what may pass (408, 429, 5xx, cut
    connections) and waits as long as the Hub asks for.

    Args:
        repo: "owner/name" of a data set.
        revision: a commit.
        file: path in the repository.
        start, end: from 0; `end` is the first byte that is not wanted.

    Raises:
        OSError: it did not work.
    """
    url = hf_hub_url(repo, file, repo_type="dataset", revision=revision)
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    where = f"data set {repo}, {file}"
    try:
        response = http_backoff(
            "GET",
            url,
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            max_retries=TRIES - 1,
            max_wait_time=LONGEST_WAIT,
        )
        hf_raise_for_status(response)
    except (HfHubHTTPError, HTTPError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise OSError(f"{where}: could not be read from the Hub: {reason}") from error
    # a server that does not know ranges answers 200 with the whole file
    data = response.content if response.status_code == 206 else response.content[start:end]
    if len(data) != end - start:
        raise OSError(f"{where}: the Hub sent {len(data):,} bytes, expected {end - start:,} from byte {start:,}")
    return data


def fitting_window(videos: Sequence[VSPWVideo]) -> int:
    """How many packed videos a stream may mix so that all of them stay in memory, whichever they are: at most 16."""
    files = (parse_packed(video.frames[0].image_path) for video in videos)
    sizes = sorted((file.video_end - file.video_start for file in files), reverse=True)
    return max(1, int((np.cumsum(sizes[:WINDOW]) <= CACHE_BYTES).sum()))
