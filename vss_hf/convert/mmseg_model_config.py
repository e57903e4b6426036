"""The `model` of an mmsegmentation configuration as a configuration of ours.

The backbones are in mmseg_config.py; as there, whatever is not known here is refused by name.
"""

from typing import Any

from transformers import ConvNextConfig, PreTrainedConfig, SwinConfig

from vss_hf.modeling.configuration_bisenet import BiSeNetConfig
from vss_hf.modeling.configuration_deeplabv3 import DeepLabV3Config
from vss_hf.modeling.configuration_deeplabv3plus import DeepLabV3PlusConfig
from vss_hf.modeling.configuration_fcn import FCNConfig
from vss_hf.modeling.configuration_ocrnet import OCRNetConfig
from vss_hf.modeling.configuration_pspnet import PSPNetConfig
from vss_hf.modeling.configuration_segformer import SegFormerConfig
from vss_hf.modeling.configuration_segmenter import SegmenterConfig, count_maps
from vss_hf.modeling.configuration_semantic_fpn import SemanticFPNConfig
from vss_hf.modeling.configuration_tmanet import TMANetConfig
from vss_hf.modeling.configuration_upernet import UperNetConfig

from .mmseg_config import backbone_config_from_mmseg, read_settings, refuse_unless, short_type


Settings = dict[str, Any]
PLAIN_CONV = (None, {"type": "Conv2d"}, {"type": "Conv"})

# What every head of mmsegmentation takes; `loss_decode` and `sampler` rule its training.
HEAD_DEFAULTS = dict(
    in_channels=None,
    channels=None,
    num_classes=None,
    out_channels=None,
    dropout_ratio=0.1,
    conv_cfg=None,
    act_cfg={"type": "ReLU"},
    in_index=-1,
    input_transform=None,
    loss_decode=None,
    ignore_index=255,
    align_corners=False,
)
IGNORED_IN_HEADS = {"sampler", "threshold"}
FCN_DEFAULTS = dict(num_convs=2, kernel_size=3, concat_input=True, dilation=1)
FPN_DEFAULTS = dict(
    in_channels=None,
    out_channels=None,
    num_outs=None,
    start_level=0,
    end_level=-1,
    add_extra_convs=False,
    extra_convs_on_inputs=False,
    relu_before_extra_convs=False,
    no_norm_on_lateral=False,
    conv_cfg=None,
    norm_cfg=None,
    act_cfg=None,
    upsample_cfg={"mode": "nearest"},
)
BISENET_DEFAULTS = dict(
    backbone_cfg=None,
    in_channels=3,
    spatial_channels=(64, 64, 64, 128),
    context_channels=(128, 256, 512),
    out_indices=(0, 1, 2),
    out_channels=256,
    conv_cfg=None,
    act_cfg={"type": "ReLU"},
)
# Parts of a model that do not change what it computes from normalised images.
AROUND_THE_MODEL = {"type", "data_preprocessor", "pretrained", "init_cfg", "train_cfg", "test_cfg", "num_stages"}


