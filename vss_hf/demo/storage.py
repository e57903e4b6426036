"""The folder of one running page: what visitors give and get lies there, within limits, and goes with the page.

- lock: held by the page while it runs, so that a later one knows what a killed one left
- given/: the video or picture that is there from the start
- uploads/: Gradio's: what visitors upload or record
- results/: a folder for each result: frames, label maps, scores, pictures for the page, files to take away
"""

import os
import shutil
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from .uploads import Limits, Refused


try:
    import fcntl
except ImportError:  # Windows has no such locks: there, what a killed page left stays
    fcntl = None

PREFIX = "vss_hf_demo_"
UPLOAD_SECONDS = 3600.0  # that an upload is kept


class Storage:
    """The folder, made below the folder for temporary files (`TMPDIR`); what dead pages left there is removed.

    Args:
        limits: how much may be there.

    Attributes:
        folder: that `close` removes.
        given, uploads, results: folders in it.
    """

    def __init__(self, limits: Limits):
        remove_dead(Path(tempfile.gettempdir()))
        self.limits = limits
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = open(self.folder / "lock", "w")
        if fcntl is not None:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._lock.write(str(os.getpid()))  # only now: an empty file is of a page that is about to lock it
        self._lock.flush()
        self.given, self.uploads, self.results = (self.folder / name for name in ("given", "uploads", "results"))
        for part in (self.given, self.uploads, self.results):
            part.mkdir()
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)  # at the latest at exit
        self._coming = 0  # bytes of uploads under way
        self._counting = threading.Lock()

    def expect(self, size: int | None) -> int:
        """Keep room for an upload.

        Args:
            size: its bytes; None: not known, so as large as one may be.

        Returns:
            Bytes kept for it; `arrived` takes them.

        Raises:
            Refused: there is no room.
        """
        size = self.limits.upload_bytes if size is None else size
        with self._counting:
            if size + self._coming + bytes_in(self.uploads) > self.limits.disk_bytes // 2:
                raise Refused("There is no room for more uploads on this page just now; try again in a while.")
            self._coming += size
        return size

    def arrived(self, size: int) -> None:
        """An upload has come to its end, one way or the other."""
        with self._counting:
            self._coming -= size

    def drop_old_uploads(self) -> None:
        """Remove what was uploaded long ago, and what is left of uploads that broke off."""
        oldest = time.time() - UPLOAD_SECONDS
        for path in files_in(self.uploads):
            try:
                if path.stat().st_ctime < oldest:
                    path.unlink()
                    if path.parent != self.uploads:
                        path.parent.rmdir()
            except OSError:
                continue  # somebody else removed it, or there is another file beside it

    def close(self) -> None:
        """Remove everything."""
        self._remove()
        self._lock.close()


def files_in(folder: Path) -> list[Path]:
    """All files below a folder."""
    return [Path(root) / name for root, _, names in os.walk(folder) for name in names]


def bytes_in(folder: Path) -> int:
    """What the files below a folder take; one that goes meanwhile does not count."""
    total = 0
    for path in files_in(folder):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def remove_dead(parent: Path) -> None:
    """Remove what pages left that were killed: folders of this user whose lock nobody holds."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with open(folder / "lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock.read():
                    shutil.rmtree(folder, ignore_errors=True)
        except (FileNotFoundError, NotADirectoryError, BlockingIOError):
            continue  # no page's, or one that runs


class UploadGate:
    """ASGI middleware: an upload that there is no room for is refused before it is read.

    Args:
        app: what it stands before.
        storage: that has room or not.
    """

    def __init__(self, app: Any, storage: Storage):
        self.app, self.storage = app, storage

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith("/upload"):
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length")
        try:
            kept = self.storage.expect(None if length is None else int(length))
        except Refused as refused:
            head = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 413, "headers": head})
            await send({"type": "http.response.body", "body": str(refused).encode()})
            return
        taken = 0

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            # Without a length Gradio would read any number of files.
            return message if taken <= kept else {"type": "http.disconnect"}

        try:
            await self.app(scope, counted, send)
        finally:
            self.storage.arrived(kept)
