"""Configuration of Video Swin, a Swin whose windows reach over the frames of a clip.

Paper: Liu et al., "Video Swin Transformer", CVPR 2022; sizes in section 3.2, with the patches and windows of its
Kinetics classifiers.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .config_checks import check_at_least_one, check_drop_path_rate, check_positive_list
from .configuration_backbone import choose_maps


SWIN3D_SIZES: dict[str, dict[str, Any]] = {
    "swin3d-tiny": dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "swin3d-small": dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "swin3d-base": dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "swin3d-large": dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}
TIME_POOLINGS = ("last", "mean")


@strict
class Swin3DConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Settings of [`Swin3DBackbone`]; clips have three channels.

    Args:
        patch_size: frames, rows and columns of a patch. With 1 frame every frame keeps its own maps inside the
            network; with 2, as in the paper, two frames share one.
        embed_dim: width of the first stage, at least 1; every further stage has twice as many.
        depths: blocks of each stage; more than one in all.
        num_heads: attention heads of each stage; divides the stage's width.
        window_size: time slots, rows and columns of an attention window. A dimension of the maps that is no larger
            than the window is one window.
        mlp_ratio: hidden width of the perceptrons as a multiple of their stage's width.
        drop_path_rate: in [0, 1); the probability of skipping a branch grows linearly over the blocks from 0 to this.
        time_pooling: what is made of a map's time slots. `"last"`: the last one, that of the labelled frame.
            `"mean"`: their average.
        initializer_range: standard deviation of the linear layers' initial weights.
        out_features: stages to return, of `stage1`, `stage2`, ... (strides 4, 8, ...); default: the last one.
        out_indices: the same by number, counted from 0.
    """

    model_type = "vss_swin3d"
    takes_clips: ClassVar[bool] = True  # image models refuse such a backbone

    patch_size: list[int] | tuple[int, ...] = (1, 4, 4)
    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: list[int] | tuple[int, ...] = (8, 7, 7)
    mlp_ratio: float | int = 4.0
    drop_path_rate: float | int = 0.1
    time_pooling: str = "last"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any):
        for field in ("patch_size", "depths", "num_heads", "window_size"):
            setattr(self, field, list(getattr(self, field)))
        choose_maps(self, len(self.depths), kwargs, stem=False)
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Part of `@strict`: the network can be built."""
        check_at_least_one(self, ("embed_dim",))
        check_drop_path_rate(self)
        check_positive_list(self, "patch_size", 3)
        check_positive_list(self, "window_size", 3)
        check_positive_list(self, "depths")
        check_positive_list(self, "num_heads", len(self.depths))
        if sum(self.depths) < 2:
            raise ValueError(f"Swin3DConfig.depths={self.depths}: expected two blocks or more in all")
        widths = [self.embed_dim * 2**stage for stage in range(len(self.depths))]
        if any(width % heads for width, heads in zip(widths, self.num_heads, strict=True)):
            raise ValueError(f"Swin3DConfig.num_heads={self.num_heads}: expected divisors of the widths {widths}")
        if not self.mlp_ratio > 0 or int(self.embed_dim * self.mlp_ratio) < 1:
            raise ValueError(f"Swin3DConfig.mlp_ratio={self.mlp_ratio}: expected a positive number")

    def validate_time_pooling(self):
        """Part of `@strict`: the choice is known."""
        if self.time_pooling not in TIME_POOLINGS:
            raise ValueError(f"Swin3DConfig.time_pooling={self.time_pooling!r}: expected one of {TIME_POOLINGS}")


__all__ = ["Swin3DConfig"]
