"""Names of Facebook's MaskFormer and Mask2Former (Detectron2) in terms of ours, and the reader of their pickles."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from .swin import microsoft_swin_table
from .tables import Rename, Table


QKV = ("q", "k", "v")
# Whatever a damaged pickle makes of its own stack and memo
DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError)
OLD_COUNTER = (r"(.*\.)?num_batches_tracked", "a frozen BatchNorm has no counter")

# Old files lack `pixel_decoder.`.
PIXELS = r"sem_seg_head\.(?:pixel_decoder\.)?"
PREDICTOR = r"sem_seg_head\.predictor\."
OWN_PIXELS = "model.pixel_level_module.decoder."
OWN_DECODER = "model.transformer_module.decoder."
SHARED = (
    Rename(PREDICTOR + r"query_embed\.weight", "model.transformer_module.queries_embedder.weight"),
    Rename(PIXELS + r"mask_features\.(\w+)", OWN_PIXELS + r"mask_projection.\1"),
    Rename(PREDICTOR + r"class_embed\.(\w+)", r"class_predictor.\1"),
    Rename(r"criterion\.empty_weight", "criterion.empty_weight"),
    Rename(r"pixel_(mean|std)", None, reason="belongs to the image processor"),
)


def conv_norm(reference: str, own: str) -> tuple[Rename, Rename]:
    """The rows of a Detectron2 `Conv2d` with its norm inside, which is a Sequential here; no groups in `reference`."""
    return Rename(reference + r"\.weight", own + ".0.weight"), Rename(reference + r"\.norm\.(\w+)", own + r".1.\1")


def maskformer_table(config: PreTrainedConfig) -> Table:
    """MaskFormer's `BasePixelDecoder` and `TransformerPredictor`, without the backbone."""
    layer, own_layer = PREDICTOR + r"transformer\.decoder\.layers\.(\d+)\.", OWN_DECODER + r"layers.\1."
    fpn = [conv_norm(PIXELS + "layer_4", OWN_PIXELS + "fpn.stem")]
    for step, stage in enumerate((3, 2, 1)):  # from low to high resolution
        fpn.append(conv_norm(PIXELS + f"adapter_{stage}", OWN_PIXELS + f"fpn.layers.{step}.proj"))
        fpn.append(conv_norm(PIXELS + f"layer_{stage}", OWN_PIXELS + f"fpn.layers.{step}.block"))
    attentions = []
    for reference, own in (("self_attn", "self_attn"), ("multihead_attn", "encoder_attn")):
        in_proj, out_proj = rf"{reference}\.in_proj_(\w+)", rf"{reference}\.out_proj\.(\w+)"
        attentions.append(Rename(layer + in_proj, own_layer + own + r".{part}_proj.\2", parts=QKV))
        attentions.append(Rename(layer + out_proj, own_layer + own + r".o_proj.\2"))
    return Table(
        (
            *(row for rows in fpn for row in rows),
            Rename(PREDICTOR + r"input_proj\.(\w+)", r"model.transformer_module.input_projection.\1"),
            *attentions,
            Rename(layer + r"linear([12])\.(\w+)", own_layer + r"mlp.fc\2.\3"),
            Rename(layer + r"norm1\.(\w+)", own_layer + r"self_attn_layer_norm.\2"),
            Rename(layer + r"norm2\.(\w+)", own_layer + r"encoder_attn_layer_norm.\2"),
            Rename(layer + r"norm3\.(\w+)", own_layer + r"final_layer_norm.\2"),
            Rename(PREDICTOR + r"transformer\.decoder\.norm\.(\w+)", OWN_DECODER + r"layernorm.\1"),
            Rename(PREDICTOR + r"mask_embed\.layers\.(\d+)\.(\w+)", r"mask_embedder.\1.0.\2"),
            *SHARED,
        )
    )


