"""A model and its processor, frame by frame."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import vss_hf  # noqa: F401  (registers our models with the Auto classes)
from vss_hf.modeling.loading import load_strictly, loading, read_json

from .scores import semantic_labels


class VideoSegmenter:
    """Labels frames as they come; memory does not grow with the video.

    Args:
        model: a semantic segmentation model, ours or of transformers.
        processor: its image processor.
        device: where to run; None: where the model is.
    """

    def __init__(self, model: Any, processor: Any, device: str | torch.device | None = None):
        self.model = model.to(device) if device is not None else model
        self.model.eval()
        self.processor = processor

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
        model = load_strictly(AutoModelForSemanticSegmentation, source, **settings)
        model.config.return_dict = True  # outputs are read by name here, whatever the file says
        processor = load_processor(source, **settings)
        return cls(model, processor, device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def names(self) -> list[str]:
        """Class names in the order of the label values."""
        return [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]

    @torch.inference_mode()
    def step(self, frame: np.ndarray | torch.Tensor) -> np.ndarray:
        """Label one frame.

        Args:
            frame: RGB uint8, (height, width, 3) array or (3, height, width) tensor.

        Returns:
            uint8 (height, width), class of each pixel, at the frame's own size.
        """
        return self.label_batch([frame])[0]

    @torch.inference_mode()
    def label_batch(self, frames: list[Any]) -> list[np.ndarray]:
        """Label frames of one size together; see `step`.

        Raises:
            MemoryError: the memory does not suffice; the message says for what, and what to turn down.
        """
        height, width = frames[0].shape[:2] if isinstance(frames[0], np.ndarray) else frames[0].shape[-2:]
        try:
            inputs = self.processor(images=frames, return_tensors="pt", device=str(self.model.device))
            outputs = self.model(pixel_values=inputs["pixel_values"].to(self.model.device, self.model.dtype))
            return list(semantic_labels(self.model, outputs, (height, width)).cpu().numpy())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"out of memory with {len(frames)} frames of {height}x{width} (height x width) on "
                f"{self.model.device}: label fewer frames at once (--batch-size; --per_device_eval_batch_size in "
                "training), or smaller ones "
                f"(size in preprocessor_config.json, now {self.processor.size}, do_resize {self.processor.do_resize})"
            ) from error

    def stream(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Label a video frame by frame, as it is read."""
        for frame in frames:
            yield self.step(frame)


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
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)
