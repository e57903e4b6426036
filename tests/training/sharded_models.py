"""Run by test_plan.py under torchrun: small models in FSDP2's units, checkpointed, against whole ones."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.other import get_module_children_bottom_up
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import AutoConfig, AutoModelForSemanticSegmentation

import vss_hf  # noqa: F401  (registers the models with the Auto classes)


STAGES = ["stage1", "stage2", "stage3", "stage4"]
INTERNIMAGE = dict(model_type="vss_internimage", channels=8, depths=[1, 1, 1, 1], groups=[1, 2, 2, 4])
SWIN = dict(model_type="swin", embed_dim=8, depths=[2, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4)
HRNET = dict(
    model_type="vss_hrnet",
    stage1_channels=4,
    hidden_sizes=[4, 8, 12, 16],
    num_modules=[1, 1, 1, 1],
    num_blocks=[[1], [1, 1], [1, 1, 1], [1, 1, 1, 1]],
)
OCR = dict(channels=8, ocr_channels=8, coarse_channels=8)
MASKS = dict(
    feature_size=32,
    mask_feature_size=16,
    hidden_dim=32,
    encoder_layers=1,
    decoder_layers=2,
    num_attention_heads=2,
    encoder_feedforward_dim=32,
    dim_feedforward=32,
    num_queries=7,
    train_num_points=100,
)
MODELS = {
    "upernet-internimage": ("vss_upernet", dict(backbone_config=INTERNIMAGE, hidden_size=8, auxiliary_channels=8)),
    "ocrnet-swin": ("vss_ocrnet", dict(backbone_config=SWIN, **OCR)),
    "ocrnet-hrnet": ("vss_ocrnet", dict(backbone_config=HRNET, **OCR)),
    "mask2former-internimage": ("vss_mask2former", dict(backbone_config=INTERNIMAGE, **MASKS)),
}


def build(name: str):
    """A small model, the same at every call."""
    kind, fields = MODELS[name]
    backbone = {"out_features": STAGES, **json.loads(json.dumps(fields["backbone_config"]))}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**fields, "backbone_config": backbone}, num_labels=3)
    return AutoModelForSemanticSegmentation.from_config(config).train()


def step(model) -> tuple[float, float]:
    """(loss, norm of the gradient) of a fixed sample."""
    torch.manual_seed(1)
    pixels, labels = torch.randn(2, 3, 64, 64), torch.arange(3).repeat_interleave(22)[:64].expand(2, 64, 64)
    loss = model(pixel_values=pixels, labels=labels.contiguous()).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    gradients = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients]
    return float(loss), float(torch.stack([gradient.norm() for gradient in gradients]).norm())


def shard(model) -> int:
    """Spread a model over the processes as accelerate does; returns the number of its units."""
    mesh = init_device_mesh("cpu", (2,))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(model)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    assert policy is not None
    for module in get_module_children_bottom_up(model)[:-1]:
        if policy(module) and not isinstance(module, FSDPModule):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return sum(isinstance(module, FSDPModule) for module in model.modules())


def main(out: Path) -> None:
    """Loss and gradient of every model, whole and in units."""
    init_process_group("gloo")
    found = {}
    for name in MODELS:
        whole, model = step(build(name)), build(name)
        units = shard(model)
        model.activation_checkpointing_enable()
        found[name] = {"whole": whole, "sharded": step(model), "units": units}
    if os.environ["RANK"] == "0":
        out.write_text(json.dumps(found))
    destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
