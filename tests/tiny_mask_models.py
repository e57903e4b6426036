"""Small MaskFormer and Mask2Former models on several backbones, for several test files."""

import torch
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from vss_hf.modeling.configuration_mask2former import VSSMask2FormerConfig
from vss_hf.modeling.configuration_maskformer import VSSMaskFormerConfig
from vss_hf.modeling.modeling_mask2former import Mask2FormerForSemanticSegmentation
from vss_hf.modeling.modeling_maskformer import MaskFormerForSemanticSegmentation


STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "swin": {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [2, 2, 2, 2],
        "num_heads": [1, 2, 2, 2],
        "window_size": 4,
        "drop_path_rate": 0.0,
        "out_features": STAGES,
    },
    "convnext": {
        "model_type": "convnext",
        "hidden_sizes": [8, 12, 16, 20],
        "depths": [1, 1, 1, 1],
        "out_features": STAGES,
    },
    "resnet": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 12, 16, 20],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": STAGES,
    },
    "timm": {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [1, 2, 3, 4]},
}
WIDTHS = {
    "maskformer": {
        "fpn_feature_size": 64,
        "mask_feature_size": 16,
        "use_auxiliary_loss": True,
        "decoder_config": {
            "model_type": "detr",
            "d_model": 32,
            "decoder_layers": 3,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 32,
            "num_queries": 7,
            "dropout": 0.0,
        },
    },
    "mask2former": {
        "feature_size": 64,
        "mask_feature_size": 16,
        "hidden_dim": 32,
        "encoder_layers": 2,
        "decoder_layers": 4,
        "num_attention_heads": 2,
        "encoder_feedforward_dim": 32,
        "dim_feedforward": 32,
        "num_queries": 7,
        "train_num_points": 200,
    },
}
CLASSES = {
    "maskformer": (VSSMaskFormerConfig, MaskFormerForSemanticSegmentation),
    "mask2former": (VSSMask2FormerConfig, Mask2FormerForSemanticSegmentation),
}
KINDS = list(CLASSES)

for config_class, model_class in CLASSES.values():
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForSemanticSegmentation.register(config_class, model_class, exist_ok=True)


def fields(kind, backbone="swin", num_labels=5, **changes):
    """Keyword arguments of a configuration, ours or transformers' own."""
    backbone_config = dict(BACKBONES[backbone]) if isinstance(backbone, str) else backbone
    return {"backbone_config": backbone_config, "num_labels": num_labels, **WIDTHS[kind], **changes}


def make(kind, backbone="swin", **changes):
    """A small model in eval mode."""
    config_class, model_class = CLASSES[kind]
    return model_class(config_class(**fields(kind, backbone, **changes))).eval()


def batch(size=(64, 96), count=2, num_labels=5, ignored=0.1):
    """Random pixels, and labels in squares of 16 pixels with scattered void ones."""
    blocks = torch.randint(0, num_labels, (count, -(-size[0] // 16), -(-size[1] // 16)))
    labels = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, : size[0], : size[1]].clone()
    labels[torch.rand(labels.shape) < ignored] = 255
    return torch.randn(count, 3, *size), labels
