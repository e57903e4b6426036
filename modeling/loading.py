"""Model folders, loaded strictly: safetensors only, every tensor accounted for, one line about what is wrong.

transformers by itself reads `pytorch_model.bin` where there is nothing else, fills missing tensors with random numbers
and overwrites a contradicting number of classes; each time it logs that and goes on.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES
from transformers.utils import logging

from .architectures import VIDEO_MODELS


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WITHOUT_WEIGHTS = ("vss_ensemble",)  # whose folders name others, which are loaded as strictly
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_segmentation_model(source: str | Path, **settings: Any) -> Any:
    """An image or video model, loaded by `load_strictly` with the Auto class that knows it."""
    return load_strictly(auto_class(source, **settings), source, **settings)


def auto_class(source: str | Path, revision: str | None = None, **settings: Any) -> Any:
    """The Auto class for the model in a folder or Hub repo.

    Returns:
        AutoModel for a video model, AutoModelForUniversalSegmentation for transformers' own mask models, otherwise
        AutoModelForSemanticSegmentation.
    """
    model_type = str(stored_config(source, revision).get("model_type"))
    if model_type in VIDEO_MODELS:
        return AutoModel
    if model_type in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES:
        return AutoModelForUniversalSegmentation
    return AutoModelForSemanticSegmentation


def stored_config(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The fields in the config.json of a folder or Hub repo; none where there is no such file."""
    if (Path(source) / "config.json").is_file():
        return read_json(Path(source) / "config.json")
    if not is_hub_id(source):
        return {}
    with loading(source):
        return PreTrainedConfig.get_config_dict(source, revision=revision)[0]


def is_hub_id(source: str | Path) -> bool:
    """Whether `source` is no folder and looks like user/name."""
    return not Path(source).exists() and str(source).count("/") == 1 and str(source)[:1] not in "./"


def load_strictly(
    model_class: Any, source: str | Path, *, new: tuple[str, ...] = (), added: tuple[str, ...] = (), **settings: Any
) -> Any:
    """`model_class.from_pretrained(source)`, with an error for everything that does not fit.

    Args:
        model_class: a model or Auto class.
        source: folder or Hub id.
        new: parts of names, e.g. "classifier", of tensors that keep new weights where the shapes differ.
        added: likewise of tensors that keep new weights where the source has none.
        settings: for `from_pretrained`, e.g. `revision`.

    Returns:
        The model.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a file is damaged, pickled, or does not fit the others; the message names it.
    """
    folder = Path(source)
    stored: dict[str, str] = {}
    if folder.is_dir():
        check_config(folder)
        if read_json(folder / "config.json")["model_type"] not in WITHOUT_WEIGHTS:
            stored = check_weight_files(folder)
    elif not is_hub_id(source):
        raise FileNotFoundError(f"{source}: no such model folder (and not a Hub id of the form user/name)")
    with loading(source):
        model, report = model_class.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # for an error of our own, below
            **settings,
        )
    own = model.state_dict()
    problems = {
        "missing": sorted(name for name in report["missing_keys"] if not any(part in name for part in added)),
        "unexpected": sorted(report["unexpected_keys"]),
        "other shape": [
            f"{name}: {tuple(found)} for {tuple(expected)}"
            for name, found, expected in sorted(report["mismatched_keys"])
            if not any(part in name for part in new)
        ],
        # transformers converts whole numbers without a word: a header that calls floats integers gives other values.
        "no floating point numbers": [
            f"{name} ({kind})"
            for name, kind in sorted(stored.items())
            if name in own and own[name].is_floating_point() and not kind.startswith(("F", "BF"))
        ],
    }
    told = [f"{title}: {shortened(names)}" for title, names in problems.items() if names]
    if told:
        raise ValueError(f"{source}: the weights do not fit {type(model).__name__}: {'; '.join(told)}")
    return model


