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
}
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
        if "classifier" in name or "frame_score" in name:
            torch.nn.init.normal_(parameter)
    return model
