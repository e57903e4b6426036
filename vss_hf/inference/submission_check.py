"""What a challenge's server would reject in a submission, found before the upload.

Nothing is unpacked, and a member is read only if a frame is waiting for it and its declared size is one that a label
map can have; it is decoded only if its header says the frame's size. So an archive that unfolds to gigabytes does no
harm.
"""

import io
import lzma
import stat
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape

from vss_hf.data.findings import Finding, print_findings
from vss_hf.data.labels import ClassList
from vss_hf.data.vspw import VSPWVideo, naming_damage, open_image, scan_split

from .submission import ZIP_ROOT, Progress, check_zip_root, classes_to_submit, unsafe_name


COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}  # of the PNG standard
# A PNG with 8 bytes a pixel (16-bit colour) that is not compressed is still read, to say what is wrong with it.
BYTES_PER_PIXEL, ROOM = 8, 2**20


@dataclass
class SubmissionReport:
    """The result of `check_submission`.

    Args:
        archive: the file that was checked.
        zip_root: folder in it below which the videos were looked for; "": none.
        videos, frames: of the split.
        label_maps: frames that have a label map in the archive, sound or not.
        errors: what a server would reject.
        warnings: what it might.
    """

    archive: str
    zip_root: str
    videos: int
    frames: int
    label_maps: int = 0
    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.errors

    def error(self, kind: str, path: str, detail: str | Exception) -> None:
        """Note what would be rejected."""
        self.errors.append(Finding.of(kind, Path(path), detail))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON, and how many errors there are of each kind."""
        return {"ok": self.ok, "counts": dict(Counter(error.kind for error in self.errors)), **asdict(self)}

    def print(self, console: Console) -> None:
        """Write the findings (the first few of each kind) and a verdict for a person."""
        below = f"below {self.zip_root}/" if self.zip_root else "without a folder above the videos"
        line = f"{self.archive}: {self.label_maps:,} label maps for {self.frames:,} frames of {self.videos} videos"
        console.print(f"{escape(line)}, {escape(below)}", soft_wrap=True, highlight=False)
        print_findings(console, "error", "red", self.errors)
        print_findings(console, "warning", "yellow", self.warnings)
        kinds = Counter(error.kind for error in self.errors)
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        verdict = "[green]no errors[/]" if self.ok else f"[red]{len(self.errors):,} errors[/] ({counts})"
        console.print(f"{verdict}, {len(self.warnings)} warnings", soft_wrap=True, highlight=False)


def check_submission(
    archive: str | Path,
    root: str | Path,
    split: str = "test",
    *,
    zip_root: str = ZIP_ROOT,
    progress: Progress | None = None,
) -> SubmissionReport:
    """Look for everything in a submission that a server would reject; see `write_submission` for what is right.

    Args:
        archive: the zip.
        root: the data set in VSPW's layout; its pictures are needed, masks are not looked at.
        split: of which every frame must have a label map.
        zip_root: folder in the zip that holds the videos; "": none.
        progress: wraps the label maps (with their number and a name), e.g. for a progress bar.

    Returns:
        The findings. Kinds of errors: not-a-zip, unsafe-name, duplicate, link, encrypted, root, outside,
        missing-video, missing-frame, extra-video, extra-file, too-large, damaged, not-png, size, mode, values; of
        warnings: depth, no-zero.

    Raises:
        FileNotFoundError: there is no such archive or data set.
        IsADirectoryError: the archive is a folder.
        ValueError: there is no such split, or a picture of it cannot be opened.
    """
    check_zip_root(zip_root)
    if Path(archive).is_dir():
        raise IsADirectoryError(f"{archive}: a folder; `vss-hf submission pack` makes the zip that is checked")
    if not Path(archive).is_file():
        raise FileNotFoundError(f"{archive}: no such file; expected the zip of a submission")
    videos, classes = scan_split(root, split), classes_to_submit(root)
    pictures = {f"{video.name}/{record.stem}.png": record.image_path for video in videos for record in video.frames}
    report = SubmissionReport(str(archive), zip_root, len(videos), len(pictures))
    try:
        zipped = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as error:
        report.error("not-a-zip", report.archive, error)
        return report
    with zipped:
        places = below_root(sound_members(zipped.infolist(), report), report)
        check_coverage(places, videos, report)
        given = [(places[name], picture) for name, picture in pictures.items() if name in places]
        report.label_maps = len(given)
        counts = np.zeros(256, np.int64)
        for info, picture in progress(iter(given), len(given), "checking") if progress else given:
            counts += check_label_map(zipped, info, picture, classes, report)
    if counts.any() and not counts[0]:
        detail = (
            f"no label map has the value 0 ({classes.names[0]}): are these values of masks, 1..{classes.num_labels}, "
            "and not labels? `vss-hf submission pack --values disk` turns them into labels"
        )
        report.warnings.append(Finding.of("no-zero", Path(archive), detail))
    return report


# --- names


def sound_members(infos: list[zipfile.ZipInfo], report: SubmissionReport) -> dict[str, zipfile.ZipInfo]:
    """The files by name, but those that nobody should unpack."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.orig_filename  # `filename` is cut off at a zero byte
        if reason := unsafe_name(name.removesuffix("/")):
            report.error("unsafe-name", name, reason)
        elif stat.S_ISLNK(info.external_attr >> 16):
            report.error("link", name, "a symbolic link, not a file")
        elif info.flag_bits & 1:
            report.error("encrypted", name, "needs a password")
        elif name in members:
            report.error("duplicate", name, "is in the archive more than once")
        elif not info.is_dir():
            members[name] = info
    return members


