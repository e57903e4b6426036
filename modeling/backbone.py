"""One door to the backbones of transformers and timm."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from timm.layers import drop_path
from torch import nn
from transformers import AutoBackbone, PreTrainedConfig

from .loading import check_weight_files, loading, read_json, shortened
from .remote_code import add_code


Backbone = Any  # a PreTrainedModel that is a BackboneMixin too: Python has no type for both
# MaskFormer has its own Swin in transformers; its classifiers are Swin's.
SOURCE_NAMES = {"maskformer-swin": {r"^swin\.": "model."}}
# What FSDP gathers at a time. transformers names stages of Swin, half of a model, and single convolutions of ResNet.
BLOCKS = {
    "swin": ("SwinLayer",),
    "maskformer-swin": ("MaskFormerSwinLayer",),
    "convnext": ("ConvNextLayer",),
    "resnet": ("ResNetBasicLayer", "ResNetBottleNeckLayer"),
}
HEAD_BLOCKS = (
    *("Mask2FormerPixelDecoderEncoderLayer", "Mask2FormerMaskedAttentionDecoderLayer"),
    *("MaskFormerDetrDecoderLayer", "DetrDecoderLayer"),
)


class StartsFromBackbone:
    """What every model with a `backbone` has; a base class before PreTrainedModel."""

    @classmethod
    def from_backbone_pretrained(cls, source: str, config: PreTrainedConfig) -> Any:
        """A model with new heads on a pretrained backbone.

        Args:
            source: see `load_backbone_weights`: a folder or Hub id, or a timm name.
            config: the model's configuration.

        Raises:
            FileNotFoundError: a folder without weights.
            ValueError: nothing of the source fits the backbone.
        """
        model: Any = cls(config)  # type: ignore[call-arg]  # the PreTrainedModel behind it takes it
        load_backbone_weights(model.backbone, source)
        return model

    def save_pretrained(self, save_directory: Any, *args: Any, with_code: bool = False, **kwargs: Any) -> None:
        """As transformers has it.

        Args:
            save_directory: the folder.
            with_code: also put the code there that the model needs where this package is missing; see `add_code`.
        """
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if with_code:
            add_code(save_directory)

    def post_init(self) -> None:
        """transformers' steps; and the names of the blocks that FSDP wraps, those that this model has."""
        super().post_init()  # type: ignore[misc]  # as above
        model: Any = self
        config = model.backbone.config
        names = (*BLOCKS.get(config.model_type, model.backbone._no_split_modules or ()), *HEAD_BLOCKS)
        there = {type(module).__name__ for module in model.modules()}
        # accelerate refuses a name that the model has not.
        model._no_split_modules = {name for name in names if name in there}

    def get_input_embeddings(self) -> Any:
        """None: pixels have no table of embeddings. accelerate asks before it shards a model (FSDP2)."""
        return None


def build_backbone(config: PreTrainedConfig) -> Backbone:
    """A backbone with new weights: `.channels` tells the width of each map, its output has `.feature_maps`.

    Stochastic depth (Huang et al. 2016) is the field `drop_path_rate` of every backbone that has it: Swin, Video Swin,
    ConvNeXt, MiT, InternImage, VOLO, and timm's where timm's model has it. In training the branches of a block are
    skipped, for each sample by itself, with a probability that grows linearly from 0 in the first block to this rate
    in the last. ResNet and HRNet have none: nobody trains them with it for segmentation.

    Args:
        config: the backbone's configuration, with `out_features` or `out_indices` set.
    """
    rate = getattr(config, "drop_path_rate", None) if config.model_type == "timm_backbone" else None
    # transformers does not hand it on to timm.
    backbone = AutoBackbone.from_config(config, **({} if rate is None else {"drop_path_rate": rate}))
    finish_swin(backbone)
    return backbone


def finish_swin(backbone: Backbone) -> None:
    """Make of transformers' Swin, MaskFormer's own too, what its authors train; no other backbone changes."""
    of_maskformer = backbone.config.model_type == "maskformer-swin"
    if not of_maskformer and backbone.config.model_type != "swin":
        return
    swin = backbone.model if of_maskformer else backbone.swin
    # Each map has a norm of its own, and the encoder's last one is never used: DistributedDataParallel would wait for
    # its gradient for ever. (Frozen it would thaw again in from_pretrained.)
    swin.layernorm = nn.Identity()
    for stage in swin.encoder.layers:
        for block in stage.blocks:
            rate = getattr(block.drop_path, "drop_prob", 0.0)
            if rate:  # transformers skips the attention only; Swin's authors skip the perceptron with the same rate
                branch = block.output if of_maskformer else block.mlp
                branch.drop_path_rate = rate
                branch.register_forward_hook(skip_for_some)


