"""Published backbone sizes by name, as plain fields that a `backbone_config` takes."""

from typing import Any

from .configuration_hrnet import HRNET_SIZES
from .configuration_internimage import INTERNIMAGE_SIZES
from .configuration_resnet import RESNET_SIZES
from .configuration_swin3d import SWIN3D_SIZES
from .configuration_volo import VOLO_SIZES


# Liu et al. 2021 (Swin), Table 7; window 7 as at 224 pixels, 12 as at 384. Drop path 0.3: mmsegmentation's recipes.
SWIN = {
    "swin-tiny": dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "swin-small": dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "swin-base": dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "swin-large": dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}
# Liu et al. 2022 (ConvNeXt), section 3; drop path 0.4: mmsegmentation's recipes.
CONVNEXT = {
    "convnext-tiny": dict(depths=(3, 3, 9, 3), hidden_sizes=(96, 192, 384, 768)),
    "convnext-small": dict(depths=(3, 3, 27, 3), hidden_sizes=(96, 192, 384, 768)),
    "convnext-base": dict(depths=(3, 3, 27, 3), hidden_sizes=(128, 256, 512, 1024)),
    "convnext-large": dict(depths=(3, 3, 27, 3), hidden_sizes=(192, 384, 768, 1536)),
    "convnext-xlarge": dict(depths=(3, 3, 27, 3), hidden_sizes=(256, 512, 1024, 2048)),
}
# Xie et al. 2021 (SegFormer), Table 6; drop path 0.1 as there.
MIT = {
    "mit-b0": dict(depths=(2, 2, 2, 2), hidden_sizes=(32, 64, 160, 256)),
    "mit-b1": dict(depths=(2, 2, 2, 2), hidden_sizes=(64, 128, 320, 512)),
    "mit-b2": dict(depths=(3, 4, 6, 3), hidden_sizes=(64, 128, 320, 512)),
    "mit-b3": dict(depths=(3, 4, 18, 3), hidden_sizes=(64, 128, 320, 512)),
    "mit-b4": dict(depths=(3, 8, 27, 3), hidden_sizes=(64, 128, 320, 512)),
    "mit-b5": dict(depths=(3, 6, 40, 3), hidden_sizes=(64, 128, 320, 512)),
}
# Shared by the sizes of a family.
FAMILIES = {
    "swin": dict(window_size=7, drop_path_rate=0.3),
    "swin3d": dict(model_type="vss_swin3d", patch_size=(2, 4, 4), window_size=(8, 7, 7)),  # Video Swin's classifiers
    "convnext": dict(drop_path_rate=0.4),
    "mit": dict(model_type="vss_mit"),
    "resnet": dict(model_type="vss_resnet"),
    "hrnet": dict(model_type="vss_hrnet"),
    "internimage": dict(model_type="vss_internimage"),
    "volo": dict(model_type="vss_volo", drop_path_rate=0.3),  # nobody tells theirs for segmentation
}
SIZES: dict[str, dict[str, Any]] = {
    **{**SWIN, **CONVNEXT, **MIT},
    **{**RESNET_SIZES, **HRNET_SIZES, **INTERNIMAGE_SIZES, **VOLO_SIZES, **SWIN3D_SIZES},
}
ALL_STAGES = ("stage1", "stage2", "stage3", "stage4")


def backbone_fields(name: str, **overrides: Any) -> dict[str, Any]:
    """Fields of a published backbone, with the maps of all four stages.

    Args:
        name: e.g. `swin-large`.
        overrides: fields to change or add, e.g. `window_size=12`, `out_features=["stage2", "stage3", "stage4"]`.

    Raises:
        ValueError: for an unknown name, with the known ones.
    """
    if name not in known_backbones():
        raise ValueError(f"backbone '{name}' is not known; one of: {', '.join(known_backbones())}")
    family = max((family for family in FAMILIES if name.startswith(family)), key=len)
    fields = {"model_type": family, **FAMILIES[family], "out_features": ALL_STAGES, **SIZES[name]}
    return {**{key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}, **overrides}


def known_backbones() -> list[str]:
    """The names that `backbone_fields` takes."""
    return list(SIZES)
