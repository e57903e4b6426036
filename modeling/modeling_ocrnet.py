r"""OCRNet: an FCN coarse head and object-contextual representations (OCR) on any backbone.

    image -> backbone -> maps ----> resize_concat --> coarse head ----> coarse logits (auxiliary loss)
                              \                                            | softmax over positions
                               `--> resize_concat --> 3x3 conv --> pixels  v
                                                          |        regions: one vector per class
                                                          `--> attention(pixels, regions) --> classifier --> logits

Papers: see configuration_ocrnet.py. The layers reproduce mmsegmentation's FCNHead and OCRHead with `scale` 1 (its
other scales discard the context). Letters: B batch, K num_labels, C channels, h and w the head's map.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils.generic import maybe_autocast

from .configuration_ocrnet import OCRNetConfig
from .layers import ConvNormAct, FCNHead, PixelClassifier, resize_concat
from .modeling_segmenter import SegmenterModel
from .necks import UNetNeck


class ObjectAttention(nn.Module):
    """Every pixel attends to the K region vectors; the result is merged with the pixel's own representation.

    Args:
        channels: width C of pixels and regions.
        ocr_channels: width of queries, keys and values.
        out_channels: width of the result. `None`: C.
    """

    def __init__(self, channels: int, ocr_channels: int, out_channels: int | None = None):
        super().__init__()
        self.query = nn.Sequential(ConvNormAct(channels, ocr_channels), ConvNormAct(ocr_channels, ocr_channels))
        self.key = nn.Sequential(ConvNormAct(channels, ocr_channels), ConvNormAct(ocr_channels, ocr_channels))
        self.value = ConvNormAct(channels, ocr_channels)
        self.out = ConvNormAct(ocr_channels, channels)
        self.merge = ConvNormAct(2 * channels, out_channels or channels)

    def forward(self, pixels: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        query = self.query(pixels).flatten(2).transpose(1, 2)  # (B, h*w, ocr)
        key = self.key(regions).flatten(2).transpose(1, 2)  # (B, K, ocr)
        value = self.value(regions).flatten(2).transpose(1, 2)  # (B, K, ocr)
        context = F.scaled_dot_product_attention(query, key, value)  # softmax over the K regions
        context = context.transpose(1, 2).unflatten(2, pixels.shape[-2:])  # (B, ocr, h, w)
        return self.merge(torch.cat([self.out(context), pixels], dim=1))  # (B, out_channels, h, w)


class OCRHead(nn.Module):
    """Object-contextual representations.

    Args:
        config: the model's configuration.
        in_channels: channels of the map that it reads.
    """

    def __init__(self, config: OCRNetConfig, in_channels: int):
        super().__init__()
        self.pixel_conv = ConvNormAct(in_channels, config.channels, 3)
        self.attention = ObjectAttention(config.channels, config.ocr_channels)
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        assert config.num_labels is not None  # id2label has a default
        self.classifier = PixelClassifier(config.channels, config.num_labels, config.cosine_scale)

    def forward(self, features: torch.Tensor, coarse_logits: torch.Tensor) -> torch.Tensor:
        pixels = self.pixel_conv(features)  # (B, C, h, w)
        return self.classify(pixels, gather_regions(pixels, coarse_logits))

    def classify(self, pixels: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, h, w) from pixels (B, C, h, w) and region vectors (B, C, K, 1)."""
        return self.classifier(self.dropout(self.attention(pixels, regions)))


def gather_regions(pixels: torch.Tensor, coarse_logits: torch.Tensor) -> torch.Tensor:
    """Average the pixels (B, C, h, w) of each soft region: (B, C, K, 1). The softmax runs over positions, in fp32."""
    if pixels.shape[-2:] != coarse_logits.shape[-2:]:
        raise ValueError(
            f"the coarse head's map is {tuple(coarse_logits.shape[-2:])}, the OCR head's {tuple(pixels.shape[-2:])}: "
            "choose coarse_in_indices whose first map has the stride of the first map of in_indices"
        )
    # Thousands of terms, so never in half precision.
    weights = coarse_logits.flatten(2).float().softmax(dim=2)  # (B, K, h*w)
    with maybe_autocast(pixels.device.type, enabled=False):  # unlike torch.autocast also on the meta device
        regions = weights @ pixels.flatten(2).transpose(1, 2).float()  # (B, K, C)
    return regions.to(pixels.dtype).transpose(1, 2).unsqueeze(3)


class OCRNetForSemanticSegmentation(SegmenterModel):
    """OCRNet with its loss; `logits` have the stride of the first map of `in_indices`, or the neck's.

    Args:
        config: the model's configuration.
    """

    config: OCRNetConfig
    config_class = OCRNetConfig

    def __init__(self, config: OCRNetConfig):
        super().__init__(config)
        assert config.coarse_in_indices is not None  # since the configuration's __post_init__
        channels = [self.backbone.channels[i] for i in config.in_indices]
        coarse_channels = [self.backbone.channels[i] for i in config.coarse_in_indices]
        self.neck = None
        if config.neck == "unet":
            self.neck = UNetNeck(channels, config.neck_channels, config.neck_out_stride, config.align_corners)
            channels = coarse_channels = [self.neck.out_channels]
        self.coarse_head, self.decode_head = ocr_heads(config, sum(channels), sum(coarse_channels))
        self.post_init()

    def decode(
        self, feature_maps: list[torch.Tensor], with_auxiliary_logits: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        features, coarse_features = self.head_maps(feature_maps)
        coarse_logits = self.coarse_head(coarse_features)  # (B, K, h, w): always, because the regions follow from it
        return self.decode_head(features, coarse_logits), (coarse_logits,)

    def head_maps(self, feature_maps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the OCR head and the coarse head read."""
        in_indices, coarse_in_indices = self.config.in_indices, self.config.coarse_in_indices
        assert coarse_in_indices is not None  # since the configuration's __post_init__
        if self.neck is not None:
            feature_maps = [self.neck([feature_maps[i] for i in in_indices])]
            in_indices = coarse_in_indices = [0]
        return read_maps(feature_maps, in_indices, coarse_in_indices, self.config.align_corners)


def ocr_heads(config: OCRNetConfig, in_channels: int, coarse_in_channels: int) -> tuple[FCNHead, OCRHead]:
    """The coarse head and the OCR head, on features of these widths."""
    assert config.num_labels is not None  # id2label has a default
    coarse_head = FCNHead(
        coarse_in_channels,
        config.coarse_channels or coarse_in_channels,
        config.num_labels,
        num_convs=config.coarse_num_convs,
        kernel_size=config.coarse_kernel_size,
        dropout=config.classifier_dropout,
    )
    return coarse_head, OCRHead(config, in_channels)


def read_maps(
    feature_maps: list[torch.Tensor],
    in_indices: Sequence[int],
    coarse_in_indices: Sequence[int],
    align_corners: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The chosen maps, resized and concatenated, for the OCR head and the coarse head."""
    coarse_features = resize_concat([feature_maps[i] for i in coarse_in_indices], align_corners)
    if in_indices == coarse_in_indices:
        return coarse_features, coarse_features
    return resize_concat([feature_maps[i] for i in in_indices], align_corners), coarse_features


__all__ = ["OCRNetForSemanticSegmentation"]
