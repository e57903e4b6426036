"""Names of InternImage's releases in terms of ours: classifiers, joint pre-training, segmentation, and the Hub's."""

from transformers import PreTrainedConfig

from .tables import Rename, Table, joined, under


LEVEL = r"levels\.(\d+)\."
BLOCK = r"levels\.(\d+)\.blocks\.(\d+)\."
OWN_BLOCK = r"stages.\1.blocks.\2."

# A norm is a Sequential in the original: .0 is a LayerNorm, .1 one that comes after a change of layout.
LAYERS = Table(
    (
        Rename(r"patch_embed\.(conv[12])\.(\w+)", r"stem.\1.\2"),
        Rename(r"patch_embed\.(norm[12])\.1\.(\w+)", r"stem.\1.\2"),
        Rename(BLOCK + r"(norm[12]|res_post_norm[12])\.0\.(\w+)", OWN_BLOCK + r"\3.\4"),
        Rename(BLOCK + r"dcn\.dw_conv\.0\.(\w+)", OWN_BLOCK + r"dcn.dw_conv.\3"),
        Rename(BLOCK + r"dcn\.dw_conv\.1\.1\.(\w+)", OWN_BLOCK + r"dcn.dw_norm.\3"),
        Rename(BLOCK + r"dcn\.(offset|mask|input_proj|output_proj)\.(\w+)", OWN_BLOCK + r"dcn.\3.\4"),
        Rename(
            BLOCK + r"dcn\.center_feature_scale_proj_(weight|bias)", OWN_BLOCK + r"dcn.center_feature_scale_proj.\3"
        ),
        Rename(BLOCK + r"mlp\.(fc[12])\.(\w+)", OWN_BLOCK + r"mlp.\3.\4"),
        # The Hub's code avoids "gamma", which transformers once renamed while loading.
        Rename(BLOCK + r"(?:gamma|layer_scale)([12])", OWN_BLOCK + r"layer_scale\3"),
        Rename(LEVEL + r"norm\.0\.(\w+)", r"stages.\1.norm.\2"),
        Rename(LEVEL + r"post_norms\.(\d+)\.0\.(\w+)", r"stages.\1.post_norms.\2.\3"),
        Rename(LEVEL + r"downsample\.conv\.weight", r"downsamples.\1.conv.weight"),
        Rename(LEVEL + r"downsample\.norm\.1\.(\w+)", r"downsamples.\1.norm.\2"),
    )
)
CLASSIFIER = Table(
    (
        Rename(r"conv_head\..*", None, reason="the classifier's convolution and its BatchNorm (T to XL)"),
        Rename(r"dcnv3_head_x[34]\..*", None, reason="the classifier joins the last two stages by it (H, G)"),
        Rename(r"clip_projector\..*", None, reason="the classifier's attention pooling (H, G)"),
        Rename(r"fc_norm\..*", None, reason="the norm of the classifier's pooled vector (H, G)"),
        Rename(r"head\.(weight|bias)", None, reason="the classifier"),
    )
)
SEGMENTATION_HEADS = Table(
    (Rename(r"(decode_head|auxiliary_head)\..*", None, reason="a head of the segmentation model"),)
)
NO_FACTORS = (r"stages\.\d+\.blocks\.\d+\.layer_scale[12]", "the classifiers of T have no factors, ours start at 1")


def mmseg_internimage_table(config: PreTrainedConfig) -> Table:
    """The backbone in InternImage's segmentation code (mmsegmentation 0.x), without its prefix."""
    return LAYERS


def internimage_table(config: PreTrainedConfig) -> Table:
    """Any InternImage release into the backbone alone.

    Classifiers and joint pre-training have no prefix, the segmentation files `backbone.`, the Hub's repositories
    `model.`.
    """
    # With factors of 1 a network computes what it would without them. Only T has both kinds of releases, and only T
    # normalises before its branches; in any other checkpoint missing factors are an error.
    may_lack_factors = config.layer_scale == 1.0 and not config.post_norm
    releases = under(joined(LAYERS, CLASSIFIER), r"(?:backbone\.|model\.)?", "")
    return joined(releases, SEGMENTATION_HEADS, Table((), kept=(NO_FACTORS,) if may_lack_factors else ()))