def mask2former_table(config: PreTrainedConfig) -> Table:
    """Mask2Former's `MSDeformAttnPixelDecoder` and `MultiScaleMaskedTransformerDecoder`, without the backbone."""
    encoder, own_encoder = PIXELS + r"transformer\.encoder\.layers\.(\d+)\.", OWN_PIXELS + r"encoder.layers.\1."
    own_layer = OWN_DECODER + r"layers.\1."
    self_attention = PREDICTOR + r"transformer_self_attention_layers\.(\d+)\."
    cross_attention = PREDICTOR + r"transformer_cross_attention_layers\.(\d+)\."
    feed_forward = PREDICTOR + r"transformer_ffn_layers\.(\d+)\."
    return Table(
        (
            Rename(PIXELS + r"input_proj\.(\d)\.([01])\.(\w+)", OWN_PIXELS + r"input_projections.\1.\2.\3"),
            Rename(PIXELS + r"transformer\.level_embed", OWN_PIXELS + "level_embed"),
            Rename(encoder + r"self_attn\.(\w+)\.(\w+)", own_encoder + r"self_attn.\2.\3"),
            Rename(encoder + r"norm1\.(\w+)", own_encoder + r"self_attn_layer_norm.\2"),
            Rename(encoder + r"linear([12])\.(\w+)", own_encoder + r"fc\2.\3"),
            Rename(encoder + r"norm2\.(\w+)", own_encoder + r"final_layer_norm.\2"),
            *conv_norm(PIXELS + "adapter_1", OWN_PIXELS + "adapter_1"),
            *conv_norm(PIXELS + "layer_1", OWN_PIXELS + "layer_1"),
            # `static_query` in old files
            Rename(
                PREDICTOR + r"(?:query_feat|static_query)\.weight", "model.transformer_module.queries_features.weight"
            ),
            Rename(PREDICTOR + r"level_embed\.weight", "model.transformer_module.level_embed.weight"),
            Rename(PREDICTOR + r"input_proj\.(\d)\.(\w+)", r"model.transformer_module.input_projections.\1.\2"),
            Rename(self_attention + r"self_attn\.in_proj_(\w+)", own_layer + r"self_attn.{part}_proj.\2", parts=QKV),
            Rename(self_attention + r"self_attn\.out_proj\.(\w+)", own_layer + r"self_attn.out_proj.\2"),
            Rename(self_attention + r"norm\.(\w+)", own_layer + r"self_attn_layer_norm.\2"),
            # The cross attention is torch's own layer here, too.
            Rename(cross_attention + r"multihead_attn\.([\w.]+)", own_layer + r"cross_attn.\2"),
            Rename(cross_attention + r"norm\.(\w+)", own_layer + r"cross_attn_layer_norm.\2"),
            Rename(feed_forward + r"linear([12])\.(\w+)", own_layer + r"fc\2.\3"),
            Rename(feed_forward + r"norm\.(\w+)", own_layer + r"final_layer_norm.\2"),
            Rename(PREDICTOR + r"decoder_norm\.(\w+)", OWN_DECODER + r"layernorm.\1"),
            Rename(
                PREDICTOR + r"mask_embed\.layers\.(\d+)\.(\w+)", OWN_DECODER + r"mask_predictor.mask_embedder.\1.0.\2"
            ),
            *SHARED,
        )
    )


def swin_table(config: PreTrainedConfig) -> Table:
    """`D2SwinTransformer` is Microsoft's Swin with a norm for each map; into transformers' SwinBackbone."""
    return Table(microsoft_swin_table(config).renames)


def maskformer_swin_table(config: PreTrainedConfig) -> Table:
    """`D2SwinTransformer` into transformers' MaskFormerSwinBackbone, which keeps the index tables in its files."""
    block, own_block = r"layers\.(\d+)\.blocks\.(\d+)\.", r"model.encoder.layers.\1.blocks.\2."
    attention = own_block + "attention.self."
    return Table(
        (
            Rename(r"patch_embed\.proj\.(\w+)", r"model.embeddings.patch_embeddings.projection.\1"),
            Rename(r"patch_embed\.norm\.(\w+)", r"model.embeddings.norm.\1"),
            Rename(block + r"norm1\.(\w+)", own_block + r"layernorm_before.\3"),
            Rename(block + r"attn\.(relative_position_(?:bias_table|index))", attention + r"\3"),
            Rename(block + r"attn\.qkv\.(\w+)", attention + r"{part}.\3", parts=("query", "key", "value")),
            Rename(block + r"attn\.proj\.(\w+)", own_block + r"attention.output.dense.\3"),
            Rename(block + r"norm2\.(\w+)", own_block + r"layernorm_after.\3"),
            Rename(block + r"mlp\.fc1\.(\w+)", own_block + r"intermediate.dense.\3"),
            Rename(block + r"mlp\.fc2\.(\w+)", own_block + r"output.dense.\3"),
            Rename(r"layers\.(\d+)\.downsample\.(norm|reduction)\.(\w+)", r"model.encoder.layers.\1.downsample.\2.\3"),
            Rename(r"norm(\d)\.(\w+)", r"hidden_states_norms.\1.\2"),
        )
    )


