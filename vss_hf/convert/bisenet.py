"""Names of mmsegmentation's BiSeNetV1 in terms of ours; the tables of its parts are relative to the part."""

from .mmseg_heads import NO_COUNTER, conv_module, fcn_head
from .tables import Rename, Table, joined, under


SPATIAL_PATH = Table(
    tuple(row for layer in range(4) for row in conv_module(rf"layer{layer + 1}", str(layer))), kept=(NO_COUNTER,)
)
ATTENTION_REFINEMENT = Table(
    (
        *conv_module("conv_layer", "conv"),
        Rename(r"atten_conv_layer\.1\.conv\.(\w+)", r"attention.1.\1"),
        Rename(r"atten_conv_layer\.1\.bn\.(\w+)", r"attention.2.\1"),
    ),
    kept=(NO_COUNTER,),
)
FEATURE_FUSION = Table(
    (*conv_module("conv1", "merge"), *conv_module(r"conv_atten\.0", "attention.1")), kept=(NO_COUNTER,)
)
# without the ResNet, which is inside it in mmsegmentation
CONTEXT_PATH = joined(
    under(ATTENTION_REFINEMENT, r"arm16\.", "refine_fine."),
    under(ATTENTION_REFINEMENT, r"arm32\.", "refine_coarse."),
    Table(
        (
            *conv_module("conv_head16", "conv_fine"),
            *conv_module("conv_head32", "conv_coarse"),
            *conv_module(r"gap_conv\.1", "average.1"),
        ),
        kept=(NO_COUNTER,),
    ),
)
RESNET_PREFIX = r"backbone\.context_path\.backbone\."
BISENET = joined(
    under(SPATIAL_PATH, r"backbone\.spatial_path\.", "spatial_path."),
    under(CONTEXT_PATH, r"backbone\.context_path\.", "context_path."),
    under(FEATURE_FUSION, r"backbone\.ffm\.", "fusion."),
    Table(fcn_head("decode_head"), kept=(NO_COUNTER,)),
    under(Table(fcn_head("0"), kept=(NO_COUNTER,)), r"auxiliary_head\.", "auxiliary_heads."),
    under(Table(fcn_head("1"), kept=(NO_COUNTER,)), r"auxiliary_head\.", "auxiliary_heads."),
)
NO_TIME = (r"decode_head\.context_conv\.weight", "BiSeNet sees one frame; at first its weight is zero")
TBN_VIT = joined(BISENET, Table((), kept=(NO_TIME,)))
