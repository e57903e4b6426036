"""Names of TMANet, which are mmsegmentation's and those of its own decode head, in terms of ours."""

from .mmseg_heads import conv_module, conv_modules, with_auxiliary_head
from .tables import Rename


# There the convolutions of all frames come first, then the second ones; the oldest frame is 0 on both sides.
MEMORY = r"decode_head\.memory_(key|value)_conv\.([01])\.(\d+)"
TMANET = with_auxiliary_head(
    *conv_modules(r"decode_head\.query_key_conv\.([01])", r"decode_head.query_key.\1"),
    *conv_modules(r"decode_head\.query_value_conv\.([01])", r"decode_head.query_value.\1"),
    Rename(MEMORY + r"\.conv\.(\w+)", r"decode_head.memory_\1.\3.\2.0.\4"),
    Rename(MEMORY + r"\.bn\.(\w+)", r"decode_head.memory_\1.\3.\2.1.\4"),
    *conv_module(r"decode_head\.bottleneck", "decode_head.merge"),
)
