"""What of a model folder may go to the Hub; looked at before anything is sent."""

import json
import re
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
# Names of files or of folders above them. What is left out is of no use to anybody else.
LEFT_OUT = (
    ".git", ".cache", "__pycache__", ".ipynb_checkpoints", ".DS_Store", "Thumbs.db", "*.part", ".*.partial",
    "README.previous*.md",
)  # fmt: skip
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")
OF_A_RUN = (
    "checkpoint-*", "pushing-*", "optimizer*", "scheduler*", "rng_state*", "scaler*", "trainer_state.json",
    "run_state.json", "checkpoint_files.json", "ema.safetensors", "data_position*", "*.distcp",
)  # fmt: skip
SECRET_FILES = (
    ".env*", ".netrc", ".git-credentials", "token", "stored_tokens", "id_rsa*", "id_ed25519*", "*.pem", "*.key",
    "credentials*",
)  # fmt: skip
ACCESS_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{30,}|sk-[\w-]{30,}|AKIA[0-9A-Z]{16})\b"
)
TEXT = (".json", ".jsonl", ".yaml", ".yml", ".md", ".txt", ".py", ".toml", ".cfg", ".ini", ".csv", "")


def check_folder(folder: str | Path) -> tuple[dict[str, Path], list[str]]:
    """Look through a model folder as a whole.

    Args:
        folder: configuration, safetensors, image processor, and what else belongs to the model.

    Returns:
        The files to push, by their path in the repository, and the paths of those that stay here.

    Raises:
        FileNotFoundError: no folder, or the configuration, the weights, a shard or the processor is missing.
        ValueError: a file is damaged, pickled, part of a training checkpoint, or looks like it holds a secret.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected a model folder, such as <output_dir>/model")
    files: dict[str, Path] = {}
    left_out: list[str] = []
    for name, path in walk(folder):
        if matches(name, LEFT_OUT):
            left_out.append(name)
            continue
        check_name(folder, name, path)
        files[name] = path
    for name in ("config.json", *(name for name in PROCESSORS if name in files)):
        read_object(folder, name)
    if not any(name in files for name in PROCESSORS):
        raise FileNotFoundError(
            f"{folder}: no {PROCESSORS[0]}; save the image processor there: processor.save_pretrained(folder)"
        )
    check_weights(folder, files)
    for path in files.values():
        if path.suffix in TEXT:
            check_text(path)
    return files, left_out


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path in the repository, path) of everything that is not a folder, in a fixed order."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not path.is_file():
            raise ValueError(f"{path}: a link to a folder or to nothing cannot be pushed; copy it, or remove it")
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file or one of the folders above it has a name of the patterns."""
    return any(fnmatch(part, pattern) for part in name.split("/") for pattern in patterns)


def check_name(folder: Path, name: str, path: Path) -> None:
    """Raise for a file that must not go up, by its name."""
    if matches(name, SECRET_FILES):
        raise ValueError(f"{path}: looks like a secret and is not pushed; move it out of the model folder")
    if matches(name, OF_A_RUN):
        raise ValueError(
            f"{path}: belongs to a training run, not to a model; push a model folder, such as <output_dir>/model"
        )
    if matches(name, PICKLED) or (path.suffix != ".safetensors" and is_pickled(path)):
        raise ValueError(
            f"{path}: a pickled file is not pushed, as loading one can run any code; weights go as safetensors "
            f"(model.save_pretrained), other files are to be moved out of {folder}"
        )


def is_pickled(path: Path) -> bool:
    """Whether a file is a pickle by its content: bare, or in the archive that torch.save writes."""
    with open(path, "rb") as file:
        first = file.read(4)
    if first[:1] == b"\x80" and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    if first != b"PK\x03\x04" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith(".pkl") for entry in archive.namelist())


def check_weights(folder: Path, files: dict[str, Path]) -> None:
    """Raise unless every safetensors file is whole and every shard of an index is there."""
    if WEIGHTS not in files and INDEX not in files:
        raise FileNotFoundError(f"{folder}: no {WEIGHTS}; expected a folder as model.save_pretrained writes it")
    tensors = {name: tensor_names(path) for name, path in files.items() if path.suffix == ".safetensors"}
    if INDEX not in files:
        return
    wanted = read_object(folder, INDEX).get("weight_map")
    if not isinstance(wanted, dict):
        raise ValueError(f"{files[INDEX]}: no weight_map; expected the names of tensors with their files")
    for tensor, shard in wanted.items():
        if shard not in tensors:
            raise FileNotFoundError(f"{folder / str(shard)} is missing: {INDEX} says that it holds {tensor}")
        if tensor not in tensors[shard]:
            raise ValueError(f"{folder / shard} does not hold {tensor}, as {INDEX} says; save the model again")


def tensor_names(path: Path) -> set[str]:
    """Names of a safetensors file's tensors; opening it checks its header against its size."""
    try:
        with safe_open(path, framework="np") as weights:
            return set(weights.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy or save it again") from error


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file that must hold named values."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no {name}; expected a folder as model.save_pretrained writes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); save it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected named values; save it again")
    return content


def check_text(path: Path) -> None:
    """Raise if a text holds something that looks like an access token; it is not repeated in the message."""
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if ACCESS_TOKEN.search(line):
            raise ValueError(f"{path}, line {number}: looks like an access token; take it out before pushing")
