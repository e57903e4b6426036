"""Fill a model from a state dict with reference names, strictly."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation

from .mmseg import mmseg_ocrnet_names


@dataclass
class ConversionReport:
    """What a conversion did.

    Args:
        loaded: names of the model's tensors that were filled.
        unused: reference names that this model has no place for.
    """

    loaded: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


# (source, model_type) -> function from the reference's state dict to (our names -> tensors, unused reference names)
CONVERTERS: dict[tuple[str, str], Callable] = {("mmseg", "vss_ocrnet"): mmseg_ocrnet_names}


def read_reference_file(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a reference checkpoint, safetensors or PyTorch's format; pickled code in it never runs.

    Args:
        path: the file; a PyTorch file may wrap its tensors in "state_dict", as mmsegmentation does.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds more than plain data and tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: refused, because it is damaged or holds more than tensors ({reason})") from error
    tensors = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors, alone or under 'state_dict'")
    return dict(tensors)


def load_reference_state_dict(
    model: OCRNetForSemanticSegmentation, state_dict: dict[str, torch.Tensor], source: str
) -> ConversionReport:
    """Fill `model` with tensors that carry the names of a reference implementation.

    Args:
        model: a model of this package, built with the configuration of the reference.
        state_dict: the reference's tensors, without any wrapper (`checkpoint["state_dict"]` of an mmseg file).
        source: `mmseg` (mmsegmentation 0.x and 1.x).

    Returns:
        ConversionReport: what was loaded and which tensors have no place here.

    Raises:
        ValueError: for an unknown source, a tensor that is missing, unexpected or of another shape.
    """
    key = (source, model.config.model_type)
    if key not in CONVERTERS:
        known = ", ".join(sorted(s for s, kind in CONVERTERS if kind == key[1])) or "none"
        raise ValueError(f"no converter from '{source}' to {key[1]}; known sources: {known}")
    tensors, unused = CONVERTERS[key](state_dict, model)
    own = model.state_dict()
    missing = sorted(set(own) - set(tensors))
    unexpected = sorted(set(tensors) - set(own))
    shapes = [
        f"{name}: {tuple(tensor.shape)} for {tuple(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]
    kinds = [
        f"{name}: {tensor.dtype} for {own[name].dtype}"
        for name, tensor in tensors.items()
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point()
    ]
    titles = ("missing", "unexpected", "other shape", "other kind of numbers")
    problems = [
        f"{title}: {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        for title, names in zip(titles, (missing, unexpected, shapes, kinds), strict=True)
        if names
    ]
    if problems:
        raise ValueError(f"the {source} state dict does not fit {type(model).__name__}: " + "; ".join(problems))
    model.load_state_dict(tensors, strict=False)
    return ConversionReport(loaded=sorted(tensors), unused=sorted(unused))
