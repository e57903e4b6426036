"""A model and its processor, frame by frame."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import vss_hf  # noqa: F401  (registers our models with the Auto classes)

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
    def from_pretrained(cls, source: str | Path, device: str | torch.device | None = None) -> "VideoSegmenter":
        """Load a model folder or Hub repo.

        Args:
            source: folder or Hub id.
            device: where to run; None: a GPU if there is one.

        Raises:
            FileNotFoundError: `source` looks like a folder and holds no model.
        """
        folder = Path(source)
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder}: no config.json; expected a folder as `save_pretrained` writes it")
        looks_like_hub_id = str(source).count("/") == 1 and str(source)[0] not in "./"
        if not folder.exists() and not looks_like_hub_id:
            raise FileNotFoundError(f"{source}: no such model folder (and not a Hub id of the form user/name)")
        try:
            model = AutoModelForSemanticSegmentation.from_pretrained(source)
        except SafetensorError as error:
            raise ValueError(f"{source}: model.safetensors is damaged ({error}); copy or download it again") from error
        processor = AutoImageProcessor.from_pretrained(source)
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
        """Label frames of one size together; see `step`."""
        height, width = frames[0].shape[:2] if isinstance(frames[0], np.ndarray) else frames[0].shape[-2:]
        inputs = self.processor(images=frames, return_tensors="pt", device=str(self.model.device))
        outputs = self.model(pixel_values=inputs["pixel_values"].to(self.model.device, self.model.dtype))
        return list(semantic_labels(self.model, outputs, (height, width)).cpu().numpy())

    def stream(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Label a video frame by frame, as it is read."""
        for frame in frames:
            yield self.step(frame)
