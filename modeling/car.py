"""Class-aware regularisation (CAR): the features of a class lie close to its centre, and away from other classes'.

Three losses of a head's features x, with centre_k the mean of the features of class k, y a place's own class, C the
number of channels and K the number of classes; what stands in [brackets] gets no gradient:

    intra       (mean over places and channels of |[centre_y] - x|)^2
    inter_c2c   (mean over classes k of Σ_{j != k} max(a_kj - 0.5 / (K - 1), 0))^2
                with a_k the softmax over j of centre_k · [centre_j] / sqrt(C)
    inter_c2p   (mean over places of Σ_{j != y} max(p_j - 0.25 / (K - 1), 0))^2
                with p the softmax over j of x · [centre_j] / sqrt(C), but for j = y of [centre_y · centre_y] / sqrt(C)

All means are over the micro-batches of all processes together, so that several processes compute, and learn from, what
one would with all their samples.

Source: Huang et al., "CAR: Class-aware Regularizations for Semantic Segmentation", ECCV 2022, and the authors' code
(github.com/edwardyehuang/CAR, car_core/utils.py at 3b47425). That code keeps the sums over other classes above 1e-7,
and has for each process the means over its own places.

Letters: N images, C channels, K classes, h x w places of the features, M = h * w, H x W size of the labels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .dense import _source_coordinates, full_precision
from .processes import sum_over_processes


C2C_THRESHOLD = 0.5  # a class may be as like the others by this, shared among them
C2P_THRESHOLD = 0.25  # and a place by this
SMALLEST_INTRA = 1e-5  # of the authors' code, which does not pull closer than that


@torch.compiler.disable()
def car_loss(
    features: Tensor,
    labels: Tensor,
    *,
    num_labels: int,
    intra: float = 1.0,
    inter_c2c: float = 1.0,
    inter_c2p: float = 1.0,
    faithful: bool = False,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> Tensor:
    """The weighted sum of CAR's three losses. In several processes all must call it, with features of one width.

    The largest tensors are of the size of the features and of (N, K, h, w).

    Args:
        features: (N, C, h, w), any floating dtype; computed in float32 (float64 stays), under autocast too.
        labels: integer (N, H, W), 0..num_labels-1 or `ignore_index`. A place of the features has the label nearest to
            its middle.
        num_labels: K.
        intra, inter_c2c, inter_c2p: weights. A loss without weight is not computed.
        faithful: as in the authors' code. There classes that do not occur have a centre of zeros, which counts in both
            inter losses; places without label count in the means, in `inter_c2p` as if all classes were wrong; and
            `intra` is at least 1e-5. Otherwise only places with a label and classes that occur count, and K in the
            thresholds is the number of these.
        ignore_index: label value that does not count.
        align_corners: how the logits of these features are upsampled to the labels: it tells where a place's middle
            lies.

    Returns:
        Scalar, float32 or float64. 0 with zero gradient if nothing is labelled (with `faithful` a constant).

    Raises:
        ValueError: the shapes do not fit.
    """
    if features.ndim != 4 or labels.ndim != 3 or len(features) != len(labels):
        raise ValueError(
            f"expected features (N, C, h, w) and labels (N, H, W); got {tuple(features.shape)}, {tuple(labels.shape)}"
        )
    with full_precision(features.device):
        places = labels_of_places(labels, features.shape[-2:], align_corners).flatten(1)  # (N, M)
        x = features.flatten(2)  # (N, C, M)
        x = x if x.dtype == torch.float64 else x.float()
        labelled = places != ignore_index
        classes = torch.arange(num_labels, device=x.device)[:, None]
        own = (places[:, None] == classes) & labelled[:, None]  # (N, K, M)
        centers, occurs = class_centers(x, own)
        counted = labelled
        if faithful:
            occurs, counted = torch.ones_like(occurs), torch.ones_like(labelled)
        number = sum_over_processes(counted.sum().to(x)).clamp(min=1)

        loss = x.new_zeros(())
        if intra:
            nearest = places.where(labelled, 0)
            distance = sum_over_processes(distance_to_centers(x, centers, nearest, labelled)) / (number * x.shape[1])
            value = distance.square()
            loss = loss + intra * (value.clamp(min=SMALLEST_INTRA) if faithful else value)
        if inter_c2c:
            loss = loss + inter_c2c * likeness_of_classes(centers, occurs).square()
        if inter_c2p:
            likeness = likeness_of_places(x, centers, occurs, own, counted)
            loss = loss + inter_c2p * (sum_over_processes(likeness) / number).square()
        return loss


def labels_of_places(labels: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """The labels nearest to the middles of the places of a feature map.

    Args:
        labels: integer (N, H, W).
        size: (h, w).
        align_corners: whether the middles of the corner places are those of the corner pixels.

    Returns:
        int64 (N, h, w); `F.interpolate(mode="nearest-exact")` where corners are not aligned.
    """
    like = torch.empty(0, dtype=torch.float64, device=labels.device)
    rows, columns = (
        (_source_coordinates(in_size, out_size, align_corners, like) + 0.5).floor().long()
        for out_size, in_size in zip(size, labels.shape[1:], strict=True)
    )
    return labels[:, rows[:, None], columns].long()


def class_centers(x: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """The mean feature of every class over the batches of all processes, and which classes occur.

    Args:
        x: (N, C, M).
        own: bool (N, K, M), the class of each place; nothing where it has none.

    Returns:
        (K, C), zeros for classes that do not occur; bool (K,).
    """
    sums = (own.to(x.dtype) @ x.transpose(1, 2)).sum(dim=0)  # (K, C)
    counts = own.sum(dim=(0, 2), dtype=x.dtype)  # (K,)
    total = sum_over_processes(torch.cat([sums, counts[:, None]], dim=1))
    counts = total[:, -1].detach()
    return total[:, :-1] / counts.clamp(min=1)[:, None], counts > 0


def distance_to_centers(x: Tensor, centers: Tensor, classes: Tensor, labelled: Tensor) -> Tensor:
    """The sum over labelled places and channels of |centre of the place's class - x|.

    Args:
        x: (N, C, M).
        centers: (K, C); they get no gradient.
        classes: int64 (N, M), anything from 0..K-1 where there is no label.
        labelled: bool (N, M).
    """
    own_centers = centers.detach().t()[:, classes].transpose(0, 1)  # (N, C, M)
    return (own_centers - x).where(labelled[:, None], 0).abs().sum()


def likeness_of_classes(centers: Tensor, occurs: Tensor) -> Tensor:
    """How like other classes a class is, by their centres: `inter_c2c` before the square.

    Args:
        centers: (K, C).
        occurs: bool (K,), which of them count.
    """
    products = centers @ centers.detach().t() / centers.shape[1] ** 0.5  # (K, K)
    threshold = C2C_THRESHOLD / (occurs.sum(dtype=centers.dtype) - 1).clamp(min=1)
    others = ~torch.eye(len(centers), dtype=torch.bool, device=centers.device)
    likeness = (softmax_over(products, occurs, dim=1) - threshold).where(others, 0).relu().sum(dim=1)  # (K,)
    return likeness.where(occurs, 0).sum() / occurs.sum().clamp(min=1)


def likeness_of_places(x: Tensor, centers: Tensor, occurs: Tensor, own: Tensor, counted: Tensor) -> Tensor:
    """How like other classes' centres places are, summed over them: `inter_c2p` before mean and square.

    Args:
        x: (N, C, M).
        centers: (K, C); they get no gradient.
        occurs: bool (K,), which of them count.
        own: bool (N, K, M), the class of each place.
        counted: bool (N, M), which places count.
    """
    centers = centers.detach()
    lengths = centers.square().sum(dim=1)[:, None]  # (K, 1)
    products = torch.where(own, lengths, centers @ x) / x.shape[1] ** 0.5  # (N, K, M)
    threshold = C2P_THRESHOLD / (occurs.sum(dtype=x.dtype) - 1).clamp(min=1)
    others = ~own & counted[:, None]
    return (softmax_over(products, occurs[:, None], dim=1) - threshold).where(others, 0).relu().sum()


def softmax_over(products: Tensor, occurs: Tensor, dim: int) -> Tensor:
    """The softmax over those entries alone that `occurs` tells; finite also if there are none."""
    return products.masked_fill(~occurs, torch.finfo(products.dtype).min).softmax(dim)


__all__ = ["car_loss", "class_centers", "labels_of_places"]
