"""HRNet backbone: timm's layers, exchanging maps as the segmentation codebases do, at any image size.

timm's classifier enlarges maps with nearest neighbours by fixed factors, which fails unless both sides are multiples
of 32. The segmentation networks enlarge bilinearly, and then to the exact size of the receiving branch.
"""

from functools import partial
from typing import Any

import torch
from timm.models.hrnet import HighResolutionNet
from torch import nn

from .configuration_hrnet import HRNetConfig
from .conv_backbone import ConvBackbone
from .layers import resize


STEM_CHANNELS = 64  # in every published HRNet


class HRNetBackbone(ConvBackbone):
    """HRNet-W18 to W48 with the maps of its four branches.

    Maps: `stem` (stride 2), `stage1` to `stage4` (strides 4, 8, 16, 32): the branches after the last exchange.
    """

    config: HRNetConfig
    config_class = HRNetConfig
    timm_prefix = "network."
    # Not HighResolutionModule: `exchange` uses its layers and not its forward, before which FSDP gathers weights.
    _no_split_modules = ["BasicBlock", "Bottleneck"]

    def __init__(self, config: HRNetConfig):
        super().__init__(config)
        self.num_features = [STEM_CHANNELS, *config.hidden_sizes]
        self.network = HighResolutionNet(timm_fields(config), in_chans=config.num_channels, num_classes=0, head="")
        for module in self.network.modules():
            if isinstance(module, nn.Upsample):
                module.mode, module.align_corners = "bilinear", False
        self.post_init()

    def compute_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        net = self.network
        stem = net.act1(net.bn1(net.conv1(pixel_values)))
        hidden = net.act2(net.bn2(net.conv2(stem)))
        for block in net.layer1.children():
            hidden = self.run(block, hidden)
        maps = [hidden]
        for transition, stage in (
            (net.transition1, net.stage2),
            (net.transition2, net.stage3),
            (net.transition3, net.stage4),
        ):
            # A branch goes on as it is; a new one, and the first of all, starts from the coarsest map so far.
            maps = [maps[i] if isinstance(t, nn.Identity) else t(maps[-1]) for i, t in enumerate(transition)]
            for module in stage.children():
                maps = self.run(module, *maps, function=partial(exchange, module))
        return [stem, *maps]


def exchange(module: Any, *maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Run a module's branches, and add to each branch's map the maps of all others at its size.

    Args:
        module: timm's `HighResolutionModule`, of which the layers are used.
        maps: one for each branch, (batch, c_i, h_i, w_i).
    """
    maps = tuple(branch(m) for branch, m in zip(module.branches, maps, strict=True))
    fused = []
    for target, layers in zip(maps, module.fuse_layers, strict=True):
        # timm's layers enlarge a coarser map by whole factors, to some pixels more than the target: 13 twofold for 25.
        # Enlarging in these two steps instead of one is mmsegmentation's way.
        parts = [resize(layer(m), target.shape[-2:]) for layer, m in zip(layers, maps, strict=True)]
        fused.append(module.fuse_act(sum(parts[1:], parts[0])))
    return tuple(fused)  # reentrant checkpointing finds no tensors in a list


def timm_fields(config: HRNetConfig) -> dict[str, Any]:
    """The configuration in timm's words."""
    stages: dict[str, Any] = {}
    for index, (modules, blocks) in enumerate(zip(config.num_modules, config.num_blocks, strict=True)):
        stages[f"stage{index + 1}"] = dict(
            num_modules=modules,
            num_branches=len(blocks),
            block_type="BASIC" if index else "BOTTLENECK",
            num_blocks=blocks,
            num_channels=config.hidden_sizes[: index + 1] if index else [config.stage1_channels],
            fuse_method="SUM",
        )
    return {"stem_width": STEM_CHANNELS, **stages}


__all__ = ["HRNetBackbone"]
