"""A model whose probabilities anybody can compute: scores are products with colours, averaged over 4 x 4 pixels."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.modeling.image_processing_vss import VSSImageProcessor


NAMES = ["road", "tree", "sky", "sea", "sand"]
WEIGHTS = np.random.default_rng(7).normal(0, 1, (len(NAMES), 3))
WEIGHTS *= 4 / np.linalg.norm(WEIGHTS, axis=1, keepdims=True)  # so every class is the best one for some colours


class ColourModel(nn.Module):
    """Logits of stride 4."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(WEIGHTS, dtype=torch.float32))
        names = dict(enumerate(NAMES))
        self.config = SimpleNamespace(id2label=names, num_labels=len(names), name_or_path="colours")

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=colour_logits(pixel_values, self.weight))


def colour_logits(pixels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(B, K, ceil(H / 4), ceil(W / 4)) of pixels (B, 3, H, W)."""
    small = F.avg_pool2d(pixels, 4, ceil_mode=True, count_include_pad=False)
    return torch.einsum("kc,bchw->bkhw", weight, small)


def segmenter() -> VideoSegmenter:
    """The model and its processor."""
    return VideoSegmenter(ColourModel(), VSSImageProcessor())


def probabilities(image: np.ndarray) -> np.ndarray:
    """The definition in float64, (K, H, W), of an image (H, W, 3)."""
    processor = VSSImageProcessor()
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    pixels = torch.from_numpy(((image / 255 - mean) / std).transpose(2, 0, 1))[None]
    logits = colour_logits(pixels, torch.from_numpy(WEIGHTS.astype(np.float32)).double())
    upsampled = F.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
    return upsampled.softmax(dim=1)[0].numpy()


def scene(seed: int, count: int, height: int, width: int) -> list[np.ndarray]:
    """Frames of coarse colours that wander, with noise."""
    rng = np.random.default_rng(seed)
    pattern = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3))
    whole = np.kron(pattern, np.ones((8, 8, 1)))
    frames = [np.roll(whole, 2 * step, axis=1)[:height, :width] for step in range(count)]
    return [np.clip(frame + rng.normal(0, 25, frame.shape), 0, 255).astype(np.uint8) for frame in frames]


def write_data(root: Path, videos: dict[str, list[np.ndarray]], suffix: str = ".jpg") -> Path:
    """A data set in VSPW's layout without masks and class list, frames 00000010, 00000011, ..."""
    for name, frames in videos.items():
        (root / "data" / name / "origin").mkdir(parents=True)
        for number, frame in enumerate(frames, start=10):
            Image.fromarray(frame).save(root / "data" / name / "origin" / f"{number:08d}{suffix}")
    (root / "test.txt").write_text("".join(f"{name}\n" for name in videos))
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
