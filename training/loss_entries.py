"""What a recipe can name in `training.losses`: for each loss a dataclass with its fields (see losses.py).

`check` says what is wrong with the fields, and `build` makes the function of logits and labels, once per run. The
functions are in loss_terms.py, confusion_focal.py and logit_adjustment.py.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from vss_hf.data.statistics import CLASS_WEIGHTS, weights_of_classes
from vss_hf.fields import known_or_raise, shown
from vss_hf.modeling.losses import PixelLoss

from .confusion_focal import ConfusionFocalLoss
from .logit_adjustment import class_bias, logit_adjusted_cross_entropy, prior_of
from .loss_terms import (
    OHEM_REDUCTIONS,
    dice_loss,
    focal_loss,
    lovasz_loss,
    ohem_cross_entropy,
    weighted_cross_entropy,
)
from .loss_values import check_number, check_prior, check_weights, read_json, read_matrix


class LossData(NamedTuple):
    """What losses may need to know of a run.

    Args:
        num_labels: K, classes of the model.
        device: where the loss is computed.
        class_pixels: (K,) labelled pixels of each class in training; None unless an entry `needs_class_pixels`.
        cosine_scale: of the model's cosine classifier; 1 without one.
    """

    num_labels: int
    device: torch.device
    class_pixels: np.ndarray | None = None
    cosine_scale: float = 1.0


@dataclass
class Loss:
    """What all entries have.

    Args:
        weight: factor in the sum.
    """

    weight: float = 1.0
    takes_mask_models: ClassVar[bool] = False  # whether it means something beside a mask model's own loss

    @property
    def needs_class_pixels(self) -> bool:
        """Whether `build` wants `LossData.class_pixels`, for which all training labels must have been counted."""
        return False

    def check(self, place: str) -> None:
        """Raise ValueError for a value outside its range; `place` is how messages call this entry."""
        check_number(self.weight, f"{place}.weight")

    def build(self, data: LossData, place: str) -> PixelLoss:
        """The loss of one head as a function; ValueError or OSError for a file that does not fit."""
        raise NotImplementedError


@dataclass
class ClassWeightedLoss(Loss):
    """A loss whose pixels have a weight by their true class.

    Args:
        class_weights: "inverse_sqrt", "literal_sqrt", "inverse" or "effective_number" of the pixels in training
            (`vss_hf.data.statistics.weights_of_classes`); a list with a number for each class; or a JSON file of one.
        clip: [lowest, highest] weight.
    """

    class_weights: str | list[float] | None = None
    clip: list[float] | None = None

    @property
    def needs_class_pixels(self) -> bool:
        return self.class_weights in CLASS_WEIGHTS

    def check(self, place: str) -> None:
        super().check(place)
        if isinstance(self.class_weights, str) and not self.class_weights.endswith(".json"):
            known_or_raise(self.class_weights, CLASS_WEIGHTS, f"{place}.class_weights: no .json file and no kind")
        if isinstance(self.class_weights, list):
            check_weights(self.class_weights, f"{place}.class_weights")
        if self.clip is not None:
            if self.class_weights is None:
                raise ValueError(f"{place}.clip needs class_weights")
            check_weights(self.clip, f"{place}.clip")
            if len(self.clip) != 2 or self.clip[0] > self.clip[1]:
                raise ValueError(f"{place}.clip: expected [lowest, highest]; found {shown(self.clip)}")

    def weights(self, data: LossData, place: str) -> torch.Tensor | None:
        """fp32 (num_labels,), or None."""
        if self.class_weights is None:
            return None
        place = f"{place}.class_weights"
        if isinstance(self.class_weights, list):
            values = self.class_weights
        elif self.class_weights in CLASS_WEIGHTS:
            assert data.class_pixels is not None  # `needs_class_pixels` asked for them
            values = weights_of_classes(data.class_pixels, self.class_weights)
        else:
            place = f"{place}: {self.class_weights}"
            values = check_weights(read_json(self.class_weights, place), place)
        if len(values) != data.num_labels:
            raise ValueError(f"{place}: {len(values)} weights; expected {data.num_labels}, one for each class")
        weights = torch.tensor(values, dtype=torch.float32, device=data.device)
        return weights if self.clip is None else weights.clamp(*self.clip)


@dataclass
class CrossEntropy(ClassWeightedLoss):
    """Cross entropy; see `loss_terms.weighted_cross_entropy`.

    Args:
        max_with_predicted: a pixel weighs as much as the heavier one of its true and its predicted class.
        reduction: "pixels" divides by the number of labelled pixels; "weights", without `max_with_predicted`, by the
            sum of their weights, as torch does.
    """

    max_with_predicted: bool = False
    reduction: str = "pixels"

    def check(self, place: str) -> None:
        super().check(place)
        known_or_raise(self.reduction, ("pixels", "weights"), f"{place}.reduction has no choice")
        if self.class_weights is None and (self.max_with_predicted or self.reduction == "weights"):
            field = "max_with_predicted" if self.max_with_predicted else "reduction: weights"
            raise ValueError(f"{place}: {field} needs class_weights, e.g. class_weights: inverse_sqrt")
        if self.max_with_predicted and self.reduction == "weights":
            # Where light classes are taken for heavy ones the sum of the true classes' weights is no measure.
            raise ValueError(f"{place}.reduction: weights: expected pixels with max_with_predicted")

    def build(self, data: LossData, place: str) -> PixelLoss:
        return partial(
            weighted_cross_entropy,
            class_weights=self.weights(data, place),
            max_with_predicted=self.max_with_predicted,
            reduction=self.reduction,
        )


@dataclass
class OHEM(ClassWeightedLoss):
    """Cross entropy over the hard pixels only; see `loss_terms.ohem_cross_entropy`.

    Args:
        threshold: hard is a true class's probability below this, 0..1; 0: `min_kept` alone.
        min_kept: pixels per image that count as hard at least, over a micro-batch.
        reduction: divide by the number of "kept" (hard) pixels, of "labelled" ones, or of "all" (mmsegmentation's).
    """

    threshold: float = 0.7
    min_kept: int = 100_000
    reduction: str = "kept"

    def check(self, place: str) -> None:
        super().check(place)
        check_number(self.threshold, f"{place}.threshold", most=1)
        check_number(self.min_kept, f"{place}.min_kept")
        known_or_raise(self.reduction, OHEM_REDUCTIONS, f"{place}.reduction has no choice")
        if self.threshold == self.min_kept == 0:
            raise ValueError(f"{place}: threshold: 0 needs a min_kept above 0; without both no pixel counts")

    def build(self, data: LossData, place: str) -> PixelLoss:
        return partial(
            ohem_cross_entropy,
            threshold=self.threshold,
            min_kept=self.min_kept,
            reduction=self.reduction,
            class_weights=self.weights(data, place),
        )


@dataclass
class Focal(ClassWeightedLoss):
    """Focal loss; see `loss_terms.focal_loss`.

    Args:
        gamma: at least 0.
        alpha: None: of the softmax. 0..1: of a sigmoid for each class (mmsegmentation's, with 0.5).
    """

    gamma: float = 2.0
    alpha: float | None = None

    def check(self, place: str) -> None:
        super().check(place)
        check_number(self.gamma, f"{place}.gamma")
        if self.alpha is not None:
            check_number(self.alpha, f"{place}.alpha", most=1)

    def build(self, data: LossData, place: str) -> PixelLoss:
        return partial(focal_loss, gamma=self.gamma, alpha=self.alpha, class_weights=self.weights(data, place))


@dataclass
class ConfusionFocal(Loss):
    """Focal loss that costs more where classes are confused; see `confusion_focal.ConfusionFocalLoss`.

    Args:
        matrix: a JSON or CSV file with the confusion matrix, rows the true class (`vss-hf evaluate --confusion`); or
            "running": counted from the predictions during the training.
        gamma: at least 0.
        floor, cap: least and largest factor of a wrongly predicted pixel. The paper's are 0 and none.
        momentum: of a running matrix, 0..1.
    """

    matrix: str = "running"
    gamma: float = 2.0
    floor: float = 1.0
    cap: float = 10.0
    momentum: float = 0.99

    def check(self, place: str) -> None:
        super().check(place)
        if self.matrix != "running" and Path(self.matrix).suffix not in (".json", ".csv"):
            raise ValueError(f"{place}.matrix: expected running, or a .json or .csv file; found {shown(self.matrix)}")
        for name in ("gamma", "floor"):
            check_number(getattr(self, name), f"{place}.{name}")
        check_number(self.cap, f"{place}.cap", least=self.floor)
        check_number(self.momentum, f"{place}.momentum", most=1)

    def build(self, data: LossData, place: str) -> PixelLoss:
        matrix = None
        if self.matrix != "running":
            matrix = torch.tensor(read_matrix(self.matrix, data.num_labels, f"{place}.matrix: {self.matrix}"))
        settings: Any = dict(gamma=self.gamma, floor=self.floor, cap=self.cap, momentum=self.momentum)
        return ConfusionFocalLoss(matrix, data.num_labels, device=data.device, **settings)


@dataclass
class Dice(Loss):
    """Dice loss over the classes in the labels; see `vss_hf.modeling.dense_losses.upsampled_dice`.

    Args:
        smooth: pixels that are added to both sums, above 0.
    """

    smooth: float = 1.0

    def check(self, place: str) -> None:
        super().check(place)
        check_number(self.smooth, f"{place}.smooth")
        if self.smooth == 0:
            raise ValueError(f"{place}.smooth: 0: expected a number above 0")

    def build(self, data: LossData, place: str) -> PixelLoss:
        return partial(dice_loss, smooth=self.smooth)


@dataclass
class Lovasz(Loss):
    """Lovász-Softmax; see `vss_hf.modeling.dense_losses.upsampled_lovasz_softmax`.

    Args:
        per_image: one loss for each image, and their mean; else one over the pixels of all.
        classes: "present" in the labels, or "all".
    """

    per_image: bool = False
    classes: str = "present"

    def check(self, place: str) -> None:
        super().check(place)
        known_or_raise(self.classes, ("present", "all"), f"{place}.classes has no choice")

    def build(self, data: LossData, place: str) -> PixelLoss:
        return partial(lovasz_loss, per_image=self.per_image, classes=self.classes)


@dataclass
class LogitAdjustment(Loss):
    """Cross entropy of logits with a handicap for rare classes; see logit_adjustment.py. Of mask models: the cross
    entropy of the queries' classes in the model's own loss, "no object" without handicap.

    Args:
        tau: strength of the handicap; 1 in theory, 0.03 in VSPW 2021's 5th place with `model.config.cosine_scale: 1`.
        prior: "data": the share of each class in the labelled pixels of training; a list of shares, or of numbers in
            proportion to them; or a JSON file of one.
    """

    tau: float = 1.0
    prior: str | list[float] = "data"
    takes_mask_models: ClassVar[bool] = True

    @property
    def needs_class_pixels(self) -> bool:
        return self.prior == "data"

    def check(self, place: str) -> None:
        super().check(place)
        check_number(self.tau, f"{place}.tau")
        if isinstance(self.prior, list):
            check_prior(self.prior, f"{place}.prior")
        elif not self.prior.endswith(".json"):
            known_or_raise(self.prior, ("data",), f"{place}.prior: neither a .json file nor a source")

    def build(self, data: LossData, place: str) -> PixelLoss:
        return partial(logit_adjusted_cross_entropy, bias=self.class_bias(data, place))

    def class_bias(self, data: LossData, place: str) -> torch.Tensor:
        """fp32 (num_labels,), what is added to the logits."""
        place = f"{place}.prior"
        if isinstance(self.prior, list):
            prior = self.prior
        elif self.prior == "data":
            assert data.class_pixels is not None  # `needs_class_pixels` asked for them
            prior = prior_of(data.class_pixels)
        else:
            place = f"{place}: {self.prior}"
            prior = check_prior(read_json(self.prior, place), place)
        if len(prior) != data.num_labels:
            raise ValueError(f"{place}: {len(prior)} numbers; expected {data.num_labels}, one for each class")
        return class_bias(prior, self.tau, data.cosine_scale).to(data.device)


@dataclass
class SelfDistillation(Loss):
    """How far the main head's probabilities are from a trained model's; see distillation.py.

    It is added to the other losses, and to the model's own loss if there are no others.

    Args:
        teacher: model folder or Hub id, with the same classes.
        temperature: above 0; the higher, the more the improbable classes count.
    """

    teacher: str = ""
    temperature: float = 1.0
    takes_mask_models: ClassVar[bool] = True

    def check(self, place: str) -> None:
        super().check(place)
        if not self.teacher:
            raise ValueError(f"{place}: give teacher, a model folder or Hub id")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"{place}.temperature: {shown(self.temperature)}: expected a number above 0")


@dataclass
class CAR(Loss):
    """Class-aware regularisation of the features that the decode head's classifier reads; see car.py.

    It is added to the other losses, and to the model's own loss if there are no others.

    Args:
        intra: weight of the places' distance to the centre of their class.
        inter_c2c: weight of the likeness of classes' centres to each other.
        inter_c2p: weight of the likeness of places to other classes' centres.
        faithful: as in the authors' code, see `vss_hf.modeling.car.car_loss`.
    """

    intra: float = 1.0
    inter_c2c: float = 1.0
    inter_c2p: float = 1.0
    faithful: bool = False

    def check(self, place: str) -> None:
        super().check(place)
        for name in ("intra", "inter_c2c", "inter_c2p"):
            check_number(getattr(self, name), f"{place}.{name}")


# name in a recipe -> its entry
LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "ohem": OHEM,
    "focal": Focal,
    "confusion_focal": ConfusionFocal,
    "dice": Dice,
    "lovasz": Lovasz,
    "logit_adjustment": LogitAdjustment,
    "self_distillation": SelfDistillation,
    "car": CAR,
}