def skip_for_some(branch: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """A hook: in training, 0 in place of a branch's output for some samples (a function, so that copies keep it)."""
    return drop_path(output, branch.drop_path_rate, branch.training)  # pyright: ignore[reportArgumentType]


def load_backbone_weights(backbone: Backbone, source: str) -> list[str]:
    """Fill `backbone` with pretrained weights, e.g. of an ImageNet classifier.

    Args:
        backbone: what `build_backbone` returned.
        source: a folder or Hub id in transformers format; for a timm backbone, and for ours with timm's layers
            (ResNet, HRNet, VOLO), timm's name (`resnet50c.gluon_in1k`, `hf-hub:user/model`) or a folder of timm's. A
            Video Swin takes a Swin for images, too.

    Returns:
        Names of tensors that keep their new weights, because the source has none or of another shape (the norms of
        Swin's feature maps, for instance).

    Raises:
        FileNotFoundError: a folder without weights.
        ValueError: nothing of the source fits, or its files are damaged or pickled. Tensors of another shape are named
            in a warning.
    """
    config = backbone.config
    folder = Path(source.removeprefix("local-dir:"))  # timm's name for a folder
    if folder.is_dir():
        check_weight_files(folder)
    from_timm = is_timm_source(backbone, source)
    if from_timm or hasattr(backbone, "pretrained_tensors"):
        with loading(source):
            if from_timm:
                pretrained = timm_tensors(backbone, f"local-dir:{folder}" if folder.is_dir() else source)
            else:
                pretrained = backbone.pretrained_tensors(source)
        own = backbone.state_dict()
        fitting = {name: t for name, t in pretrained.items() if name in own and own[name].shape == t.shape}
        backbone.load_state_dict(fitting, strict=False)
        not_found = set(own) - set(fitting)
        other_shape = set(pretrained) & not_found
    else:
        # Not AutoBackbone.from_pretrained: it takes every folder for a Hub id. The copy keeps the source's path out of
        # our configuration.
        with loading(source):
            pretrained, report = type(backbone).from_pretrained(
                source,
                config=copy.deepcopy(config),
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                key_mapping=SOURCE_NAMES.get(config.model_type),
            )
        backbone.load_state_dict(pretrained.state_dict(), strict=False)  # without Swin's last norm
        other_shape = {name for name, *_ in report["mismatched_keys"]}
        not_found = report["missing_keys"] | other_shape
    parameters = {name for name, _ in backbone.named_parameters()}
    if not parameters - not_found:
        raise ValueError(f"backbone weights '{source}': no tensor fits the backbone {config.model_type}")
    if other_shape & parameters:
        warnings.warn(
            f"backbone weights '{source}' have another shape for {shortened(sorted(other_shape & parameters))}: "
            "these tensors start from random numbers",
            stacklevel=2,
        )
    return sorted(not_found)


def is_timm_source(backbone: Backbone, source: str) -> bool:
    """Whether `source` names timm's weights and `backbone` can take them."""
    if backbone.config.model_type == "timm_backbone":
        return True
    if not hasattr(backbone, "timm_prefix"):
        return False
    if Path(source).is_dir():
        return "architecture" in read_json(Path(source) / "config.json")
    return source.startswith(("hf-hub:", "local-dir:")) or "/" not in source


def timm_tensors(backbone: Backbone, source: str) -> dict[str, torch.Tensor]:
    """The tensors of a pretrained timm model under the names of `backbone`."""
    import timm

    config = backbone.config
    if config.model_type != "timm_backbone":
        tensors = timm.create_model(source, pretrained=True).state_dict()
        tensors = {f"{backbone.timm_prefix}{name}": tensor for name, tensor in tensors.items()}
        return backbone.fit_pretrained(tensors) if hasattr(backbone, "fit_pretrained") else tensors
    features = timm.create_model(
        source, pretrained=True, features_only=True, out_indices=config.out_indices, output_stride=config.output_stride
    )
    return {f"_backbone.{name}": tensor for name, tensor in features.state_dict().items()}
