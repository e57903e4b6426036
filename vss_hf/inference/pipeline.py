"""transformers' pipeline task "video-semantic-segmentation"."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.pipelines.base import Pipeline

from vss_hf.video_io import FrameSource, open_source

from .segmenter import SegmentedFrame, VideoSegmenter
from .views import TTA, parse_tta


TASK = "video-semantic-segmentation"


class VideoSemanticSegmentationPipeline(Pipeline):
    """Labels every pixel of every frame of a video, with an image or a video segmentation model.

    A video model sees the frames of one video in order and remembers them; every video begins anew. An image model
    takes `batch_size` frames at once.

    Example:
        >>> import vss_hf  # doctest: +SKIP
        >>> from transformers import pipeline  # doctest: +SKIP
        >>> segment = pipeline("video-semantic-segmentation", model="path/to/model")  # doctest: +SKIP
        >>> for frame in segment("video.mp4", stream=True):  # doctest: +SKIP
        ...     print(frame["time"], [segment["label"] for segment in frame["segments"]])
    """

    _load_processor = False
    _load_image_processor = True
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        found, bare = type(self.model).__name__, MODEL_MAPPING_NAMES.get(self.model.config.model_type, ())
        if found in ([bare] if isinstance(bare, str) else bare):
            raise ValueError(f"{found} has no segmentation head: expected a semantic segmentation model")
        self.model.config.return_dict = True  # outputs are read by name here, whatever the file says
        self.segmenter = VideoSegmenter(self.model, self.image_processor)
        if "tta" in self._forward_params:
            self.segmenter_with(self._forward_params["tta"])  # what does not fit the model is an error now

    def _sanitize_parameters(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        output_scores: bool | None = None,
        output_masks: bool | None = None,
        tta: TTA | str | dict[str, Any] | None = None,
    ) -> tuple[dict, dict, dict]:
        forward: dict[str, Any] = {} if output_scores is None else {"output_scores": output_scores}
        if tta is not None:
            forward["tta"] = parse_tta(tta)
        post = {} if output_masks is None else {"output_masks": output_masks}
        return {}, forward, post

    def __call__(
        self,
        inputs: Any,
        *,
        stream: bool = False,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Label one video or several.

        Args:
            inputs: one video: the path of a video file, of a folder of frames, or of a picture; the number of a
                camera; or its frames, each an RGB uint8 (height, width, 3) array, a (3, height, width) tensor, or a
                PIL image. Or several videos: a list, generator or dataset of paths or of frames.
            stream: give the frames as they are labelled, so that the memory does not grow with the video.
            batch_size: frames that an image model takes at once, which changes nothing in the labels but how ties
                are rounded; None: as at construction, or 1.
            num_workers: taken as by every pipeline, and unused: one thread reads ahead, since frames come in order.
            output_scores: give each segment a "score": the mean probability of its class over its pixels.
            output_masks: give each segment a "mask": a PIL image, 255 where it is and 0 elsewhere, as the task
                "image-segmentation" does.
            tta: views in which every frame goes through the model: a `TTA`, its fields, or a name, e.g. "flip" (see
                `vss_hf.inference.views`). As the three above, also for `pipeline(...)`, for all its calls.

        Returns:
            For one video a list of its frames, with `stream` a generator of them; for several videos a list of such
            lists, with `stream` a generator of generators, to be used up one after the other. A frame is a dict:

            - "frame": its number, from 0; "name": of its picture file, or the number as eight digits;
            - "time": seconds since the first frame, or None where there is no clock, as in a folder;
            - "labels": uint8 array (height, width), class of each pixel, at the frame's own size;
            - "segments": the classes in it, largest first: dicts of "label" (name), "label_id" (value in "labels"),
              "area" (pixels), and "score" and "mask" where wanted.
        """
        _, forward, post = self._sanitize_parameters(**kwargs)
        if batch_size is None:
            batch_size = 1 if self._batch_size is None else self._batch_size
        forward = {"batch_size": batch_size, **self._forward_params, **forward}
        post = {**self._postprocess_params, **post}
        videos, several = split_videos(inputs)
        results = (self.run_single(video, {}, forward, post) for video in videos)
        if not stream:
            results = [list(frames) for frames in results]
        return results if several else next(iter(results))

    def preprocess(self, input_: Any) -> FrameSource:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The frames of one video, not read yet."""
        if isinstance(input_, (str, Path, int, FrameSource)):
            return open_source(input_)
        return open_source(as_arrays(input_))

    def _forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, source: FrameSource, batch_size: int = 1, output_scores: bool = False, tta: TTA | None = None
    ) -> Iterator[SegmentedFrame]:
        segmenter = self.segmenter_with(tta)
        return segmenter.segment(source, batch_size=batch_size, with_scores=output_scores)

    def segmenter_with(self, tta: TTA | None) -> VideoSegmenter:
        """What labels frames, with views where wanted."""
        return self.segmenter if tta is None else VideoSegmenter(self.model, self.image_processor, tta=tta)

    def postprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, frames: Iterable[SegmentedFrame], output_masks: bool = False
    ) -> Iterator[dict[str, Any]]:
        """A dict for each frame, as it comes."""
        for number, frame in enumerate(frames):
            yield {
                "frame": number,
                "name": frame.name,
                "time": frame.time,
                "labels": frame.labels,
                "segments": segments_of(frame, self.segmenter.names, output_masks),
            }


def segments_of(frame: SegmentedFrame, names: list[str], with_masks: bool) -> list[dict[str, Any]]:
    """The classes of a frame, largest first."""
    areas = np.bincount(frame.labels.ravel(), minlength=len(names))
    segments = []
    for label in np.argsort(-areas, kind="stable")[: np.count_nonzero(areas)].tolist():
        segment = {"label": names[label], "label_id": label, "area": int(areas[label])}
        where = frame.labels == label
        if frame.scores is not None:
            segment["score"] = float(frame.scores[label][where].mean())
        if with_masks:
            segment["mask"] = Image.fromarray(where.astype(np.uint8) * 255)
        segments.append(segment)
    return segments


def split_videos(inputs: Any) -> tuple[Iterator[Any], bool]:
    """The videos, and whether it is a collection of them: frames belong to one video, anything else is a video."""
    if isinstance(inputs, (str, Path, int, FrameSource)) or is_frame(inputs):
        return iter([[inputs] if is_frame(inputs) else inputs]), False
    if not hasattr(inputs, "__iter__") and not hasattr(inputs, "__getitem__"):
        raise ValueError(f"a {type(inputs).__name__} is no video: expected paths, frames or the number of a camera")
    items = iter(inputs)
    head = list(islice(items, 1))
    items = chain(head, items)
    return (iter([items]), False) if head and is_frame(head[0]) else (items, True)


def is_frame(item: Any) -> bool:
    """Whether it is a single picture in memory."""
    return isinstance(item, Image.Image) or getattr(item, "ndim", 0) == 3


def as_arrays(frames: Iterable[Any]) -> Iterator[Any]:
    """Frames, PIL images among them as arrays."""
    for frame in frames:
        yield np.array(frame.convert("RGB")) if isinstance(frame, Image.Image) else frame
