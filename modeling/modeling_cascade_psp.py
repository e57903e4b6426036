"""CascadePSP's refinement network: a better mask from a rough one. Paper: see configuration_cascade_psp.py.

One network reads the image and three masks, up to three times: first three copies of the given mask, then what the
passes before made of it at strides 8 and 4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_cascade_psp import CascadePSPConfig
from .configuration_resnet import DilatedResNetConfig
from .layers import BatchNorm2d, resize
from .modeling_resnet import DilatedResNetBackbone


STRIDE = 8  # of the deepest map
IMAGE_CHANNELS = 3


@dataclass
class CascadePSPOutput(ModelOutput):
    """Masks as logits (batch, 1, height, width) of the image's size; the sigmoid of a logit is its probability.

    Args:
        logits: the refined mask.
        logits_stride8: masks that were predicted at stride 8, one per pass.
        logits_stride4: masks that were predicted at stride 4, one per pass but the first of three.
    """

    logits: torch.Tensor | None = None
    logits_stride8: tuple[torch.Tensor, ...] | None = None
    logits_stride4: tuple[torch.Tensor, ...] | None = None


class RefinementEncoder(DilatedResNetBackbone):
    """A ResNet whose stem map is that of its convolution alone, before norm and ReLU."""

    def compute_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        stem = self.conv1(pixel_values)
        return [stem, *self.stage_maps(self.relu(self.bn1(stem)))]


class PyramidPooling(nn.Module):
    """Averages over grids of several sizes beside the map itself, without norms.

    Args:
        in_channels: channels read.
        out_channels: channels written.
        scales: sizes of the grids.
    """

    def __init__(self, in_channels: int, out_channels: int, scales: Sequence[int]):
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), nn.Conv2d(in_channels, in_channels, 1, bias=False))
            for scale in scales
        )
        self.merge = nn.Conv2d(in_channels * (len(scales) + 1), out_channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        pooled = [resize(pool(features), features.shape[-2:]) for pool in self.pools]
        return F.relu(self.merge(torch.cat([*pooled, features], dim=1)))


class UpsampleBlock(nn.Module):
    """A map at twice its size, joined with an earlier one.

    Args:
        in_channels: channels of the map.
        skip_channels: channels of the earlier map.
        out_channels: channels written.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.fuse = two_convs(in_channels + skip_channels, out_channels)
        self.refine = two_convs(out_channels, out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        features = resize(features, skip.shape[-2:])
        fused = self.fuse(torch.cat([features, skip], dim=1)) + self.shortcut(features)
        return fused + self.refine(fused)


class CascadePSPModel(PreTrainedModel):
    """Refines a mask of one object or class. The weights know no classes.

    Args:
        config: the model's configuration.
    """

    config: CascadePSPConfig
    config_class = CascadePSPConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)  # as transformers' own models have it; its annotation knows no tuple
    supports_gradient_checkpointing = True
    _no_split_modules = ["UpsampleBlock"]

    def __init__(self, config: CascadePSPConfig):
        super().__init__(config)
        assert isinstance(config.backbone_config, DilatedResNetConfig)  # since the configuration's validation
        self.backbone = RefinementEncoder(config.backbone_config)
        stem, stage1, deepest = self.backbone.channels
        stride4, stride2, stride1 = config.upsample_channels
        self.pyramid = PyramidPooling(deepest, config.channels, config.pool_scales)
        self.up_stride4 = UpsampleBlock(config.channels, stage1, stride4)
        self.up_stride2 = UpsampleBlock(stride4, stem, stride2)
        self.up_stride1 = UpsampleBlock(stride2, IMAGE_CHANNELS, stride1)
        self.head_stride8 = mask_head(config.channels, config.head_channels)
        self.head_stride4 = mask_head(stride4, config.head_channels)
        self.head_stride1 = mask_head(stride1 + IMAGE_CHANNELS, config.head_channels)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        mask: torch.Tensor,
        mask_stride8: torch.Tensor | None = None,
        mask_stride4: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> CascadePSPOutput | tuple:
        r"""Refine masks.

        Args:
            pixel_values: float (batch, 3, height, width), normalised; any height and width.
            mask: float (batch, 1, height, width) in [-1, 1], the mask to refine: -1 outside, 1 inside.
            mask_stride8: likewise, an earlier result of stride 8; saves the first pass.
            mask_stride4: likewise, an earlier result of stride 4, with `mask_stride8`; saves the second pass.
            return_dict: `False` for a plain tuple.

        Returns:
            CascadePSPOutput: the logits of every mask that was computed.

        Raises:
            ValueError: masks of other sizes than the image's, or `mask_stride4` alone.
        """
        check_inputs(pixel_values, {"mask": mask, "mask_stride8": mask_stride8, "mask_stride4": mask_stride4})
        size = pixel_values.shape[-2:]
        image, mask = pad(pixel_values, 0.0), pad(mask, -1.0)
        eighth, fourth = (None if given is None else pad(given, -1.0) for given in (mask_stride8, mask_stride4))
        logits_8, logits_4 = [], []  # of each pass
        if eighth is None:
            features, _, _ = self.encode(image, mask, mask, mask)
            logits_8.append(self.head_stride8(features))
            eighth = mask_of(logits_8[-1], image)
        if fourth is None:
            features, stage1, _ = self.encode(image, mask, eighth, eighth)
            logits_8.append(self.head_stride8(features))
            logits_4.append(self.head_stride4(self.up_stride4(features, stage1)))
            eighth, fourth = mask_of(logits_8[-1], image), mask_of(logits_4[-1], image)
        features, stage1, stem = self.encode(image, mask, eighth, fourth)
        logits_8.append(self.head_stride8(features))
        features = self.up_stride4(features, stage1)
        logits_4.append(self.head_stride4(features))
        features = self.up_stride1(self.up_stride2(features, stem), image)  # (B, channels, H, W)
        logits = self.head_stride1(torch.cat([features, image], dim=1))

        def full_size(coarse: torch.Tensor) -> torch.Tensor:
            return resize(coarse, image.shape[-2:])[..., : size[0], : size[1]]

        output = CascadePSPOutput(
            logits=full_size(logits),
            logits_stride8=tuple(full_size(coarse) for coarse in logits_8),
            logits_stride4=tuple(full_size(coarse) for coarse in logits_4),
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def encode(self, image: torch.Tensor, *masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The pooled map at stride 8, the first stage's at stride 4 and the stem's at stride 2."""
        stem, stage1, deepest = self.backbone(torch.cat([image, *masks], dim=1)).feature_maps
        return self.pyramid(deepest), stage1, stem

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Everything but the backbone, which initialises itself; convolutions as torch does, and so the original."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)


def two_convs(in_channels: int, out_channels: int) -> nn.Sequential:
    """Twice BatchNorm, ReLU, convolution."""
    return nn.Sequential(
        BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
    )


def mask_head(in_channels: int, channels: int) -> nn.Sequential:
    """One logit per pixel."""
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1), nn.ReLU(inplace=True), nn.Conv2d(channels, 1, 1))


def mask_of(logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Logits (batch, 1, h, w) as a mask in [-1, 1] of the image's size."""
    return resize(logits, image.shape[-2:]).tanh()


def pad(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """Pad at the right and the bottom to multiples of 8, exactly as the original does.

    It adds 8 to a side that is a multiple already, if the other is none. The averages over the whole image see that.
    """
    height, width = tensor.shape[-2:]
    if height % STRIDE == 0 and width % STRIDE == 0:
        return tensor
    return F.pad(tensor, (0, STRIDE - width % STRIDE, 0, STRIDE - height % STRIDE), value=value)


def check_inputs(pixel_values: torch.Tensor, masks: dict[str, torch.Tensor | None]) -> None:
    """Raise unless the image and its masks fit together."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != IMAGE_CHANNELS:
        raise ValueError(f"pixel_values: shape {tuple(pixel_values.shape)}, expected (batch, 3, height, width)")
    expected = (len(pixel_values), 1, *pixel_values.shape[-2:])
    for name, mask in masks.items():
        if mask is not None and tuple(mask.shape) != expected:
            raise ValueError(f"{name}: shape {tuple(mask.shape)}, expected {expected} as pixel_values have it")
    if masks["mask_stride4"] is not None and masks["mask_stride8"] is None:
        raise ValueError("mask_stride4 is given without mask_stride8; expected both, or mask_stride8 alone, or none")


__all__ = ["CascadePSPModel"]