def resnet_table(config: PreTrainedConfig) -> Table:
    """Detectron2's ResNet with either stem into DilatedResNetBackbone."""
    rows = [
        Rename(r"stem\.conv1\.weight", "conv1.weight"),
        Rename(r"stem\.conv1\.norm\.(\w+)", r"bn1.\1"),
        # DeepLab's stem of three convolutions ("R101c")
        Rename(r"stem\.conv1_1\.weight", "conv1.0.weight"),
        Rename(r"stem\.conv1_1\.norm\.(\w+)", r"conv1.1.\1"),
        Rename(r"stem\.conv1_2\.weight", "conv1.3.weight"),
        Rename(r"stem\.conv1_2\.norm\.(\w+)", r"conv1.4.\1"),
        Rename(r"stem\.conv1_3\.weight", "conv1.6.weight"),
        Rename(r"stem\.conv1_3\.norm\.(\w+)", r"bn1.\1"),
    ]
    for stage in (1, 2, 3, 4):
        block = rf"res{stage + 1}\.(\d+)\."
        own_block = rf"layer{stage}.\1."
        rows += [
            Rename(block + r"conv(\d)\.weight", own_block + r"conv\2.weight"),
            Rename(block + r"conv(\d)\.norm\.(\w+)", own_block + r"bn\2.\3"),
            Rename(block + r"shortcut\.weight", own_block + "downsample.0.weight"),
            Rename(block + r"shortcut\.norm\.(\w+)", own_block + r"downsample.1.\2"),
        ]
    return Table(tuple(rows), kept=(OLD_COUNTER,))


def read_detectron2_pickle(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of one of Detectron2's `.pkl` files; nothing but arrays and plain containers is ever built.

    Args:
        path: a pickle of {"model": {name: array}, "__author__": ...}, or of {name: array}.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or asks for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        with open(path, "rb") as file:
            checkpoint = ArrayUnpickler(file, encoding="latin1").load()  # as Detectron2 reads them
    except DAMAGE as error:
        raise ValueError(f"{path}: refused, because it is damaged or holds more than arrays ({error})") from error
    arrays = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(arrays, dict) or not all(
        isinstance(name, str) and isinstance(array, np.ndarray) and array.dtype.kind in "fiub"
        for name, array in arrays.items()
    ):
        raise ValueError(f"{path}: expected arrays of numbers by name, alone or under 'model'")
    return {
        name: torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))  # a copy that may be written
        for name, array in arrays.items()
    }


class ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain containers; refuses every other name that a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")  # numpy 2 moved it
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


class ArrayKind:
    """Stands for `numpy.ndarray`, which a pickle may name but not call."""


def empty_array(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
    """Stands for numpy's `_reconstruct`, which pickles call for an empty array that they fill afterwards."""
    if kind is not ArrayKind or tuple(shape) != (0,):
        raise pickle.UnpicklingError(f"it asks for an array of type {kind} and shape {shape}")
    return np.ndarray((0,), np.uint8)


def array_of_bytes(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Stands for numpy's `_frombuffer`, by which the newest pickles write an array."""
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def number_type(name: Any, *flags: Any) -> np.dtype:
    """Stands for `numpy.dtype`: kinds of numbers only, no objects and no records."""
    if not isinstance(name, str) or np.dtype(name).kind not in "fiub":
        raise pickle.UnpicklingError(f"it asks for values of type {name!r}")
    return np.dtype(name, copy=True)  # the pickle sets the byte order of what it gets


def latin1_bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """Stands for `codecs.encode`, by which old pickles write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for bytes in {encoding!r}")
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): empty_array,
    ("numpy.core.numeric", "_frombuffer"): array_of_bytes,
    ("numpy", "ndarray"): ArrayKind,
    ("numpy", "dtype"): number_type,
    ("_codecs", "encode"): latin1_bytes,
    ("__builtin__", "bytes"): lambda: b"",
    ("collections", "OrderedDict"): OrderedDict,
}