def segmenter_config_from_mmseg(model: Settings) -> SegmenterConfig:
    """The configuration of a model, with LABEL_0, LABEL_1, ... as class names.

    Args:
        model: mmsegmentation's dictionary (`Config.fromfile(path).model`): an `EncoderDecoder`, or a
            `CascadeEncoderDecoder` of an FCN head and an OCR head.

    Raises:
        ValueError: for a part or a setting that has no counterpart here.
    """
    kind = short_type(model)
    parts = {"backbone", "neck", "decode_head", "auxiliary_head"}
    if unknown := set(model) - AROUND_THE_MODEL - parts:
        raise ValueError(f"mmsegmentation's {kind}: no counterpart here for {', '.join(sorted(unknown))}")
    neck, head, auxiliary = model.get("neck"), model["decode_head"], model.get("auxiliary_head")
    if short_type(model["backbone"]) == "BiSeNetV1":  # our model, not our backbone, has its paths
        refuse_parts("BiSeNetV1", neck=neck)
        return bisenet_config(model["backbone"], head, auxiliary)
    backbone = backbone_config_from_mmseg(model["backbone"])
    if kind == "CascadeEncoderDecoder":
        refuse_parts(kind, neck=neck, auxiliary_head=auxiliary)
        return ocrnet_config(head, backbone)
    if kind != "EncoderDecoder":
        raise ValueError(f"mmsegmentation model of type={kind!r}: expected EncoderDecoder or CascadeEncoderDecoder")
    if short_type(head) == "FPNHead":
        return semantic_fpn_config(head, neck, auxiliary, backbone)
    refuse_parts(short_type(head), neck=neck)
    if short_type(head) not in HEADS:
        known = ", ".join([*HEADS, "FPNHead", "and OCRHead after FCNHead"])
        raise ValueError(f"mmsegmentation decode head of type={short_type(head)!r}: expected {known}")
    return HEADS[short_type(head)](head, auxiliary, backbone)


def upernet_config(head: Settings, auxiliary: Settings | None, backbone: PreTrainedConfig) -> UperNetConfig:
    """UPerHead, with or without an FCN head."""
    given = read_head(head, pool_scales=(1, 2, 3, 6))
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=given["channels"],
        pool_scales=list(given["pool_scales"]),
        **shared_fields(given),
        **auxiliary_fields(auxiliary, given, backbone),
    )
    refuse_unless("UPerHead", given, in_index=all_maps(config), input_transform=(None, "multiple_select"))
    return config


def fcn_config(head: Settings, auxiliary: Settings | None, backbone: PreTrainedConfig) -> SegmenterConfig:
    """FCNHead, with or without a second one."""
    given = read_head(head, **FCN_DEFAULTS)
    refuse_unless("FCNHead", given, dilation=(1,), input_transform=(None, "resize_concat"))
    return reading(
        FCNConfig,
        backbone,
        in_indices=read_indices(given, backbone),
        channels=given["channels"],
        num_convs=given["num_convs"],
        kernel_size=given["kernel_size"],
        concat_input=given["concat_input"],
        **shared_fields(given),
        **auxiliary_fields(auxiliary, given, backbone),
    )


def pspnet_config(head: Settings, auxiliary: Settings | None, backbone: PreTrainedConfig) -> SegmenterConfig:
    """PSPHead, with or without an FCN head."""
    given = read_head(head, pool_scales=(1, 2, 3, 6))
    return reading(
        PSPNetConfig,
        backbone,
        in_index=read_index("PSPHead", given, backbone),
        channels=given["channels"],
        pool_scales=list(given["pool_scales"]),
        **shared_fields(given),
        **auxiliary_fields(auxiliary, given, backbone),
    )


def deeplabv3_config(head: Settings, auxiliary: Settings | None, backbone: PreTrainedConfig) -> SegmenterConfig:
    """ASPPHead, with or without an FCN head."""
    given = read_head(head, dilations=(1, 6, 12, 18))
    return reading(
        DeepLabV3Config,
        backbone,
        in_index=read_index("ASPPHead", given, backbone),
        channels=given["channels"],
        dilations=list(given["dilations"]),
        **shared_fields(given),
        **auxiliary_fields(auxiliary, given, backbone),
    )


def deeplabv3plus_config(head: Settings, auxiliary: Settings | None, backbone: PreTrainedConfig) -> SegmenterConfig:
    """DepthwiseSeparableASPPHead, with or without an FCN head."""
    given = read_head(head, dilations=(1, 6, 12, 18), c1_in_channels=None, c1_channels=None)
    if not given["c1_in_channels"]:
        raise ValueError("mmsegmentation's DepthwiseSeparableASPPHead: c1_in_channels=0, expected an early map")
    return reading(
        DeepLabV3PlusConfig,
        backbone,
        in_index=read_index("DepthwiseSeparableASPPHead", given, backbone),
        low_level_in_index=0,
        channels=given["channels"],
        low_level_channels=given["c1_channels"],
        dilations=list(given["dilations"]),
        **shared_fields(given),
        **auxiliary_fields(auxiliary, given, backbone),
    )


