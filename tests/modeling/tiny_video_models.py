"""Small video models for tests."""

import json

import torch
from transformers import AutoConfig, AutoModel


RESNET = {
    "model_type": "vss_resnet",
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 12, 16, 20],
    "stem_channels": 8,
    "block": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 2],
    "window_size": 4,
    "out_features": ["stage3", "stage4"],
}
SWIN3D = {
    "model_type": "vss_swin3d",
    "embed_dim": 8,
    "depths": [1, 1, 2],
    "num_heads": [1, 2, 2],
    "window_size": [2, 4, 4],
    "out_features": ["stage2", "stage3"],
}
TINY = {
    "vss_st_ppm": dict(
        backbone_config=SWIN,
        in_index=1,
        auxiliary_in_index=0,
        channels=8,
        auxiliary_channels=8,
        frame_weights="learned",
    ),
    "vss_tcb_ocr": dict(
        backbone_config=RESNET,
        in_indices=[1, 2, 3],
        channels=8,
        ocr_channels=8,
        coarse_channels=8,
        coarse_kernel_size=3,
    ),
    "vss_tbn_vit": dict(
        backbone_config=SWIN,
        spatial_channels=[6, 8, 10],
        context_channels=8,
        fusion_channels=12,
        channels=8,
        auxiliary_channels=8,
    ),
    "vss_tmanet": dict(
        backbone_config=RESNET,
        clip_start="existing",
        channels=8,
        auxiliary_channels=8,
        key_channels=6,
        value_channels=10,
    ),
    "vss_video_swin": dict(
        backbone_config=SWIN3D, decode_head="ocr", in_indices=[0, 1], channels=8, ocr_channels=8, coarse_channels=8
    ),
}
# What is not alike in all of them.
ORDER_COUNTS = {"vss_tmanet", "vss_video_swin"}  # a layer, or a bias, for each place in the clip
ENCODES_CLIPS = {"vss_video_swin"}  # all frames of a clip at once, in every step of a stream
REMEMBERS_MAPS = {"vss_tbn_vit", "vss_tmanet", "vss_video_swin"}  # of the frame's size, not a few numbers
NAMES = ["sky", "sea", "sand", "tree", "road"]


def build_config(model_type, names=NAMES, **changes):
    """A small configuration with clips of 3 frames; each has its own copies of the dictionaries."""
    fields = {"frame_offsets": [-4, -1], **json.loads(json.dumps(TINY[model_type])), **changes}
    return AutoConfig.for_model(model_type, **fields, id2label=dict(enumerate(names)))


def build(model_type, **changes):
    """A small model in eval mode; statistics and classifiers are random, because new ones hide mistakes."""
    torch.manual_seed(0)
    model = AutoModel.from_config(build_config(model_type, **changes)).eval()
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    for name, parameter in model.named_parameters():
        if "classifier" in name or "frame_score" in name or "context_conv" in name:
            torch.nn.init.normal_(parameter)
        if "_key." in name and name.endswith(".1.1.weight"):  # larger keys: a softmax of ones and zeros
            parameter.data.mul_(0.2)
    return model
