"""The code that a model folder carries, so that `trust_remote_code=True` loads it where this package is missing.

A folder with code holds the files of this room that its model needs, its backbone's among them, and one that is
written for it, `auto_classes.py`, which names them all and makes the Auto classes know the backbone. `auto_map` in the
configuration leads there. With the package installed its own classes win, whatever a folder carries: transformers
prefers what is registered.
"""

import json
import re
from pathlib import Path
from typing import Any

from .architectures import ALL, BACKBONES, MODELS, VIDEO_MODELS


ROOM = Path(__file__).parent
ENTRY = "auto_classes"  # the file that auto_map leads to
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
# As transformers looks for the files that one needs; it takes lines inside of functions, too.
RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\S+)\s+import", re.MULTILINE)
PROCESSOR_FILE, PROCESSOR_CLASS = "image_processing_vss", "VSSImageProcessor"


def add_code(folder: str | Path) -> list[str]:
    """Put the code that a saved model needs into its folder, and say so in its configuration.

    Args:
        folder: as `save_pretrained` writes it; an image processor saved there is covered, too.

    Returns:
        The names of the files that were written.

    Raises:
        FileNotFoundError: there is no configuration.
        ValueError: the model is not one of this package's architectures, or one that consists of other folders.
    """
    folder = Path(folder)
    files = code_files(folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return list(files)


def code_files(folder: str | Path) -> dict[str, bytes]:
    """What `add_code` writes, by name: the code, and the configurations with their `auto_map`."""
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
    files = {f"{ENTRY}.py": entry.encode()}
    for name in needed_files(entry):
        files[name] = (ROOM / name).read_bytes()
    files[CONFIG] = as_json({**config, "auto_map": auto_map(model_type)})
    if (folder / PROCESSOR).is_file():
        processor = json.loads((folder / PROCESSOR).read_text(encoding="utf-8"))
        if str(processor.get("image_processor_type")).startswith(PROCESSOR_CLASS):
            reference = {"AutoImageProcessor": processor_reference()}
            files[PROCESSOR] = as_json({**processor, "auto_map": reference})
    return files


def check_code(folder: str | Path) -> None:
    """Raise for a configuration that names code which is not in the folder, as one saved anew after loading may."""
    config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    for name, reference in (config.get("auto_map") or {}).items():
        for found in [reference] if isinstance(reference, str) else filter(None, reference):
            file = f"{found.split('.')[0]}.py"
            if "--" not in found and not (Path(folder) / file).is_file():
                raise FileNotFoundError(
                    f"{Path(folder) / CONFIG}: auto_map says that {name} is in {file}, which is not there; push "
                    "--with_code to write it anew, or remove auto_map"
                )


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
        '"""Where `auto_map` in config.json leads; written by vss_hf."""',
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


__all__ = ["add_code", "check_code", "code_files"]
