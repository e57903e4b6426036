"""Video semantic segmentation with the Hugging Face tools you already know.

After `import vss_hf`, `AutoConfig`, `AutoModelForSemanticSegmentation`, `AutoImageProcessor` and `pipeline` load every
model folder that this package wrote. Public names are loaded on first use, so that the import stays cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

import transformers  # noqa: F401  (lazy itself; its Auto classes are what we extend)

from ._register import register
from .modeling.architectures import ALL


if TYPE_CHECKING:
    from .data import VSPW as VSPW
    from .data import ClassList as ClassList
    from .data import load_vspw as load_vspw
    from .inference import VideoSegmenter as VideoSegmenter
    from .inference import semantic_scores as semantic_scores
    from .metrics import ConfusionMatrix as ConfusionMatrix
    from .metrics import VideoConsistency as VideoConsistency
    from .modeling.architectures import config_from_preset as config_from_preset
    from .modeling.configuration_ocrnet import OCRNetConfig as OCRNetConfig
    from .modeling.modeling_ocrnet import OCRNetForSemanticSegmentation as OCRNetForSemanticSegmentation


__version__ = "0.1.0"

PUBLIC = {
    "VSPW": "vss_hf.data",
    "ClassList": "vss_hf.data",
    "load_vspw": "vss_hf.data",
    "VideoSegmenter": "vss_hf.inference",
    "semantic_scores": "vss_hf.inference",
    "ConfusionMatrix": "vss_hf.metrics",
    "VideoConsistency": "vss_hf.metrics",
    "config_from_preset": "vss_hf.modeling.architectures",
    "EnsembleConfig": "vss_hf.modeling.configuration_ensemble",
    "EnsembleForSemanticSegmentation": "vss_hf.ensembles.ensemble",
}
for _file, _configuration, _model in ALL.values():
    PUBLIC[_configuration] = f"vss_hf.modeling.configuration_{_file}"
    PUBLIC[_model] = f"vss_hf.modeling.modeling_{_file}"
__all__ = [*PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'vss_hf' has no attribute '{name}'")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])


register()
