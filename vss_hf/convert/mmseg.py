"""Names of mmsegmentation's OCRNet (CascadeEncoderDecoder on Swin) in terms of ours.

Key lists: mmsegmentation 1.2.2 `SwinTransformer`, `FCNHead`, `OCRHead`; the same in 0.x.
"""

import re

import torch

from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation


# The first pattern that matches a whole reference name gives ours; groups are kept as they are.
SWIN_NAMES = [
    (r"backbone\.patch_embed\.projection\.(weight|bias)", r"backbone.swin.embeddings.patch_embeddings.projection.\1"),
    (r"backbone\.patch_embed\.norm\.(weight|bias)", r"backbone.swin.embeddings.norm.\1"),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.norm1\.(\w+)", r"{block}\1.blocks.\2.layernorm_before.\3"),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.norm2\.(\w+)", r"{block}\1.blocks.\2.layernorm_after.\3"),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.0\.0\.(\w+)", r"{block}\1.blocks.\2.mlp.fc1.\3"),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.1\.(\w+)", r"{block}\1.blocks.\2.mlp.fc2.\3"),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.proj\.(\w+)", r"{block}\1.blocks.\2.attention.o_proj.\3"),
    (
        r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.relative_position_bias_table",
        r"{block}\1.blocks.\2.attention.relative_position_bias.relative_position_bias_table",
    ),
    (r"backbone\.stages\.(\d+)\.downsample\.(norm|reduction)\.(\w+)", r"{block}\1.downsample.\2.\3"),
]
HEAD_NAMES = [
    (r"decode_head\.0\.convs\.(\d+)\.(conv|bn)\.(\w+)", r"coarse_head.convs.\1.{\2}.\3"),
    (r"decode_head\.0\.conv_seg\.(\w+)", r"coarse_head.classifier.\1"),
    (r"decode_head\.1\.bottleneck\.(conv|bn)\.(\w+)", r"decode_head.pixel_conv.{\1}.\2"),
    (
        r"decode_head\.1\.object_context_block\.(query|key)_project\.(\d)\.(conv|bn)\.(\w+)",
        r"decode_head.attention.\1.\2.{\3}.\4",
    ),
    (
        r"decode_head\.1\.object_context_block\.(value|out)_project\.(conv|bn)\.(\w+)",
        r"decode_head.attention.\1.{\2}.\3",
    ),
    (r"decode_head\.1\.object_context_block\.bottleneck\.(conv|bn)\.(\w+)", r"decode_head.attention.merge.{\1}.\2"),
    (r"decode_head\.1\.conv_seg\.(\w+)", r"decode_head.classifier.\1"),
]


def mmseg_ocrnet_names(
    state_dict: dict[str, torch.Tensor], model: OCRNetForSemanticSegmentation
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Our names and layouts for an mmsegmentation OCRNet on Swin.

    Returns:
        (tensors under our names, reference names that have no place here: index tables that are computed, and norms of
        maps that the heads do not read).

    Raises:
        ValueError: for a name that belongs to no known layer.
    """
    tensors: dict[str, torch.Tensor] = {}
    unused, unknown = [], []
    stages = model.backbone.config.out_features
    for name, tensor in state_dict.items():
        if name.endswith("relative_position_index"):
            unused.append(name)
        elif match := re.fullmatch(r"backbone\.norm(\d)\.(\w+)", name):
            stage = f"stage{int(match[1]) + 1}"
            if stage in stages:
                tensors[f"backbone.hidden_states_norms.{stage}.{match[2]}"] = tensor
            else:
                unused.append(name)
        elif match := re.fullmatch(r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.qkv\.(\w+)", name):
            prefix = f"backbone.swin.encoder.layers.{match[1]}.blocks.{match[2]}.attention."
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                tensors[f"{prefix}{letter}_proj.{match[3]}"] = part
        elif (own := translate(name)) is not None:
            if ".downsample." in own:
                tensor = from_unfold_order(tensor)
            tensors[own] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"mmseg names that belong to no layer of OCRNet on Swin: {', '.join(unknown[:8])}")
    return tensors, unused


def translate(name: str) -> str | None:
    """Our name for a reference name, or None."""
    for pattern, own in SWIN_NAMES + HEAD_NAMES:
        if re.fullmatch(pattern, name):
            own = re.sub(pattern, own, name)
            # ConvNormAct is a Sequential: 0 is the convolution, 1 the BatchNorm.
            return own.replace("{block}", "backbone.swin.encoder.layers.").replace("{conv}", "0").replace("{bn}", "1")
    return None


def from_unfold_order(tensor: torch.Tensor) -> torch.Tensor:
    """Patch merging's last axis from mmseg's `nn.Unfold` order (channel-major) to Swin's own (sub-grid-major).

    Unfold gives index c * 4 + position with positions (0,0), (0,1), (1,0), (1,1); Swin concatenates the sub-grids
    (0,0), (1,0), (0,1), (1,1), each with all channels.
    """
    by_position = tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)  # (..., 4, C)
    return by_position[..., [0, 2, 1, 3], :].flatten(-2)
