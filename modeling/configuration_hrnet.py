"""Configuration of HRNet, which keeps maps at strides 4, 8, 16 and 32 side by side.

Paper: Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020
(arXiv 1908.07919).
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .config_checks import MOST_BLOCKS, MOST_CHANNELS, check_at_least_one, check_positive_list
from .configuration_backbone import choose_maps


# Wang et al. 2020, section 3; the small one is mmsegmentation's `hr18s` and timm's `hrnet_w18_small_v2`.
HRNET_SIZES = {
    "hrnet-w18-small": dict(
        hidden_sizes=(18, 36, 72, 144), num_modules=(1, 1, 3, 2), num_blocks=([2], [2, 2], [2, 2, 2], [2, 2, 2, 2])
    ),
    "hrnet-w18": dict(hidden_sizes=(18, 36, 72, 144)),
    "hrnet-w32": dict(hidden_sizes=(32, 64, 128, 256)),
    "hrnet-w48": dict(hidden_sizes=(48, 96, 192, 384)),
}
STAGES = 4


@strict
class HRNetConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Settings of [`HRNetBackbone`].

    Args:
        num_channels: channels of the image.
        stage1_channels: width of the first stage's bottleneck blocks, whose map has four times as many channels.
        hidden_sizes: channels of the branches at strides 4, 8, 16 and 32.
        num_modules: exchange modules of each of the four stages; the first stage has one branch and no exchange: 1.
        num_blocks: residual blocks in each branch of a module, for each stage, so lists of 1, 2, 3 and 4 numbers.
        out_features: names of the maps to return, of `stem` (stride 2) and `stage1` to `stage4`: the four branches
            after the last exchange, at strides 4 to 32. By default all four.
        out_indices: the same by position.
    """

    model_type = "vss_hrnet"

    num_channels: int = 3
    stage1_channels: int = 64
    hidden_sizes: list[int] | tuple[int, ...] = (48, 96, 192, 384)
    num_modules: list[int] | tuple[int, ...] = (1, 1, 4, 3)
    num_blocks: list[list[int]] | tuple[tuple[int, ...], ...] = ((4,), (4, 4), (4, 4, 4), (4, 4, 4, 4))

    def __post_init__(self, **kwargs: Any):
        self.hidden_sizes, self.num_modules = list(self.hidden_sizes), list(self.num_modules)
        self.num_blocks = [list(stage) for stage in self.num_blocks]
        choose_maps(self, STAGES, kwargs, all_stages=True)  # what HRNet is for
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Part of `@strict`: every number of blocks and channels can be built."""
        check_at_least_one(self, ("num_channels", "stage1_channels"))
        for field in ("hidden_sizes", "num_modules"):
            check_positive_list(self, field, STAGES)
        if max(self.num_channels, self.stage1_channels, *self.hidden_sizes) > MOST_CHANNELS:
            raise ValueError(
                f"HRNetConfig.hidden_sizes={self.hidden_sizes}, stage1_channels={self.stage1_channels}, "
                f"num_channels={self.num_channels}: expected at most {MOST_CHANNELS} channels"
            )
        if self.num_modules[0] != 1:
            raise ValueError(f"HRNetConfig.num_modules={self.num_modules}: the first stage has one module")

    def validate_num_blocks(self):
        """Part of `@strict`: each stage has one more branch than the stage before."""
        if [len(stage) for stage in self.num_blocks] != [1, 2, 3, 4] or min(map(min, self.num_blocks)) < 1:
            raise ValueError(
                f"HRNetConfig.num_blocks={self.num_blocks}: expected four lists, of 1, 2, 3 and 4 numbers from 1 up"
            )
        total = sum(modules * sum(blocks) for modules, blocks in zip(self.num_modules, self.num_blocks, strict=False))
        if total > MOST_BLOCKS:
            raise ValueError(f"HRNetConfig.num_blocks={self.num_blocks}: {total} blocks, more than {MOST_BLOCKS}")


__all__ = ["HRNetConfig", "HRNET_SIZES"]