def segformer_config(head: Settings, auxiliary: Settings | None, backbone: PreTrainedConfig) -> SegmenterConfig:
    """SegformerHead."""
    refuse_parts("SegformerHead", auxiliary_head=auxiliary)
    given = read_head(head, interpolate_mode="bilinear")
    refuse_unless("SegformerHead", given, interpolate_mode=("bilinear",), input_transform=(None, "multiple_select"))
    indices = [index % len(backbone.out_features) for index in given["in_index"]]
    return reading(SegFormerConfig, backbone, in_indices=indices, channels=given["channels"], **shared_fields(given))


def tmanet_config(head: Settings, auxiliary: Settings | None, backbone: PreTrainedConfig) -> SegmenterConfig:
    """TMANet's TMAHead, with or without an FCN head; the frames are those right before the labelled one."""
    given = read_head(head, sequence_num=None, key_channels=None, value_channels=None)
    return reading(
        TMANetConfig,
        backbone,
        in_index=read_index("TMAHead", given, backbone),
        frame_offsets=list(range(-given["sequence_num"], 0)),
        **{name: given[name] for name in ("channels", "key_channels", "value_channels")},
        **shared_fields(given),
        **auxiliary_fields(auxiliary, given, backbone),
    )


def semantic_fpn_config(
    head: Settings, neck: Settings | None, auxiliary: Settings | None, backbone: PreTrainedConfig
) -> SemanticFPNConfig:
    """FPN and FPNHead."""
    refuse_parts("FPNHead", auxiliary_head=auxiliary)  # it would read the neck's maps, ours reads the backbone's
    if neck is None or short_type(neck) != "FPN":
        raise ValueError(f"mmsegmentation's FPNHead: neck={neck}, expected an FPN")
    given, pyramid = read_head(head, feature_strides=None), read_settings(neck, FPN_DEFAULTS)
    config = SemanticFPNConfig(
        backbone_config=backbone,
        pyramid_channels=pyramid["out_channels"],
        channels=given["channels"],
        feature_strides=list(given["feature_strides"]),
        **shared_fields(given),
    )
    refuse_unless("FPNHead", given, in_index=all_maps(config), input_transform=(None, "multiple_select"))
    refuse_unless(
        "FPN",
        pyramid,
        num_outs=(count_maps(config),),
        start_level=(0,),
        end_level=(-1, count_maps(config)),
        add_extra_convs=(False,),
        conv_cfg=PLAIN_CONV,
        norm_cfg=(None,),
        act_cfg=(None,),
        upsample_cfg=({"mode": "nearest"},),
    )
    return config


def bisenet_config(paths: Settings, head: Settings, auxiliary: list[Settings] | None) -> BiSeNetConfig:
    """BiSeNetV1 and its FCN head, with or without two auxiliary ones."""
    given, backbone = read_bisenet_paths(paths)
    heads = [read_head(part, **FCN_DEFAULTS) for part in (head, *(auxiliary or ()))]
    if len(heads) not in (1, 3):
        raise ValueError(f"mmsegmentation's BiSeNetV1: {len(heads) - 1} auxiliary heads, expected 2 or none")
    fixed = dict(num_convs=(1,), kernel_size=(3,), concat_input=(False,), dilation=(1,), input_transform=(None,))
    for index, part in enumerate(heads):
        first = heads[min(index, 1)]  # the main head, or the first auxiliary one, whose settings the second shares
        same = {name: (heads[0][name],) for name in ("align_corners", "num_classes", "ignore_index")}
        same |= {name: (first[name],) for name in ("channels", "loss_decode")}
        refuse_unless("FCNHead of BiSeNetV1", part, **fixed, **same, in_index=(index, index - 3))
    fields: Settings = dict(use_auxiliary_heads=False)
    if auxiliary:
        fields = dict(auxiliary_channels=heads[1]["channels"], auxiliary_loss_weight=loss_weight(heads[1]))
    return BiSeNetConfig(
        backbone_config=backbone,
        spatial_channels=list(given["spatial_channels"]),
        context_channels=given["context_channels"][0],
        fusion_channels=given["out_channels"],
        channels=heads[0]["channels"],
        **fields,
        **shared_fields(heads[0]),
    )


