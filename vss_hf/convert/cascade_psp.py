"""Names of CascadePSP's refinement network in terms of CascadePSPModel.

Official files are saved under DataParallel; `read_reference_file` takes the prefix away, and whoever reads them alone
may leave it.
"""

from .mmseg_heads import NO_COUNTER
from .tables import Rename, Table, under


RESNET_PREFIX = r"(?:module\.)?feats\."
CASCADE_PSP = under(
    Table(
        (
            Rename(r"psp\.stages\.(\d)\.1\.weight", r"pyramid.pools.\1.1.weight"),
            Rename(r"psp\.bottleneck\.(\w+)", r"pyramid.merge.\1"),
            Rename(r"up_1\.conv\.(\d\.\w+)", r"up_stride4.fuse.\1"),
            Rename(r"up_2\.conv\.(\d\.\w+)", r"up_stride2.fuse.\1"),
            Rename(r"up_3\.conv\.(\d\.\w+)", r"up_stride1.fuse.\1"),
            Rename(r"up_1\.conv2\.(\d\.\w+)", r"up_stride4.refine.\1"),
            Rename(r"up_2\.conv2\.(\d\.\w+)", r"up_stride2.refine.\1"),
            Rename(r"up_3\.conv2\.(\d\.\w+)", r"up_stride1.refine.\1"),
            Rename(r"up_1\.shortcut\.(\w+)", r"up_stride4.shortcut.\1"),
            Rename(r"up_2\.shortcut\.(\w+)", r"up_stride2.shortcut.\1"),
            Rename(r"up_3\.shortcut\.(\w+)", r"up_stride1.shortcut.\1"),
            Rename(r"final_28\.(\d\.\w+)", r"head_stride8.\1"),
            Rename(r"final_56\.(\d\.\w+)", r"head_stride4.\1"),
            Rename(r"final_11\.(\w+)", r"head_stride1.0.\1"),
            Rename(r"final_21\.(\w+)", r"head_stride1.2.\1"),
        ),
        kept=(NO_COUNTER,),
    ),
    r"(?:module\.)?",
    "",
)
