"""Self distillation: a trained model of the same classes tells a student how probable it finds every class.

    loss = the run's own losses + weight * T^2 * mean over pixels of KL(softmax(teacher / T) || softmax(student / T))

The teacher is frozen, no part of the student or its checkpoints, and sees the same augmented pixels.

Sources: Zhuang et al., "5th Place Solution for VSPW 2021", sec. 3.2 (it tells neither weight nor temperature); for T^2
Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file
from transformers.utils.generic import maybe_autocast

from vss_hf.modeling.layers import resize
from vss_hf.modeling.loading import load_segmentation_model, read_json

from .loss_terms import mean_over_pixels


SMALLEST_SCORE = 1e-6  # of a class that no query of a mask model claims: its logarithm keeps a gradient


class Distillation:
    """A teacher and the loss against it, for the Trainer.

    Args:
        source: the teacher: a model folder or Hub id.
        config: the student's configuration.
        device: where the student trains. Every process has a whole teacher.
        weight: factor of the loss.
        temperature: above 0; the higher, the more the improbable classes count.
        processor: the student's image processor, if that of the teacher is to be compared with it.

    Raises:
        ValueError: the teacher has other classes, or takes another input.
        OSError: there is no such model.
    """

    def __init__(
        self,
        source: str,
        config: Any,
        device: torch.device,
        weight: float = 1.0,
        temperature: float = 1.0,
        processor: Any = None,
    ):
        self.source, self.weight, self.temperature = source, weight, temperature
        self.ignore_index = config.ignore_index
        teacher = load_segmentation_model(source, dtype=torch.float32)
        check_teacher(source, teacher.config, config)
        if processor is not None:
            check_pixels(source, processor)
        self.teacher = teacher.requires_grad_(False).eval().to(device)
        self.sha256 = weights_sha256(self.teacher)

    @torch.no_grad()
    def teacher_logits(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The teacher's `class_logits` for a batch of the Trainer, (N, K, h, w)."""
        name = self.teacher.main_input_name
        return class_logits(self.teacher(**{name: inputs[name]}))

    def loss(
        self,
        outputs: Any,
        teacher_logits: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """`weight` times `distillation_loss`.

        Args:
            outputs: the student's, for the same batch.
            teacher_logits: of `teacher_logits`.
            labels: integer (N, H, W).
            num_items_in_batch: labelled pixels of the whole optimisation step.
        """
        settings: Any = dict(temperature=self.temperature, ignore_index=self.ignore_index)
        return self.weight * distillation_loss(
            class_logits(outputs), teacher_logits, labels, num_items_in_batch=num_items_in_batch, **settings
        )


def distillation_loss(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = 255,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """T^2 KL(teacher || student) of the student's logits at their own size, the mean over labelled pixels.

    Args:
        logits: (N, K, h, w), the student's.
        teacher_logits: (N, K, h', w'), resized bilinearly if they have another size.
        labels: integer (N, H, W). A labelled pixel counts what the nearest of the h x w places has.
        temperature: T, above 0.
        ignore_index: label value that does not count.
        num_items_in_batch: labelled pixels of the whole optimisation step (all micro-batches and ranks): what the sum
            is divided by. None: those of this batch.

    Returns:
        Scalar, fp32; 0 when nothing is labelled.
    """
    teacher_logits = resize(teacher_logits.float(), logits.shape[-2:])
    ours = (logits.float() / temperature).log_softmax(dim=1)
    theirs = (teacher_logits / temperature).log_softmax(dim=1)
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)  # (N, h, w)
    of_pixels = F.interpolate(divergence[:, None], size=labels.shape[-2:], mode="nearest-exact")[:, 0]  # (N, H, W)
    labelled = labels.long() != ignore_index  # uint8 knows no ignore_index of -100
    total = torch.where(labelled, of_pixels, 0).sum()
    return temperature**2 * mean_over_pixels(total, labelled.sum(), num_items_in_batch)


def class_logits(outputs: Any) -> torch.Tensor:
    """Logits (N, K, h, w) whose softmax over the classes is what a model says about each pixel, at its own size.

    Args:
        outputs: of a per-pixel model, or of a mask model: there the logarithm of its scores, which the softmax
            normalises; a score is the sum over queries of the class's probability times that of the mask.
    """
    if getattr(outputs, "class_queries_logits", None) is None:
        return outputs.logits
    masks = outputs.masks_queries_logits.float().sigmoid()  # (N, Q, h, w)
    classes = outputs.class_queries_logits.float().softmax(dim=-1)[..., :-1]  # (N, Q, K), without "no object"
    with maybe_autocast(masks.device.type, enabled=False):
        scores = torch.einsum("nqk,nqhw->nkhw", classes, masks)
    return (scores + SMALLEST_SCORE).log()


def check_teacher(source: str, teacher: Any, student: Any) -> None:
    """Raise unless a teacher can tell this student something, from the configurations of both."""
    place = f"training.losses: the teacher {source}"
    theirs, ours = (config.id2label for config in (teacher, student))
    for label in range(max(len(theirs), len(ours))):
        if theirs.get(label) != ours.get(label):
            their_name, our_name = (repr(names[label]) if label in names else "none" for names in (theirs, ours))
            raise ValueError(f"{place} has other classes: label {label} is {their_name} there, here {our_name}")
    their_frames, our_frames = (getattr(config, "frame_offsets", None) for config in (teacher, student))
    if their_frames != our_frames:
        words = ["single images" if frames is None else f"clips of {frames}" for frames in (their_frames, our_frames)]
        raise ValueError(f"{place} takes {words[0]}, the student {words[1]} (frame_offsets); expected the same")


def check_pixels(source: str, student: Any) -> None:
    """Raise if a teacher's image processor normalises images in another way than the student's.

    A folder without one, of a model saved by itself, tells nothing.
    """
    path = cached_file(source, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False)
    stored = read_json(Path(path)) if path else {}
    for name in ("image_mean", "image_std"):
        theirs, ours = stored.get(name), list(getattr(student, name))
        if theirs is not None and not np.allclose(theirs, ours):
            raise ValueError(
                f"training.losses: the teacher {source} has {name} {theirs}, the student {ours} "
                f"(augmentation.{name}); expected the same, because both see the same pixels"
            )


def weights_sha256(model: nn.Module) -> str:
    """A hash of a model's tensors with their names, however they are spread over files."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
