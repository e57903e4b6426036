"""Configuration of TBN-ViT: a bilateral network whose classifier also reads the average of earlier frames.

Paper: "Temporal Bilateral Network with Vision Transformer for Video Scene Parsing" (VSPW challenge 2021); there is no
public code. It names the parts (spatial path of three convolutions with stride 2, attention refinement of a Swin-L's
last two maps, feature fusion, the mean of three earlier fused maps beside the frame's own) and leaves open:

- widths and inner layers of the parts. Here: those of BiSeNet as mmsegmentation has it, [`BiSeNetConfig`].
- the classifier. Here: as BiSeNet's, a 3x3 convolution and a 1x1 one.
- the start of a video (`clip_start`), and whether training keeps the other frames' gradients (`detach_references`).
- auxiliary heads. Here: BiSeNet's two, on the last frame.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_bisenet import PRESETS as BISENET_PRESETS
from .configuration_bisenet import BiSeNetConfig
from .configuration_clip import ClipSegmenterConfig


PRESETS = {
    **{f"tbn-vit-{name}": BISENET_PRESETS[f"bisenet-{name}"] for name in ("swin-tiny", "swin-small", "swin-base")},
    "tbn-vit-swin-large": BISENET_PRESETS["bisenet-swin-large"],
    "tbn-resnet18": BISENET_PRESETS["bisenet-resnet18"],  # mmsegmentation's weights fit
}


@strict
class TBNViTConfig(ClipSegmenterConfig, BiSeNetConfig):
    r"""Settings of [`TBNViTForVideoSemanticSegmentation`]: those of [`ClipSegmenterConfig`] and [`BiSeNetConfig`].

    `frame_offsets=[]` is the bilateral network without time, the same model as [`BiSeNetForSemanticSegmentation`].
    """

    model_type = "vss_tbn_vit"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    DEFAULT_PRESET: ClassVar[str] = "tbn-resnet18"


__all__ = ["TBNViTConfig"]
