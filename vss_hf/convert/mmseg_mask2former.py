"""Names of `Mask2FormerHead` in terms of ours: mmseg 0.x (InternImage, ViT-Adapter) and 1.x (mmdetection 3)."""

from transformers import PreTrainedConfig

from .tables import Rename, Table


PIXELS = r"decode_head\.pixel_decoder\."
OWN_PIXELS = "model.pixel_level_module.decoder."
OWN_QUERIES = "model.transformer_module."


def conv_module(reference: str, own: str) -> tuple[Rename, Rename]:
    """The rows of an mmcv `ConvModule` with a group norm, a Sequential here; the group in both is the same."""
    return (
        Rename(reference + r"\.conv\.(\w+)", own + r".0.\2"),
        Rename(reference + r"\.gn\.(\w+)", own + r".1.\2"),
    )


def mmseg_mask2former_table(config: PreTrainedConfig) -> Table:
    """The whole head. In every layer of the decoder mmseg numbers attentions and norms by their order of use.

    That order is cross attention, self attention, feed-forward. The newer names say which attention it is.
    """
    encoder, own_encoder = PIXELS + r"encoder\.layers\.(\d+)\.", OWN_PIXELS + r"encoder.layers.\1."
    layer = r"decode_head\.transformer_decoder\.layers\.(\d+)\."
    own_layer = OWN_QUERIES + r"decoder.layers.\1."
    cross, own_cross = layer + r"(?:attentions\.0|cross_attn)\.attn\.", own_layer + "cross_attn."
    self_attention, own_self = layer + r"(?:attentions\.1|self_attn)\.attn\.", own_layer + "self_attn."
    feed_forward = r"(?:ffns\.0|ffn)\.layers\."
    mask_mlp = OWN_QUERIES + "decoder.mask_predictor.mask_embedder."
    return Table(
        (
            *conv_module(PIXELS + r"input_convs\.(\d)", OWN_PIXELS + r"input_projections.\1"),
            Rename(PIXELS + r"level_encoding\.weight", OWN_PIXELS + "level_embed"),
            Rename(
                encoder
                + r"(?:attentions\.0|self_attn)\."
                + r"(sampling_offsets|attention_weights|value_proj|output_proj)\.(\w+)",
                own_encoder + r"self_attn.\2.\3",
            ),
            Rename(encoder + r"norms\.0\.(\w+)", own_encoder + r"self_attn_layer_norm.\2"),
            Rename(encoder + feed_forward + r"0\.0\.(\w+)", own_encoder + r"fc1.\2"),
            Rename(encoder + feed_forward + r"1\.(\w+)", own_encoder + r"fc2.\2"),
            Rename(encoder + r"norms\.1\.(\w+)", own_encoder + r"final_layer_norm.\2"),
            # One map is left to the FPN; transformers counts from 1.
            *conv_module(PIXELS + r"lateral_convs\.(0)", OWN_PIXELS + "adapter_1"),
            *conv_module(PIXELS + r"output_convs\.(0)", OWN_PIXELS + "layer_1"),
            Rename(PIXELS + r"mask_feature\.(\w+)", OWN_PIXELS + r"mask_projection.\1"),
            Rename(r"decode_head\.query_embed\.weight", OWN_QUERIES + "queries_embedder.weight"),
            Rename(r"decode_head\.query_feat\.weight", OWN_QUERIES + "queries_features.weight"),
            Rename(r"decode_head\.level_embed\.weight", OWN_QUERIES + "level_embed.weight"),
            Rename(r"decode_head\.decoder_input_projs\.(\d)\.(\w+)", OWN_QUERIES + r"input_projections.\1.\2"),
            Rename(cross + r"([\w.]+)", own_cross + r"\2"),
            Rename(layer + r"norms\.0\.(\w+)", own_layer + r"cross_attn_layer_norm.\2"),
            Rename(self_attention + r"in_proj_(\w+)", own_self + r"{part}_proj.\2", parts=("q", "k", "v")),
            Rename(self_attention + r"out_proj\.(\w+)", own_self + r"out_proj.\2"),
            Rename(layer + r"norms\.1\.(\w+)", own_layer + r"self_attn_layer_norm.\2"),
            Rename(layer + feed_forward + r"0\.0\.(\w+)", own_layer + r"fc1.\2"),
            Rename(layer + feed_forward + r"1\.(\w+)", own_layer + r"fc2.\2"),
            Rename(layer + r"norms\.2\.(\w+)", own_layer + r"final_layer_norm.\2"),
            Rename(r"decode_head\.transformer_decoder\.post_norm\.(\w+)", OWN_QUERIES + r"decoder.layernorm.\1"),
            *(Rename(rf"decode_head\.mask_embed\.{2 * step}\.(\w+)", mask_mlp + rf"{step}.0.\1") for step in range(3)),
            Rename(r"decode_head\.cls_embed\.(\w+)", r"class_predictor.\1"),
            Rename(r"decode_head\.conv_seg\.(\w+)", None, reason="of mmseg's base class; unused"),
        ),
        kept=((r"criterion\.empty_weight", "made from the configuration's no_object_weight"),),
    )