@contextmanager
def loading(source: str | Path) -> Iterator[None]:
    """Errors inside come out as a ValueError that names `source`; the table that transformers logs is not shown."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{source}: damaged weights ({one_line(error)}); copy or download them again") from error
    except (OSError, MemoryError):
        raise
    except (ValueError, StrictDataclassError) as error:
        if str(source) in str(error):
            raise
        raise ValueError(f"{source}: {one_line(error, 500)}") from error
    except Exception as error:  # whatever a wrong configuration leads to, deep inside a model
        raise ValueError(f"{source}: cannot be loaded ({type(error).__name__}: {one_line(error)})") from error
    finally:
        logging.set_verbosity(verbosity)


def check_config(folder: Path) -> None:
    """Raise unless config.json is whole and agrees with itself."""
    path = folder / "config.json"
    config = read_json(path)
    check_model_type(config, f"{path}: model_type")
    names, count = config.get("id2label"), config.get("num_labels")
    if names is not None:
        if not isinstance(names, dict) or sorted(names) != sorted(str(i) for i in range(len(names))):
            raise ValueError(f"{path}: id2label must name the classes 0 to n-1; found {one_line(names, 80)}")
        if count is not None and count != len(names):
            raise ValueError(f"{path}: num_labels is {count!r}, but id2label names {len(names)} classes")
    weights = config.get("transformers_weights")  # transformers takes this file instead of model.safetensors
    if weights is not None and weights not in (WEIGHTS, INDEX):
        raise ValueError(f"{path}: transformers_weights is {weights!r}; only {WEIGHTS} is loaded")


def check_model_type(config: dict[str, Any], place: str) -> str:
    """The model type of a configuration; raises for one that transformers does not know, also of the backbone."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        near = get_close_matches(str(model_type), list(CONFIG_MAPPING), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "expected a model of transformers or this package, e.g. swin"
        raise ValueError(f"{place} {model_type!r} is not known; {hint}")
    if isinstance(config.get("backbone_config"), dict):
        check_model_type(config["backbone_config"], f"{place} of the backbone")
    return model_type


def check_weight_files(folder: Path) -> dict[str, str]:
    """The types of the tensors in a folder, by name (`F32`, `BF16`, `I64`, ...), from the headers of its files.

    Raises:
        FileNotFoundError: there are no weights, or a part of them is missing.
        ValueError: they are pickled or damaged.
    """
    names = [WEIGHTS]
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        parts = read_json(folder / INDEX).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise ValueError(f"{folder / INDEX}: no weight_map, so no weights")
        names = sorted({str(name) for name in parts.values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{folder / INDEX}: names {name!r} as weights; expected safetensors files beside it")
    for name in names:
        if not (folder / name).is_file():
            refuse_pickles(folder)
            raise FileNotFoundError(f"{folder / name}: no such file; expected the weights of the model")
    for path in set(folder.glob("*.safetensors")) - {folder / name for name in names}:
        check_safetensors(path)  # transformers may prefer parts of other names
    return {tensor: kind for name in names for tensor, kind in check_safetensors(folder / name).items()}


def refuse_pickles(folder: Path) -> None:
    """Raise when a folder offers pickled weights."""
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLED)
    if pickles:
        raise ValueError(
            f"{pickles[0]}: pickled weights are refused, because loading a pickle can run any code; "
            f"save them as {WEIGHTS} where you trust them"
        )


def check_safetensors(path: Path) -> dict[str, str]:
    """The types of a file's tensors by name; an error unless it is whole safetensors, judged by its header."""
    with open(path, "rb") as file:
        start = file.read(9)
    # Eight bytes tell the length of the header, a JSON object; pickles begin with 80 (hex), zip archives with PK.
    if start[8:] != b"{" and start.startswith((b"\x80", b"PK")):
        raise ValueError(f"{path}: a pickle under the name of safetensors is refused; loading it can run any code")
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); copy or download it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a folder as `save_pretrained` writes it")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {one_line(value, 80)}")
    return value


def shortened(names: list[str]) -> str:
    """At most five of the names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def one_line(value: Any, length: int = 200) -> str:
    """Text without line ends, cut to `length`."""
    text = " ".join(str(value).split())
    return text if len(text) <= length else f"{text[:length]}..."
