"""Stochastic depth: one field of every backbone that has it, active in training only, on every branch of a block."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, MaskFormerSwinConfig
from transformers.models.maskformer.modeling_maskformer_swin import MaskFormerSwinBackbone

from vss_hf.modeling.architectures import config_from_preset
from vss_hf.modeling.backbone import build_backbone, finish_swin
from vss_hf.modeling.modeling_mask2former import Mask2FormerForSemanticSegmentation
from vss_hf.modeling.modeling_maskformer import MaskFormerForSemanticSegmentation
from vss_hf.training.recipe import check_config


STAGES = {"depths": [1, 1], "out_features": ["stage1", "stage2"]}
SWIN = {"model_type": "swin", "embed_dim": 8, "num_heads": [2, 2], "window_size": 2, **STAGES}
FAMILIES = {
    "swin": SWIN,
    "convnext": {"model_type": "convnext", "num_stages": 2, "hidden_sizes": [8, 16], **STAGES},
    "mit": {
        **{"model_type": "vss_mit", "num_encoder_blocks": 2, "hidden_sizes": [8, 16], "num_attention_heads": [1, 2]},
        **{"sr_ratios": [2, 1], "strides": [4, 2], "patch_sizes": [7, 3], "mlp_ratios": [2, 2], **STAGES},
    },
    "internimage": {"model_type": "vss_internimage", "channels": 8, "groups": [2, 4], **STAGES},
    "volo": {
        **{"model_type": "vss_volo", "stem_channels": 8, "hidden_sizes": [8, 16], "num_heads": [2, 2]},
        **{"mlp_ratios": [2, 2], "image_size": 32, **STAGES},
    },
    "swin3d": {
        **{"model_type": "vss_swin3d", "embed_dim": 8, "num_heads": [2, 2], "window_size": [2, 2, 2]},
        **{"patch_size": [1, 4, 4], **STAGES},
    },
    "timm": {"model_type": "timm_backbone", "backbone": "convnext_atto", "out_indices": [0, 1, 2, 3]},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_on_in_training_and_off_in_evaluation(family):
    torch.manual_seed(0)
    backbone = build_backbone(AutoConfig.for_model(**FAMILIES[family], drop_path_rate=0.5))
    for module in backbone.modules():  # branches must matter: their factors begin near 0
        for name in ("layer_scale_parameter", "gamma"):
            if isinstance(getattr(module, name, None), nn.Parameter):
                nn.init.ones_(getattr(module, name))
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    image = torch.randn((2, 3, 32, 32) if family == "swin3d" else (3, 32, 32))
    image = torch.stack([image] * 16)
    with torch.no_grad():
        *_, evaluated = backbone.eval()(image).feature_maps
        assert torch.allclose(evaluated[:1].expand_as(evaluated), evaluated, atol=1e-5)
        *_, trained = backbone.train()(image).feature_maps
    different = (trained - trained[:1]).flatten(1).abs().amax(dim=1) > 1e-3
    assert different.any(), "all 16 samples went the same way"
    rates = [getattr(module, "drop_prob", getattr(module, "p", None)) for module in paths(backbone)]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(0.5)


def paths(backbone):
    return [m for m in backbone.modules() if type(m).__name__.endswith("DropPath") or "Stochastic" in type(m).__name__]


def test_swin_skips_both_branches():
    """As its authors do: transformers' own skips the attention only."""
    torch.manual_seed(0)
    backbone = build_backbone(AutoConfig.for_model(**SWIN, drop_path_rate=0.25))
    first, last = (stage.blocks[0].mlp for stage in backbone.swin.encoder.layers)
    check_skipping(last, torch.randn(400, 3, 16), 0.25)
    tokens = torch.randn(4, 3, 8)
    assert torch.equal(first.train()(tokens), first.eval()(tokens))  # the first block's rate is 0


def test_maskformers_swin_skips_both_branches():
    fields = {key: value for key, value in SWIN.items() if key != "model_type"}
    backbone = MaskFormerSwinBackbone(MaskFormerSwinConfig(**fields, drop_path_rate=0.25))
    finish_swin(backbone)
    check_skipping(backbone.model.encoder.layers[1].blocks[0].output, torch.randn(400, 3, 64), 0.25)


@torch.no_grad()
def check_skipping(branch: nn.Module, tokens: torch.Tensor, rate: float) -> None:
    whole, trained = branch.eval()(tokens), branch.train()(tokens)
    skipped = trained.flatten(1).abs().amax(dim=1) == 0
    assert 0.15 < skipped.float().mean() < 0.35
    assert torch.allclose(trained[~skipped], whole[~skipped] / (1 - rate), atol=1e-6)


def test_mask_models_have_the_finished_swin():
    with torch.device("meta"):
        of_mask2former = Mask2FormerForSemanticSegmentation(config_from_preset("mask2former-swin-large")).backbone.swin
        of_maskformer = MaskFormerForSemanticSegmentation(config_from_preset("maskformer-swin-large")).backbone.model
    assert of_mask2former.encoder.layers[-1].blocks[-1].mlp.drop_path_rate == pytest.approx(0.3)
    assert of_maskformer.encoder.layers[-1].blocks[-1].output.drop_path_rate == pytest.approx(0.3)


def test_recipes_name_it():
    timm = {"model_type": "timm_backbone", "backbone": "convnext_atto", "drop_path_rate": 0.1}
    check_config({"model_type": "vss_upernet", "backbone_config": timm}, "model.config")
    with pytest.raises(ValueError, match="backbone_config has no field 'drop_path_rate'"):
        check_config({"model_type": "vss_mask2former", "backbone_config": timm}, "model.config")
    with pytest.raises(ValueError, match="did you mean 'drop_path_rate'"):
        check_config({"model_type": "vss_upernet", "backbone_config": {**SWIN, "drop_path": 0.1}}, "model.config")
