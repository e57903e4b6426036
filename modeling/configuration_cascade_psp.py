"""Configuration of CascadePSP's refinement network.

Paper: Cheng et al., "CascadePSP: Toward Class-Agnostic and Very High-Resolution Segmentation via Global and Local
Refinement", CVPR 2020. The defaults are the published network's.
"""

import copy
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .backbone_presets import backbone_fields
from .config_checks import check_at_least_one, check_positive_list, refuse_misspelt
from .configuration_resnet import DilatedResNetConfig
from .configuration_segmenter import backbone_config_from_dict


BACKBONE = backbone_fields(
    "resnet50",
    num_channels=6,
    output_stride=8,
    # unlike other dilated ResNets, whose last stage starts with dilation 2
    dilations=[[1, 1, 1], [1, 1, 1, 1], [1, 2, 2, 2, 2, 2], [1, 4, 4]],
    out_features=["stem", "stage1", "stage4"],
)


@strict
class CascadePSPConfig(PreTrainedConfig):
    r"""Settings of [`CascadePSPModel`].

    Args:
        backbone_config: a `vss_resnet` with 6 input channels (image and three masks) and output stride 8, whose maps
            are the stem's, the first stage's and the last stage's.
        channels: width of the pyramid pooling.
        pool_scales: sizes of the grids that the last map is averaged to.
        upsample_channels: widths at strides 4, 2 and 1.
        head_channels: width of the layers before each mask.
    """

    model_type = "vss_cascade_psp"
    sub_configs: ClassVar[Any] = {"backbone_config": AutoConfig}

    backbone_config: dict | PreTrainedConfig | None = None
    channels: int = 1024
    pool_scales: list[int] | tuple[int, ...] = (1, 2, 3, 6)
    upsample_channels: list[int] | tuple[int, ...] = (512, 256, 32)
    head_channels: int = 32

    def __post_init__(self, **kwargs: Any):
        refuse_misspelt(type(self), kwargs)
        if self.backbone_config is None:
            self.backbone_config = copy.deepcopy(BACKBONE)
        if isinstance(self.backbone_config, dict):
            self.backbone_config = backbone_config_from_dict(self.backbone_config)
        self.pool_scales, self.upsample_channels = list(self.pool_scales), list(self.upsample_channels)
        super().__post_init__(**kwargs)

    def validate_backbone(self):
        """Part of `@strict`: the backbone has the maps and input channels of this network."""
        backbone = self.backbone_config
        if not isinstance(backbone, DilatedResNetConfig):
            kind = getattr(backbone, "model_type", None)
            raise ValueError(f"CascadePSPConfig.backbone_config: model_type is {kind!r}, expected 'vss_resnet'")
        maps = ["stem", "stage1", f"stage{len(backbone.depths)}"]
        for field, expected in (("num_channels", 6), ("output_stride", 8), ("out_features", maps)):
            if getattr(backbone, field) != expected:
                raise ValueError(
                    f"CascadePSPConfig.backbone_config.{field}={getattr(backbone, field)}: expected {expected}"
                )

    def validate_ranges(self):
        """Part of `@strict`: every number is inside its range."""
        check_at_least_one(self, ("channels", "head_channels"))
        check_positive_list(self, "pool_scales")
        check_positive_list(self, "upsample_channels", 3)


__all__ = ["CascadePSPConfig"]
