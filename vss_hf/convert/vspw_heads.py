"""Names of the single-frame heads of VSPW_baseline in terms of ours. Its files wrap every name in `module.`."""

from .mmseg_heads import NO_COUNTER
from .tables import Rename, Table


def conv_norm(reference: str, own: str) -> tuple[Rename, ...]:
    """The rows of a convolution without bias and a BatchNorm, in a Sequential that goes on with other layers.

    Args:
        reference: regular expression without groups, of the Sequential's name.
        own: our name of the ConvNormAct.
    """
    return Rename(reference + r"\.0\.(\w+)", own + r".0.\1"), Rename(reference + r"\.1\.(\w+)", own + r".1.\1")


PSPNET = Table(
    (
        Rename(r"decoder\.ppm\.(\d+)\.1\.(\w+)", r"decode_head.pools.\1.1.0.\2"),
        Rename(r"decoder\.ppm\.(\d+)\.2\.(\w+)", r"decode_head.pools.\1.1.1.\2"),
        *conv_norm(r"decoder\.conv_last_", "decode_head.merge"),
        Rename(r"decoder\.conv_last_\.4\.(\w+)", r"decode_head.classifier.\1"),
        *conv_norm(r"decoder\.cbr_deepsup", "auxiliary_head.convs.0"),
        Rename(r"decoder\.conv_last_deepsup_\.(\w+)", r"auxiliary_head.classifier.\1"),
    ),
    kept=(NO_COUNTER,),
)


def conv_bias_norm(reference: str, own: str, first: int = 0) -> tuple[Rename, ...]:
    """As `conv_norm`, for a convolution with a bias, number `first` of the Sequential.

    Our convolutions have none before a BatchNorm, which subtracts the mean anyway: its running mean takes the bias.
    """
    conv, norm = rf"{reference}\.{first}", rf"{reference}\.{first + 1}"
    bias = conv.replace("\\", "") + ".bias"
    return (
        Rename(conv + r"\.weight", own + ".0.weight"),
        Rename(conv + r"\.bias", None, reason="in the running mean of the BatchNorm behind it"),
        Rename(norm + r"\.running_mean", own + ".1.running_mean", minus=bias),
        Rename(norm + r"\.(\w+)", own + r".1.\1"),
    )


def ocr_rows(prefix: str) -> tuple[Rename, ...]:
    """The rows of the OCR heads.

    Args:
        prefix: what stands before their names, as a regular expression without groups.
    """
    ocr = prefix + r"spatial_ocr_head\.object_context_block"
    return (
        *conv_bias_norm(prefix + "dsn_head", "coarse_head.convs.0"),
        Rename(prefix + r"dsn_head\.4\.(\w+)", r"coarse_head.classifier.\1"),
        *conv_bias_norm(prefix + "conv_3x3", "decode_head.pixel_conv"),
        *conv_bias_norm(ocr + r"\.f_pixel", "decode_head.attention.query.0"),
        *conv_bias_norm(ocr + r"\.f_pixel", "decode_head.attention.query.1", first=3),
        *conv_bias_norm(ocr + r"\.f_object", "decode_head.attention.key.0"),
        *conv_bias_norm(ocr + r"\.f_object", "decode_head.attention.key.1", first=3),
        *conv_bias_norm(ocr + r"\.f_down", "decode_head.attention.value"),
        *conv_bias_norm(ocr + r"\.f_up", "decode_head.attention.out"),
        *conv_bias_norm(prefix + r"spatial_ocr_head\.conv_bn_dropout", "decode_head.attention.merge"),
        Rename(prefix + r"head\.(\w+)", r"decode_head.classifier.\1"),
    )


OCRNET = Table(ocr_rows(r"decoder\."), kept=(NO_COUNTER,))
