"""A data set, a model and a recipe so small that a training run takes a second."""

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn

import vss_hf  # noqa: F401  (registers the model with the Auto classes)
from vss_hf.data.clips import load_vspw
from vss_hf.data.labels import ClassList
from vss_hf.data.transforms import AugmentationConfig, TrainTransform
from vss_hf.modeling.configuration_hfgd import HFGDConfig
from vss_hf.modeling.configuration_ocrnet import OCRNetConfig
from vss_hf.modeling.configuration_tcb_ocr import TCBOCRConfig
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.modeling_hfgd import HFGDForSemanticSegmentation
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation
from vss_hf.modeling.modeling_tcb_ocr import TCBOCRForVideoSemanticSegmentation
from vss_hf.training.arguments import VSSTrainingArguments
from vss_hf.training.draws import Source, TrainingDraws, TrainingStream
from vss_hf.training.trainer import VSSTrainer


HEIGHT, WIDTH = 32, 48
NAMES = {"others": 0, "road": 1, "sky": 2, "tree": 5}  # ids with a gap
COLOURS = {0: (9, 9, 9), 1: (120, 110, 120), 2: (130, 190, 250), 5: (30, 140, 40), 255: (250, 250, 0), 77: (250, 0, 0)}
RESNET = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "out_features": ["stage1", "stage2"],
}
HEADS = {"in_indices": [0, 1], "channels": 16, "ocr_channels": 8, "coarse_channels": 16}


# --- data: every class has its colour, so that it can be learnt in seconds


def mask_values(video: str, number: int) -> np.ndarray:
    """Disk values (32, 48): sky over road, a tree, and patches of void (255), others (0) and an unknown id (77)."""
    rng = np.random.default_rng([*video.encode(), number])
    mask = np.full((HEIGHT, WIDTH), 1, np.uint8)
    mask[: rng.integers(8, 20)] = 2
    left = rng.integers(0, WIDTH - 16)
    mask[6:26, left : left + 16] = 5
    for value in (0, 77, 255):
        top, left = rng.integers(0, HEIGHT - 4), rng.integers(0, WIDTH - 4)
        mask[top : top + 4, left : left + 4] = value
    return mask


def make_data(root: Path, splits: dict[str, dict[str, int]], names: dict[str, int] | None = None) -> Path:
    """A data set in VSPW layout: {split: {video: number of frames}}."""
    for split, videos in splits.items():
        for video, frames in videos.items():
            for folder in ("origin", "mask"):
                (root / "data" / video / folder).mkdir(parents=True)
            for number in range(frames):
                mask = mask_values(video, number)
                noise = np.random.default_rng([number, *video.encode()]).integers(-10, 11, (HEIGHT, WIDTH, 3))
                colours = sum((mask == value)[..., None] * np.array(rgb) for value, rgb in COLOURS.items())
                image = np.clip(colours + noise, 0, 255).astype(np.uint8)
                Image.fromarray(image).save(root / "data" / video / "origin" / f"{number:08d}.png")
                Image.fromarray(mask).save(root / "data" / video / "mask" / f"{number:08d}.png")
        (root / f"{split}.txt").write_text("".join(f"{video}\n" for video in videos))
    (root / "label_num_dic_final.json").write_text(json.dumps(NAMES if names is None else names))
    return root


def make_default_data(root: Path) -> Path:
    """7 training frames (an odd number) and 10 frames to evaluate on, enough for 8-frame clips."""
    return make_data(root, {"train": {"a": 4, "b": 3}, "val": {"v": 10}})


# --- model


