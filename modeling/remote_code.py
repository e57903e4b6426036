"""The code that a model folder carries, so that `trust_remote_code=True` loads it where this package is missing.

A folder with code holds the files of this room that its model needs, its backbone's among them, and one that is
written for it, `auto_classes.py`, which names them all and makes the Auto classes know the backbone. `auto_map` in the
configuration leads there. With the package installed its own classes win, whatever a folder carries: transformers
prefers what is registered.
"""

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .architectures import ALL, BACKBONES, MODELS, VIDEO_MODELS


ROOM = Path(__file__).parent
ENTRY = "auto_classes"  # the file that auto_map leads to
OURS = '"""Where `auto_map` in config.json leads; written by vss_hf.'  # how that file begins
LISTED = re.compile(r"^    (\w+\.py)$", re.MULTILINE)  # the files that came along with it
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
# As transformers looks for the files that one needs; it takes lines inside of functions, too.
RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\S+)\s+import", re.MULTILINE)
RENEW = "push --with_code to write it anew"
PROCESSOR_FILE, PROCESSOR_CLASS = "image_processing_vss", "VSSImageProcessor"


def add_code(folder: str | Path) -> list[str]:
    """Put the code that a saved model needs into its folder, and say so in its configuration.

    Code of an earlier version of this package is replaced, and removed where it is not needed any more.

    Args:
        folder: as `save_pretrained` writes it; an image processor is covered, whether it is saved before or after.

    Returns:
        The names of the files that were written.

    Raises:
        FileNotFoundError: there is no configuration.
        ValueError: the model is not one of this package's architectures, or one that consists of other folders.
    """
    folder = Path(folder)
    files = code_files(folder)
    outdated = [name for name in code_in(folder) if name not in files]
    write_whole({folder / name: content for name, content in files.items()})
    for name in outdated:
        (folder / name).unlink(missing_ok=True)
    return list(files)


def write_whole(files: Mapping[Path, bytes]) -> None:
    """Write files so that each is the old or the new one; they take their places in their order, when all are there.

    As `vss_hf.files`, which does not go where this file goes.
    """
    partial = {path: path.with_name(f"{path.name}.part") for path in files}
    try:
        for path, content in files.items():
            partial[path].write_bytes(content)
        for path in files:
            os.replace(partial[path], path)
    finally:
        for left in partial.values():
            left.unlink(missing_ok=True)


def code_files(folder: str | Path) -> dict[str, bytes]:
    """What `add_code` writes, by name: the code, and last the configurations with their `auto_map`."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder}: no {CONFIG}; expected a folder as model.save_pretrained writes it")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    model_type = config.get("model_type")
    if model_type not in ALL or model_type in BACKBONES:
        raise ValueError(
            f"{folder / CONFIG}: a model of type {model_type!r} carries no code; expected one of {', '.join(ALL)} "
            "(models of transformers need none, and an ensemble's members are loaded by this package)"
        )
    entry = entry_code(model_type, sorted(set(own_backbones(config)) - {model_type}))
    files = {name: (ROOM / name).read_bytes() for name in needed_files(entry)}
    files[f"{ENTRY}.py"] = entry.encode()
    if (folder / PROCESSOR).is_file():
        processor = json.loads((folder / PROCESSOR).read_text(encoding="utf-8"))
        if str(processor.get("image_processor_type")).startswith(PROCESSOR_CLASS):
            files[PROCESSOR] = as_json({**processor, "auto_map": {"AutoImageProcessor": processor_reference()}})
    files[CONFIG] = as_json({**config, "auto_map": auto_map(model_type)})
    return files


def lead_to_code(path: Path) -> None:
    """Say in the file of an image processor where its class is, if code of this package lies beside it.

    If not, nothing may lead there either: transformers keeps what it read where the processor was loaded.
    """
    processor = json.loads(path.read_text(encoding="utf-8"))
    before, own = processor.pop("auto_map", None), {"AutoImageProcessor": processor_reference()}
    after = own if code_in(path.parent) else (None if before == own else before)
    if before != after:
        write_whole({path: as_json({**processor, **({"auto_map": after} if after else {})})})


def code_in(folder: Path) -> list[str]:
    """The names of the files that an `add_code` put into a folder, of this version or an earlier one."""
    entry = folder / f"{ENTRY}.py"
    return listed_files(entry.read_text(encoding="utf-8")) if entry.is_file() else []


def listed_files(entry: str) -> list[str]:
    """The files that came along with an `auto_classes.py`, itself among them; none if somebody else wrote it."""
    return [f"{ENTRY}.py", *LISTED.findall(entry.partition("from transformers")[0])] if entry.startswith(OURS) else []


def check_code(folder: str | Path) -> None:
    """Look whether the code that a configuration leads to is in the folder, and is this version's.

    Raises:
        FileNotFoundError: a file is missing, as where a model was saved anew after it was loaded.

    Warns:
        Of code that `add_code` would write otherwise now; it may be what the model was made with.
    """
    folder = Path(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for name, reference in (config.get("auto_map") or {}).items():
        for found in [reference] if isinstance(reference, str) else filter(None, reference):
            if "--" in found:  # in another repository
                continue
            file = f"{found.split('.')[0]}.py"
            if not (folder / file).is_file():
                raise FileNotFoundError(
                    f"{folder / CONFIG}: auto_map says that {name} is in {file}, which is not there; {RENEW}, or "
                    "remove auto_map"
                )
    if config.get("auto_map") and code_in(folder):
        check_imports(folder)
        if config.get("model_type") in ALL:
            warn_of_other_code(folder)


def check_imports(folder: Path) -> None:
    """Raise for a file that the code in a folder imports and that is not there."""
    waiting, seen = [f"{ENTRY}.py"], set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for found in RELATIVE_IMPORT.findall((folder / name).read_text(encoding="utf-8")):
            if not (folder / f"{found}.py").is_file():
                raise FileNotFoundError(f"{folder / name} imports {found}.py, which is not there; {RENEW}")
            waiting += [f"{found}.py"] if f"{found}.py" not in seen else []


def warn_of_other_code(folder: Path) -> None:
    """A warning that names the files which are not as this version writes them, and how to renew them."""
    now = {name: content for name, content in code_files(folder).items() if name.endswith(".py")}
    other = [name for name, content in now.items() if not is_same(folder / name, content)]
    other += [name for name in code_in(folder) if name not in now]
    if other:
        warnings.warn(
            f"{folder}: code of another version of vss_hf, or changed by hand: {', '.join(sorted(other))}. It is "
            f"pushed as it is; {RENEW}",
            stacklevel=4,
        )


def is_same(path: Path, content: bytes) -> bool:
    """Whether a file is there and has this content."""
    return path.is_file() and path.read_bytes() == content


def own_backbones(config: Any) -> list[str]:
    """The types of this package's backbones anywhere in a configuration."""
    if isinstance(config, list):
        return [found for part in config for found in own_backbones(part)]
    if not isinstance(config, dict):
        return []
    own = [config["model_type"]] if config.get("model_type") in ALL else []
    return own + [found for part in config.values() for found in own_backbones(part)]


