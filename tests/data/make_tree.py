"""Writes tiny data sets in VSPW's layout: every pixel follows from (video, frame), so that tests can recompute it."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image


# a real data set, CamVid in VSPW's layout; tests that want it skip where it is absent
CAMVID = Path(os.environ.get("VSS_HF_CAMVID") or Path(__file__).resolve().parents[2] / "../shared/data/camvid_vspw")
NAMES = {"others": 0, "road": 1, "sky": 2, "tree": 5}  # ids with a gap
HEIGHT, WIDTH = 18, 23


def frame_pixels(video: str, number: int) -> np.ndarray:
    """RGB noise (18, 23, 3), the same for the same arguments."""
    return np.random.default_rng([*video.encode(), number]).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def mask_values(video: str, number: int, values=(0, 1, 2, 5, 252, 253, 254, 255, 77)) -> np.ndarray:
    """Disk values (18, 23) drawn from `values`."""
    return np.random.default_rng([number, *video.encode()]).choice(np.array(values, np.uint8), (HEIGHT, WIDTH))


def write_mask(path: Path, values: np.ndarray, mode: str = "L") -> None:
    """Writes an index PNG. Mode P gets a palette that sends every index to some other grey, a trap for conversions."""
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([(index * 7 + 3) % 256 for index in range(256) for _ in range(3)])
    assert image.mode == mode
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_video(root: Path, video: str, numbers, *, masks: bool = True, suffix: str = ".png") -> None:
    """One video; masks alternate between modes L and P. PNG frames, so that pixels can be compared exactly."""
    folder = root / "data" / video
    (folder / "origin").mkdir(parents=True)
    for place, number in enumerate(numbers):
        Image.fromarray(frame_pixels(video, number)).save(folder / "origin" / f"{number:08d}{suffix}")
        if masks:
            mask = folder / "mask" / f"{number:08d}.png"
            write_mask(mask, mask_values(video, number), "LP"[place % 2])


def make_tree(root: Path, splits: dict[str, dict[str, list[int]]], names=None) -> Path:
    """A data set: {split: {video: frame numbers}}; the split "test" gets no masks."""
    for split, videos in splits.items():
        for video, numbers in videos.items():
            write_video(root, video, numbers, masks=split != "test")
        (root / f"{split}.txt").write_text("".join(f"{video}\n" for video in videos))
    (root / "label_num_dic_final.json").write_text(json.dumps(NAMES if names is None else names))
    return root
