"""PSPNet: averages over grids of several sizes beside the map itself. Paper: see configuration_pspnet.py."""

from typing import Any

import torch
from torch import nn

from .configuration_pspnet import PSPNetConfig
from .layers import ConvNormAct, PixelClassifier, resize_concat
from .modeling_auxiliary import AuxiliarySegmenterModel


class PSPHead(nn.Module):
    """Pyramid pooling and a classifier.

    Args:
        config: the model's configuration.
        channels: channels of the backbone's maps.
    """

    pools: Any  # a ModuleList of pairs, more than its annotation tells

    def __init__(self, config: PSPNetConfig, channels: list[int]):
        super().__init__()
        self.in_index = config.in_index
        self.align_corners = config.align_corners
        in_channels, width = channels[config.in_index], config.channels
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormAct(in_channels, width)) for scale in config.pool_scales
        )
        self.merge = ConvNormAct(in_channels + len(config.pool_scales) * width, width, 3)
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        assert config.num_labels is not None  # id2label has a default
        self.classifier = PixelClassifier(width, config.num_labels, config.cosine_scale)

    def forward(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        features = feature_maps[self.in_index]
        return self.join(features, self.pool(features))

    def pool(self, features: torch.Tensor) -> list[torch.Tensor]:
        """The averages over the grids, each (B, in_channels, scale, scale)."""
        return [average(features) for average, _ in self.pools]

    def join(self, features: torch.Tensor, pooled: list[torch.Tensor]) -> torch.Tensor:
        """Logits (B, K, h, w) from the map (B, in_channels, h, w) and averages over the grids."""
        context = [conv(average) for (_, conv), average in zip(self.pools, pooled, strict=True)]
        merged = self.merge(resize_concat([features, *context], self.align_corners))  # (B, channels, h, w)
        return self.classifier(self.dropout(merged))


class PSPNetForSemanticSegmentation(AuxiliarySegmenterModel):
    """PSPNet with its loss; `logits` have the stride of the map `in_index`.

    Args:
        config: the model's configuration.
    """

    config: PSPNetConfig
    config_class = PSPNetConfig
    decode_head: PSPHead

    def __init__(self, config: PSPNetConfig):
        super().__init__(config)
        self.decode_head = PSPHead(config, self.backbone.channels)
        self.post_init()


__all__ = ["PSPNetForSemanticSegmentation"]
