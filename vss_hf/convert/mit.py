"""Names of mmsegmentation's Mix Transformer in terms of transformers' encoder."""

from typing import Any

from .tables import Rename, Table, as_linear


BLOCK = r"encoder.stages.\1.blocks.\2"


def mmseg_mit_table(config: Any) -> Table:
    """mmsegmentation's `MixVisionTransformer`: `layers.i` holds the patch embedding, the blocks and the last norm."""
    block = r"layers\.(\d+)\.1\.(\d+)"
    return Table(
        (
            Rename(r"layers\.(\d+)\.0\.projection\.(\w+)", r"encoder.stages.\1.patch_embeddings.proj.\2"),
            Rename(r"layers\.(\d+)\.0\.norm\.(\w+)", r"encoder.stages.\1.patch_embeddings.layer_norm.\2"),
            Rename(block + r"\.norm1\.(\w+)", BLOCK + r".layernorm_before.\3"),
            Rename(block + r"\.norm2\.(\w+)", BLOCK + r".layernorm_after.\3"),
            Rename(
                block + r"\.attn\.attn\.in_proj_(weight|bias)",
                BLOCK + r".attention.{part}_proj.\3",
                parts=("q", "k", "v"),
            ),
            Rename(block + r"\.attn\.attn\.out_proj\.(\w+)", BLOCK + r".attention.o_proj.\3"),
            Rename(block + r"\.attn\.sr\.(\w+)", BLOCK + r".attention.sequence_reduction.sequence_reduction.\3"),
            Rename(block + r"\.attn\.norm\.(\w+)", BLOCK + r".attention.sequence_reduction.layer_norm.\3"),
            Rename(block + r"\.ffn\.layers\.0\.(\w+)", BLOCK + r".mlp.fc1.\3", change=as_linear),
            Rename(block + r"\.ffn\.layers\.1\.(\w+)", BLOCK + r".mlp.dwconv.dwconv.\3"),
            Rename(block + r"\.ffn\.layers\.4\.(\w+)", BLOCK + r".mlp.fc2.\3", change=as_linear),
            Rename(r"layers\.(\d+)\.2\.(\w+)", r"encoder.stages.\1.layer_norm.\2"),
        )
    )
