"""A model and its processor, frame by frame."""

import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor

import vss_hf  # noqa: F401  (registers our models with the Auto classes)
from vss_hf.modeling.loading import load_segmentation_model, loading, read_json
from vss_hf.video_io import FrameSource, open_source

from .batches import Batch, prepared_batches
from .read_ahead import read_ahead
from .scores import semantic_confidence, semantic_labels, semantic_scores


BATCHES_AHEAD = 2


@dataclass
class SegmentedFrame:
    """A frame with what the model says about it.

    Args:
        name: the picture's stem, or the frame's position in the video as eight digits.
        time: seconds since the first frame; None where there is no clock.
        image: uint8 (H, W, 3) RGB.
        labels: uint8 (H, W), class of each pixel.
        scores: float32 (num_labels, H, W), probability of each class; None unless asked for.
        confidence: float32 (H, W), probability of the class in `labels`; None unless asked for.
    """

    name: str
    time: float | None
    image: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    confidence: np.ndarray | None = None


class VideoSegmenter:
    """Labels frames as they come, with an image or a video model; memory does not grow with the video.

    Args:
        model: a semantic segmentation model, ours or of transformers.
        processor: its image processor.
        device: where to run; None: where the model is.

    Example:
        >>> segmenter = VideoSegmenter.from_pretrained("path/to/model")  # doctest: +SKIP
        >>> for frame in segmenter.segment("path/to/video.mp4"):  # doctest: +SKIP
        ...     print(frame.name, frame.time, frame.labels.shape)
    """

    def __init__(self, model: Any, processor: Any, device: str | torch.device | None = None):
        self.model = model.to(device) if device is not None else model
        self.model.eval()
        self.processor = processor
        self.reset()

    @classmethod
    def from_pretrained(
        cls, source: str | Path, device: str | torch.device | None = None, revision: str | None = None
    ) -> "VideoSegmenter":
        """Load a model folder or Hub repo. Weights must be safetensors, and every tensor of the model must be there.

        Args:
            source: folder or Hub id.
            device: where to run; None: a GPU if there is one.
            revision: branch, tag or commit of a Hub repo.

        Raises:
            FileNotFoundError: `source` looks like a folder and holds no model.
            ValueError: a file is damaged, pickled or does not fit the others; the message names it.
        """
        settings: dict[str, Any] = {} if revision is None else {"revision": revision}
        model = load_segmentation_model(source, **settings)
        model.config.return_dict = True  # outputs are read by name here, whatever the file says
        processor = load_processor(source, **settings)
        return cls(model, processor, device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def names(self) -> list[str]:
        """Class names in the order of the label values."""
        return [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]

    @property
    def is_video_model(self) -> bool:
        """Whether the model looks at earlier frames, too; then frames must come in order."""
        return hasattr(self.model, "init_state")

    # --- frame by frame

    def reset(self) -> None:
        """Begin another video: the next `step` takes its frame as the first one."""
        self._video = VideoMemory(self.model)

    def step(self, frame: np.ndarray | torch.Tensor) -> np.ndarray:
        """Label the next frame of the current video.

        Args:
            frame: RGB uint8, (height, width, 3) array or (3, height, width) tensor.

        Returns:
            uint8 (height, width), class of each pixel, at the frame's own size.

        Raises:
            MemoryError: the memory does not suffice; the message says for what, and what to turn down.
        """
        return self.label_batch([frame])[0]

    def label_batch(self, frames: list[Any]) -> list[np.ndarray]:
        """Label the next frames of the current video, all of one size; see `step`.

        An image model takes them together, a video model one after the other.
        """
        if self.is_video_model and len(frames) > 1:
            return [self.step(frame) for frame in frames]
        height, width = frames[0].shape[:2] if isinstance(frames[0], np.ndarray) else frames[0].shape[-2:]
        with torch.inference_mode(), self.explaining_memory(len(frames), (height, width)):
            outputs = self._video.outputs(self.pixel_values(frames), (height, width))
            return list(semantic_labels(self.model, outputs, (height, width)).cpu().numpy())

    # --- whole videos

    def label_video(self, frames: Iterable[Any], *, batch_size: int = 1) -> Iterator[np.ndarray]:
        """The label maps of one video, as `segment` makes them.

        Args:
            frames: RGB uint8 (height, width, 3) arrays, or another source that `segment` takes.
            batch_size: as for `segment`.

        Returns:
            An iterator of uint8 (height, width), one for each frame, in order.
        """
        return (frame.labels for frame in self.segment(frames, batch_size=batch_size))

    def segment(
        self, source: Any, *, batch_size: int = 1, with_scores: bool = False, with_confidence: bool = False
    ) -> Generator[SegmentedFrame, None, None]:
        """Label one video while it is read. A thread reads and prepares the next frames while the model computes.

        The video has a memory of its own, from its first frame on; `step` and other videos do not disturb it. Where
        the frames change their size, a video model begins anew, with a RuntimeWarning.

        Args:
            source: a video file, a folder of frames, a picture, the folder of a VSPW video, frames, the number of a
                camera, or a `FrameSource`; see `vss_hf.video_io.open_source`. A camera is shown as it is now: frames
                that come while the model is busy are left out.
            batch_size: frames that an image model takes together, at most; frames of different sizes never are. A
                video model takes one at a time.
            with_scores: also give the probabilities of all classes, num_labels numbers per pixel.
            with_confidence: also give the probability of the predicted class, one number per pixel.

        Returns:
            A generator of the frames, in order. Closing it, or breaking off, ends the reading.

        Raises:
            As `open_source`, at once. While it is iterated: what reading raises, after the frames before the damage;
            MemoryError as `step`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected a number of frames, from 1")
        opened, together = open_source(source), 1 if self.is_video_model else batch_size
        return self._segment(opened, together, with_scores, with_confidence)

    def _segment(
        self, source: FrameSource, batch_size: int, scores: bool, confidence: bool
    ) -> Generator[SegmentedFrame, None, None]:
        video = VideoMemory(self.model)
        batches = prepared_batches(self, source, batch_size)
        depth = 1 if source.live else BATCHES_AHEAD
        with closing(read_ahead(batches, depth, newest_only=source.live)) as ahead:
            for batch in ahead:
                yield from self._label(batch, video, scores, confidence)

    def _label(
        self, batch: Batch, video: "VideoMemory", with_scores: bool, with_confidence: bool
    ) -> list[SegmentedFrame]:
        frames = batch.frames
        size = frames[0].image.shape[:2]
        scores: Any = [None] * len(frames)
        confidence: Any = scores
        with torch.inference_mode(), self.explaining_memory(len(frames), size):
            outputs = video.outputs(batch.fetch(), size, frames[0].name)
            if with_confidence:
                found, probable = semantic_confidence(self.model, outputs, size)
                labels, confidence = found.cpu().numpy(), probable.cpu().numpy()
            else:
                labels = semantic_labels(self.model, outputs, size).cpu().numpy()
            if with_scores:
                scores = semantic_scores(self.model, outputs, size).cpu().numpy()
        return [
            SegmentedFrame(frame.name, frame.time, frame.image, *of_frame)
            for frame, *of_frame in zip(frames, labels, scores, confidence, strict=True)
        ]

    # --- what both share

    def pixel_values(self, frames: list[Any]) -> torch.Tensor:
        """The model's input, (frames, 3, h, w), made of frames of one size (see `step`)."""
        # Arrays that are mirrored views, e.g. `bgr[..., ::-1]`, are not for torch.
        images = [np.ascontiguousarray(frame) if isinstance(frame, np.ndarray) else frame for frame in frames]
        inputs = self.processor(images=images, return_tensors="pt", device=str(self.model.device))
        return inputs["pixel_values"].to(self.model.device, self.model.dtype)

    @contextmanager
    def explaining_memory(self, frames: int, size: tuple[int, int]) -> Iterator[None]:
        """Where the memory does not suffice inside: a MemoryError that says for what, and what to turn down."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"out of memory with {frames} frames of {size[0]}x{size[1]} (height x width) on {self.model.device}: "
                "label fewer frames at once (--batch-size; --per_device_eval_batch_size in training), or smaller ones "
                f"(size in preprocessor_config.json, now {self.processor.size}, do_resize {self.processor.do_resize})"
            ) from error


class VideoMemory:
    """One video on its way through a model: what a video model remembers of it. An image model remembers nothing.

    Args:
        model: an image or a video model.
    """

    def __init__(self, model: Any):
        self.model, self.state, self.frames = model, None, 0
        self.size: tuple[int, int] | None = None

    def outputs(self, pixel_values: torch.Tensor, size: tuple[int, int], name: str | None = None) -> Any:
        """What the model says about the next frames; a video model takes one.

        Args:
            pixel_values: (frames, 3, h, w).
            size: (height, width) of the frames themselves; another one than before begins a new memory, with a
                warning.
            name: how the warning calls the frame; None: by its number.
        """
        if not hasattr(self.model, "init_state"):
            return self.model(pixel_values=pixel_values)
        if size != self.size:
            if self.size is not None:
                warnings.warn(
                    f"frame {name or self.frames} is {size[1]}x{size[0]} after frames of "
                    f"{self.size[1]}x{self.size[0]} (width x height): {type(self.model).__name__} forgets those and "
                    "begins anew",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self.state, self.size = self.model.init_state(), size
        outputs, self.state = self.model.step(pixel_values, self.state)
        self.frames += 1
        return outputs


def load_processor(source: str | Path, **settings: Any) -> Any:
    """The image processor of a model folder or Hub repo, tried on an image.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: its settings are damaged or give something else than finite (1, 3, height, width).
    """
    place = str(source)
    if Path(source).is_dir():
        names = ("preprocessor_config.json", "processor_config.json")
        path = next((p for p in (Path(source) / name for name in names) if p.is_file()), Path(source) / names[0])
        read_json(path)
        place = str(path)
    with loading(place):
        processor = AutoImageProcessor.from_pretrained(source, **settings)
        pixels = processor(images=np.zeros((64, 64, 3), np.uint8), return_tensors="pt")["pixel_values"]
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.isfinite().all():
        raise ValueError(f"{place}: gives {tuple(pixels.shape)} or values that are not finite; expected (1, 3, H, W)")
    return processor


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; torch has a class of its own for GPUs only."""
    words = ("can't allocate memory", "not enough memory", "bad_alloc")
    # oneDNN without memory for a convolution's code; where it has no such convolution, it says more.
    no_code = str(error) == "could not create a primitive"
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or no_code or any(w in str(error) for w in words)
