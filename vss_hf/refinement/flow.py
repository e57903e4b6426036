"""Optical flow between two frames: where each pixel of one lies in the other.

    flow = LucasKanade()(now, before)      # (2, H, W): now(p) shows what before(p + flow[:, p]) shows

`LucasKanade` needs no weights and takes some 60 ms for 480x360 on one CPU core. `load_raft` reads RAFT's weights from
a file; they are what the TC metric is published with.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.optical_flow import raft_large, raft_small

from vss_hf.convert.state_dict import read_reference_file
from vss_hf.fields import known_or_raise


Flow = Callable[[np.ndarray, np.ndarray], Tensor]  # two uint8 (H, W, 3) frames -> fp32 (2, H, W), pixels (x, y)

LUMA = (0.299, 0.587, 0.114)
SMALLEST = 16  # pixels along the short side of the coarsest picture: motion is some pixels there
WINDOW = 3  # radius of the box filter that runs twice over the equations of a pixel's neighbours
STEPS = 4  # improvements at each size
LARGEST_STEP = 1.0  # pixels: gradients say nothing about what lies further away
# Added to the sums of squared gradients (luminance 0..1): where a picture has no texture, the flow stays what it was
# at the coarser size instead of following noise.
NO_TEXTURE = 1e-5


class LucasKanade:
    """Dense iterative Lucas-Kanade, from coarse to fine, up to half of the frame's resolution.

    Lucas and Kanade, "An Iterative Image Registration Technique", IJCAI 1981, with the gradients of the first picture
    (inverse compositional: Baker and Matthews, IJCV 2004).

    Args:
        device: where to compute.
    """

    settings = {"name": "lucas-kanade"}

    def __init__(self, device: str | torch.device = "cpu"):
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, first: np.ndarray, second: np.ndarray) -> Tensor:
        """Where first's pixels lie in second.

        Args:
            first, second: uint8 (H, W, 3) of one size.

        Returns:
            fp32 (2, H, W), pixels (x, y).

        Raises:
            ValueError: the frames differ in size.
        """
        check_sizes(first, second)
        height, width = first.shape[:2]
        pairs = pyramid(torch.stack([luminance(first, self.device), luminance(second, self.device)]))
        flow = torch.zeros(1, 2, *pairs[-1].shape[-2:], device=self.device)
        for pair in reversed(pairs):
            if pair.shape[-2:] != flow.shape[-2:]:
                flow = doubled(flow)[..., : pair.shape[-2], : pair.shape[-1]]
            flow = improved(flow, pair[:1], pair[1:])
        return doubled(flow)[0, :, :height, :width]


def pyramid(pictures: Tensor) -> list[Tensor]:
    """Pictures (n, 1, H, W) at half of their size, at a quarter, ..."""
    sizes = [F.avg_pool2d(pictures, 2, ceil_mode=True)]
    while min(sizes[-1].shape[-2:]) >= 2 * SMALLEST:
        sizes.append(F.avg_pool2d(sizes[-1], 2, ceil_mode=True))
    return sizes


def improved(flow: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The flow (1, 2, h, w) after some Lucas-Kanade steps on pictures (1, 1, h, w)."""
    padded = F.pad(first, (1, 1, 1, 1), mode="replicate")
    gx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    gy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    xx, xy, yy = blurred(torch.cat((gx * gx, gx * gy, gy * gy), dim=1), WINDOW).unbind(dim=1)
    xx, yy = xx + NO_TEXTURE, yy + NO_TEXTURE
    determinant = xx * yy - xy * xy
    for _ in range(STEPS):
        difference = along(second[0], flow[0]) - first[0]
        bx, by = blurred(torch.cat((gx * difference, gy * difference), dim=1), WINDOW).unbind(dim=1)
        step = torch.stack((yy * bx - xy * by, xx * by - xy * bx), dim=1) / determinant
        flow = blurred(flow - step.clamp(-LARGEST_STEP, LARGEST_STEP), 1)
    return flow


def blurred(image: Tensor, radius: int) -> Tensor:
    """(1, C, h, w) after two box filters; at the borders they take what there is."""
    for _ in range(2):
        image = F.avg_pool2d(image, 2 * radius + 1, 1, radius, count_include_pad=False)
    return image


def doubled(flow: Tensor) -> Tensor:
    """A flow (1, 2, h, w) for pictures of twice the size."""
    return 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=False)


