"""Registration with the Auto classes, without loading torch before somebody needs it.

`import transformers` takes a fraction of a second because it loads its modules on first use. Registering our classes
at once would import torch and every architecture. So `import vss_hf` only leaves a note: when the Auto classes'
modules are loaded (or if they already are), our classes are registered.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from .modeling.architectures import BACKBONES, MODELS, configuration_class, model_class


def register_configurations() -> None:
    """AutoConfig knows our model types."""
    from transformers.models.auto.configuration_auto import AutoConfig

    for model_type in (*MODELS, *BACKBONES):
        AutoConfig.register(model_type, configuration_class(model_type), exist_ok=True)


def register_models() -> None:
    """AutoModel and AutoModelForSemanticSegmentation know our models, AutoBackbone our backbones."""
    from transformers.models.auto.modeling_auto import AutoBackbone, AutoModel, AutoModelForSemanticSegmentation

    for model_type in MODELS:
        for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
            auto_class.register(configuration_class(model_type), model_class(model_type), exist_ok=True)
    for model_type in BACKBONES:
        AutoBackbone.register(configuration_class(model_type), model_class(model_type), exist_ok=True)


def register_image_processors() -> None:
    """AutoImageProcessor knows our processor."""
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from vss_hf.modeling.image_processing_vss import VSSImageProcessor, VSSImageProcessorPil

    backends = {"torchvision": VSSImageProcessor, "pil": VSSImageProcessorPil}
    for model_type in MODELS:
        config_class = configuration_class(model_type)
        AutoImageProcessor.register(config_class, image_processor_classes=backends, exist_ok=True)


CONFIGURATIONS = tuple(f"configuration_{file}" for file, _, _ in (*MODELS.values(), *BACKBONES.values()))
MODELINGS = tuple(f"modeling_{file}" for file, _, _ in (*MODELS.values(), *BACKBONES.values()))

# Where transformers keeps each kind of Auto class, our modules that the registration imports, and the registration.
REGISTRATIONS = (
    ("transformers.models.auto.configuration_auto", CONFIGURATIONS, register_configurations),
    ("transformers.models.auto.modeling_auto", (*CONFIGURATIONS, *MODELINGS), register_models),
    (
        "transformers.models.auto.image_processing_auto",
        (*CONFIGURATIONS, "image_processing_vss"),
        register_image_processors,
    ),
)
AUTO_MODULES = {auto for auto, _, _ in REGISTRATIONS}
OUR_MODULES = {f"vss_hf.modeling.{name}" for _, names, _ in REGISTRATIONS for name in names}


class RegisterOnImport(MetaPathFinder, Loader):
    """Leaves finding and loading to Python's own finder, and registers when a module that matters has been loaded.

    One of our modules may be the first that needs the Auto classes: then they are loaded while it is half-way, and the
    registration waits until it is whole.
    """

    def __init__(self):
        self.loaders: dict[str, Loader] = {}
        self.loaded = {name for name in AUTO_MODULES if name in sys.modules}
        self.loading: set[str] = set()

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname not in AUTO_MODULES | OUR_MODULES:
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
        self.loading.add(name)
        try:
            self.loaders[name].exec_module(module)
        finally:
            self.loading.discard(name)
        self.loaded.add(name)
        self.register_loaded()

    def register_loaded(self) -> None:
        """Register with every Auto module that is loaded, unless one of ours is half-way; twice changes nothing."""
        for auto_module, ours, register_kind in REGISTRATIONS:
            if auto_module in self.loaded and not any(f"vss_hf.modeling.{name}" in self.loading for name in ours):
                register_kind()


def register() -> None:
    """Register now with what is loaded already, and with the rest when it is loaded."""
    if not any(isinstance(finder, RegisterOnImport) for finder in sys.meta_path):
        finder = RegisterOnImport()
        sys.meta_path.insert(0, finder)
        finder.register_loaded()
