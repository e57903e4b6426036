"""TBN-ViT: BiSeNet whose classifier reads the mean of earlier frames' maps, too. Paper: see configuration_tbn_vit.py.

Its tensors have BiSeNet's names and one more, which starts from zeros: a BiSeNet continued as a TBN gives the same
logits until it has learnt to use the other frames.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .configuration_tbn_vit import TBNViTConfig
from .layers import FCNHead
from .modeling_bisenet import BiSeNetForSemanticSegmentation
from .modeling_clip import ClipSegmenterModel, FrameFeatures


class ContextConv(nn.Conv2d):
    """The 3x3 convolution of the other frames' mean; a class of its own, because its weight starts from zeros."""


class TemporalContextHead(FCNHead):
    """An FCN head on two maps, a frame's own and the mean of earlier ones.

    The paper concatenates them. A convolution of a concatenation is the sum of two convolutions, so the one of the
    frame's own map can keep the name and the shape that it has without time.

    Args:
        in_channels: channels of each of the maps.
        channels: width.
        num_labels: classes.
        dropout: probability of dropping whole channels before the classifier.
        cosine_scale: of the classifier, see `PixelClassifier`.
    """

    convs: Any  # a Sequential of triples, more than its annotation tells

    def __init__(
        self, in_channels: int, channels: int, num_labels: int, dropout: float, cosine_scale: float | None = None
    ):
        super().__init__(in_channels, channels, num_labels, dropout=dropout, cosine_scale=cosine_scale)
        self.context_conv = ContextConv(in_channels, channels, 3, padding=1, bias=False)

    def forward(self, features: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        conv, norm, activation = self.convs[0]
        output = activation(norm(conv(features) + self.context_conv(context)))  # (B, channels, h, w)
        return self.classifier(self.dropout(output))  # (B, num_labels, h, w)


class TBNViTForVideoSemanticSegmentation(ClipSegmenterModel, BiSeNetForSemanticSegmentation):
    """TBN-ViT with its loss; `logits` have stride 8.

    Args:
        config: the model's configuration.
    """

    config: TBNViTConfig
    config_class = TBNViTConfig

    def __init__(self, config: TBNViTConfig):
        super().__init__(config)
        if config.frame_offsets:
            assert config.num_labels is not None  # id2label has a default
            self.decode_head = TemporalContextHead(
                config.fusion_channels,
                config.channels,
                config.num_labels,
                config.classifier_dropout,
                config.cosine_scale,
            )
        self.post_init()

    def describe(self, feature_maps: list[torch.Tensor]) -> FrameFeatures:
        fused, contexts = self.fuse(feature_maps)
        return FrameFeatures((fused,), (fused,), contexts if self.auxiliary_heads else ())

    def decode_auxiliary(self, auxiliary: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return BiSeNetForSemanticSegmentation.decode_auxiliary(self, auxiliary)

    def decode_clip(self, current: tuple[torch.Tensor, ...], memory: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
        (fused,) = current
        if not self.config.frame_offsets:
            return self.decode_head(fused)
        others = [other for (other,) in memory[:-1]] or [fused]
        # Summed one by one: the maps are large, and stacking them would copy all.
        context = sum(others[1:], start=others[0]) / len(others)
        return self.decode_head(fused, context)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, ContextConv):
            init.zeros_(module.weight)
        else:
            super()._init_weights(module)


__all__ = ["TBNViTForVideoSemanticSegmentation"]
