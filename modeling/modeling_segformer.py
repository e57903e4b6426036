"""SegFormer in mmsegmentation's form on transformers' Mix Transformer. Paper: see configuration_segformer.py."""

import torch
from torch import nn
from transformers import SegformerModel, SegformerPreTrainedModel

from .configuration_segformer import MiTConfig, SegFormerConfig
from .feature_maps import FeatureMaps
from .layers import ConvNormAct, PixelClassifier, resize_concat
from .modeling_segmenter import SegmenterModel


class MiTBackbone(FeatureMaps, SegformerPreTrainedModel):
    """The Mix Transformer: maps of strides 4, 8, 16 and 32, each divided with rounding up.

    Args:
        config: the backbone's configuration.
    """

    config: MiTConfig
    config_class = MiTConfig

    def __init__(self, config: MiTConfig):
        super().__init__(config)
        self.num_features = list(config.hidden_sizes)
        self.encoder = SegformerModel(config)
        for module in self.encoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.layer_norm_eps  # transformers leaves them at 1e-5
        self.post_init()

    def compute_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        maps = [pixel_values]
        for stage in self.encoder.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


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
        self.classifier = PixelClassifier(config.channels, config.num_labels, config.cosine_scale)

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

    def decode(
        self, feature_maps: list[torch.Tensor], with_auxiliary_logits: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return self.decode_head(feature_maps), ()


__all__ = ["MiTBackbone", "SegFormerForSemanticSegmentation"]
