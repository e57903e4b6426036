"""SyncBatchNorm: what the conversion keeps. What it computes is tested with two processes in test_processes.py."""

import warnings

import pytest
import torch
from safetensors.torch import load_file
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from tiny import make_default_data, make_trainer, state_of, tiny_model
from torch import nn

from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation
from vss_hf.training.sync_batchnorm import BatchNormActOnCPUs, BatchNormOnCPUs, with_synchronised_batchnorm


BACKBONES = {
    "ours and transformers'": {},
    "timm's, which hold activations": {
        "backbone_config": {"model_type": "timm_backbone", "backbone": "test_efficientnet", "out_indices": [3, 4]}
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


KINDS = {"cpu": (BatchNormOnCPUs, BatchNormActOnCPUs), "cuda": (nn.SyncBatchNorm, SyncBatchNormAct)}


@pytest.mark.parametrize("device", KINDS)  # for which the model is made ready; nothing runs there
@pytest.mark.parametrize("kind", BACKBONES)
def test_conversion_keeps_names_weights_and_evaluation(root, tmp_path, kind, device):
    plain = tiny_model(root, **BACKBONES[kind])
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    before, pixels = state_of(plain), torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        expected = plain.eval()(pixels).logits
    norms = {name for name, module in plain.named_modules() if isinstance(module, nn.BatchNorm2d)}
    acting = {name for name in norms if isinstance(plain.get_submodule(name), BatchNormAct2d)}
    parameters = [name for name, _ in plain.named_parameters()]

    model = with_synchronised_batchnorm(plain, 2, torch.device(device))
    assert acting <= norms and bool(acting) == kind.startswith("timm")
    for name in norms:
        assert type(model.get_submodule(name)) is KINDS[device][name in acting]
    assert [name for name, _ in model.named_parameters()] == parameters
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model.eval()(pixels).logits, expected)

    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() <= before.keys()
    again = OCRNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert not any(type(module) in KINDS[device] for module in again.modules())
    with torch.no_grad():
        assert torch.equal(again(pixels).logits, expected)


def test_one_process_has_nothing_to_synchronise(root, tmp_path):
    with pytest.warns(UserWarning, match="--sync_batchnorm changes nothing: there is one process") as warned:
        trainer = make_trainer(root, tmp_path, sync_batchnorm=True)
    assert len([w for w in warned if "sync_batchnorm" in str(w.message)]) == 1
    assert not any(type(module) in (*KINDS["cpu"], *KINDS["cuda"]) for module in trainer.model.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make_trainer(root, tmp_path)
