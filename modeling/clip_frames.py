"""Which frames of a video make the clip of one frame: the same for models and for data; needs no torch."""

from collections.abc import Sequence


CLIP_STARTS = ("repeat", "existing", "mirror")


def clip_frames(index: int, frame_offsets: Sequence[int], clip_start: str) -> list[int]:
    """The frames of a video that make the clip of one frame.

    Args:
        index: the labelled frame, from 0.
        frame_offsets: the other frames in terms of the labelled one, ascending, all negative.
        clip_start: what stands for frames before the video's first one. `"repeat"`: the first frame. `"existing"`:
            nothing; the clip is shorter. `"mirror"`: the video played backwards, frame 3 for frame -3, and the
            labelled frame itself for those that come after it, because a stream has no future.

    Returns:
        Indices from 0 to `index`, in the order of `frame_offsets`, the labelled frame last.
    """
    others = [index + offset for offset in frame_offsets]
    if clip_start == "existing":
        others = [other for other in others if other >= 0]
    elif clip_start == "mirror":
        others = [min(abs(other), index) for other in others]
    else:
        others = [max(other, 0) for other in others]
    return [*others, index]
