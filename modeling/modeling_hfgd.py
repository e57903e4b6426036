r"""HFGD: the backbone's high-level features guide an upsampler, which the backbone does not learn from.

    image -> backbone -> last map --> extra encoding --> high-level features --> classifier ----> guidance logits
                     \                     |                     | [stop]            | [stop]       (loss)
                      \                CAR's features            v                   v
                       `--> earlier maps ----- [stop] ------> upsampler --> axial  classifier --> logits (loss)
                                                                        attention

At [stop] values pass and gradients do not: the class tokens, i.e. the classifier's weights, and everything before the
upsampler learn from the high-level features' loss alone (section 3.1).

Paper: see configuration_hfgd.py.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .attention import AxialAttention, Projection, SelfAttention
from .car import car_loss
from .configuration_hfgd import HFGDConfig, check_strides
from .feature_alignment import DeformableConv, PlainConv
from .high_level_encodings import build_encoding
from .layers import PixelClassifier
from .losses import share_of_step
from .modeling_segmenter import SegmenterModel
from .upsamplers import build_upsampler


class StopGradient(torch.autograd.Function):
    """Values pass, and the gradient is zero.

    After `detach` parameters that nothing but an earlier map leads to, such as the norms that Swin and ConvNeXt have
    for each of their maps, would have no gradient at all: DistributedDataParallel waits for one, unless it is told to
    look for such parameters first, which the Trainer does not do under activation checkpointing.
    """

    @staticmethod
    def forward(ctx: Any, feature_map: torch.Tensor) -> torch.Tensor:
        return feature_map.view_as(feature_map)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        return torch.zeros_like(gradient)


class HFGDHead(nn.Module):
    """Extra encoding, upsampler, axial attention, and the classifier of both branches.

    Args:
        config: the model's configuration.
        channels: channels of the backbone's maps.
    """

    def __init__(self, config: HFGDConfig, channels: list[int]):
        super().__init__()
        self.guidance, self.stop_gradient = config.guidance, config.stop_gradient
        self.encoding = build_encoding(config, channels[-1])
        self.upsampler = build_upsampler(config, channels)
        self.attention = None
        if config.axial_attention:
            self.attention = AxialAttention(config.channels, config.key_channels, config.axial_heads)
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        assert config.num_labels is not None  # id2label has a default
        self.classifier = PixelClassifier(config.high_level_channels, config.num_labels, config.cosine_scale)

    def forward(self, feature_maps: list[torch.Tensor], with_auxiliary_logits: bool) -> Any:
        """What `SegmenterModel.decode` returns."""
        high_level, regularised, coarse_logits = self.encoding(feature_maps[-1])  # (B, channels, h/32, w/32), ...
        features = high_level if self.upsampler is None else self.upsample(feature_maps[:-1], high_level)
        logits = self.classifier(self.dropout(features), stop_gradient=self.stop_gradient)  # (B, K, h/4, w/4)

        auxiliary_logits = []
        if with_auxiliary_logits and self.guidance:
            auxiliary_logits.append(self.classifier(self.dropout(high_level)))  # (B, K, h/32, w/32)
        if with_auxiliary_logits and coarse_logits is not None:
            auxiliary_logits.append(coarse_logits)
        return logits, tuple(auxiliary_logits), regularised

    def upsample(self, earlier_maps: list[torch.Tensor], high_level: torch.Tensor) -> torch.Tensor:
        """The upsampler's features (B, channels, h/4, w/4)."""
        if self.stop_gradient:
            earlier_maps, high_level = [StopGradient.apply(m) for m in earlier_maps], high_level.detach()
        assert self.upsampler is not None  # as `forward` knows
        features = self.upsampler(earlier_maps, high_level)
        return features if self.attention is None else self.attention(features)


class HFGDForSemanticSegmentation(SegmenterModel):
    """HFGD with its losses; `logits` have stride `config.output_stride`, without an upsampler the last map's.

    Args:
        config: the model's configuration.
    """

    config: HFGDConfig
    config_class = HFGDConfig

    def __init__(self, config: HFGDConfig):
        super().__init__(config)
        if self.backbone.config.model_type == "timm_backbone":  # its configuration does not tell
            check_strides(config, self.backbone._backbone.feature_info.reduction())
        self.decode_head = HFGDHead(config, self.backbone.channels)
        self.post_init()

    def decode(self, feature_maps: list[torch.Tensor], with_auxiliary_logits: bool) -> Any:
        return self.decode_head(feature_maps, with_auxiliary_logits)

    def regularisation_loss(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """CAR's losses of the encoding's features, by this micro-batch's share of the step's labelled pixels."""
        config = self.config
        assert config.num_labels is not None  # id2label has a default
        loss = car_loss(
            features,
            labels,
            num_labels=config.num_labels,
            faithful=config.car_faithful,
            ignore_index=config.ignore_index,
            align_corners=config.align_corners,
        )
        num_labelled = (labels.long() != config.ignore_index).sum()
        return config.car_loss_weight * share_of_step(loss, num_labelled, num_items_in_batch)

    def initialize_weights(self):
        """Keys start from the queries' weights. `_init_weights` never sees a module without tensors of its own."""
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, (SelfAttention, AxialAttention)):
                init.copy_(module.key.weight, module.query.weight)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Convolutions that no norm follows as in the authors' library (Glorot and Bengio 2010)."""
        if isinstance(module, (Projection, PlainConv, DeformableConv)):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
            if isinstance(module, DeformableConv):  # no place has moved yet
                init.zeros_(module.offset.weight)
                assert module.offset.bias is not None
                init.zeros_(module.offset.bias)
        else:
            super()._init_weights(module)


__all__ = ["HFGDForSemanticSegmentation"]
