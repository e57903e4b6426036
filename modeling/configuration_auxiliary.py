"""What the configurations of models with an auxiliary FCN head share."""

from huggingface_hub.dataclasses import strict

from .config_checks import MOST_BLOCKS, check_at_least_one, check_at_most
from .configuration_segmenter import SegmenterConfig, check_indices


@strict
class AuxiliarySegmenterConfig(SegmenterConfig):
    r"""Settings of the auxiliary head, an FCN head that learns from an earlier map; the rest: [`SegmenterConfig`].

    Args:
        use_auxiliary_head: whether there is one.
        auxiliary_in_index: which of the backbone's maps it reads; 2 is the third.
        auxiliary_channels: its width, at least 1.
        auxiliary_num_convs: its 3x3 convolutions before the classifier, at least 1.
        auxiliary_concat_input: whether one more convolution reads its input beside their output.
    """

    use_auxiliary_head: bool = True
    auxiliary_in_index: int = 2
    auxiliary_channels: int = 256
    auxiliary_num_convs: int = 1
    auxiliary_concat_input: bool = False

    def validate_auxiliary_head(self):
        """Part of `@strict`: the auxiliary head can be built."""
        if self.use_auxiliary_head:
            check_indices(self, "auxiliary_in_index")
        check_at_least_one(self, ("auxiliary_channels", "auxiliary_num_convs"))
        check_at_most(self, "auxiliary_num_convs", MOST_BLOCKS)


__all__ = ["AuxiliarySegmenterConfig"]
