"""The `backbone` part of an mmsegmentation configuration as a configuration of ours.

Each function takes the plain dictionary (`Config.fromfile(path).model.backbone` in mmsegmentation), and refuses what
it does not know, because a setting that is dropped silently gives a model with other numbers.
"""

import math
from collections.abc import Callable
from typing import Any

from transformers import ConvNextConfig, PreTrainedConfig, SwinConfig

from vss_hf.modeling.backbone_presets import CONVNEXT
from vss_hf.modeling.configuration_hrnet import HRNetConfig
from vss_hf.modeling.configuration_internimage import InternImageConfig
from vss_hf.modeling.configuration_resnet import EXPANSION, PLAIN_SIZES, DilatedResNetConfig
from vss_hf.modeling.configuration_segformer import MiTConfig


# Settings of training and of the initial weights: they do not change what a loaded network computes.
TRAINING_SETTINGS = {"norm_eval", "with_cp", "pretrained", "init_cfg", "frozen_stages", "zero_init_residual"}
BATCH_NORMS = ("BN", "BN2d", "SyncBN", "MMSyncBN", "naiveSyncBN")

RESNET_DEFAULTS = dict(
    depth=None,
    in_channels=3,
    stem_channels=64,
    base_channels=64,
    num_stages=4,
    strides=(1, 2, 2, 2),
    dilations=(1, 1, 1, 1),
    out_indices=(0, 1, 2, 3),
    style="pytorch",
    deep_stem=False,
    avg_down=False,
    multi_grid=None,
    contract_dilation=False,
    conv_cfg=None,
    dcn=None,
    plugins=None,
)
# the fixed settings of mmsegmentation's subclasses
RESNET_TYPES: dict[str, dict[str, bool]] = {
    "ResNet": {},
    "ResNetV1c": dict(deep_stem=True, avg_down=False),
    "ResNetV1d": dict(deep_stem=True, avg_down=True),
}
HRNET_DEFAULTS = dict(extra=None, in_channels=3, multiscale_output=True, conv_cfg=None)
SWIN_DEFAULTS = dict(
    pretrain_img_size=224,
    in_channels=3,
    embed_dims=96,
    patch_size=4,
    window_size=7,
    mlp_ratio=4,
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    strides=(4, 2, 2, 2),
    out_indices=(0, 1, 2, 3),
    qkv_bias=True,
    qk_scale=None,
    patch_norm=True,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    drop_path_rate=0.1,
    use_abs_pos_embed=False,
    act_cfg={"type": "GELU"},
    norm_cfg={"type": "LN"},
)
CONVNEXT_DEFAULTS = dict(
    arch="tiny",
    in_channels=3,
    stem_patch_size=4,
    norm_cfg={"type": "LN2d", "eps": 1e-6},
    act_cfg={"type": "GELU"},
    linear_pw_conv=True,
    use_grn=False,
    drop_path_rate=0.0,
    layer_scale_init_value=1e-6,
    out_indices=-1,
    gap_before_final_norm=True,
)
INTERNIMAGE_DEFAULTS = dict(
    core_op="DCNv3",
    channels=64,
    depths=(3, 4, 18, 5),
    groups=(3, 6, 12, 24),
    mlp_ratio=4.0,
    drop_rate=0.0,
    drop_path_rate=0.2,
    act_layer="GELU",
    norm_layer="LN",
    layer_scale=None,
    offset_scale=1.0,
    post_norm=False,
    res_post_norm=False,
    dw_kernel_size=None,
    level2_post_norm=False,
    level2_post_norm_block_ids=None,
    center_feature_scale=False,
    out_indices=(0, 1, 2, 3),
)
MIT_DEFAULTS = dict(
    in_channels=3,
    embed_dims=64,
    num_stages=4,
    num_layers=(3, 4, 6, 3),
    num_heads=(1, 2, 4, 8),
    patch_sizes=(7, 3, 3, 3),
    strides=(4, 2, 2, 2),
    sr_ratios=(8, 4, 2, 1),
    out_indices=(0, 1, 2, 3),
    mlp_ratio=4,
    qkv_bias=True,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    drop_path_rate=0.0,
    act_cfg={"type": "GELU"},
    norm_cfg={"type": "LN", "eps": 1e-6},
)


