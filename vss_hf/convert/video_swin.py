"""Names of Video Swin's classifiers in terms of Swin3DBackbone: torchvision's, and the original repository's.

Patch merging needs no change: all of them, and the Swin for images, take the four patches in the same order.
"""

from typing import Any

from .swin import INDEX_TABLE
from .tables import Rename, Table


NO_MAP_NORMS = (r"hidden_states_norms\..*", "a classifier has no norms of single feature maps")
LAST_NORM = "the classifier's last norm"
CLASSIFIER = "the classifier"

# `SwinTransformer3d`, whose modules ours are
TORCHVISION_SWIN3D = Table(
    (
        Rename(r".*\.relative_position_index", None, reason=INDEX_TABLE),
        Rename(r"((?:patch_embed|features)\..+)", r"\1"),
        Rename(r"norm\.(weight|bias)", None, reason=LAST_NORM),
        Rename(r"head\.(weight|bias)", None, reason=CLASSIFIER),
    ),
    kept=(NO_MAP_NORMS,),
)


def video_swin_table(config: Any) -> Table:
    """`SwinTransformer3D` of Video-Swin-Transformer (mmaction), inside its recogniser or alone."""
    rows = []
    for stage in range(len(config.depths)):  # among our `features` stages and mergings take turns
        layer, own = rf"(?:backbone\.)?layers\.{stage}", rf"features.{2 * stage}.\1"
        block, merging = layer + r"\.blocks\.(\d+)", rf"features.{2 * stage + 1}.\1"
        rows += [
            Rename(block + r"\.(norm[12]|attn\.qkv|attn\.proj)\.(weight|bias)", own + r".\2.\3"),
            Rename(block + r"\.(attn\.relative_position_bias_table)", own + r".\2"),
            Rename(block + r"\.mlp\.fc1\.(weight|bias)", own + r".mlp.0.\2"),
            Rename(block + r"\.mlp\.fc2\.(weight|bias)", own + r".mlp.3.\2"),
            Rename(layer + r"\.downsample\.(norm\.weight|norm\.bias|reduction\.weight)", merging),
        ]
    return Table(
        (
            Rename(r".*\.relative_position_index", None, reason=INDEX_TABLE),
            Rename(r"(?:backbone\.)?(patch_embed\.(?:proj|norm)\.(?:weight|bias))", r"\1"),
            *rows,
            Rename(r"(?:backbone\.)?norm\.(weight|bias)", None, reason=LAST_NORM),
            Rename(r"cls_head\.fc_cls\.(weight|bias)", None, reason=CLASSIFIER),
        ),
        kept=(NO_MAP_NORMS,),
    )
