"""Names of ConvNeXt in terms of transformers' ConvNextBackbone: mmsegmentation's, and Facebook's own."""

from typing import Any

from .swin import map_norms
from .tables import Rename, Table, as_linear


LAYER = r"encoder.stages.\1.layers.\2"


def convnext_rows() -> tuple[Rename, ...]:
    """The stem, the downsampling layers and the blocks; mmsegmentation spells Facebook's `dwconv`, `pwconv` out."""
    block = r"stages\.(\d+)\.(\d+)"
    pointwise = block + r"\.(?:pointwise_conv|pwconv)"
    return (
        Rename(r"downsample_layers\.0\.0\.(\w+)", r"embeddings.patch_embeddings.\1"),
        Rename(r"downsample_layers\.0\.1\.(\w+)", r"embeddings.layernorm.\1"),
        Rename(r"downsample_layers\.(\d+)\.([01])\.(\w+)", r"encoder.stages.\1.downsampling_layer.\2.\3"),
        Rename(block + r"\.(?:depthwise_conv|dwconv)\.(\w+)", LAYER + r".dwconv.\3"),
        Rename(block + r"\.norm\.(\w+)", LAYER + r".layernorm.\3"),
        Rename(pointwise + r"([12])\.(\w+)", LAYER + r".pwconv\3.\4", change=as_linear),
        Rename(block + r"\.gamma", LAYER + r".layer_scale_parameter"),
    )


def mmseg_convnext_table(config: Any) -> Table:
    """The `ConvNeXt` of mmpretrain and mmcls in mmsegmentation's files; Facebook's own segmentation files, too."""
    return Table((*convnext_rows(), *map_norms(config)))


def facebook_convnext_table(config: Any) -> Table:
    """Facebook's ImageNet classifiers."""
    return Table(
        (
            *convnext_rows(),
            Rename(r"norm\.(\w+)", None, reason="the classifier's last norm"),
            Rename(r"head\.(\w+)", None, reason="the classifier"),
        ),
        kept=((r"hidden_states_norms\..*", "a classifier has no norms of single feature maps"),),
    )
