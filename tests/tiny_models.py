"""Small models with random weights, as folders; and video files."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel

import vss_hf  # noqa: F401  (registers our models with the Auto classes)
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.video_io import VideoWriter


NAMES = ["road", "tree", "sky", "sea", "sand"]
RESNET = {
    "model_type": "vss_resnet",
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 12, 16, 20],
    "stem_channels": 8,
    "block": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
IMAGE = dict(backbone_config=RESNET, channels=8, ocr_channels=8, coarse_channels=8)
VIDEO = dict(backbone_config=RESNET, in_index=3, auxiliary_in_index=2, channels=8, auxiliary_channels=8)


@torch.no_grad()
def save_model(folder: Path, video: bool = False) -> Path:
    """A model folder, image or video; its classifier tells pixels apart, and a video model's past matters."""
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    model_type, fields = ("vss_st_ppm", {**VIDEO, "frame_offsets": [-2, -1]}) if video else ("vss_ocrnet", IMAGE)
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **fields, **names)).train()
    for name, parameter in model.named_parameters():
        if "classifier" in name:
            torch.nn.init.normal_(parameter, std=3)
    pixels = torch.randn(4, 3, 48, 64) * 2
    for _ in range(20):  # statistics of BatchNorm
        model(pixels[:, None] if video else pixels)
    model.eval().save_pretrained(folder)
    VSSImageProcessor().save_pretrained(folder)
    return folder


def moving_frames(count: int, height: int = 48, width: int = 64, seed: int = 0) -> list[np.ndarray]:
    """A coarse pattern of colours that wanders."""
    pattern = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    whole = np.kron(pattern, np.ones((8, 8, 1), np.uint8))[:height, :width]
    return [np.roll(whole, 3 * step, axis=1) for step in range(count)]


def write_video(path: Path, frames: list[np.ndarray], times: list[float] | None = None, fps: float = 15) -> Path:
    """A video file, with frames at their times where given."""
    with VideoWriter(path, fps, frames[0].shape[:2]) as writer:
        for number, frame in enumerate(frames):
            writer.write(frame, None if times is None else times[number])
    return path
