"""DeepLabV3: dilated convolutions of several reaches, and the mean. Paper: see configuration_deeplabv3.py."""

import torch
from torch import nn

from .configuration_deeplabv3 import DeepLabV3Config
from .layers import ConvNormAct, PixelClassifier
from .modeling_auxiliary import AuxiliarySegmenterModel


class ASPPHead(nn.Module):
    """Atrous spatial pyramid pooling and a classifier.

    Args:
        config: the model's configuration.
        channels: channels of the backbone's maps.
    """

    def __init__(self, config: DeepLabV3Config, channels: list[int]):
        super().__init__()
        self.in_index = config.in_index
        in_channels, width = channels[config.in_index], config.channels
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(in_channels, width))
        self.branches = nn.ModuleList(
            ConvNormAct(in_channels, width, 1 if dilation == 1 else 3, dilation) for dilation in config.dilations
        )
        self.merge = ConvNormAct((1 + len(config.dilations)) * width, width, 3)
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        assert config.num_labels is not None  # id2label has a default
        self.classifier = PixelClassifier(width, config.num_labels, config.cosine_scale)

    def forward(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        features = feature_maps[self.in_index]
        branches = [branch(features) for branch in self.branches]
        mean = self.image_pool(features).expand_as(branches[0])  # what resizing a 1x1 map gives
        merged = self.merge(torch.cat([mean, *branches], dim=1))  # (B, channels, h, w)
        return self.classifier(self.dropout(merged))  # (B, K, h, w)


class DeepLabV3ForSemanticSegmentation(AuxiliarySegmenterModel):
    """DeepLabV3 with its loss; `logits` have the stride of the map `in_index`.

    Args:
        config: the model's configuration.
    """

    config: DeepLabV3Config
    config_class = DeepLabV3Config

    def __init__(self, config: DeepLabV3Config):
        super().__init__(config)
        self.decode_head = ASPPHead(config, self.backbone.channels)
        self.post_init()


__all__ = ["DeepLabV3ForSemanticSegmentation"]
