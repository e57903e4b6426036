"""Names of the clip models of VSPW_baseline in terms of ours, without the encoder's."""

from .mmseg_heads import NO_COUNTER
from .tables import Rename, Table
from .vspw_heads import conv_norm, ocr_rows


ST_PPM = Table(
    (
        Rename(r"ppm_conv\.ppm\.(\d+)\.([01])\.(\w+)", r"decode_head.pools.\1.1.\2.\3"),
        *conv_norm(r"ppm_conv\.conv_last_", "decode_head.merge"),
        Rename(r"ppm_conv\.conv_last_\.4\.(\w+)", r"decode_head.classifier.\1"),
        *conv_norm("deepsup", "auxiliary_head.convs.0"),
        Rename(r"deepsup\.4\.(\w+)", r"auxiliary_head.classifier.\1"),
        # A 1x1 convolution before an average over the map: here a linear layer behind it.
        Rename(r"pspweight_conv\.0\.weight", "frame_score.weight", change=lambda weight: weight.flatten(1)),
    ),
    kept=(NO_COUNTER,),
)
TCB_OCR = Table(ocr_rows(""), kept=(NO_COUNTER,))
