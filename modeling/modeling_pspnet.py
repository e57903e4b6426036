"""PSPNet: averages over grids of several sizes beside the map itself. Paper: see configuration_pspnet.py."""

import torch
from torch import nn

from .configuration_pspnet import PSPNetConfig
from .layers import ConvNormAct, resize_concat
from .modeling_auxiliary import AuxiliarySegmenterModel


class PSPHead(nn.Module):
    """Pyramid pooling and a classifier.

    Args:
        config: the model's configuration.
        channels: channels of the backbone's maps.
    """

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
        self.classifier = nn.Conv2d(width, config.num_labels, 1)

    def forward(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        features = feature_maps[self.in_index]
        pooled = [pool(features) for pool in self.pools]  # each (B, channels, scale, scale)
        merged = self.merge(resize_concat([features, *pooled], self.align_corners))  # (B, channels, h, w)
        return self.classifier(self.dropout(merged))  # (B, K, h, w)


class PSPNetForSemanticSegmentation(AuxiliarySegmenterModel):
    """PSPNet with its loss; `logits` have the stride of the map `in_index`.

    Args:
        config: the model's configuration.
    """

    config: PSPNetConfig
    config_class = PSPNetConfig

    def __init__(self, config: PSPNetConfig):
        super().__init__(config)
        self.decode_head = PSPHead(config, self.backbone.channels)
        self.post_init()


__all__ = ["PSPNetForSemanticSegmentation"]