def read_bisenet_paths(paths: Settings) -> tuple[Settings, PreTrainedConfig]:
    """The settings of a BiSeNetV1, and the backbone of its context path with the two maps that it reads."""
    given = read_settings(paths, BISENET_DEFAULTS, {"align_corners"})  # nearest upsampling has no corners
    fixed = dict(in_channels=(3,), out_indices=((0, 1, 2), [0, 1, 2]), conv_cfg=PLAIN_CONV)
    refuse_unless("BiSeNetV1", given, **fixed, act_cfg=({"type": "ReLU"},))
    backbone = backbone_config_from_mmseg(given["backbone_cfg"])
    width, *widths = given["context_channels"]
    if len(backbone.out_features) != 4:
        raise ValueError(f"mmsegmentation's BiSeNetV1: a backbone with {len(backbone.out_features)} maps, expected 4")
    if widths != backbone.hidden_sizes[2:] or widths[0] != width + given["spatial_channels"][-1]:
        raise ValueError(
            f"mmsegmentation's BiSeNetV1: context_channels={given['context_channels']}, expected the widths of the "
            f"backbone's last two maps, {backbone.hidden_sizes[2:]}, at the end, and the middle one to be the sum of "
            f"the first and of the last of spatial_channels={given['spatial_channels']}"
        )
    backbone.out_features = backbone.out_features[2:]
    return given, backbone


def ocrnet_config(heads: list[Settings], backbone: PreTrainedConfig) -> SegmenterConfig:
    """A cascade of FCNHead and OCRHead."""
    kinds = [short_type(head) for head in heads]
    if kinds != ["FCNHead", "OCRHead"]:
        raise ValueError(f"mmsegmentation's CascadeEncoderDecoder of {', '.join(kinds)}: expected FCNHead, OCRHead")
    coarse, ocr = read_head(heads[0], **FCN_DEFAULTS), read_head(heads[1], ocr_channels=None, scale=1)
    transforms = dict(input_transform=(None, "resize_concat"))
    refuse_unless("FCNHead", coarse, concat_input=(False,), dilation=(1,), **transforms)
    refuse_unless("OCRHead", ocr, scale=(1,), align_corners=(coarse["align_corners"],), **transforms)
    return reading(
        OCRNetConfig,
        backbone,
        in_indices=read_indices(ocr, backbone),
        coarse_in_indices=read_indices(coarse, backbone),
        channels=ocr["channels"],
        ocr_channels=ocr["ocr_channels"],
        coarse_channels=coarse["channels"],
        coarse_kernel_size=coarse["kernel_size"],
        coarse_num_convs=coarse["num_convs"],
        auxiliary_loss_weight=loss_weight(coarse),
        **shared_fields(ocr),
    )


def read_head(head: Settings, **defaults: Any) -> Settings:
    """A head's settings with mmsegmentation's defaults; refuses those that no head of ours has."""
    given = read_settings(head, {**HEAD_DEFAULTS, **defaults}, IGNORED_IN_HEADS)
    refuse_unless(
        short_type(head),
        given,
        conv_cfg=PLAIN_CONV,
        act_cfg=({"type": "ReLU"},),
        out_channels=(None, given["num_classes"]),
    )
    return given


