"""Submissions to the VSPW challenge: a zip of label maps, `result_submission/<video>/<frame>.png`.

Every picture of the split has its label map, of its size and with its name, as an 8-bit PNG of values 0..123 (VSPW's
classes in order; there is no void). The servers of the VSPW and PVUW challenges are closed and their scripts were not
published; this is what the published code of participants writes. They differ in palette or grey, and whether there
is a folder above the videos, hence `zip_root`. Readers that take the stored indices (Pillow does) see no difference
between palette and grey; here it is always the palette.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vss_hf.data.labels import IGNORE_INDEX, LABEL_FILE, VSPW, ClassList
from vss_hf.data.vspw import is_file_name, read_mask
from vss_hf.files import replacing
from vss_hf.visualize import label_png


ZIP_ROOT = "result_submission"
VALUES = ("labels", "disk")
Progress = Callable[[Iterator, int, str], Iterator]


def classes_to_submit(root: str | Path) -> ClassList:
    """The classes that label maps of a data set have: its own list's, and VSPW's where it has none."""
    return ClassList.from_root(root) if (Path(root) / LABEL_FILE).is_file() else VSPW


def check_names(names: Sequence[str], root: str | Path) -> None:
    """Raise unless a model's classes are those that a submission for a data set has."""
    wanted = classes_to_submit(root).names
    ours = [name.strip() for name in names]
    same = len(ours) == len(wanted) and all(
        name == other.strip() or name.startswith("LABEL_") for name, other in zip(ours, wanted, strict=True)
    )
    if not same:
        pairs = enumerate(zip(ours, wanted, strict=False))
        first = next((f"; class {i} is {a!r}, not {b!r}" for i, (a, b) in pairs if a != b), "")
        raise ValueError(
            f"--submission: the classes are those of {root} ({len(wanted)}), the model has others ({len(ours)}{first})"
            ". Its labels are not translated: a remap table leaves classes out, and a submission has no value for "
            "'none of them'. Train it on VSPW's classes"
        )


def check_zip_root(zip_root: str) -> None:
    """Raise for a name that is not one folder's, on any system; "" stands for no folder."""
    if zip_root and (unsafe_name(zip_root) or not is_file_name(zip_root)):
        raise ValueError(f"--zip_root {zip_root!r}: expected the name of one folder, such as {ZIP_ROOT}, or ''")


def unsafe_name(name: str) -> str | None:
    """Why a zip member of this name does not belong into any folder on any system; None: it does."""
    if name.startswith(("/", "\\")) or (name[1:2] == ":" and name[:1].isalpha()):
        return "an absolute path"
    parts = name.split("/")
    if ".." in parts:
        return "leads out of its folder (..)"
    if "" in parts or "." in parts:
        return "has an empty part or '.'"
    if wrong := sorted({c for c in name if c in '\\:*?"<>|' or not c.isprintable()}):
        return f"has the character {wrong[0]!r}"
    if any(part != part.strip() or part.endswith(".") for part in parts):
        return "has a part with a blank or dot at its end, which Windows drops"
    return None


def check_member_names(names: Iterable[str]) -> None:
    """Raise for names that could not be unpacked everywhere."""
    for name in names:
        if reason := unsafe_name(name):
            raise ValueError(f"{name!r} cannot be the name of a label map in a zip: {reason}; rename it")


def write_submission(
    files: Iterable[tuple[str, Path]],
    archive: str | Path,
    zip_root: str = ZIP_ROOT,
    classes: ClassList = VSPW,
    values: str = "labels",
    progress: Progress | None = None,
) -> int:
    """Pack label maps; the archive appears under its name only when it is whole.

    Every map is decoded, checked and encoded anew, so nothing else gets in, and the same maps give the same bytes.

    Args:
        files: (`<video>/<frame>.png`, the file) of each, in any order.
        archive: the zip to write.
        zip_root: folder in the archive; "": none.
        classes: of the maps.
        values: in the files: "labels", 0..num_labels-1; or "disk", as in VSPW's masks, which are turned into labels.
        progress: wraps the files (with their number and a name), e.g. for a progress bar.

    Returns:
        How many there are.

    Raises:
        ValueError: a file holds no label map, or other values; a name is not safe; or there is nothing to pack.
        OSError: a file is missing, or the archive cannot be written.
    """
    check_zip_root(zip_root)
    members = sorted(files, key=lambda pair: pair[0])
    if not members:
        raise ValueError(f"{archive}: there are no label maps to pack")
    check_member_names(name for name, _ in members)
    with replacing(archive) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as zipped:
        for name, path in progress(iter(members), len(members), "packing") if progress else members:
            member = zipfile.ZipInfo(f"{zip_root}/{name}" if zip_root else name)  # of 1 January 1980, always
            member.external_attr = 0o644 << 16
            member.create_system = 3  # Unix, wherever it is written
            zipped.writestr(member, label_png(read_labels(path, classes, values), classes.palette))
    return len(members)


def read_labels(path: Path, classes: ClassList, values: str) -> np.ndarray:
    """The labels in a file, uint8 (H, W), 0..num_labels-1; see `write_submission`."""
    stored = read_mask(path)
    if values == "disk":
        labels, wanted = classes.lookup[stored], f"mask values {min(classes.disk_ids)}..{max(classes.disk_ids)}"
        wrong = stored[labels == IGNORE_INDEX]
    else:
        labels, wanted = stored, f"labels 0..{classes.num_labels - 1}"
        wrong = stored[stored >= classes.num_labels]
    if wrong.size:
        raise ValueError(f"{path}: {wrong.size} pixels have the value {wrong[0]} or others that are not {wanted}")
    return labels


def pack_folder(
    folder: str | Path,
    archive: str | Path,
    *,
    zip_root: str = ZIP_ROOT,
    values: str = "labels",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Pack a folder of label maps of VSPW's classes, from whatever program.

    Args:
        folder: holds `<video>/<frame>.png`. What else lies there is left out; hidden files are not looked at.
        archive, zip_root, values: as for `write_submission`.
        progress: as for `write_submission`.

    Returns:
        {"label_maps": n, "videos": n, "left_out": [paths relative to `folder`]}.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError, OSError: as `write_submission`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one with <video>/<frame>.png")
    if values not in VALUES:
        raise ValueError(f"values is {values!r}: expected {' or '.join(VALUES)}")
    found = {path.relative_to(folder).as_posix(): path for path in sorted(visible_files(folder))}
    maps = {name: path for name, path in found.items() if name.count("/") == 1 and name.endswith(".png")}
    count = write_submission(maps.items(), archive, zip_root, values=values, progress=progress)
    videos = {name.partition("/")[0] for name in maps}
    own = Path(archive).resolve()
    left_out = [name for name, path in found.items() if name not in maps and path.resolve() != own]
    return {"label_maps": count, "videos": len(videos), "left_out": left_out}


def visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones and those in hidden folders."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from visible_files(path)
        else:
            yield path