class Raft:
    """RAFT (Teed and Deng, ECCV 2020) of torchvision.

    Args:
        model: `raft_small()` or `raft_large()`, with weights.
        settings: what results say of it, for JSON.
        device: where to compute.
        updates: iterations; 20 as in VSPW's TC script.
    """

    def __init__(self, model: Any, settings: dict[str, Any], device: str | torch.device = "cpu", *, updates: int = 20):
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.updates = updates
        self.settings = {**settings, "updates": updates}

    @torch.no_grad()
    def __call__(self, first: np.ndarray, second: np.ndarray) -> Tensor:
        """As `LucasKanade`."""
        check_sizes(first, second)
        height, width = first.shape[:2]
        # It compares pictures at an eighth, down to an eighth of that: 128 pixels are the least, and multiples of 8.
        missing = [max(128, -(-side // 8) * 8) - side for side in (height, width)]
        top, left = missing[0] // 2, missing[1] // 2
        padding = (left, missing[1] - left, top, missing[0] - top)
        images = [
            F.pad(as_tensor(image, self.device)[None] * 2 - 1, padding, mode="replicate") for image in (first, second)
        ]
        flow = self.model(*images, num_flow_updates=self.updates)[-1][0]
        return flow[:, top : top + height, left : left + width].float()


def load_raft(path: str | Path, device: str | torch.device = "cpu", *, updates: int = 20) -> Raft:
    """RAFT with the weights of a file; which of the two models they belong to is told from their names.

    Args:
        path: torchvision's state dict, a .pth file (no pickled code runs) or .safetensors. "raft_large-C_T_V1" holds
            the authors' "raft-things", which VSPW's TC is published with.
        device: where to compute.
        updates: as for `Raft`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or does not hold the tensors of raft_small or raft_large.
    """
    tensors = read_reference_file(path)
    # Only the large one predicts how to upsample the flow.
    name = "raft_large" if any(key.startswith("mask_predictor.") for key in tensors) else "raft_small"
    model = {"raft_small": raft_small, "raft_large": raft_large}[name](weights=None, progress=False)
    own = model.state_dict()
    wrong = sorted(set(own) ^ set(tensors)) or [key for key in own if own[key].shape != tensors[key].shape]
    if wrong:
        raise ValueError(
            f"{path}: expected torchvision's weights of raft_small or raft_large; compared with {name}, "
            f"{len(wrong)} tensors are missing, unexpected or of another shape, the first is {wrong[0]}"
        )
    model.load_state_dict(tensors)
    return Raft(model, {"name": name, "weights": Path(path).name}, device, updates=updates)


def open_flow(name: str, device: str | torch.device, place: str = "flow") -> LucasKanade | Raft:
    """The flow that a setting names, "lucas-kanade" or a file with RAFT's weights; `place` is how messages call it."""
    if Path(name).is_file():
        return load_raft(name, device)
    known_or_raise(name, [LucasKanade.settings["name"]], f"{place}: there is no file with RAFT's weights and no flow")
    return LucasKanade(device)


def along(image: Tensor, flow: Tensor) -> Tensor:
    """An image of another frame as it would look in this one, interpolated bilinearly; beyond the borders it goes on
    as it is there.

    Args:
        image: (C, h, w), floating.
        flow: (2, h, w), in pixels (x, y), from this frame to the other.

    Returns:
        (C, h, w), the image's dtype.
    """
    height, width = flow.shape[1:]
    dtype = torch.promote_types(image.dtype, torch.float32)  # half precision cannot tell neighbouring pixels apart
    x = torch.arange(width, device=flow.device) + flow[0].to(dtype)
    y = torch.arange(height, device=flow.device)[:, None] + flow[1].to(dtype)
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    moved = F.grid_sample(image[None].to(dtype), grid[None], padding_mode="border", align_corners=False)
    return moved[0].to(image.dtype)


def as_tensor(image: np.ndarray, device: torch.device) -> Tensor:
    """A uint8 (H, W, 3) frame as fp32 (3, H, W), 0..1."""
    return torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1).float() / 255


def luminance(image: np.ndarray, device: torch.device) -> Tensor:
    """(1, H, W), 0..1, of a uint8 (H, W, 3) frame."""
    weights = torch.tensor(LUMA, device=device)
    return (as_tensor(image, device) * weights[:, None, None]).sum(dim=0, keepdim=True)


def check_sizes(first: np.ndarray, second: np.ndarray) -> None:
    """Raise unless two frames are of one size."""
    if first.shape != second.shape:
        raise ValueError(f"frames of {first.shape} and {second.shape}, (height, width, 3), have no flow between them")
