"""FCN: convolutions and a classifier on any backbone. Paper: see configuration_fcn.py."""

import torch

from .configuration_fcn import FCNConfig
from .layers import FCNHead, resize_concat
from .modeling_auxiliary import AuxiliarySegmenterModel


class FCNDecodeHead(FCNHead):
    """An FCN head on one map, or on several that are resized and concatenated.

    Args:
        config: the model's configuration.
        channels: channels of the backbone's maps.
    """

    def __init__(self, config: FCNConfig, channels: list[int]):
        assert config.num_labels is not None  # id2label has a default
        super().__init__(
            sum(channels[i] for i in config.in_indices),
            config.channels,
            config.num_labels,
            num_convs=config.num_convs,
            kernel_size=config.kernel_size,
            concat_input=config.concat_input,
            dropout=config.classifier_dropout,
            cosine_scale=config.cosine_scale,
        )
        self.in_indices = config.in_indices
        self.align_corners = config.align_corners

    def forward(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        return super().forward(resize_concat([feature_maps[i] for i in self.in_indices], self.align_corners))


class FCNForSemanticSegmentation(AuxiliarySegmenterModel):
    """FCN with its loss; `logits` have the stride of the first map of `in_indices`.

    Args:
        config: the model's configuration.
    """

    config: FCNConfig
    config_class = FCNConfig

    def __init__(self, config: FCNConfig):
        super().__init__(config)
        self.decode_head = FCNDecodeHead(config, self.backbone.channels)
        self.post_init()


__all__ = ["FCNForSemanticSegmentation"]
