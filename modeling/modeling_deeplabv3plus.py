r"""DeepLabV3+: separable ASPP, upsampled and refined with an early map.

    map in_index ---> branches, image mean --> merge --(upsample)--> concat --> refine --> logits (stride of the early)
    map low_level_in_index ----------------> 1x1 conv -----------------^

Paper: see configuration_deeplabv3plus.py.
"""

import torch
from torch import nn

from .configuration_deeplabv3plus import DeepLabV3PlusConfig
from .layers import ConvNormAct, PixelClassifier, SeparableConvNormAct, resize
from .modeling_auxiliary import AuxiliarySegmenterModel


class SeparableASPPHead(nn.Module):
    """Separable atrous spatial pyramid pooling, a decoder and a classifier.

    Args:
        config: the model's configuration.
        channels: channels of the backbone's maps.
    """

    def __init__(self, config: DeepLabV3PlusConfig, channels: list[int]):
        super().__init__()
        self.in_index, self.low_level_in_index = config.in_index, config.low_level_in_index
        self.align_corners = config.align_corners
        in_channels, width = channels[config.in_index], config.channels
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(in_channels, width))
        self.branches = nn.ModuleList(
            ConvNormAct(in_channels, width) if dilation == 1 else SeparableConvNormAct(in_channels, width, dilation)
            for dilation in config.dilations
        )
        self.merge = ConvNormAct((1 + len(config.dilations)) * width, width, 3)
        self.low_level = ConvNormAct(channels[config.low_level_in_index], config.low_level_channels)
        self.refine = nn.Sequential(
            SeparableConvNormAct(width + config.low_level_channels, width), SeparableConvNormAct(width, width)
        )
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        assert config.num_labels is not None  # id2label has a default
        self.classifier = PixelClassifier(width, config.num_labels, config.cosine_scale)

    def forward(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        features = feature_maps[self.in_index]
        branches = [branch(features) for branch in self.branches]
        mean = self.image_pool(features).expand_as(branches[0])  # what resizing a 1x1 map gives
        merged = self.merge(torch.cat([mean, *branches], dim=1))  # (B, channels, h, w)
        early = self.low_level(feature_maps[self.low_level_in_index])  # (B, low_level_channels, h0, w0)
        merged = resize(merged, early.shape[-2:], self.align_corners)
        return self.classifier(self.dropout(self.refine(torch.cat([merged, early], dim=1))))  # (B, K, h0, w0)


class DeepLabV3PlusForSemanticSegmentation(AuxiliarySegmenterModel):
    """DeepLabV3+ with its loss; `logits` have the stride of the map `low_level_in_index`.

    Args:
        config: the model's configuration.
    """

    config: DeepLabV3PlusConfig
    config_class = DeepLabV3PlusConfig

    def __init__(self, config: DeepLabV3PlusConfig):
        super().__init__(config)
        self.decode_head = SeparableASPPHead(config, self.backbone.channels)
        self.post_init()


__all__ = ["DeepLabV3PlusForSemanticSegmentation"]
