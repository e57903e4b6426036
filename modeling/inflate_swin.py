"""Video Swin's tensors from those of a Swin for images, or of a Video Swin with other patches and windows.

Liu et al., "Video Swin Transformer", CVPR 2022, section 3.3: on a clip of equal frames an inflated network computes
what the original computes for the frame. So the kernel of the patches is spread evenly over its frames, and a position
bias does not depend on the distance in time. All other tensors are the same.
"""

import re

import torch
from torch.nn import functional as F

from .configuration_swin3d import Swin3DConfig


# Names inside transformers' Swin and inside torchvision's Video Swin, whose `features` are stages and mergings in turn
OUTSIDE = {
    "swin.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "swin.embeddings.norm": "patch_embed.norm",
}
IN_BLOCK = {
    "layernorm_before": "norm1",
    "attention.q_proj": "attn.qkv",  # joined with k_proj and v_proj
    "attention.o_proj": "attn.proj",
    "attention.relative_position_bias": "attn",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
}
BLOCK = re.compile(r"swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.(.+)")
MERGING = re.compile(r"swin\.encoder\.layers\.(\d+)\.downsample\.(.+)")


def inflate_swin(state_dict: dict[str, torch.Tensor], config: Swin3DConfig) -> dict[str, torch.Tensor]:
    """Turn the tensors of a Swin for images into those of a Video Swin.

    Args:
        state_dict: of transformers' `SwinBackbone`.
        config: the Video Swin's, with the same width, depths and heads. Where its windows have other sides, the
            position biases are resized (bicubic), as in the paper's code.

    Returns:
        Tensors by the names of [`Swin3DBackbone`].

    Raises:
        ValueError: a tensor has no place in a Video Swin, for instance absolute position embeddings.
    """
    inflated, window = {}, 1
    for name, tensor in state_dict.items():
        if re.search(r"\.(k_proj|v_proj)\.|^swin\.layernorm\.", name):
            continue  # goes with q_proj; and the classifier's last norm
        if ".q_proj." in name:
            tensor = torch.cat([state_dict[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
        if name.endswith("relative_position_bias_table"):
            window = (round(tensor.shape[0] ** 0.5) + 1) // 2
        inflated[own_name(name)] = tensor
    return fit_to_clips(inflated, [1, window, window], config)


def own_name(name: str) -> str:
    """The name of [`Swin3DBackbone`] for one of transformers' `SwinBackbone`."""
    if name.startswith("hidden_states_norms."):
        return name
    if match := MERGING.fullmatch(name):
        return f"features.{2 * int(match[1]) + 1}.{match[2]}"
    start, known, rest = "", OUTSIDE, name
    if match := BLOCK.fullmatch(name):
        start, known, rest = f"features.{2 * int(match[1])}.{match[2]}.", IN_BLOCK, match[3]
    module, _, kind = rest.rpartition(".")
    if module not in known:
        raise ValueError(f"the tensor '{name}' has no place in a Video Swin")
    return f"{start}{known[module]}.{kind}"


def fit_to_clips(
    tensors: dict[str, torch.Tensor], window: list[int] | tuple[int, ...], config: Swin3DConfig
) -> dict[str, torch.Tensor]:
    """The same network for the configured patches and windows.

    Args:
        tensors: by the names of [`Swin3DBackbone`]; the kernel of the patches may lack its axis of time.
        window: time slots, rows and columns of the windows that the position biases are for.
        config: the Video Swin's.
    """
    fitting = dict(tensors)
    for name, tensor in tensors.items():
        if name == "patch_embed.proj.weight":
            fitting[name] = fit_patches(tensor, config.patch_size[0])
        elif name.endswith("relative_position_bias_table"):
            fitting[name] = fit_position_bias(tensor, window, config.window_size)
    return fitting


def fit_patches(weight: torch.Tensor, frames: int) -> torch.Tensor:
    """A kernel (C, 3, h, w) or (C, 3, t, h, w) for patches of `frames` frames: alike on frames that are equal."""
    weight = weight.unsqueeze(2) if weight.ndim == 4 else weight
    if weight.shape[2] == frames:
        return weight
    return weight.sum(dim=2, keepdim=True).repeat(1, 1, frames, 1, 1) / frames


def fit_position_bias(
    table: torch.Tensor, window: list[int] | tuple[int, ...], new_window: list[int] | tuple[int, ...]
) -> torch.Tensor:
    """Position biases (offsets in time * rows * columns, heads) of one window for another.

    Offsets in time that are too long for the old window get the bias of its longest one.
    """
    depth, height, width = (2 * side - 1 for side in window)
    new_height, new_width = (2 * side - 1 for side in new_window[1:])
    grid = table.view(depth, height, width, -1)
    if (height, width) != (new_height, new_width):
        grid = F.interpolate(grid.permute(0, 3, 1, 2), size=(new_height, new_width), mode="bicubic")
        grid = grid.permute(0, 2, 3, 1)
    longest = window[0] - 1
    offsets = torch.arange(1 - new_window[0], new_window[0]).clamp(-longest, longest)
    return grid[offsets + longest].flatten(0, 2)  # (new offsets, heads)


__all__ = ["fit_to_clips", "inflate_swin"]
