"""Frames on their way into a model: neighbours of one size together, prepared beside the model's work."""

from collections.abc import Callable, Generator, Hashable, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers.image_processing_backends import TorchvisionBackend

from vss_hf.video_io import Frame, FrameSource


if TYPE_CHECKING:
    from .segmenter import VideoSegmenter

T = TypeVar("T")


def runs(items: Iterable[T], most: int, key: Callable[[T], Hashable]) -> Generator[list[T], None, None]:
    """Neighbours with one key, at most `most` together; where `items` raises, those before come first."""
    group: list[T] = []
    try:
        for item in items:
            if group and (len(group) == most or key(item) != key(group[0])):
                yield group
                group = []
            group.append(item)
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


@dataclass
class Batch:
    """Frames of one size and a model's input made of them.

    Args:
        frames: as they were read.
        inputs: (len(frames), 3, h, w) on the model's device; of an ensemble one for each member.
        ready: on a GPU, the event of its being there; None elsewhere.
    """

    frames: list[Frame]
    inputs: list[torch.Tensor]
    ready: Any

    def fetch(self) -> list[torch.Tensor]:
        """The input, for work that is put on the current stream of a GPU from now on."""
        if self.ready is not None:
            current = torch.cuda.current_stream(self.inputs[0].device)
            current.wait_event(self.ready)
            for pixel_values in self.inputs:
                pixel_values.record_stream(current)  # its memory is not used again before that work is done
        return self.inputs


def prepared_batches(
    segmenter: "VideoSegmenter", source: FrameSource, batch_size: int
) -> Generator[Batch, None, None]:
    """The frames of a source as batches for a segmenter; on a GPU, copied and prepared on a stream of their own."""
    device: Any = segmenter.model.device
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    take_tensors = all(isinstance(part.processor, TorchvisionBackend) for part in segmenter.parts)
    with closing(iter(source)) as frames:
        for group in runs(frames, batch_size, key=lambda frame: frame.image.shape):
            images: list[Any] = [frame.image for frame in group]
            explaining = segmenter.explaining_memory(len(group), group[0].image.shape[:2])
            with torch.inference_mode(), torch.cuda.stream(stream), explaining:
                if stream is not None and take_tensors:
                    # Only from pinned memory does a copy run beside other work.
                    images = [torch.from_numpy(image).pin_memory().to(device, non_blocking=True) for image in images]
                inputs = [part.pixel_values(images) for part in segmenter.parts]
            yield Batch(group, inputs, stream.record_event() if stream is not None else None)
