r"""OCRNet: an FCN coarse head and object-contextual representations (OCR) on any backbone.

    image -> backbone -> maps ----> resize_concat --> coarse head ----> coarse logits (auxiliary loss)
                              \                                            | softmax over positions
                               `--> resize_concat --> 3x3 conv --> pixels  v
                                                          |        regions: one vector per class
                                                          `--> attention(pixels, regions) --> classifier --> logits

Papers: see configuration_ocrnet.py. The layers reproduce mmsegmentation's FCNHead and OCRHead with `scale` 1 (its
other scales discard the context). Letters: B batch, K num_labels, C channels, h and w the head's map.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from .backbone import Backbone, build_backbone
from .configuration_ocrnet import OCRNetConfig
from .layers import ConvNormAct, resize_concat
from .losses import dense_segmentation_loss
from .outputs import SemanticSegmenterOutput


class CoarseHead(nn.Module):
    """FCN head whose logits are the soft regions of the OCR head.

    Args:
        config: the model's configuration.
        in_channels: channels of the map that it reads.
    """

    def __init__(self, config: OCRNetConfig, in_channels: int):
        super().__init__()
        width = config.coarse_channels or in_channels
        widths = [in_channels] + [width] * config.coarse_num_convs
        self.convs = nn.Sequential(
            *[ConvNormAct(a, b, config.coarse_kernel_size) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        )
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        assert config.num_labels is not None  # id2label has a default
        self.classifier = nn.Conv2d(width, config.num_labels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.convs(features)))  # (B, K, h, w)


class ObjectAttention(nn.Module):
    """Every pixel attends to the K region vectors; the result is merged with the pixel's own representation.

    Args:
        channels: width C of pixels and regions.
        ocr_channels: width of queries, keys and values.
    """

    def __init__(self, channels: int, ocr_channels: int):
        super().__init__()
        self.query = nn.Sequential(ConvNormAct(channels, ocr_channels), ConvNormAct(ocr_channels, ocr_channels))
        self.key = nn.Sequential(ConvNormAct(channels, ocr_channels), ConvNormAct(ocr_channels, ocr_channels))
        self.value = ConvNormAct(channels, ocr_channels)
        self.out = ConvNormAct(ocr_channels, channels)
        self.merge = ConvNormAct(2 * channels, channels)

    def forward(self, pixels: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        query = self.query(pixels).flatten(2).transpose(1, 2)  # (B, h*w, ocr)
        key = self.key(regions).flatten(2).transpose(1, 2)  # (B, K, ocr)
        value = self.value(regions).flatten(2).transpose(1, 2)  # (B, K, ocr)
        context = F.scaled_dot_product_attention(query, key, value)  # softmax over the K regions
        context = context.transpose(1, 2).unflatten(2, pixels.shape[-2:])  # (B, ocr, h, w)
        return self.merge(torch.cat([self.out(context), pixels], dim=1))  # (B, C, h, w)


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
        self.classifier = nn.Conv2d(config.channels, config.num_labels, 1)

    def forward(self, features: torch.Tensor, coarse_logits: torch.Tensor) -> torch.Tensor:
        pixels = self.pixel_conv(features)  # (B, C, h, w)
        regions = gather_regions(pixels, coarse_logits)  # (B, C, K, 1)
        return self.classifier(self.dropout(self.attention(pixels, regions)))  # (B, K, h, w)


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


class OCRNetPreTrainedModel(PreTrainedModel):
    """Flags and weight initialisation."""

    config: OCRNetConfig
    config_class = OCRNetConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)  # as transformers' own models have it; its annotation knows no tuple
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = []

    def get_input_embeddings(self) -> Any:
        """None: pixels have no table of embeddings. accelerate asks before it shards a model (FSDP2)."""
        return None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """The heads only: the backbone, a PreTrainedModel, initialises itself."""
        if isinstance(module, nn.Conv2d):
            if module.bias is None:
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:  # the classifiers are the heads' only convolutions with a bias
                init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            assert module.running_mean is not None and module.running_var is not None  # ours all keep statistics
            assert module.num_batches_tracked is not None
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)


class OCRNetForSemanticSegmentation(OCRNetPreTrainedModel):
    """OCRNet with its loss.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: OCRNetConfig):
        super().__init__(config)
        assert isinstance(config.backbone_config, PreTrainedConfig)  # since the configuration's __post_init__
        assert config.coarse_in_indices is not None  # likewise
        self.backbone: Backbone = build_backbone(config.backbone_config)
        channels = self.backbone.channels
        self.coarse_head = CoarseHead(config, sum(channels[i] for i in config.coarse_in_indices))
        self.decode_head = OCRHead(config, sum(channels[i] for i in config.in_indices))
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_auxiliary_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> SemanticSegmenterOutput | tuple:
        r"""Segment images.

        Args:
            pixel_values: float (batch, 3, height, width), normalised; any height and width from 32 up.
            labels: long (batch, height, width), classes 0..num_labels-1 and `config.ignore_index`. Their size may
                differ from the image's: the logits are upsampled to the labels.
            num_items_in_batch: labelled pixels over all micro-batches and ranks of this step; the loss is then their
                mean instead of this batch's. The Trainer passes it.
            output_auxiliary_logits: also return the coarse head's logits; always on in training.
            output_hidden_states: also return the backbone's hidden states.
            output_attentions: also return the backbone's attention maps.
            return_dict: `False` for a plain tuple.

        Returns:
            SemanticSegmenterOutput: with `logits` at the stride of the first map of `in_indices`.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        if output_auxiliary_logits is None:
            output_auxiliary_logits = self.training
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        outputs = self.backbone.forward_with_filtered_kwargs(pixel_values, **{k: v for k, v in wanted.items() if v})

        maps, coarse_in_indices = outputs.feature_maps, self.config.coarse_in_indices
        assert coarse_in_indices is not None  # since the configuration's __post_init__
        coarse_features = resize_concat([maps[i] for i in coarse_in_indices], self.config.align_corners)
        if self.config.in_indices == coarse_in_indices:
            features = coarse_features
        else:
            features = resize_concat([maps[i] for i in self.config.in_indices], self.config.align_corners)
        coarse_logits = self.coarse_head(coarse_features)  # (B, K, h, w)
        logits = self.decode_head(features, coarse_logits)  # (B, K, h, w)

        loss = None
        if labels is not None:
            loss = dense_segmentation_loss(
                logits,
                (coarse_logits,),
                labels,
                auxiliary_loss_weight=self.config.auxiliary_loss_weight,
                ignore_index=self.config.ignore_index,
                align_corners=self.config.align_corners,
                num_items_in_batch=num_items_in_batch,
            )
        output = SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            auxiliary_logits=(coarse_logits,) if output_auxiliary_logits else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output if return_dict else output.to_tuple()


__all__ = ["OCRNetForSemanticSegmentation", "OCRNetPreTrainedModel"]
