"""Names of mmsegmentation's decode heads in terms of ours; the same in 0.x and 1.x."""

from .tables import Rename, Table


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
