"""Names of Swin in terms of transformers' SwinBackbone: mmsegmentation's, and Microsoft's own."""

from typing import Any

import torch

from .tables import Rename, Table


BLOCK = r"swin.encoder.layers.\1.blocks.\2"
INDEX_TABLE = "computed from the window size"
UNREAD_MAP = "norm of a feature map that no head reads"


def from_unfold_order(tensor: torch.Tensor) -> torch.Tensor:
    """Patch merging's last axis from mmseg's `nn.Unfold` order (channel-major) to Swin's own (sub-grid-major).

    Unfold gives index c * 4 + position with positions (0,0), (0,1), (1,0), (1,1); Swin concatenates the sub-grids
    (0,0), (1,0), (0,1), (1,1), each with all channels.
    """
    by_position = tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)  # (..., 4, C)
    return by_position[..., [0, 2, 1, 3], :].flatten(-2)


def mmseg_swin_table(config: Any) -> Table:
    """mmsegmentation's `SwinTransformer` (0.x and 1.x): its own names, and patch merging in another order."""
    block = r"stages\.(\d+)\.blocks\.(\d+)"
    return Table(
        (
            Rename(r".*\.relative_position_index", None, reason=INDEX_TABLE),
            Rename(r"patch_embed\.projection\.(\w+)", r"swin.embeddings.patch_embeddings.projection.\1"),
            Rename(r"patch_embed\.norm\.(\w+)", r"swin.embeddings.norm.\1"),
            Rename(block + r"\.norm1\.(\w+)", BLOCK + r".layernorm_before.\3"),
            Rename(block + r"\.norm2\.(\w+)", BLOCK + r".layernorm_after.\3"),
            Rename(block + r"\.ffn\.layers\.0\.0\.(\w+)", BLOCK + r".mlp.fc1.\3"),
            Rename(block + r"\.ffn\.layers\.1\.(\w+)", BLOCK + r".mlp.fc2.\3"),
            Rename(block + r"\.attn\.w_msa\.qkv\.(\w+)", BLOCK + r".attention.{part}_proj.\3", parts=("q", "k", "v")),
            Rename(block + r"\.attn\.w_msa\.proj\.(\w+)", BLOCK + r".attention.o_proj.\3"),
            Rename(
                block + r"\.attn\.w_msa\.relative_position_bias_table",
                BLOCK + r".attention.relative_position_bias.relative_position_bias_table",
            ),
            Rename(
                r"stages\.(\d+)\.downsample\.(norm|reduction)\.(\w+)",
                r"swin.encoder.layers.\1.downsample.\2.\3",
                change=from_unfold_order,
            ),
            *map_norms(config),
        )
    )


def microsoft_swin_table(config: Any) -> Table:
    """Microsoft's Swin (ImageNet classifiers; timm before 0.9; Detectron2's and mmseg's `layers.` style files)."""
    block = r"layers\.(\d+)\.blocks\.(\d+)"
    return Table(
        (
            Rename(r".*\.(relative_position_index|attn_mask)", None, reason=INDEX_TABLE),
            Rename(r"patch_embed\.proj\.(\w+)", r"swin.embeddings.patch_embeddings.projection.\1"),
            Rename(r"patch_embed\.norm\.(\w+)", r"swin.embeddings.norm.\1"),
            Rename(block + r"\.norm1\.(\w+)", BLOCK + r".layernorm_before.\3"),
            Rename(block + r"\.norm2\.(\w+)", BLOCK + r".layernorm_after.\3"),
            Rename(block + r"\.mlp\.(fc1|fc2)\.(\w+)", BLOCK + r".mlp.\3.\4"),
            Rename(block + r"\.attn\.qkv\.(\w+)", BLOCK + r".attention.{part}_proj.\3", parts=("q", "k", "v")),
            Rename(block + r"\.attn\.proj\.(\w+)", BLOCK + r".attention.o_proj.\3"),
            Rename(
                block + r"\.attn\.relative_position_bias_table",
                BLOCK + r".attention.relative_position_bias.relative_position_bias_table",
            ),
            Rename(r"layers\.(\d+)\.downsample\.(norm|reduction)\.(\w+)", r"swin.encoder.layers.\1.downsample.\2.\3"),
            Rename(r"norm\.(\w+)", None, reason="the classifier's last norm"),
            Rename(r"head\.(\w+)", None, reason="the classifier"),
            *map_norms(config),
        ),
        kept=((r"hidden_states_norms\..*", "a classifier has no norms of single feature maps"),),
    )


def map_norms(config: Any) -> tuple[Rename, ...]:
    """`norm0`..`norm3`, each for one feature map; ours exist only for maps that are read."""
    stages = [int(name.removeprefix("stage")) for name in config.out_features if name.startswith("stage")]
    read = "".join(str(stage - 1) for stage in stages) or "x"  # an empty class of characters is no pattern
    named = tuple(Rename(rf"norm{s - 1}\.(\w+)", rf"hidden_states_norms.stage{s}.\1") for s in stages)
    return (*named, Rename(rf"norm[^{read}]\.(\w+)", None, reason=UNREAD_MAP))
