"""ResNet backbone from timm's blocks: any width, the stems of segmentation codebases, explicit dilations.

timm's own `ResNet` class fixes the width after a 7x7 stem and the dilation pattern; its blocks do not. Tensor names
are torchvision's and timm's: `conv1`, `bn1`, `layer1.0.conv1`...
"""

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from .configuration_resnet import DilatedResNetConfig
from .conv_backbone import ConvBackbone


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class DilatedResNetBackbone(ConvBackbone):
    """ResNet-18 to 152 with output stride 8, 16 or 32.

    Maps: `stem` (stride 2, before pooling), `stage1` (stride 4), `stage2`, `stage3`, `stage4` (strides 8, 16, 32, or
    `config.output_stride` if that is less).
    """

    config: DilatedResNetConfig
    config_class = DilatedResNetConfig
    _no_split_modules = ["BasicBlock", "Bottleneck"]

    def __init__(self, config: DilatedResNetConfig):
        super().__init__(config)
        self.num_features = [config.stem_channels, *config.hidden_sizes]
        self.conv1 = make_stem(config)
        self.bn1 = nn.BatchNorm2d(config.stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        for stage in range(len(config.depths)):
            self.add_module(f"layer{stage + 1}", make_stage(config, stage))
        self.post_init()

    def compute_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        stem = self.relu(self.bn1(self.conv1(pixel_values)))
        return [stem, *self.stage_maps(stem)]

    def stage_maps(self, stem: torch.Tensor) -> list[torch.Tensor]:
        """The maps of all stages, from the stem's (batch, stem_channels, h, w)."""
        maps, hidden = [], self.maxpool(stem)
        for stage in range(len(self.config.depths)):
            for block in self.get_submodule(f"layer{stage + 1}").children():
                hidden = self.run(block, hidden)
            maps.append(hidden)
        return maps


def make_stem(config: DilatedResNetConfig) -> nn.Module:
    """The stem up to its last convolution, with stride 2."""
    image, last = config.num_channels, config.stem_channels
    if config.stem == "7x7":
        return nn.Conv2d(image, last, kernel_size=7, stride=2, padding=3, bias=False)
    half = last // 2
    return nn.Sequential(
        nn.Conv2d(image, half, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, half, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, last, kernel_size=3, padding=1, bias=False),
    )


def make_stage(config: DilatedResNetConfig, stage: int) -> nn.Sequential:
    """The residual blocks of a stage."""
    block = BLOCKS[config.block]
    strides, dilations = config.strides_and_dilations()
    out_channels = config.hidden_sizes[stage]
    in_channels = config.hidden_sizes[stage - 1] if stage else config.stem_channels
    blocks = []
    for index, dilation in enumerate(dilations[stage]):
        first = index == 0
        stride = strides[stage] if first else 1
        blocks.append(
            block(
                in_channels,
                out_channels // block.expansion,
                stride,
                make_shortcut(in_channels, out_channels, stride, config.avg_down) if first else None,
                # timm's names: `first_dilation` is that of the convolution with the stride, `dilation` that of a basic
                # block's second one.
                first_dilation=dilation,
                dilation=dilations[stage][-1] if config.dilate_second_conv else 1,
            )
        )
        in_channels = out_channels
    return nn.Sequential(*blocks)


def make_shortcut(in_channels: int, out_channels: int, stride: int, avg_down: bool) -> nn.Sequential | None:
    """What brings a stage's input to the size of its first block's output; None where it has that size."""
    if stride == 1 and in_channels == out_channels:
        return None
    # Also at stride 1, so that the tensors have the same names in every stage.
    pool = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)] if avg_down else []
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=1 if avg_down else stride, bias=False)
    return nn.Sequential(*pool, conv, nn.BatchNorm2d(out_channels))


__all__ = ["DilatedResNetBackbone"]
