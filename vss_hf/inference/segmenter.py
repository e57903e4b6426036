"""A model and its processor, frame by frame."""

from collections.abc import Generator, Iterable, Iterator, Sequence
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
from .score_maps import ScoreMap, WeightedScores, score_maps, semantic_labels
from .steps import LabelStep, ScoreStep, recorded
from .video_memory import VideoMemory
from .views import TTA, Views


BATCHES_AHEAD = 2
Labelled = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # labels, scores, confidence


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


class ExplainedMemoryError(MemoryError):
    """Memory ran out, and the message says what to turn down."""


class VideoSegmenter:
    """Labels frames as they come, with an image or a video model; memory does not grow with the video.

    Args:
        model: a semantic segmentation model, ours or of transformers.
        processor: its image processor.
        device: where to run; None: where the model is.
        tta: views in which every frame goes through the model; None: the frame itself. Those of an ensemble are for
            all its members, and refused if one of them has its own.
        score_steps: what happens to the scores of a frame, in this order; see `vss_hf.inference.steps`.
        label_steps: what happens to its labels afterwards. Steps remember one video at a time.

    Example:
        >>> segmenter = VideoSegmenter.from_pretrained("path/to/model")  # doctest: +SKIP
        >>> for frame in segmenter.segment("path/to/video.mp4"):  # doctest: +SKIP
        ...     print(frame.name, frame.time, frame.labels.shape)
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: str | torch.device | None = None,
        *,
        tta: TTA | None = None,
        score_steps: Sequence[ScoreStep] = (),
        label_steps: Sequence[LabelStep] = (),
    ):
        self.model = model.to(device) if device is not None else model
        self.model.eval()
        self.processor = processor
        self.tta = tta
        self.score_steps, self.label_steps = list(score_steps), list(label_steps)
        for step in self._steps:
            if (set_names := getattr(step, "set_names", None)) is not None:
                set_names(self.names)
        # An ensemble's members see the frames themselves; what belongs to a frame after that is here.
        self._members = model.segmenters(tta) if hasattr(model, "segmenters") else []
        self._views = None if tta is None or self._members else Views(tta)
        self._in_steps: VideoMemory | None = None  # the video that the steps remember
        self._video = VideoMemory(self.model, self._steps)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str | torch.device | None = None,
        revision: str | None = None,
        *,
        tta: TTA | None = None,
        score_steps: Sequence[ScoreStep] = (),
        label_steps: Sequence[LabelStep] = (),
    ) -> "VideoSegmenter":
        """Load a model folder or Hub repo. Weights must be safetensors, and every tensor of the model must be there.

        Args:
            source: folder or Hub id.
            device: where to run; None: a GPU if there is one.
            revision: branch, tag or commit of a Hub repo.
            tta, score_steps, label_steps: as for the class.

        Raises:
            FileNotFoundError: `source` looks like a folder and holds no model.
            ValueError: a file is damaged, pickled or does not fit the others; the message names it.
        """
        settings: dict[str, Any] = {} if revision is None else {"revision": revision}
        model = load_segmentation_model(source, **settings)
        model.config.return_dict = True  # outputs are read by name here, whatever the file says
        processor = load_processor(source, **settings)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, processor, device, tta=tta, score_steps=score_steps, label_steps=label_steps)

    @property
    def names(self) -> list[str]:
        """Class names in the order of the label values."""
        return [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]

    @property
    def parts(self) -> list["VideoSegmenter"]:
        """What takes a frame each with a processor and a model of its own: an ensemble's members, or this one."""
        return [member for _, member in self._members] or [self]

    @property
    def is_video_model(self) -> bool:
        """Whether the model looks at earlier frames, too; then frames must come in order."""
        return hasattr(self.model, "init_state") or any(one.is_video_model for _, one in self._members)

    def settings(self) -> dict[str, Any]:
        """What results record of how labels were made, beside the model: an ensemble's `members` and `tta`,
        `score_steps` and `label_steps`, where there are any."""
        made_by = {
            "members": self.model.settings() if self._members else None,
            "tta": None if self.tta is None else self.tta.settings(),
            "score_steps": recorded(self.score_steps),
            "label_steps": recorded(self.label_steps),
        }
        return {name: value for name, value in made_by.items() if value}

    # --- frame by frame

    def reset(self) -> None:
        """Begin another video: the next `step` takes its frame as the first one."""
        self._leave(self._video)
        self._video = VideoMemory(self.model, self._steps)

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
        return [labels for labels, *_ in self._labels(frames, self._video)]

    def score_maps(self, frames: list[Any], *, normalised: bool = False) -> list[ScoreMap]:
        """The scores of all classes for the next frames of the current video, all of one size; see `label_batch`.

        Args:
            frames: as for `label_batch`.
            normalised: whether the scores of mask classification models are made to sum to 1; see `MaskScores`.

        Returns:
            A map for each frame, at the frame's own size, after the score steps; without label steps its `labels()`
            are what `label_batch` gives.
        """
        if self.is_video_model and len(frames) > 1:
            return [map_ for frame in frames for map_ in self.score_maps([frame], normalised=normalised)]
        with torch.inference_mode(), self.explaining_memory(len(frames), size_of(frames[0])):
            maps = self._maps(frames, self._video, normalised=normalised)
            return [self._after_steps(*pair) for pair in zip(frames, maps, strict=True)]

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

        The video has a memory of its own, from its first frame on; `step` and other videos do not disturb it. But
        there is one set of steps, which remember one video at a time: they begin anew with this one. Where the frames
        change their size, a video model and the steps begin anew, with a RuntimeWarning.

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
            FileNotFoundError, ValueError: as `open_source`, at once. While it is iterated: what reading raises, after
                the frames before the damage.
            MemoryError: as `step`.
            RuntimeError: there are steps, and another video was begun meanwhile.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected a number of frames, from 1")
        opened, together = open_source(source), 1 if self.is_video_model else batch_size
        return self._segment(opened, together, with_scores, with_confidence)

    def _segment(
        self, source: FrameSource, batch_size: int, scores: bool, confidence: bool
    ) -> Generator[SegmentedFrame, None, None]:
        video = VideoMemory(self.model, self._steps)
        batches = prepared_batches(self, source, batch_size)
        depth = 1 if source.live else BATCHES_AHEAD
        try:
            with closing(read_ahead(batches, depth, newest_only=source.live)) as ahead:
                for batch in ahead:
                    yield from self._label(batch, video, scores, confidence)
        finally:
            self._leave(video)

    def _label(self, batch: Batch, video: VideoMemory, scores: bool, confidence: bool) -> list[SegmentedFrame]:
        images = [frame.image for frame in batch.frames]
        labelled = self._labels(images, video, batch.fetch(), batch.frames[0].name, scores, confidence)
        return [
            SegmentedFrame(frame.name, frame.time, frame.image, *of_frame)
            for frame, of_frame in zip(batch.frames, labelled, strict=True)
        ]

    # --- what both share

    def _labels(
        self,
        frames: list[Any],
        video: VideoMemory,
        inputs: list[torch.Tensor] | None = None,
        name: str | None = None,
        with_scores: bool = False,
        with_confidence: bool = False,
    ) -> list[Labelled]:
        """Labels of the next frames of a video, and what else is wanted; a video model takes one frame."""
        size = size_of(frames[0])
        with torch.inference_mode(), self.explaining_memory(len(frames), size):
            plain = self.tta is None and not self._members and not self._steps
            if plain and not with_scores and not with_confidence:
                # All frames at once, which on a GPU is waited for once.
                outputs = self._outputs(frames, video, inputs, name)
                return [(labels, None, None) for labels in semantic_labels(self.model, outputs, size).cpu().numpy()]
            maps = self._maps(frames, video, inputs, name)
            return [self._finished(*pair, with_scores, with_confidence) for pair in zip(frames, maps, strict=True)]

    def _maps(
        self,
        frames: list[Any],
        video: VideoMemory,
        inputs: list[torch.Tensor] | None = None,
        name: str | None = None,
        normalised: bool = False,
    ) -> list[ScoreMap]:
        """The scores of the next frames of a video before any step."""
        size = size_of(frames[0])
        if self._members:
            self._enter(video)
            video.expect(size, len(frames), name)
            return self._member_maps(frames, video, inputs)
        if self._views is None:
            outputs = self._outputs(frames, video, inputs, name)
            return score_maps(self.model, outputs, size, normalised=normalised)
        self._enter(video)
        video.expect(size, len(frames), name)
        pixel_values = self.pixel_values(frames) if inputs is None else inputs[0]
        return self._views.score_maps(self, frames, size, video, pixel_values, normalised)

    def _member_maps(self, frames: list[Any], video: VideoMemory, inputs: list[torch.Tensor] | None) -> list[ScoreMap]:
        """The weighted sum of what an ensemble's members say; each that is a video model has its own memory."""
        sums: list[list[tuple[float, ScoreMap]]] = [[] for _ in frames]
        for number, (weight, member) in enumerate(self._members):
            memory = VideoMemory(member.model)
            if member.is_video_model:  # in the states, so that it goes where other memories of this video go
                memory = video.states.setdefault(number, memory)
            own = None if inputs is None else inputs[number : number + 1]
            for of_frame, map_ in zip(sums, member._maps(frames, memory, own, normalised=True), strict=True):
                of_frame.append((weight, map_))
        return [WeightedScores(of_frame) for of_frame in sums]

    def _outputs(
        self, frames: list[Any], video: VideoMemory, inputs: list[torch.Tensor] | None, name: str | None
    ) -> Any:
        pixel_values = self.pixel_values(frames) if inputs is None else inputs[0]
        self._enter(video)
        video.expect(size_of(frames[0]), len(frames), name)
        return video.outputs(pixel_values)

    def _after_steps(self, frame: Any, scores: ScoreMap) -> ScoreMap:
        for step in self.score_steps:
            scores = step(as_image(frame), scores)
        return scores

    def _finished(self, frame: Any, scores: ScoreMap, with_scores: bool, with_confidence: bool) -> Labelled:
        """The frame's labels after all steps, and where wanted what the scores say, summing to 1."""
        scores = self._after_steps(frame, scores)
        labels = scores.labels().cpu().numpy()
        for step in self.label_steps:
            with self.explaining_memory(1, labels.shape, step):
                labels = step(as_image(frame), labels, scores)
        dense = scores.dense() if with_scores else None
        ours = torch.from_numpy(np.ascontiguousarray(labels))  # a mirrored view is not for torch
        return (
            labels,
            None if dense is None else dense.div_(dense.sum(dim=0).clamp(min=1e-12)).cpu().numpy(),
            scores.confidence(ours).cpu().numpy() if with_confidence else None,
        )

    @property
    def _steps(self) -> list[ScoreStep | LabelStep]:
        return [*self.score_steps, *self.label_steps]

    def _enter(self, video: VideoMemory) -> None:
        """The steps are about to see the next frames of a video."""
        if not self._steps or self._in_steps is video:
            return
        if video.frames:
            raise RuntimeError(
                "the steps of this VideoSegmenter have gone on to another video; they remember one at a time, so "
                "finish a video before the next one, or use a segmenter with steps of its own for each"
            )
        for step in self._steps:
            step.reset()
        self._in_steps = video

    def _leave(self, video: VideoMemory) -> None:
        """A video has ended: the steps need not remember it any more."""
        if self._in_steps is video:
            for step in self._steps:
                step.reset()
            self._in_steps = None

    def pixel_values(self, frames: list[Any], **settings: Any) -> torch.Tensor:
        """The model's input, (frames, 3, h, w), made of frames of one size (see `step`) with the processor's settings,
        but for those given."""
        # Arrays that are mirrored views, e.g. `bgr[..., ::-1]`, are not for torch.
        images = [np.ascontiguousarray(frame) if isinstance(frame, np.ndarray) else frame for frame in frames]
        inputs = self.processor(images=images, return_tensors="pt", device=str(self.model.device), **settings)
        return inputs["pixel_values"].to(self.model.device, self.model.dtype)

    @contextmanager
    def explaining_memory(self, frames: int, size: tuple[int, ...], step: LabelStep | None = None) -> Iterator[None]:
        """Where the memory does not suffice inside: a MemoryError that says for what, and what to turn down.

        Args:
            frames: how many are at work.
            size: their height and width.
            step: that is at work; None: the model. Its `memory_options` are named.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, ExplainedMemoryError) or not is_out_of_memory(error):
                raise
            options = " or ".join(getattr(step, "memory_options", ()))
            raise ExplainedMemoryError(
                f"out of memory with {frames} frames of {size[0]}x{size[1]} (height x width) on {self.model.device}"
                f"{'' if step is None else f' in {type(step).__name__}'}: {options and f'lower its {options}, '}"
                "label fewer frames at once (--batch-size; --per_device_eval_batch_size in training), or smaller ones "
                f"(size in preprocessor_config.json, now {self.processor.size}, do_resize {self.processor.do_resize})"
            ) from error


def size_of(frame: Any) -> tuple[int, int]:
    """(height, width) of a (height, width, 3) array or a (3, height, width) tensor."""
    return frame.shape[:2] if isinstance(frame, np.ndarray) else frame.shape[-2:]


def as_image(frame: Any) -> np.ndarray:
    """A frame as steps take it: uint8 (H, W, 3)."""
    return frame if isinstance(frame, np.ndarray) else frame.permute(1, 2, 0).cpu().numpy()


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