def entry_code(model_type: str, backbones: list[str]) -> str:
    """The source of `auto_classes.py`."""
    parts = [ALL[name] for name in (model_type, *backbones)]
    imports = [f"from .configuration_{file} import {configuration}" for file, configuration, _ in parts]
    imports += [f"from .modeling_{file} import {model}" for file, _, model in parts]
    imports.append(f"from .{PROCESSOR_FILE} import {PROCESSOR_CLASS}, {PROCESSOR_CLASS}Pil")
    registered = []
    for name in backbones:
        _, configuration, model = ALL[name]
        registered.append(f'AutoConfig.register("{name}", {configuration}, exist_ok=True)')
        registered.append(f"AutoBackbone.register({configuration}, {model}, exist_ok=True)")
    _, configuration, model = ALL[model_type]
    lines = [
        f"{OURS} With it came:",
        "",
        *(f"    {name}" for name in needed_files("\n".join(imports))),
        '"""',
        "",
        "from transformers import AutoBackbone, AutoConfig",
        "",
        *sorted(imports),
        "",
        "",
        *registered,
        "# `save_pretrained` copies the file that a class says it is from, and what that one imports.",
        f"for _class in ({configuration}, {model}, {PROCESSOR_CLASS}, {PROCESSOR_CLASS}Pil):",
        "    _class.__module__ = __name__",
        "",
    ]
    return "\n".join(lines)


def needed_files(code: str) -> list[str]:
    """The files of this room that a source imports, and those that they import, by name."""
    needed: set[str] = set()
    waiting = RELATIVE_IMPORT.findall(code)
    while waiting:
        name = f"{waiting.pop()}.py"
        if name not in needed:
            needed.add(name)
            waiting += RELATIVE_IMPORT.findall((ROOM / name).read_text(encoding="utf-8"))
    return sorted(needed)


def auto_map(model_type: str) -> dict[str, Any]:
    """Which Auto class finds which class where."""
    _, configuration, model = ALL[model_type]
    references = {"AutoConfig": f"{ENTRY}.{configuration}", "AutoModel": f"{ENTRY}.{model}"}
    if model_type in MODELS:
        references["AutoModelForSemanticSegmentation"] = f"{ENTRY}.{model}"
    if model_type in (*MODELS, *VIDEO_MODELS):
        references["AutoImageProcessor"] = processor_reference()
    return references


def processor_reference() -> Any:
    """The image processor on PIL, and on torchvision, in the order in which transformers expects them."""
    return [f"{ENTRY}.{PROCESSOR_CLASS}Pil", f"{ENTRY}.{PROCESSOR_CLASS}"]


def as_json(content: dict[str, Any]) -> bytes:
    """A file as transformers writes its configurations."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


__all__ = ["add_code", "check_code", "code_files", "code_in", "lead_to_code", "listed_files"]