def backbone_config_from_mmseg(backbone: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a backbone.

    Args:
        backbone: mmsegmentation's dictionary, with `type`.

    Raises:
        ValueError: for a backbone or a setting that has no counterpart here.
    """
    return BACKBONES[read_type(backbone, BACKBONES)](backbone)


def mmseg_resnet_config(backbone: dict[str, Any]) -> DilatedResNetConfig:
    """The configuration of a `ResNet`, `ResNetV1c` or `ResNetV1d`.

    Args:
        backbone: mmsegmentation's dictionary, with `type` and `depth`.

    Raises:
        ValueError: for a setting that has no counterpart here, such as deformable convolutions.
    """
    kind = read_type(backbone, RESNET_TYPES)
    given = {**read_settings(backbone, RESNET_DEFAULTS, {"stage_with_dcn"}), **RESNET_TYPES[kind]}
    refuse_unless(kind, given, style=("pytorch",), conv_cfg=(None, {"type": "Conv2d"}), dcn=(None,), plugins=(None,))
    size = PLAIN_SIZES.get(f"resnet{given['depth']}")
    if size is None:
        raise ValueError(f"mmsegmentation's {kind}: depth={given['depth']}, expected 18, 34, 50, 101 or 152")
    depths = size["depths"][: given["num_stages"]]
    fields: dict[str, Any] = dict(
        num_channels=given["in_channels"],
        stem="3x3x3" if given["deep_stem"] else "7x7",
        stem_channels=given["stem_channels"],
        block=size["block"],
        depths=depths,
        hidden_sizes=[given["base_channels"] * 2**stage * EXPANSION[size["block"]] for stage in range(len(depths))],
        output_stride=max(8, 4 * math.prod(given["strides"])),
        dilations=resnet_dilations(depths, given),
        dilate_second_conv=False,
        avg_down=given["avg_down"],
        out_features=stage_names(given["out_indices"], len(depths)),
    )
    config = DilatedResNetConfig(**fields)
    strides, _ = config.strides_and_dilations()
    if strides != list(given["strides"]):
        raise ValueError(
            f"mmsegmentation's {kind}: strides={given['strides']}, expected (1, 2, 2, 2) with 1s at the end"
        )
    return config


def resnet_dilations(depths: tuple[int, ...], given: dict[str, Any]) -> list[list[int]]:
    """The dilation of every block: `multi_grid` rules the last stage, `contract_dilation` the other first blocks."""
    stages = []
    for depth, dilation in zip(depths, given["dilations"], strict=True):
        first = max(1, dilation // 2) if given["contract_dilation"] else dilation
        stages.append([first] + [dilation] * (depth - 1))
    if given["multi_grid"]:
        stages[-1] = list(given["multi_grid"])[: depths[-1]]
    return stages


def mmseg_hrnet_config(backbone: dict[str, Any]) -> HRNetConfig:
    """The configuration of an `HRNet`.

    Args:
        backbone: mmsegmentation's dictionary, with `type` and `extra`.

    Raises:
        ValueError: for a setting that has no counterpart here.
    """
    kind = read_type(backbone, ("HRNet",))
    given = read_settings(backbone, HRNET_DEFAULTS)
    refuse_unless(kind, given, multiscale_output=(True,), conv_cfg=(None, {"type": "Conv2d"}))
    stages = [given["extra"][f"stage{index}"] for index in (1, 2, 3, 4)]
    hidden_sizes = list(stages[-1]["num_channels"])
    for index, stage in enumerate(stages):
        # The first stage's block is another, and its width its own.
        block, widths = ("BASIC", hidden_sizes[: index + 1]) if index else ("BOTTLENECK", stage["num_channels"])
        if (
            stage["block"] != block
            or list(stage["num_channels"]) != list(widths)
            or stage["num_branches"] != index + 1
        ):
            raise ValueError(
                f"mmsegmentation's HRNet: extra['stage{index + 1}']={stage}, expected {index + 1} branches of {block} "
                f"blocks with the widths of the last stage, {hidden_sizes}"
            )
    return HRNetConfig(
        num_channels=given["in_channels"],
        stage1_channels=stages[0]["num_channels"][0],
        hidden_sizes=hidden_sizes,
        num_modules=[stage["num_modules"] for stage in stages],
        num_blocks=[list(stage["num_blocks"]) for stage in stages],
    )


def mmseg_swin_config(backbone: dict[str, Any]) -> SwinConfig:
    """The configuration of a `SwinTransformer`."""
    given = read_settings(backbone, SWIN_DEFAULTS, {"pretrain_style"})
    refuse_unless(
        "SwinTransformer",
        given,
        qk_scale=(None,),
        patch_norm=(True,),
        use_abs_pos_embed=(False,),
        act_cfg=({"type": "GELU"},),
        norm_cfg=({"type": "LN"}, {"type": "LN", "requires_grad": True}),
        strides=((given["patch_size"], 2, 2, 2), [given["patch_size"], 2, 2, 2]),
    )
    config = SwinConfig(
        num_channels=given["in_channels"],
        embed_dim=given["embed_dims"],
        patch_size=given["patch_size"],
        window_size=given["window_size"],
        mlp_ratio=given["mlp_ratio"],
        depths=list(given["depths"]),
        num_heads=list(given["num_heads"]),
        qkv_bias=given["qkv_bias"],
        hidden_dropout_prob=given["drop_rate"],
        attention_probs_dropout_prob=given["attn_drop_rate"],
        drop_path_rate=given["drop_path_rate"],
    )
    return returning(config, given["out_indices"])


def mmseg_convnext_config(backbone: dict[str, Any]) -> ConvNextConfig:
    """The configuration of a `ConvNeXt` of mmpretrain or mmcls."""
    given = read_settings(backbone, CONVNEXT_DEFAULTS)
    refuse_unless(
        "ConvNeXt",
        given,
        norm_cfg=({"type": "LN2d", "eps": 1e-6},),
        act_cfg=({"type": "GELU"},),
        use_grn=(False,),
        gap_before_final_norm=(False,),
    )
    arch = given["arch"]
    if isinstance(arch, str):
        if f"convnext-{arch}" not in CONVNEXT:
            known = ", ".join(name.removeprefix("convnext-") for name in CONVNEXT)
            raise ValueError(f"mmsegmentation's ConvNeXt: arch={arch!r}, expected {known}, or depths and channels")
        size = CONVNEXT[f"convnext-{arch}"]
        arch = dict(depths=size["depths"], channels=size["hidden_sizes"])
    config = ConvNextConfig(
        num_channels=given["in_channels"],
        patch_size=given["stem_patch_size"],
        depths=list(arch["depths"]),
        hidden_sizes=list(arch["channels"]),
        drop_path_rate=given["drop_path_rate"],
        layer_scale_init_value=given["layer_scale_init_value"],
    )
    return returning(config, given["out_indices"])


def mmseg_internimage_config(backbone: dict[str, Any]) -> InternImageConfig:
    """The configuration of an `InternImage` of its segmentation code."""
    given = read_settings(backbone, INTERNIMAGE_DEFAULTS)
    fixed = dict(core_op=("DCNv3",), act_layer=("GELU",), norm_layer=("LN",), drop_rate=(0.0,))
    refuse_unless("InternImage", given, **fixed)
    out_indices = given.pop("out_indices")
    config = InternImageConfig(**{name: value for name, value in given.items() if name not in fixed})
    return returning(config, out_indices)


def mmseg_mit_config(backbone: dict[str, Any]) -> MiTConfig:
    """The configuration of a `MixVisionTransformer`."""
    given = read_settings(backbone, MIT_DEFAULTS)
    refuse_unless("MixVisionTransformer", given, qkv_bias=(True,), act_cfg=({"type": "GELU"},))
    fields: dict[str, Any] = dict(
        num_channels=given["in_channels"],
        depths=list(given["num_layers"]),
        hidden_sizes=[given["embed_dims"] * heads for heads in given["num_heads"]],
        num_attention_heads=list(given["num_heads"]),
        patch_sizes=list(given["patch_sizes"]),
        strides=list(given["strides"]),
        sr_ratios=list(given["sr_ratios"]),
        mlp_ratios=[given["mlp_ratio"]] * given["num_stages"],
        hidden_dropout_prob=given["drop_rate"],
        attention_probs_dropout_prob=given["attn_drop_rate"],
        drop_path_rate=given["drop_path_rate"],
        layer_norm_eps=given["norm_cfg"].get("eps", 1e-5),
        out_features=stage_names(given["out_indices"], given["num_stages"]),
    )
    return MiTConfig(**fields)


def returning(config: Any, out_indices: Any) -> Any:
    """The backbone's configuration with the maps that mmsegmentation counts from 0."""
    config.out_features = stage_names(out_indices, len(config.depths))
    return config


def stage_names(out_indices: Any, depth: int) -> list[str]:
    """mmsegmentation's numbers of stages as names."""
    indices = [out_indices] if isinstance(out_indices, int) else out_indices
    return [f"stage{index % depth + 1}" for index in indices]


def short_type(part: dict[str, Any]) -> str:
    """mmsegmentation's class name without a scope such as `mmpretrain.`."""
    return str(part.get("type")).split(".")[-1]


def read_type(backbone: dict[str, Any], known: Any) -> str:
    """mmsegmentation's class name, without a scope such as `mmseg.`; raises for one that is not in `known`."""
    kind = short_type(backbone)
    if kind not in known:
        raise ValueError(f"mmsegmentation backbone of type={backbone.get('type')!r}: expected {', '.join(known)}")
    return kind


def read_settings(
    backbone: dict[str, Any], defaults: dict[str, Any], ignored: set[str] | frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The settings that change numbers, with mmsegmentation's defaults for those that are not given.

    Args:
        backbone: mmsegmentation's dictionary.
        defaults: every setting that our function reads or checks, with mmsegmentation's default.
        ignored: settings without effect, beside those of training.

    Raises:
        ValueError: for a setting that is neither read nor without effect, or norms that are not BatchNorm's (unless
            `norm_cfg` is among the settings that are read).
    """
    unknown = set(backbone) - set(defaults) - TRAINING_SETTINGS - ignored - {"type", "norm_cfg"}
    if unknown:
        raise ValueError(
            f"mmsegmentation's {backbone['type']}: no counterpart here for {', '.join(sorted(unknown))}; "
            f"known: {', '.join(defaults)}"
        )
    if "norm_cfg" not in defaults:
        norm = backbone.get("norm_cfg") or {"type": "BN"}
        if norm.get("type") not in BATCH_NORMS or norm.get("eps", 1e-5) != 1e-5:
            raise ValueError(f"mmsegmentation's {backbone['type']}: norm_cfg={norm}, expected BatchNorm with eps 1e-5")
    return {name: backbone.get(name, default) for name, default in defaults.items()}


def refuse_unless(kind: str, given: dict[str, Any], **allowed: tuple[Any, ...]) -> None:
    """Raise for a setting with another value than those that our model has."""
    for name, values in allowed.items():
        if given[name] not in values:
            expected = " or ".join(map(repr, values))
            raise ValueError(f"mmsegmentation's {kind}: {name}={given[name]!r}, expected {expected}")


BACKBONES: dict[str, Callable[[dict[str, Any]], PreTrainedConfig]] = {
    "ResNet": mmseg_resnet_config,
    "ResNetV1c": mmseg_resnet_config,
    "ResNetV1d": mmseg_resnet_config,
    "HRNet": mmseg_hrnet_config,
    "SwinTransformer": mmseg_swin_config,
    "ConvNeXt": mmseg_convnext_config,
    "InternImage": mmseg_internimage_config,
    "MixVisionTransformer": mmseg_mit_config,
}