def below_root(members: dict[str, zipfile.ZipInfo], report: SubmissionReport) -> dict[str, zipfile.ZipInfo]:
    """The files by their place below the folder that holds the videos.

    Where that folder holds no `<video>/<frame>.png`, and another does, this is one error, and the check goes on there.
    """
    above = Counter(name.rpartition("/")[0].rpartition("/")[0] for name in members if name.endswith(".png"))
    if above and report.zip_root not in above:
        found = above.most_common(1)[0][0]
        words = [f"below {folder}/" if folder else "in no folder" for folder in (found, report.zip_root)]
        report.error("root", found or ".", f"the videos are {words[0]}, expected {words[1]}; see --zip_root")
        report.zip_root = found
    prefix = f"{report.zip_root}/" if report.zip_root else ""
    for name in members:
        if not name.startswith(prefix):
            report.error("outside", name, f"is not below {prefix}")
    return {name.removeprefix(prefix): info for name, info in members.items() if name.startswith(prefix)}


def check_coverage(places: Iterable[str], videos: list[VSPWVideo], report: SubmissionReport) -> None:
    """Find the videos and frames that are missing, and those that nobody asked for."""
    wanted = {video.name: {f"{video.name}/{record.stem}.png" for record in video.frames} for video in videos}
    given: dict[str, set[str]] = {}
    for place in places:
        video = place.partition("/")[0] if "/" in place else ""
        given.setdefault(video, set()).add(place)
    for name, frames in wanted.items():
        if name not in given:
            report.error("missing-video", name, f"its {len(frames)} frames have no label maps")
            continue
        for frame in sorted(frames - given[name]):
            report.error("missing-frame", frame, "has no label map")
    for name, files in given.items():
        if name and name not in wanted:
            report.error("extra-video", name, f"is not in the split ({len(files)} files)")
            continue
        for extra in sorted(files - wanted.get(name, set())):
            report.error("extra-file", extra, "is no label map of a frame of the split")


# --- label maps


class Fault(Exception):
    """Why a label map would be rejected: a kind of error, and words."""

    def __init__(self, kind: str, detail: str | Exception):
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


def check_label_map(
    zipped: zipfile.ZipFile, info: zipfile.ZipInfo, picture: Path, classes: ClassList, report: SubmissionReport
) -> np.ndarray:
    """Check one file against the picture of its frame. Returns the pixels of each value, int64 (256,)."""
    with open_image(picture) as image:
        size = image.size
    counts = np.zeros(256, np.int64)
    try:
        data = read_member(zipped, info, size)
        counts += np.bincount(decoded(data, size, info.orig_filename, report).ravel(), minlength=256)
        check_values(counts, classes)
    except Fault as fault:
        report.error(fault.kind, info.orig_filename, fault.detail)
    return counts


def read_member(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, size: tuple[int, int]) -> bytes:
    """The bytes of a file, if there are not more of them than a picture of (width, height) pixels can have."""
    width, height = size
    if info.file_size > BYTES_PER_PIXEL * width * height + ROOM:  # more than this is never read, whatever it says
        raise Fault("too-large", f"declares {info.file_size:,} bytes for {width}x{height} pixels; not read")
    try:
        return zipped.read(info)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, NotImplementedError) as error:
        raise Fault("damaged", error) from error


def decoded(data: bytes, size: tuple[int, int], name: str, report: SubmissionReport) -> np.ndarray:
    """The values in a PNG, uint8 (H, W)."""
    try:
        with warnings.catch_warnings(), naming_damage(name):
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # only its header is read for now
            image = Image.open(io.BytesIO(data))
            if image.format != "PNG":
                raise Fault("not-png", f"is a {image.format} file")
            if image.size != size:
                found, wanted = ("x".join(map(str, pair)) for pair in (image.size, size))
                raise Fault("size", f"is {found}, its frame {wanted} (width x height)")
            check_depth(depth=data[24], colour=data[25], name=name, report=report)
            image.load()
    except ValueError as error:
        raise Fault("damaged", str(error.__cause__ or error)) from error
    return np.asarray(image)


def check_depth(depth: int, colour: int, name: str, report: SubmissionReport) -> None:
    """Look at bit depth and colour type as they stand in a PNG's first chunk."""
    words = f"{depth}-bit {COLOUR_TYPES.get(colour, 'unknown')}"
    if colour == 3 and depth < 8:
        detail = f"{words}: Pillow reads the right values, not every reader does; expected 8 bits"
        report.warnings.append(Finding.of("depth", Path(name), detail))
    elif colour not in (0, 3) or depth != 8:
        raise Fault("mode", f"{words}; expected 8-bit palette or grey, whose values are the labels")


def check_values(counts: np.ndarray, classes: ClassList) -> None:
    """Look for values that are no label."""
    wrong = [int(value) for value in np.flatnonzero(counts) if value >= classes.num_labels]
    if not wrong:
        return
    values = f"{'value' if len(wrong) == 1 else 'values'} {', '.join(map(str, wrong[:5]))}"
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    void = "; 255 is void, but every pixel needs a class" if 255 in wrong else ""
    pixels = int(counts[classes.num_labels :].sum())
    raise Fault("values", f"{values}{more} in {pixels:,} pixels; expected 0..{classes.num_labels - 1}{void}")
