"""BiSeNet: detail from a shallow path, context from a backbone. Paper: see configuration_bisenet.py.

Where the paper and mmsegmentation differ (nearest upsampling between the stages of the context path, norms inside the
attentions), this is mmsegmentation's network, whose checkpoints it loads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_bisenet import BiSeNetConfig
from .layers import BatchNorm2d, ConvNormAct, FCNHead
from .modeling_segmenter import SegmenterModel


class SpatialPath(nn.Sequential):
    """Three convolutions with stride 2, and maybe one that mixes channels: an image becomes a map of stride 8.

    Args:
        channels: widths of the three or four convolutions.
        in_channels: channels of the image.
    """

    def __init__(self, channels: Sequence[int] = (64, 64, 64, 128), in_channels: int = 3):
        first, second, third, *mixing = channels
        super().__init__(
            ConvNormAct(in_channels, first, 7, stride=2),
            ConvNormAct(first, second, 3, stride=2),
            ConvNormAct(second, third, 3, stride=2),
            *(ConvNormAct(third, width) for width in mixing),
        )


class AttentionRefinement(nn.Module):
    """ARM: a convolution whose channels are weighted by what the whole map holds.

    Args:
        in_channels: channels read.
        out_channels: channels written.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = ConvNormAct(in_channels, out_channels, 3)
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
            BatchNorm2d(out_channels),
            nn.Sigmoid(),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        refined = self.conv(features)  # (B, out_channels, h, w)
        return refined * self.attention(refined)


class ContextPath(nn.Module):
    """The deep maps of a backbone, from the average of the whole image up to the size of the spatial path's map.

    Args:
        in_channels: channels of the two maps, the finer one first (strides 16 and 32).
        channels: channels written.
    """

    def __init__(self, in_channels: tuple[int, int], channels: int):
        super().__init__()
        fine, coarse = in_channels
        self.average = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(coarse, channels))
        self.refine_coarse = AttentionRefinement(coarse, channels)
        self.refine_fine = AttentionRefinement(fine, channels)
        self.conv_coarse = ConvNormAct(channels, channels, 3)
        self.conv_fine = ConvNormAct(channels, channels, 3)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor, size: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
        """Join the maps.

        Args:
            fine: (batch, in_channels[0], h, w).
            coarse: (batch, in_channels[1], h', w').
            size: (height, width) to return, of stride 8.

        Returns:
            Two maps with `channels`: one of `size`, and one of the size of `fine`, for an auxiliary head.
        """
        context = self.refine_coarse(coarse) + self.average(coarse)  # (B, channels, h', w')
        coarse_context = self.conv_coarse(F.interpolate(context, size=fine.shape[-2:], mode="nearest"))
        context = self.refine_fine(fine) + coarse_context  # (B, channels, h, w)
        return self.conv_fine(F.interpolate(context, size=size, mode="nearest")), coarse_context


class FeatureFusion(nn.Module):
    """FFM: joins the maps of both paths and adds to them what an attention over the channels chooses.

    Args:
        in_channels: channels of both maps together.
        out_channels: channels written.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.merge = ConvNormAct(in_channels, out_channels)
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(out_channels, out_channels), nn.Sigmoid())

    def forward(self, spatial: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        merged = self.merge(torch.cat([spatial, context], dim=1))  # (B, out_channels, h, w)
        return merged + merged * self.attention(merged)


class BiSeNetForSemanticSegmentation(SegmenterModel):
    """BiSeNet with its loss; `logits` have stride 8.

    Args:
        config: the model's configuration.
    """

    config: BiSeNetConfig
    config_class = BiSeNetConfig

    def __init__(self, config: BiSeNetConfig):
        super().__init__(config)
        assert config.num_labels is not None  # id2label has a default
        fine, coarse = (self.backbone.channels[index] for index in config.in_indices)
        width, dropout = config.context_channels, config.classifier_dropout
        self.spatial_path = SpatialPath(config.spatial_channels)
        self.context_path = ContextPath((fine, coarse), width)
        self.fusion = FeatureFusion(config.spatial_channels[-1] + width, config.fusion_channels)
        self.decode_head = FCNHead(
            config.fusion_channels,
            config.channels,
            config.num_labels,
            dropout=dropout,
            cosine_scale=config.cosine_scale,
        )
        self.auxiliary_heads = nn.ModuleList(
            FCNHead(width, config.auxiliary_channels, config.num_labels, dropout=dropout)
            for _ in range(2 if config.use_auxiliary_heads else 0)
        )
        self.post_init()

    def encode(self, pixel_values: torch.Tensor, **wanted: bool) -> Any:
        """The backbone's maps, and before them the spatial path's."""
        outputs = super().encode(pixel_values, **wanted)
        outputs.feature_maps = (self.spatial_path(pixel_values), *outputs.feature_maps)
        return outputs

    def decode(
        self, feature_maps: list[torch.Tensor], with_auxiliary_logits: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        fused, contexts = self.fuse(feature_maps)
        logits = self.decode_head(fused)  # (B, K, h, w)
        return logits, self.decode_auxiliary(contexts) if with_auxiliary_logits else ()

    def fuse(self, feature_maps: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """The joined map (B, fusion_channels, h, w), and the context path's two maps, of strides 8 and 16."""
        spatial, *deep = feature_maps
        fine, coarse = (deep[index] for index in self.config.in_indices)
        contexts = self.context_path(fine, coarse, spatial.shape[-2:])
        return self.fusion(spatial, contexts[0]), contexts

    def decode_auxiliary(self, contexts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The auxiliary heads' logits, if there are any, from the context path's two maps."""
        return tuple(head(context) for head, context in zip(self.auxiliary_heads, contexts, strict=False))


__all__ = ["BiSeNetForSemanticSegmentation"]
