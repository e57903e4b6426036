"""From an official checkpoint file to a model folder that `from_pretrained` loads."""

import hashlib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from vss_hf.files import write_json
from vss_hf.modeling.architectures import config_from_preset, model_class, presets
from vss_hf.modeling.backbone import build_backbone
from vss_hf.modeling.backbone_presets import backbone_fields, known_backbones
from vss_hf.modeling.configuration_segmenter import backbone_config_from_dict
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.loading import read_json

from .mmseg_model_config import segmenter_config_from_mmseg
from .state_dict import ConversionReport, load_reference_state_dict, read_reference_file, table_for
from .tables import rename


@dataclass
class Converted:
    """A converted checkpoint.

    Args:
        folder: where the model is.
        report: what was loaded, and what has no place on either side.
        num_labels: classes of the model; None for a backbone.
    """

    folder: Path
    report: ConversionReport
    num_labels: int | None


def convert_checkpoint(
    checkpoint: str | Path, source: str, arch: str, out: str | Path, names: list[str] | None = None
) -> Converted:
    """Convert an official checkpoint and save the model, its image processor, and conversion.json about its origin.

    Args:
        checkpoint: the file; see `read_reference_file`.
        source: whose names it has; see `load_reference_state_dict`.
        arch: a preset of a model (`upernet-swin-large`), a backbone alone (`internimage-xl`), or a .json file with an
            mmsegmentation configuration (`Config.fromfile(path).dump("config.json")` there).
        out: folder to write.
        names: class names in the order of the label values; None: LABEL_0, LABEL_1, ... as many as the checkpoint's
            classifier has.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: the architecture or source is not known, or the tensors do not fit.
    """
    tensors = read_reference_file(checkpoint)
    config = find_config(arch)
    num_labels = None
    if hasattr(config, "backbone_config"):
        num_labels = count_classes(tensors, source, config)
        if names is not None and len(names) != num_labels:
            raise ValueError(
                f"{checkpoint}: the classifier has {num_labels} classes, but {len(names)} names are given"
            )
        config.id2label = dict(enumerate(names or [f"LABEL_{i}" for i in range(num_labels)]))
    model = build_backbone(config) if num_labels is None else model_class(config.model_type)(config)
    report = load_reference_state_dict(model, tensors, source)
    out = Path(out)
    model.save_pretrained(out)
    if num_labels is not None:
        VSSImageProcessor().save_pretrained(out)  # ImageNet's mean and deviation, as all these sources use
    file = {"checkpoint": Path(checkpoint).name, "sha256": sha256(checkpoint)}
    origin = {**file, "source": source, "arch": Path(arch).name}
    write_json(out / "conversion.json", {**origin, "not_used": report.unused, "kept_new": report.kept})
    return Converted(out, report, num_labels)


def sha256(path: str | Path) -> str:
    """The digest of a file, read in parts: checkpoints have gigabytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**22):
            digest.update(part)
    return digest.hexdigest()


def find_config(arch: str) -> Any:
    """The configuration of a model or backbone by the name of a preset, or from an mmsegmentation configuration.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the name is not known, or the file holds something that has no counterpart here.
    """
    if arch.endswith(".json"):
        settings = read_json(Path(arch))
        return segmenter_config_from_mmseg(settings.get("model", settings))
    if arch in known_backbones():
        return backbone_config_from_dict(backbone_fields(arch))
    known = [*presets(), *known_backbones()]
    if arch not in known:
        near = get_close_matches(arch, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"one of: {', '.join(known)}"
        raise ValueError(f"architecture '{arch}' is not known; {hint}")
    return config_from_preset(arch)


def count_classes(tensors: dict[str, torch.Tensor], source: str, config: Any) -> int:
    """How many classes the checkpoint's last classifier has."""
    renamed = rename(tensors, table_for(source, config)).tensors
    for name, extra in (("decode_head.classifier.weight", 0), ("class_predictor.weight", 1)):
        if name in renamed:
            return len(renamed[name]) - extra  # a mask model's last class is "no object"
    raise ValueError(f"the checkpoint has no classifier for {config.model_type}: is it a backbone alone?")
