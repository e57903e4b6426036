"""What the models with an auxiliary FCN head share."""

import torch
from torch import nn

from .configuration_auxiliary import AuxiliarySegmenterConfig
from .layers import FCNHead
from .modeling_segmenter import SegmenterModel


class AuxiliarySegmenterModel(SegmenterModel):
    """A decode head that reads the backbone's maps, and an FCN head on one of them for an auxiliary loss.

    An architecture sets `decode_head`, a module that takes the list of maps and returns logits.

    Args:
        config: the model's configuration.
    """

    config: AuxiliarySegmenterConfig
    config_class = AuxiliarySegmenterConfig
    decode_head: nn.Module

    def __init__(self, config: AuxiliarySegmenterConfig):
        super().__init__(config)
        self.auxiliary_head = None
        if config.use_auxiliary_head:
            assert config.num_labels is not None  # id2label has a default
            self.auxiliary_head = FCNHead(
                self.backbone.channels[config.auxiliary_in_index],
                config.auxiliary_channels,
                config.num_labels,
                num_convs=config.auxiliary_num_convs,
                concat_input=config.auxiliary_concat_input,
                dropout=config.classifier_dropout,
            )

    def decode(
        self, feature_maps: list[torch.Tensor], with_auxiliary_logits: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        logits = self.decode_head(feature_maps)  # (B, K, h, w)
        if self.auxiliary_head is None or not with_auxiliary_logits:
            return logits, ()
        return logits, (self.auxiliary_head(feature_maps[self.config.auxiliary_in_index]),)


__all__ = ["AuxiliarySegmenterModel"]
