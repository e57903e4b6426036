"""Names of mmsegmentation's decode heads in terms of ours; the same in 0.x and 1.x."""

from .tables import Rename, Table, joined


NO_COUNTER = (r".*\.num_batches_tracked", "old checkpoints do not count BatchNorm's batches")


def conv_module(reference: str, own: str) -> tuple[Rename, Rename]:
    """The rows of an mmcv `ConvModule` (`conv`, `bn`) that is a `ConvNormAct` here (a Sequential: 0 and 1).

    Args:
        reference: regular expression without groups.
        own: our name of the module.
    """
    return (
        Rename(reference + r"\.conv\.(\w+)", own + r".0.\1"),
        Rename(reference + r"\.bn\.(\w+)", own + r".1.\1"),
    )


def conv_modules(reference: str, own: str) -> tuple[Rename, Rename]:
    """As `conv_module`, for a numbered list: `reference` has one group, which `own` names \\1."""
    return (
        Rename(reference + r"\.conv\.(\w+)", own + r".0.\2"),
        Rename(reference + r"\.bn\.(\w+)", own + r".1.\2"),
    )


OCR = r"decode_head\.1\.object_context_block\."
OCRNET = Table(
    (
        *conv_modules(r"decode_head\.0\.convs\.(\d+)", r"coarse_head.convs.\1"),
        Rename(r"decode_head\.0\.conv_seg\.(\w+)", r"coarse_head.classifier.\1"),
        *conv_module(r"decode_head\.1\.bottleneck", "decode_head.pixel_conv"),
        *conv_modules(OCR + r"query_project\.(\d)", r"decode_head.attention.query.\1"),
        *conv_modules(OCR + r"key_project\.(\d)", r"decode_head.attention.key.\1"),
        *conv_module(OCR + r"value_project", "decode_head.attention.value"),
        *conv_module(OCR + r"out_project", "decode_head.attention.out"),
        *conv_module(OCR + r"bottleneck", "decode_head.attention.merge"),
        Rename(r"decode_head\.1\.conv_seg\.(\w+)", r"decode_head.classifier.\1"),
    ),
    kept=(NO_COUNTER,),
)

# transformers' heads, and so UperNet's here, have mmsegmentation's names but for these two.
UPERNET = Table(
    (
        Rename(r"((?:decode|auxiliary)_head)\.conv_seg\.(\w+)", r"\1.classifier.\2"),
        Rename(r"((?:decode|auxiliary)_head\..+)\.bn\.(\w+)", r"\1.batch_norm.\2"),
        Rename(r"((?:decode|auxiliary)_head\..+\.conv\.\w+)", r"\1"),
    ),
    kept=(NO_COUNTER,),
)


def fcn_head(head: str) -> tuple[Rename, ...]:
    """The rows of an FCNHead, which is called `head` on both sides."""
    return (
        *conv_modules(head + r"\.convs\.(\d+)", head + r".convs.\1"),
        *conv_module(head + r"\.conv_cat", head + ".merge"),
        Rename(head + r"\.conv_seg\.(\w+)", head + r".classifier.\1"),
    )


def with_auxiliary_head(*rows: Rename) -> Table:
    """A decode head's rows, the classifier's and those of the auxiliary head."""
    classifier = Rename(r"decode_head\.conv_seg\.(\w+)", r"decode_head.classifier.\1")
    return Table((*rows, classifier, *fcn_head("auxiliary_head")), kept=(NO_COUNTER,))


FCN = with_auxiliary_head(*fcn_head("decode_head"))
PSPNET = with_auxiliary_head(
    *conv_modules(r"decode_head\.psp_modules\.(\d+\.1)", r"decode_head.pools.\1"),
    *conv_module(r"decode_head\.bottleneck", "decode_head.merge"),
)
DEEPLABV3 = with_auxiliary_head(
    *conv_module(r"decode_head\.image_pool\.1", "decode_head.image_pool.1"),
    *conv_modules(r"decode_head\.aspp_modules\.(\d+)", r"decode_head.branches.\1"),
    *conv_module(r"decode_head\.bottleneck", "decode_head.merge"),
)


def separable(reference: str, own: str) -> tuple[Rename, ...]:
    """The rows of mmcv's `DepthwiseSeparableConvModule`, for a numbered list as in `conv_modules`."""
    return (
        *conv_modules(reference + r"\.depthwise_conv", own + ".0"),
        *conv_modules(reference + r"\.pointwise_conv", own + ".1"),
    )


DEEPLABV3PLUS = joined(
    Table(
        (
            *separable(r"decode_head\.aspp_modules\.(\d+)", r"decode_head.branches.\1"),
            *separable(r"decode_head\.sep_bottleneck\.(\d+)", r"decode_head.refine.\1"),
            *conv_module(r"decode_head\.c1_bottleneck", "decode_head.low_level"),
        )
    ),
    DEEPLABV3,
)


# A level that is upsampled has an upsampling layer after each convolution, which counts: ours have half the number.
SEMANTIC_FPN = with_auxiliary_head(
    Rename(r"neck\.lateral_convs\.(\d+)\.conv\.(\w+)", r"decode_head.pyramid.lateral.\1.\2"),
    Rename(r"neck\.fpn_convs\.(\d+)\.conv\.(\w+)", r"decode_head.pyramid.out.\1.\2"),
    *(
        row
        for conv in range(17)  # as many doublings as SemanticFPNConfig allows
        for row in conv_modules(
            rf"decode_head\.scale_heads\.(\d+)\.{2 * conv}", rf"decode_head.branches.\1.convs.{conv}"
        )
    ),
)
SEGFORMER = Table(
    (
        *conv_modules(r"decode_head\.convs\.(\d+)", r"decode_head.convs.\1"),
        *conv_module(r"decode_head\.fusion_conv", "decode_head.merge"),
        Rename(r"decode_head\.conv_seg\.(\w+)", r"decode_head.classifier.\1"),
    ),
    kept=(NO_COUNTER,),
)
