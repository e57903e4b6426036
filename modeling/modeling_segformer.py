"""SegFormer in mmsegmentation's form on transformers' Mix Transformer. Paper: see configuration_segformer.py."""

from typing import Any

import torch
from torch import nn
from transformers import SegformerModel, SegformerPreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from .configuration_segformer import MiTConfig, SegFormerConfig
from .layers import ConvNormAct, resize_concat
from .modeling_segmenter import SegmenterModel


class MiTBackbone(BackboneMixin, SegformerPreTrainedModel):
    """The Mix Transformer: maps of strides 4, 8, 16 and 32, each divided with rounding up.

    Args:
        config: the backbone's configuration.
    """

    config: MiTConfig
    config_class = MiTConfig
    has_attentions = False

    def __init__(self, config: MiTConfig):
        super().__init__(config)
        self.num_features = list(config.hidden_sizes)
        self.encoder = SegformerModel(config)
        for module in self.encoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.layer_norm_eps  # transformers leaves them at 1e-5
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        r"""Compute feature maps.

        Args:
            pixel_values: float (batch, 3, height, width), normalised; any height and width from 32 up.
            output_hidden_states: also return the maps of all stages, whatever `out_features` says.
            output_attentions: accepted and ignored.
            return_dict: `False` for a plain tuple.

        Returns:
            BackboneOutput: with `feature_maps` (batch, channels, h, w), in the order of `out_features`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        maps = [pixel_values]
        for stage in self.encoder.stages:
            maps.append(stage(maps[-1]))
        maps = maps[1:]
        output = BackboneOutput(
            feature_maps=tuple(m for name, m in zip(self.stage_names, maps, strict=True) if name in self.out_features),
            hidden_states=tuple(maps) if output_hidden_states else None,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class SegFormerHead(nn.Module):
    """One 1x1 convolution for each map, one for all of them together, and a classifier.

    Args:
        config: the model's configuration.
        channels: channels of the backbone's maps.
    """

    def __init__(self, config: SegFormerConfig, channels: list[int]):
        super().__init__()
        self.in_indices = config.in_indices
        self.align_corners = config.align_corners
        self.convs = nn.ModuleList(ConvNormAct(channels[index], config.channels) for index in config.in_indices)
        self.merge = ConvNormAct(len(config.in_indices) * config.channels, config.channels)
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        assert config.num_labels is not None  # id2label has a default
        self.classifier = nn.Conv2d(config.channels, config.num_labels, 1)

    def forward(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        maps = [conv(feature_maps[index]) for conv, index in zip(self.convs, self.in_indices, strict=True)]
        merged = self.merge(resize_concat(maps, self.align_corners))  # (B, channels, h, w)
        return self.classifier(self.dropout(merged))  # (B, K, h, w)


class SegFormerForSemanticSegmentation(SegmenterModel):
    """SegFormer with its loss; `logits` have the stride of the first map of `in_indices`.

    Args:
        config: the model's configuration.
    """

    config: SegFormerConfig
    config_class = SegFormerConfig

    def __init__(self, config: SegFormerConfig):
        super().__init__(config)
        self.decode_head = SegFormerHead(config, self.backbone.channels)
        self.post_init()

    def decode(self, feature_maps: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return self.decode_head(feature_maps), ()


__all__ = ["MiTBackbone", "SegFormerForSemanticSegmentation"]
