"""Configuration of ST-PPM: pyramid pooling over space and time on any backbone.

Paper: Miao et al., "VSPW: A Large-scale Dataset for Video Scene Parsing in the Wild", CVPR 2021 (TCB with spatial-
temporal PPM); widths as in its code, VSPW_baseline (Clip_PSP). Swin-L in place of the ResNet: TBN-ViT (VSPW challenge
2021), Table 1, which tells no more than that.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .backbone_presets import backbone_fields
from .configuration_clip import ClipSegmenterConfig
from .configuration_pspnet import PRESETS as PSPNET_PRESETS
from .configuration_pspnet import PSPNetConfig


PRESETS = {
    **{f"st-ppm-{name}": PSPNET_PRESETS[f"pspnet-{name}-vspw"] for name in ("resnet50", "resnet101")},
    # As the ResNets', the auxiliary head has half the channels of the map that it reads. Swin has a norm for each map,
    # so it returns no more than the heads read.
    "st-ppm-swin-large": dict(
        backbone_config=backbone_fields("swin-large", out_features=["stage3", "stage4"]),
        in_index=1,
        auxiliary_in_index=0,
        auxiliary_channels=384,
    ),
}
FRAME_WEIGHTS = (None, "learned", "published")


@strict
class STPPMConfig(ClipSegmenterConfig, PSPNetConfig):
    r"""Settings of [`STPPMForVideoSemanticSegmentation`]; see also [`ClipSegmenterConfig`] and [`PSPNetConfig`].

    Args:
        frame_weights: how the frames' pooled maps are averaged. `None`: all alike, as in the paper. `"learned"`: with
            the softmax over frames of a score that a linear layer gives each. `"published"`: the same layer as
            VSPW_baseline's `psp_weight` uses it, for its checkpoints: there each frame has the weight of the next one
            in the clip, the last one that of the first, and the sum is divided by the number of frames once more.
    """

    model_type = "vss_st_ppm"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "st-ppm-resnet50"

    supervise_references: bool = True
    frame_weights: str | None = None

    def validate_frame_weights(self):
        """Part of `@strict`: the kind of average is known."""
        if self.frame_weights not in FRAME_WEIGHTS:
            raise ValueError(f"STPPMConfig.frame_weights={self.frame_weights!r}: expected one of {FRAME_WEIGHTS}")


__all__ = ["STPPMConfig"]