def shared_fields(given: Settings) -> Settings:
    """The fields that follow from any decode head."""
    return dict(
        id2label={index: f"LABEL_{index}" for index in range(given["num_classes"])},
        classifier_dropout=max(0.0, given["dropout_ratio"]),  # -1 stands for none
        align_corners=given["align_corners"],
        ignore_index=given["ignore_index"],
    )


def auxiliary_fields(auxiliary: Settings | None, decode_head: Settings, backbone: PreTrainedConfig) -> Settings:
    """The fields of the auxiliary head."""
    if auxiliary is None:
        return dict(use_auxiliary_head=False)
    if not isinstance(auxiliary, dict) or short_type(auxiliary) != "FCNHead":
        raise ValueError(f"mmsegmentation's auxiliary_head={auxiliary}: expected one FCNHead")
    given = read_head(auxiliary, **FCN_DEFAULTS)
    same = ("align_corners", "num_classes", "ignore_index")
    refuse_unless("auxiliary FCNHead", given, **{name: (decode_head[name],) for name in same})
    refuse_unless("auxiliary FCNHead", given, kernel_size=(3,), dilation=(1,))
    return dict(
        auxiliary_in_index=read_index("auxiliary FCNHead", given, backbone),
        auxiliary_channels=given["channels"],
        auxiliary_num_convs=given["num_convs"],
        auxiliary_concat_input=given["concat_input"],
        auxiliary_loss_weight=loss_weight(given),
    )


def reading(config_class: Any, backbone: Any, **fields: Any) -> SegmenterConfig:
    """A configuration without maps that no head reads, if they have a norm: it would never get a gradient."""
    if not isinstance(backbone, SwinConfig | ConvNextConfig):
        return config_class(backbone_config=backbone, **fields)
    choices = {name: value for name, value in fields.items() if name.endswith(("in_index", "in_indices"))}
    lists = {name: value if isinstance(value, list) else [value] for name, value in choices.items()}
    read = sorted({index for indices in lists.values() for index in indices})
    names = backbone.out_features
    assert names is not None  # since the configuration's __post_init__
    backbone.out_features = [names[index] for index in read]
    for name, indices in lists.items():
        now = [read.index(index) for index in indices]
        fields[name] = now if isinstance(choices[name], list) else now[0]
    return config_class(backbone_config=backbone, **fields)


def read_index(kind: str, given: Settings, backbone: PreTrainedConfig) -> int:
    """The single map that a head reads, counted from the front."""
    refuse_unless(kind, given, input_transform=(None,))
    return given["in_index"] % len(backbone.out_features)


def read_indices(given: Settings, backbone: PreTrainedConfig) -> list[int]:
    """The maps that a head reads, counted from the front."""
    indices = given["in_index"] if given["input_transform"] else [given["in_index"]]
    return [index % len(backbone.out_features) for index in indices]


def all_maps(config: SegmenterConfig) -> tuple[Any, ...]:
    """The forms of "every map, in order"."""
    indices = tuple(range(count_maps(config)))
    return indices, list(indices)


def loss_weight(given: Settings) -> float:
    """The weight of a head's loss, of the first if there are several."""
    loss = given["loss_decode"] or {}
    first = loss[0] if isinstance(loss, (list, tuple)) else loss
    return float(first.get("loss_weight", 1.0))


def refuse_parts(kind: str, **parts: Any) -> None:
    """Raise for a part of the model that ours has not."""
    for name, part in parts.items():
        if part is not None:
            raise ValueError(f"mmsegmentation's {kind} with {name}={part}: expected none")


HEADS = {
    "UPerHead": upernet_config,
    "FCNHead": fcn_config,
    "PSPHead": pspnet_config,
    "ASPPHead": deeplabv3_config,
    "DepthwiseSeparableASPPHead": deeplabv3plus_config,
    "SegformerHead": segformer_config,
    "TMAHead": tmanet_config,
}
