"""One door to the backbones of transformers and timm."""

import copy
from typing import Any

from torch import nn
from transformers import AutoBackbone, PreTrainedConfig


Backbone = Any  # a PreTrainedModel that is a BackboneMixin too: Python has no type for both


def build_backbone(config: PreTrainedConfig) -> Backbone:
    """A backbone with new weights: `.channels` tells the width of each map, its output has `.feature_maps`.

    Args:
        config: the backbone's configuration, with `out_features` or `out_indices` set.
    """
    backbone = AutoBackbone.from_config(config)
    if hasattr(backbone, "swin"):
        # SwinBackbone normalises each map by itself and never uses the encoder's last norm: DistributedDataParallel
        # would wait for its gradient for ever. (Frozen it would thaw again in from_pretrained.)
        backbone.swin.layernorm = nn.Identity()
    return backbone


def load_backbone_weights(backbone: Backbone, source: str) -> list[str]:
    """Fill `backbone` with pretrained weights, e.g. of an ImageNet classifier.

    Args:
        backbone: what `build_backbone` returned.
        source: a folder or Hub id in transformers format; for a timm backbone the timm name (`resnet18d.ra4_in1k`).

    Returns:
        Names of tensors that keep their new weights, because the source has none or of another shape (the norms of
        Swin's feature maps, for instance).

    Raises:
        ValueError: when nothing of the source fits.
    """
    config = backbone.config
    if config.model_type == "timm_backbone":
        import timm

        features = timm.create_model(
            source,
            pretrained=True,
            features_only=True,
            out_indices=config.out_indices,
            output_stride=config.output_stride,
        )
        pretrained = {f"_backbone.{name}": tensor for name, tensor in features.state_dict().items()}
        own = backbone.state_dict()
        fitting = {name: t for name, t in pretrained.items() if name in own and own[name].shape == t.shape}
        backbone.load_state_dict(fitting, strict=False)
        not_found = set(own) - set(fitting)
    else:
        # Not AutoBackbone.from_pretrained: it takes every folder for a Hub id. The copy keeps the source's path out of
        # our configuration.
        pretrained, report = type(backbone).from_pretrained(
            source, config=copy.deepcopy(config), output_loading_info=True, ignore_mismatched_sizes=True
        )
        backbone.load_state_dict(pretrained.state_dict(), strict=False)  # without Swin's last norm
        not_found = report["missing_keys"] | {name for name, *_ in report["mismatched_keys"]}
    if not {name for name, _ in backbone.named_parameters()} - not_found:
        raise ValueError(f"backbone weights '{source}': no tensor fits the backbone {config.model_type}")
    return sorted(not_found)
