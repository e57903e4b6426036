"""What a folder holds."""

import hashlib
from pathlib import Path


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, hidden ones too."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents(folder).items()}


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file by its path in the repository."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