class KeepsStatistics(nn.Module):
    """BatchNorm keeps its statistics, so that the samples of a batch do not see each other."""

    def train(self, mode: bool = True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class FrozenNorms(KeepsStatistics, OCRNetForSemanticSegmentation):
    """The tiny model, and BatchNorm keeps its statistics."""


class FrozenClips(KeepsStatistics, TCBOCRForVideoSemanticSegmentation):
    """A tiny video model, and BatchNorm keeps its statistics."""


class FrozenGuided(KeepsStatistics, HFGDForSemanticSegmentation):
    """A tiny HFGD, and BatchNorm keeps its statistics."""


def tiny_config(root: Path, **fields) -> OCRNetConfig:
    """A ResNet of 8 and 16 channels with the classes of a data set."""
    classes = ClassList.from_root(root)
    return OCRNetConfig(
        **{"backbone_config": dict(RESNET), **HEADS, **fields}, id2label=classes.id2label, label2id=classes.label2id
    )


def tiny_model(root: Path, model_class=OCRNetForSemanticSegmentation, **fields):
    """The model of `tiny_config`, with the same weights at every call."""
    torch.manual_seed(0)
    return model_class(tiny_config(root, **fields))


def tiny_clip_model(root: Path):
    """A video model whose auxiliary loss counts all frames, with the same weights at every call."""
    classes = ClassList.from_root(root)
    heads = {"in_indices": [0, 1], "channels": 16, "ocr_channels": 8, "coarse_channels": 16, "coarse_kernel_size": 3}
    names = {"id2label": classes.id2label, "label2id": classes.label2id}
    fields = {"backbone_config": dict(RESNET), "frame_offsets": [-2, -1], "classifier_dropout": 0.0, **heads, **names}
    torch.manual_seed(0)
    return FrozenClips(TCBOCRConfig(**fields))


def tiny_guided_model(root: Path, **fields) -> FrozenGuided:
    """A model with class tokens, stopped gradients and class-aware regularisation; the same weights at every call."""
    classes = ClassList.from_root(root)
    stages = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 12, 16], "stem_channels": 8, "block": "basic"}
    out_features = ["stage1", "stage2", "stage3", "stage4"]
    widths = {"channels": 8, "encoding_channels": 12, "wide_channels": 16, "key_channels": 4, "axial_heads": 2}
    fields = {
        "backbone_config": {"model_type": "vss_resnet", **stages, "out_features": out_features},
        **widths,
        "initializer_range": 0.1,  # the usual classifiers are so small that nothing but themselves learns at first
        **fields,
    }
    torch.manual_seed(0)
    return FrozenGuided(HFGDConfig(**fields, id2label=classes.id2label, label2id=classes.label2id))


# --- a run


def augmentation(**changes) -> AugmentationConfig:
    """Frames as they are, flipped and in other colours at random; `calm` ones with both probabilities 0."""
    return AugmentationConfig(**{"crop_size": (HEIGHT, WIDTH), "scale_mode": "none", "cat_max_ratio": 1.0, **changes})


CALM = {"horizontal_flip_prob": 0.0, "photometric_prob": 0.0}


def training_data(root: Path, seed: int = 42, streaming: bool = False, **changes) -> TrainingDraws | TrainingStream:
    """Augmented training samples."""
    transform = TrainTransform(augmentation(**changes))
    if streaming:
        return TrainingStream([Source(load_vspw(root, "train"))], transform, seed)
    return TrainingDraws([Source(load_vspw(root, "train"))], transform, seed)


def mixed_data(root: Path, seed: int = 42, streaming: bool = False) -> TrainingDraws | TrainingStream:
    """Augmented samples of two sources: two of three from the training videos, one from those of the split val."""
    videos, others = load_vspw(root, "train"), load_vspw(root, "val")
    sources = [Source(videos, weight=2, name="videos"), Source(others, weight=1, name="others")]
    return (TrainingStream if streaming else TrainingDraws)(sources, TrainTransform(augmentation()), seed)


def training_clips(root: Path, seed: int = 42) -> TrainingDraws:
    """Augmented clips for `tiny_clip_model`, some of them played backwards."""
    clips = load_vspw(root, "train", frame_offsets=(-2, -1), reference_labels=True)
    transform = TrainTransform(augmentation(time_reversal_prob=0.5), reference_labels=True)
    return TrainingDraws([Source(clips)], transform, seed)


def arguments(output_dir: Path, **changes) -> VSSTrainingArguments:
    """A quiet run on the CPU of 6 steps with 2 samples each, neither evaluated nor saved."""
    fields = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return VSSTrainingArguments(output_dir=str(output_dir), **{**fields, **changes})


def make_trainer(root: Path, output_dir: Path, *, model=None, data=None, **changes) -> VSSTrainer:
    """A Trainer on the tiny data; `changes` are training arguments."""
    args = arguments(output_dir, **changes)
    return VSSTrainer(
        tiny_model(root) if model is None else model,
        args,
        train_dataset=training_data(root, args.draw_seed) if data is None else data,
        eval_data=(root, "val"),
        processing_class=VSSImageProcessor(),
    )


def losses(trainer: VSSTrainer) -> list[float]:
    """The logged losses."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's tensors."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def write_recipe(path: Path, root: Path, output_dir: Path, **changes) -> Path:
    """A recipe file for the tiny run; `changes` are fields of its sections."""
    sections = {
        "model": {"config": {"backbone_config": RESNET, **HEADS}},
        "data": {"root": str(root)},
        "augmentation": {"crop_size": [HEIGHT, WIDTH], "scale_mode": "none", "cat_max_ratio": 1.0},
        "training": {
            "output_dir": str(output_dir),
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 0.01,
            "eval_steps": 2,
            "save_steps": 2,
            "logging_steps": 1,
            "dataloader_num_workers": 0,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        },
    }
    for section, fields in changes.items():
        sections[section] = {**sections[section], **fields}
    path.write_text(yaml.safe_dump(sections, sort_keys=False))
    return path
