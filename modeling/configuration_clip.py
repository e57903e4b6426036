"""What the configurations of video models share: which frames of the past a frame is segmented with."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .clip_frames import CLIP_STARTS, clip_frames
from .configuration_segmenter import SegmenterConfig


MOST_PAST_FRAMES = 1000  # a damaged offset here would keep frames until the memory is full


@strict
class ClipSegmenterConfig(SegmenterConfig):
    r"""Settings of the clips of [`ClipSegmenterModel`]; comes before an image model's configuration as a base class.

    Args:
        frame_offsets: the other frames of a clip in terms of the labelled one, oldest first, all in the past: -3 is
            three frames earlier. Without any the model segments single images.
        clip_start: what stands for frames before the video's first one. `"repeat"`: the first frame. `"existing"`:
            nothing; the clip is shorter. `"mirror"`: the video played backwards, frame 3 for frame -3; a stream has
            no future, so the labelled frame itself stands for those that come after it.
        detach_references: whether training encodes the other frames without gradients. That saves the memory of their
            activations; auxiliary losses then count the last frame only.
        supervise_references: whether the auxiliary losses are means over all frames of a clip (deep supervision), for
            which training needs the other frames' labels, too.
    """

    frame_offsets: list[int] | tuple[int, ...] = (-9, -6, -3)
    clip_start: str = "repeat"
    detach_references: bool = False
    supervise_references: bool = False

    def __post_init__(self, **kwargs: Any):
        self.frame_offsets = list(self.frame_offsets)
        super().__post_init__(**kwargs)

    def validate_clip(self):
        """Part of `@strict`: the clip's frames are in order and in the past, and the policy is known."""
        offsets, name = list(self.frame_offsets), type(self).__name__
        if offsets != sorted(set(offsets)) or any(not -MOST_PAST_FRAMES <= offset < 0 for offset in offsets):
            raise ValueError(
                f"{name}.frame_offsets={offsets}: expected different numbers from -{MOST_PAST_FRAMES} to -1 in "
                "ascending order (oldest frame first)"
            )
        if self.clip_start not in CLIP_STARTS:
            raise ValueError(f"{name}.clip_start={self.clip_start!r}: expected one of {CLIP_STARTS}")

    @property
    def num_past_frames(self) -> int:
        """How many frames back the clip reaches, and how many a stream remembers."""
        return -self.frame_offsets[0] if self.frame_offsets else 0

    @property
    def wants_reference_labels(self) -> bool:
        """Whether the auxiliary losses count all frames of a clip."""
        return self.supervise_references and not self.detach_references

    def clip_indices(self, index: int) -> list[int]:
        """The frames of a video that make the clip of one frame.

        Args:
            index: the labelled frame, from 0.

        Returns:
            Indices from 0 to `index`, in the order of `frame_offsets`, the labelled frame last.
        """
        return clip_frames(index, self.frame_offsets, self.clip_start)


__all__ = ["ClipSegmenterConfig"]
