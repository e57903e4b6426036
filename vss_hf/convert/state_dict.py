"""Fill a model from a state dict with reference names, strictly."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from safetensors import SafetensorError
from safetensors.torch import load_file

from . import bisenet, cascade_psp, detectron2, mmseg_heads, tmanet, vspw_clip, vspw_heads
from .convnext import facebook_convnext_table, mmseg_convnext_table
from .hrnet import HRNET
from .internimage import internimage_table, mmseg_internimage_table
from .mit import mmseg_mit_table
from .mmseg_mask2former import mmseg_mask2former_table
from .resnet import CSAIL_RESNET, MMSEG_RESNET, TIMM_RESNET, TORCHVISION_RESNET
from .swin import microsoft_swin_table, mmseg_swin_table
from .tables import Renamed, Table, joined, reason_to_keep, rename, under
from .video_swin import TORCHVISION_SWIN3D, video_swin_table
from .volo import volo_table


@dataclass
class ConversionReport:
    """What a conversion did.

    Args:
        loaded: names of the model's tensors that were filled.
        unused: reference name -> why this model has no place for it.
        kept: name of a tensor of the model that the reference has nothing for -> why it may keep its initial value.
    """

    loaded: list[str]
    unused: dict[str, str]
    kept: dict[str, str]


# (source, model_type of the backbone) -> its table, relative to the backbone
BACKBONE_TABLES: dict[tuple[str, str], Callable[[Any], Table]] = {
    ("mmseg", "swin"): mmseg_swin_table,
    ("microsoft", "swin"): microsoft_swin_table,
    ("mmseg", "convnext"): mmseg_convnext_table,
    ("facebook", "convnext"): facebook_convnext_table,
    ("mmseg", "vss_resnet"): lambda config: MMSEG_RESNET,
    ("tmanet", "vss_resnet"): lambda config: MMSEG_RESNET,
    ("vspw_baseline", "vss_resnet"): lambda config: CSAIL_RESNET,
    ("torchvision", "vss_resnet"): lambda config: TORCHVISION_RESNET,
    ("timm", "vss_resnet"): lambda config: TIMM_RESNET,
    ("mmseg", "vss_mit"): mmseg_mit_table,
    ("mmseg", "vss_hrnet"): lambda config: HRNET,
    ("timm", "vss_hrnet"): lambda config: HRNET,
    ("mmseg", "vss_internimage"): mmseg_internimage_table,
    ("volo", "vss_volo"): volo_table,
    ("timm", "vss_volo"): volo_table,
    ("internimage", "vss_internimage"): internimage_table,
    ("torchvision", "vss_swin3d"): lambda config: TORCHVISION_SWIN3D,
    ("video_swin", "vss_swin3d"): video_swin_table,
    ("detectron2", "swin"): detectron2.swin_table,
    ("detectron2", "maskformer-swin"): detectron2.maskformer_swin_table,
    ("detectron2", "vss_resnet"): detectron2.resnet_table,
    ("cascadepsp", "vss_resnet"): lambda config: TORCHVISION_RESNET,
}
# (source, model_type) -> the table of everything but the backbone
HEAD_TABLES: dict[tuple[str, str], Callable[[Any], Table]] = {
    ("mmseg", "vss_ocrnet"): lambda config: mmseg_heads.OCRNET,
    ("mmseg", "vss_upernet"): lambda config: mmseg_heads.UPERNET,
    ("mmseg", "vss_fcn"): lambda config: mmseg_heads.FCN,
    ("mmseg", "vss_pspnet"): lambda config: mmseg_heads.PSPNET,
    ("mmseg", "vss_deeplabv3"): lambda config: mmseg_heads.DEEPLABV3,
    ("mmseg", "vss_deeplabv3plus"): lambda config: mmseg_heads.DEEPLABV3PLUS,
    ("mmseg", "vss_segformer"): lambda config: mmseg_heads.SEGFORMER,
    ("mmseg", "vss_semantic_fpn"): lambda config: mmseg_heads.SEMANTIC_FPN,
    ("mmseg", "vss_bisenet"): lambda config: bisenet.BISENET,
    ("mmseg", "vss_tbn_vit"): lambda config: bisenet.TBN_VIT,
    ("mmseg", "vss_tmanet"): lambda config: tmanet.TMANET,
    ("tmanet", "vss_tmanet"): lambda config: tmanet.TMANET,
    ("cascadepsp", "vss_cascade_psp"): lambda config: cascade_psp.CASCADE_PSP,
    ("vspw_baseline", "vss_pspnet"): lambda config: vspw_heads.PSPNET,
    ("vspw_baseline", "vss_ocrnet"): lambda config: vspw_heads.OCRNET,
    ("vspw_baseline", "vss_st_ppm"): lambda config: vspw_clip.ST_PPM,
    ("vspw_baseline", "vss_tcb_ocr"): lambda config: vspw_clip.TCB_OCR,
    ("mmseg", "vss_mask2former"): mmseg_mask2former_table,
    ("detectron2", "vss_maskformer"): detectron2.maskformer_table,
    ("detectron2", "vss_mask2former"): detectron2.mask2former_table,
}
# Where a model keeps its backbone, if not in `backbone`
BACKBONE_PLACES = dict.fromkeys(("vss_maskformer", "vss_mask2former"), "model.pixel_level_module.encoder.")
# (source, model_type) -> what stands before the backbone's names, as a regular expression; by default `backbone\.`
PREFIXES = {
    ("vspw_baseline", "vss_pspnet"): r"encoder\.",
    ("vspw_baseline", "vss_ocrnet"): r"encoder\.",
    ("vspw_baseline", "vss_st_ppm"): r"encoder\.",
    ("vspw_baseline", "vss_tcb_ocr"): r"encoder\.",
    **dict.fromkeys([("mmseg", "vss_bisenet"), ("mmseg", "vss_tbn_vit")], bisenet.RESNET_PREFIX),
    ("cascadepsp", "vss_cascade_psp"): cascade_psp.RESNET_PREFIX,
}
WRAPPERS = ("state_dict", "model", "state_dict_ema")  # where checkpoints keep their tensors


class TrainingLog:
    """Stands in for what a training run of mmengine leaves beside the weights; nobody looks at it here."""


# What official files hold beside tensors and plain values. None of it can run code: numbers of NumPy, and a stand-in.
HARMLESS: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_, np.uint8)),
    *((multiarray._reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (TrainingLog, "mmengine.logging.history_buffer.HistoryBuffer"),
]


def read_reference_file(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a reference checkpoint; pickled code in it never runs.

    Args:
        path: the file: .safetensors, Detectron2's .pkl, or PyTorch's. The latter may wrap its tensors in "state_dict"
            (mmsegmentation) or "model" (InternImage), and every name may begin with "module." (DataParallel).

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds more than plain data and tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if path.suffix == ".pkl":
        return detectron2.read_detectron2_pickle(path)
    try:
        if path.suffix == ".safetensors":
            checkpoint = load_file(path)
        else:
            with torch.serialization.safe_globals(HARMLESS):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: refused, because it is damaged or holds more than tensors ({reason})") from error
    return unwrapped(checkpoint, path)


def unwrapped(checkpoint: Any, path: Path) -> dict[str, torch.Tensor]:
    """The tensors inside a checkpoint, without the prefix that DataParallel puts before every name."""
    tensors = checkpoint
    if isinstance(checkpoint, dict):
        tensors = next((checkpoint[name] for name in WRAPPERS if isinstance(checkpoint.get(name), dict)), checkpoint)
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors, alone or under one of {', '.join(WRAPPERS)}")
    prefix = "module." if tensors and all(name.startswith("module.") for name in tensors) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def load_reference_state_dict(model: Any, state_dict: dict[str, torch.Tensor], source: str) -> ConversionReport:
    """Fill `model` with tensors that carry the names of a reference implementation.

    Args:
        model: a model or backbone of this package or of transformers, built with the configuration of the reference.
        state_dict: the reference's tensors, without any wrapper (`checkpoint["state_dict"]` of an mmseg file).
        source: whose names they are, one of those that `vss_hf.convert` lists.

    Returns:
        ConversionReport: what was loaded, and what has no place on either side, with the reason.

    Raises:
        ValueError: for an unknown source, a tensor that is missing, unexpected or of another shape.
    """
    table = table_for(source, model.config)
    renamed = rename(state_dict, table)
    own = model.state_dict()
    missing = sorted(set(own) - set(renamed.tensors))
    kept = {name: reason for name in missing if (reason := reason_to_keep(name, table))}
    check_fit(renamed, own, [name for name in missing if name not in kept], f"{source} state dict", model)
    model.load_state_dict(renamed.tensors, strict=False)
    return ConversionReport(sorted(renamed.tensors), renamed.unused, kept)


def table_for(source: str, config: Any) -> Table:
    """The table from a source's names to those of the configured model or backbone.

    Raises:
        ValueError: there is none; the message names the sources that there are.
    """
    kind = config.model_type
    if (source, kind) in BACKBONE_TABLES:
        return BACKBONE_TABLES[source, kind](config)
    if (source, kind) not in HEAD_TABLES:
        known = sorted(known for known, of in [*HEAD_TABLES, *BACKBONE_TABLES] if of == kind)
        raise ValueError(f"no converter from '{source}' to {kind}; known sources: {', '.join(known) or 'none'}")
    heads = HEAD_TABLES[source, kind](config)
    backbone_kind = config.backbone_config.model_type
    if (source, backbone_kind) not in BACKBONE_TABLES:
        known = sorted(of for known, of in BACKBONE_TABLES if known == source)
        raise ValueError(
            f"no converter from '{source}' to {kind} on {backbone_kind}; backbones known: {', '.join(known)}"
        )
    backbone = BACKBONE_TABLES[source, backbone_kind](config.backbone_config)
    prefix, place = PREFIXES.get((source, kind), r"backbone\."), BACKBONE_PLACES.get(kind, "backbone.")
    return joined(under(backbone, prefix, place), heads)


def check_fit(renamed: Renamed, own: dict[str, torch.Tensor], missing: list[str], what: str, model: Any) -> None:
    """Raise unless the renamed tensors are those of the model, in their shapes and kinds of numbers."""
    tensors = renamed.tensors
    problems = {
        "missing": missing,
        "unexpected": [f"{renamed.origins[name]} (here {name})" for name in sorted(set(tensors) - set(own))],
        "other shape": [
            f"{name}: {tuple(tensor.shape)} for {tuple(own[name].shape)}"
            for name, tensor in tensors.items()
            if name in own and tensor.shape != own[name].shape
        ],
        "other kind of numbers": [
            f"{name}: {tensor.dtype} for {own[name].dtype}"
            for name, tensor in tensors.items()
            if name in own and own[name].is_floating_point() and not tensor.is_floating_point()
        ],
    }
    told = [
        f"{title}: {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        for title, names in problems.items()
        if names
    ]
    if told:
        raise ValueError(f"the {what} does not fit {type(model).__name__}: " + "; ".join(told))
