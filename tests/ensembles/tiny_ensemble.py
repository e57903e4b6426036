"""Small models of four kinds with one class list, and labelled videos, for ensembles."""

import json
from pathlib import Path

import numpy as np
import tiny_mask_models
import torch
from PIL import Image
from tiny_models import NAMES, moving_frames, save_model
from transformers import AutoModelForSemanticSegmentation

from vss_hf.modeling.image_processing_vss import VSSImageProcessor


MASK_PARTS = ("class_predictor", "mask_embedder", "queries", "mask_projection")  # so that queries are different ones


def save_members(folder: Path) -> Path:
    """Models in `folder`: "image", "other" (another image model, that resizes its frames), "video", "masks"."""
    save_model(folder / "image")
    save_model(folder / "video", video=True)
    torch.manual_seed(1)
    other = AutoModelForSemanticSegmentation.from_pretrained(folder / "image")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += torch.randn_like(parameter) * 0.3 * parameter.std(correction=0)
    other.save_pretrained(folder / "other")
    VSSImageProcessor(do_resize=True, size={"shortest_edge": 64}, image_std=[0.5, 0.5, 0.5]).save_pretrained(
        folder / "other"
    )
    masks = tiny_mask_models.make("mask2former", "resnet", id2label=dict(enumerate(NAMES)), num_labels=len(NAMES))
    with torch.no_grad():
        for name, parameter in masks.named_parameters():
            if parameter.dim() > 1 and any(part in name for part in MASK_PARTS):
                torch.nn.init.normal_(parameter, std=3)
    masks.save_pretrained(folder / "masks")
    VSSImageProcessor().save_pretrained(folder / "masks")
    return folder


def write_labelled(root: Path, labels: dict[str, list[np.ndarray]]) -> Path:
    """A data set in VSPW's layout with a split "val": a wandering pattern for each video, and the given labels.

    Args:
        root: its folder.
        labels: by video, uint8 (H, W) of each frame, 255 where there is none.
    """
    for seed, (name, maps) in enumerate(labels.items()):
        for kind in ("origin", "mask"):
            (root / "data" / name / kind).mkdir(parents=True)
        frames = moving_frames(len(maps), *maps[0].shape, seed=seed)
        for number, (frame, of_frame) in enumerate(zip(frames, maps, strict=True)):
            Image.fromarray(frame).save(root / "data" / name / "origin" / f"{number:08d}.png")
            values = np.where(of_frame == 255, 0, of_frame + 1).astype(np.uint8)
            Image.fromarray(values).save(root / "data" / name / "mask" / f"{number:08d}.png")
    (root / "val.txt").write_text("".join(f"{name}\n" for name in labels))
    (root / "label_num_dic_final.json").write_text(json.dumps({n: i for i, n in enumerate(["others", *NAMES])}))
    return root
