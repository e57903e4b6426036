"""Names of HRNet in terms of HRNetBackbone: mmsegmentation's and timm's are the same."""

from .resnet import OLD_COUNTER
from .tables import Rename, Table


HRNET = Table(
    (
        Rename(r"((?:conv|bn)[12]\.\w+)", r"network.\1"),
        Rename(r"((?:layer1|transition[123]|stage[234])\..+)", r"network.\1"),
        Rename(
            r"(incre_modules|downsamp_modules|final_layer|classifier)\..+",
            None,
            reason="the ImageNet classifier on top of the four maps",
        ),
    ),
    kept=(OLD_COUNTER,),
)
