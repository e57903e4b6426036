"""Configuration of ResNet with the stems and dilations of segmentation codebases.

Papers: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; stems and shortcuts C and D: He et al.,
"Bag of Tricks for Image Classification with Convolutional Neural Networks", CVPR 2019, section 4; dilation instead of
stride: Yu et al., "Dilated Residual Networks", CVPR 2017.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .config_checks import MOST_BLOCKS, MOST_CHANNELS, check_at_least_one
from .configuration_backbone import choose_maps


EXPANSION = {"basic": 1, "bottleneck": 4}  # a block's output channels per channel of its 3x3 convolution

# He et al. 2016, Table 1. Under "resnet50c" and so on: with the stem of three 3x3 convolutions.
PLAIN_SIZES = {
    "resnet18": dict(depths=(2, 2, 2, 2), hidden_sizes=(64, 128, 256, 512), block="basic"),
    "resnet34": dict(depths=(3, 4, 6, 3), hidden_sizes=(64, 128, 256, 512), block="basic"),
    "resnet50": dict(depths=(3, 4, 6, 3), hidden_sizes=(256, 512, 1024, 2048), block="bottleneck"),
    "resnet101": dict(depths=(3, 4, 23, 3), hidden_sizes=(256, 512, 1024, 2048), block="bottleneck"),
    "resnet152": dict(depths=(3, 8, 36, 3), hidden_sizes=(256, 512, 1024, 2048), block="bottleneck"),
}
RESNET_SIZES = {**PLAIN_SIZES, **{f"{name}c": {**size, "stem": "3x3x3"} for name, size in PLAIN_SIZES.items()}}


@strict
class DilatedResNetConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Settings of [`DilatedResNetBackbone`].

    Args:
        num_channels: channels of the image.
        stem: `"7x7"`, one convolution; or `"3x3x3"`, three, of which the first two have half of `stem_channels`
            (ResNet-C: 64 in mmsegmentation's ResNetV1c and timm's `resnet50c`, 128 in CSAIL's and VSPW's encoders).
        stem_channels: channels after the stem.
        block: `"basic"`, two 3x3 convolutions; or `"bottleneck"`, 1x1, 3x3, 1x1, with the stride in the 3x3.
        depths: blocks of each stage.
        hidden_sizes: channels of each stage's map; multiples of 4 for bottlenecks.
        output_stride: 8, 16 or 32: stages beyond it keep the map's size.
        dilations: dilation of the 3x3 convolution of each block, one list per stage. `None`: a stage that keeps its
            size instead of halving it doubles the dilation from its second block on, so 1 | 1 | 1, 2, 2... | 2, 4, 4
            at stride 8 (mmsegmentation's `contract_dilation`, CSAIL's and timm's pattern).
        dilate_second_conv: for basic blocks: the second convolution has the dilation of its stage's last block (CSAIL,
            timm); `False`: 1 (mmsegmentation).
        avg_down: the shortcut of a block with stride averages 2x2 pixels instead of taking one of them (ResNet-D).
        out_features: names of the maps to return, of `stem` (stride 2, before pooling), `stage1` (stride 4), `stage2`
            ...; by default the last stage's.
        out_indices: the same by position.
    """

    model_type = "vss_resnet"

    num_channels: int = 3
    stem: str = "7x7"
    stem_channels: int = 64
    block: str = "bottleneck"
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 2048)
    output_stride: int = 32
    dilations: list[list[int]] | tuple[tuple[int, ...], ...] | None = None
    dilate_second_conv: bool = True
    avg_down: bool = False

    def __post_init__(self, **kwargs: Any):
        self.depths, self.hidden_sizes = list(self.depths), list(self.hidden_sizes)
        if self.dilations is not None:
            self.dilations = [list(stage) for stage in self.dilations]
        choose_maps(self, len(self.depths), kwargs)
        super().__post_init__(**kwargs)

    def validate_choices(self):
        """Part of `@strict`: every name is known."""
        for field, known in (("stem", ("7x7", "3x3x3")), ("block", tuple(EXPANSION)), ("output_stride", (8, 16, 32))):
            if getattr(self, field) not in known:
                raise ValueError(f"DilatedResNetConfig.{field}={getattr(self, field)!r}: expected one of {known}")

    def validate_sizes(self):
        """Part of `@strict`: every number of blocks and channels can be built."""
        check_at_least_one(self, ("num_channels", "stem_channels"))
        if not self.depths or min(self.depths) < 1 or sum(self.depths) > MOST_BLOCKS:
            raise ValueError(f"DilatedResNetConfig.depths={self.depths}: expected 1 to {MOST_BLOCKS} blocks in all")
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"DilatedResNetConfig.hidden_sizes={self.hidden_sizes}: expected {len(self.depths)} widths, as depths"
            )
        step = EXPANSION[self.block]  # known since validate_choices: @strict goes by the alphabet
        for width in self.hidden_sizes:
            if not step <= width <= MOST_CHANNELS or width % step:
                raise ValueError(
                    f"DilatedResNetConfig.hidden_sizes={self.hidden_sizes}: expected multiples of {step} up to "
                    f"{MOST_CHANNELS} for {self.block} blocks"
                )
        odd_stem = self.stem == "3x3x3" and self.stem_channels % 2
        if max(self.num_channels, self.stem_channels) > MOST_CHANNELS or odd_stem:
            raise ValueError(
                f"DilatedResNetConfig.stem_channels={self.stem_channels}, num_channels={self.num_channels}: expected "
                f"at most {MOST_CHANNELS}, and an even number of stem channels for the stem of three convolutions"
            )

    def validate_dilations(self):
        """Part of `@strict`: one dilation for each block."""
        if self.dilations is None:
            return
        numbers = [dilation for stage in self.dilations for dilation in stage]
        if [len(stage) for stage in self.dilations] != self.depths or any(dilation < 1 for dilation in numbers):
            raise ValueError(
                f"DilatedResNetConfig.dilations={self.dilations}: expected numbers from 1 up, "
                f"{' + '.join(map(str, self.depths))} of them in lists (depths)"
            )

    def strides_and_dilations(self) -> tuple[list[int], list[list[int]]]:
        """Stride of each stage's first block, and dilation of each block of each stage."""
        strides, dilations = [], []
        map_stride, dilation = 4, 1
        for stage, depth in enumerate(self.depths):
            before = dilation
            strides.append(2 if stage > 0 and map_stride < self.output_stride else 1)
            map_stride *= strides[-1]
            if stage > 0 and strides[-1] == 1:
                dilation *= 2
            dilations.append([before] + [dilation] * (depth - 1))
        if self.dilations is not None:
            dilations = [list(stage) for stage in self.dilations]
        return strides, dilations


__all__ = ["DilatedResNetConfig", "RESNET_SIZES"]
