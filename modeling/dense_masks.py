"""Class scores and label maps of mask classification models (MaskFormer, Mask2Former), at any size.

    scores[k, y, x] = sum over queries q of  softmax(class_logits)[q, k] * sigmoid(upsampled mask_logits)[q, y, x]

The masks are upsampled before the sigmoid, as in the original code (Cheng et al. 2021; Detectron2). transformers'
processors do it in other orders: MaskFormer's sums at the masks' own size, Mask2Former's first goes to 384 x 384.

Letters: B images, Q queries, K classes (num_labels), h x w size of the masks, H x W size wanted.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .dense import _upsampled_blocks, full_precision, rows_first


def upsampled_mask_scores(class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores of every class at every pixel; the whole map, so for labels alone use `upsampled_mask_argmax`.

    Args:
        class_logits: (B, Q, K + 1), the last being "no object".
        mask_logits: (B, Q, h, w).
        size: (H, W).

    Returns:
        fp32 (B, K, H, W), at least 0, not normalised: pixels that no query claims sum to nearly 0.
    """
    classes = class_logits.float().softmax(dim=-1)[..., :-1]  # (B, Q, K)
    masks = F.interpolate(mask_logits.float(), size=size, mode="bilinear", align_corners=False)  # (B, Q, H, W)
    return torch.einsum("bqk,bqhw->bkhw", classes, masks.sigmoid())


@torch.compiler.disable()
def upsampled_mask_argmax(class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """`upsampled_mask_scores(...).argmax(1)` in row blocks: neither masks nor scores exist at full size.

    Args:
        class_logits: (B, Q, K + 1), the last being "no object".
        mask_logits: (B, Q, h, w).
        size: (H, W).

    Returns:
        (B, H, W), uint8 if K <= 255, else int64. The first class wins a tie.
    """
    num_labels = class_logits.shape[-1] - 1
    dtype = torch.uint8 if num_labels <= 255 else torch.int64
    labels = torch.empty((len(mask_logits), *size), dtype=dtype, device=mask_logits.device)
    with full_precision(mask_logits.device):
        for index in range(len(mask_logits)):
            classes = class_logits[index].detach().float().softmax(dim=-1)[:, :-1].t()  # (K, Q)
            for block in _upsampled_blocks(rows_first(mask_logits[index].float()), size, align_corners=False):
                scores = classes @ block.logits.sigmoid_()  # (K, Q) @ (rows, Q, W) -> (rows, K, W)
                labels[index, block.rows] = scores.max(dim=1).indices.to(dtype)
    return labels
