"""From an official checkpoint file to a model folder that `from_pretrained` loads."""

import hashlib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from vss_hf.files import check_new_folder, new_folder, write_json
from vss_hf.modeling.architectures import REFINERS, config_from_preset, configuration_class, model_class, presets
from vss_hf.modeling.backbone import build_backbone
from vss_hf.modeling.backbone_presets import backbone_fields, known_backbones
from vss_hf.modeling.configuration_segmenter import backbone_config_from_dict
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.loading import read_json

from .mmseg_model_config import segmenter_config_from_mmseg
from .state_dict import ConversionReport, load_reference_state_dict, read_reference_file, table_for
from .tables import rename


# Networks without classes, of one size each: what `arch` calls them.
REFINER_NAMES = {model_type.removeprefix("vss_").replace("_", "-"): model_type for model_type in REFINERS}
# Fields that the checkpoint or its class names decide about, or transformers itself.
NOT_CHANGED = {"model_type", "id2label", "label2id", "architectures", "transformers_version", "_name_or_path"}
MAPS = {"out_features": "out_indices", "out_indices": "out_features"}  # each follows from the other


@dataclass
class Converted:
    """A converted checkpoint.

    Args:
        folder: where the model is.
        report: what was loaded, and what has no place on either side.
        num_labels: classes of the model; None for a backbone or a network that knows none.
    """

    folder: Path
    report: ConversionReport
    num_labels: int | None


def convert_checkpoint(
    checkpoint: str | Path,
    source: str,
    arch: str,
    out: str | Path,
    names: list[str] | None = None,
    fields: dict[str, Any] | None = None,
) -> Converted:
    """Convert an official checkpoint and save the model, its image processor, and conversion.json about its origin.

    Args:
        checkpoint: the file; see `read_reference_file`.
        source: whose names it has; see `load_reference_state_dict`.
        arch: a preset of a model (`upernet-swin-large`), a backbone alone (`internimage-xl`), `cascade-psp`, or a
            .json file with an mmsegmentation configuration (`Config.fromfile(path).dump("config.json")` there).
        out: folder to make, whole or not at all; one with files in it is refused.
        names: class names in the order of the label values; None: LABEL_0, LABEL_1, ... as many as the checkpoint's
            classifier has.
        fields: other values for fields of the architecture's configuration, see `with_fields`.

    Raises:
        FileNotFoundError: no such checkpoint.
        FileExistsError: `out` holds files.
        OSError: the disk is full.
        ValueError: the architecture or source is not known, or the tensors do not fit.
    """
    out, config = Path(out), find_config(arch)  # what is quickly seen comes before gigabytes are read
    if fields:
        config = with_fields(config, fields)
    check_new_folder(out)
    tensors = read_reference_file(checkpoint)
    num_labels, is_refiner = None, config.model_type in REFINERS
    if hasattr(config, "backbone_config") and not is_refiner:
        num_labels = count_classes(tensors, source, config)
        if names is not None and len(names) != num_labels:
            raise ValueError(
                f"{checkpoint}: the classifier has {num_labels} classes, but {len(names)} names are given"
            )
        config.id2label = dict(enumerate(names or [f"LABEL_{i}" for i in range(num_labels)]))
    is_backbone = num_labels is None and not is_refiner
    model = build_backbone(config) if is_backbone else model_class(config.model_type)(config)
    report = load_reference_state_dict(model, tensors, source)
    file = {"checkpoint": Path(checkpoint).name, "sha256": sha256(checkpoint)}
    origin = {**file, "source": source, "arch": Path(arch).name, **({"fields": fields} if fields else {})}
    with new_folder(out) as partial:
        model.save_pretrained(partial)
        if num_labels is not None:
            VSSImageProcessor().save_pretrained(partial)  # ImageNet's mean and deviation, as all these sources use
        write_json(partial / "conversion.json", {**origin, "not_used": report.unused, "kept_new": report.kept})
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
    if arch in REFINER_NAMES:
        return configuration_class(REFINER_NAMES[arch])()
    known = [*presets(), *known_backbones(), *REFINER_NAMES]
    if arch not in known:
        raise ValueError(f"architecture '{arch}' is not known; {nearest(arch, known)}")
    return config_from_preset(arch)


def with_fields(config: Any, fields: dict[str, Any]) -> Any:
    """A configuration with other values in some fields.

    Args:
        config: of a model or backbone.
        fields: field -> value; `backbone_config.depths` is a field of the backbone's configuration.

    Raises:
        ValueError: a field that does not exist, with the nearest one, or a value outside its range.
    """
    settings = config.to_dict()
    for path, value in fields.items():
        place, (*parents, name) = settings, path.split(".")
        for part in (*parents, name):
            if not isinstance(place, dict):
                raise ValueError(f"{config.model_type} has no field '{path}': there are none below '{parents[-1]}'")
            known = [field for field in place if field not in NOT_CHANGED]
            if part not in known:
                what = f"{config.model_type} has no field '{path}' that can be set"
                raise ValueError(f"{what}; {nearest(part, known)}")
            place, holder = place[part], place
        holder[name] = value
        if name in MAPS:
            holder.pop(MAPS[name], None)
    return type(config).from_dict(settings)


def nearest(name: str, known: list[str]) -> str:
    """The known name that is most like `name`, as a question, or all of them."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"one of: {', '.join(known)}"


def count_classes(tensors: dict[str, torch.Tensor], source: str, config: Any) -> int:
    """How many classes the checkpoint's last classifier has."""
    renamed = rename(tensors, table_for(source, config)).tensors
    for name, extra in (("decode_head.classifier.weight", 0), ("class_predictor.weight", 1)):
        if name in renamed:
            return len(renamed[name]) - extra  # a mask model's last class is "no object"
    raise ValueError(f"the checkpoint has no classifier for {config.model_type}: is it a backbone alone?")
