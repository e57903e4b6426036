"""Registration with the Auto classes, without loading torch before somebody needs it.

`import transformers` takes a fraction of a second because it loads its modules on first use. Registering our classes
at once would import torch and every architecture. So `import vss_hf` only leaves a note: when the Auto classes'
modules are loaded (or if they already are), our classes are registered.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from .modeling.architectures import (
    ALL,
    BACKBONES,
    CLIP_BACKBONES,
    MODELS,
    REFINERS,
    VIDEO_MODELS,
    configuration_class,
    model_class,
)


def register_configurations() -> None:
    """AutoConfig knows our model types."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from vss_hf.modeling.configuration_ensemble import EnsembleConfig

    for model_type in ALL:
        AutoConfig.register(model_type, configuration_class(model_type), exist_ok=True)
    AutoConfig.register(EnsembleConfig.model_type, EnsembleConfig, exist_ok=True)


def register_models() -> None:
    """AutoModel, AutoModelForSemanticSegmentation and AutoBackbone know what of ours is theirs."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES as known_names
    from transformers.models.auto.modeling_auto import AutoBackbone, AutoModel, AutoModelForSemanticSegmentation

    from vss_hf.ensembles.ensemble import EnsembleConfig, EnsembleForSemanticSegmentation

    names: Any = known_names  # its annotation lists transformers' own
    for model_type, (_, _, name) in MODELS.items():
        names[model_type] = name  # by this pipeline("image-segmentation") knows what it can take, or reports an error
        for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
            auto_class.register(configuration_class(model_type), model_class(model_type), exist_ok=True)
    for model_type in (*BACKBONES, *CLIP_BACKBONES):
        AutoBackbone.register(configuration_class(model_type), model_class(model_type), exist_ok=True)
    for model_type in (*VIDEO_MODELS, *REFINERS):
        AutoModel.register(configuration_class(model_type), model_class(model_type), exist_ok=True)
    for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
        auto_class.register(EnsembleConfig, EnsembleForSemanticSegmentation, exist_ok=True)


def register_image_processors() -> None:
    """AutoImageProcessor knows our processor."""
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from vss_hf.modeling.configuration_ensemble import EnsembleConfig
    from vss_hf.modeling.image_processing_vss import VSSImageProcessor, VSSImageProcessorPil

    backends = {"torchvision": VSSImageProcessor, "pil": VSSImageProcessorPil}
    for config_class in (*map(configuration_class, (*MODELS, *VIDEO_MODELS)), EnsembleConfig):
        AutoImageProcessor.register(config_class, image_processor_classes=backends, exist_ok=True)


def register_pipelines() -> None:
    """`pipeline("video-semantic-segmentation")` exists."""
    from transformers.models.auto import modeling_auto as auto
    from transformers.pipelines import PIPELINE_REGISTRY

    from vss_hf.inference.pipeline import TASK, VideoSemanticSegmentationPipeline

    # In this order: AutoModel, the one for video models, would load other models without their heads.
    loaders: Any = (auto.AutoModelForSemanticSegmentation, auto.AutoModelForUniversalSegmentation, auto.AutoModel)
    pipeline_class: Any = VideoSemanticSegmentationPipeline
    PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class, pt_model=loaders, type="video")
    # By this note save_pretrained would copy our code into the folder, which then asks for trust_remote_code.
    del pipeline_class._registered_impl


# Where transformers keeps each kind of Auto class, and the registration with it.
REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": register_configurations,
    "transformers.models.auto.modeling_auto": register_models,
    "transformers.models.auto.image_processing_auto": register_image_processors,
    "transformers.pipelines": register_pipelines,
}
# What our models import, and with what the Auto classes and the pipelines may come.
WATCHED = ("vss_hf.modeling.", "vss_hf.inference.", "vss_hf.ensembles.", "transformers.")


class RegisterOnImport(MetaPathFinder, Loader):
    """Leaves finding and loading to Python's own finder, and registers when an Auto module has been loaded.

    The Auto classes may be loaded for one of the watched modules that is only half-way, and our models may need that
    one: the registration waits until all of them are whole.
    """

    def __init__(self):
        self.loaders: dict[str, Loader] = {}
        self.loading: list[str] = []
        self.registered: set[str] = set()

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if not fullname.startswith(WATCHED):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            self.loaders[fullname] = spec.loader
            spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec):
        return self.loaders[spec.name].create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        assert module.__spec__ is not None  # the import system made the module from one
        module.__spec__.loader = module.__loader__ = self.loaders[name]
        self.loading.append(name)
        try:
            self.loaders[name].exec_module(module)
        finally:
            self.loading.remove(name)
        self.register_loaded()

    def register_loaded(self) -> None:
        """Register with every Auto module that is loaded, once, unless a watched module is half-way."""
        for auto_module, register_kind in REGISTRATIONS.items():
            if auto_module in sys.modules and not self.loading and auto_module not in self.registered:
                self.registered.add(auto_module)  # before: it loads watched modules itself
                try:
                    register_kind()
                except BaseException:
                    self.registered.discard(auto_module)  # the next import tries again, and fails as clearly
                    raise


def register() -> None:
    """Register now with what is loaded already, and with the rest when it is loaded."""
    if not any(isinstance(finder, RegisterOnImport) for finder in sys.meta_path):
        finder = RegisterOnImport()
        sys.meta_path.insert(0, finder)
        finder.register_loaded()
