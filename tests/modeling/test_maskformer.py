"""MaskFormer alone: deep supervision, memory of its full-size losses, several processes.

What it shares with Mask2Former is in test_mask_models.py.
"""

import subprocess
import sys
import textwrap

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_mask_models import CLASSES, batch, fields, make
from torch import nn

from vss_hf.modeling.configuration_maskformer import VSSMaskFormerConfig
from vss_hf.modeling.mask_labels import masks_from_labels
from vss_hf.modeling.mask_losses import MASKS_AT_A_TIME, MaskFormerCriterion, full_size_losses


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_every_decoder_layer_is_supervised_through_the_last_norm():
    """As Facebook's code does; transformers' own auxiliary loss needs hidden states that nobody asked for."""
    model, (pixels, labels) = make("maskformer"), batch()
    for parameter in model.model.transformer_module.parameters():
        nn.init.normal_(parameter, std=0.2)
    layer_outputs = []
    for layer in model.model.transformer_module.decoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: layer_outputs.append(output))
    output = model(pixels, labels=labels, output_auxiliary_logits=True)
    norm = model.model.transformer_module.decoder.layernorm
    predictions = [*output.auxiliary_logits, output]
    assert len(predictions) == len(layer_outputs) == 3
    for state, prediction in zip(layer_outputs, predictions, strict=True):
        queries = norm(state)
        masks = torch.einsum("bqc,bchw->bqhw", model.mask_embedder(queries), output.pixel_decoder_last_hidden_state)
        torch.testing.assert_close(prediction["masks_queries_logits"], masks)
        torch.testing.assert_close(prediction["class_queries_logits"], model.class_predictor(queries))
    # The loss is the sum over all of them.
    targets = masks_from_labels(labels, 5)
    expected = 0
    for prediction in predictions:
        parts = model.criterion(prediction["masks_queries_logits"], prediction["class_queries_logits"], *targets)
        expected += parts["loss_cross_entropy"] + 20 * parts["loss_mask"] + parts["loss_dice"]
    torch.testing.assert_close(output.loss, expected)


def test_without_deep_supervision_only_the_last_layer_counts():
    model, (pixels, labels) = make("maskformer", use_auxiliary_loss=False), batch()
    output = model(pixels, labels=labels, output_auxiliary_logits=True)
    assert output.auxiliary_logits is None
    parts = model.criterion(*reversed([output.class_queries_logits, output.masks_queries_logits]),
                            *masks_from_labels(labels, 5))  # fmt: skip
    torch.testing.assert_close(output.loss, parts["loss_cross_entropy"] + 20 * parts["loss_mask"] + parts["loss_dice"])


def criterion(num_labels):
    model = make("maskformer", "resnet", num_labels=num_labels)
    return model.criterion


def test_masks_are_compared_a_few_at_a_time_with_the_same_result():
    loss = criterion(40)
    labels = torch.arange(40).repeat_interleave(6).view(1, 12, 20)
    masks, classes = masks_from_labels(labels, 40)
    assert len(classes[0]) == 40 > 2 * MASKS_AT_A_TIME
    mask_logits = torch.randn(1, 50, 6, 10, requires_grad=True)
    pairs = [(torch.randperm(50)[:40], torch.arange(40))]
    num_masks = torch.tensor(40.0)
    parts = loss.loss_masks(mask_logits, masks, pairs, num_masks)
    at_once = full_size_losses(mask_logits[0, pairs[0][0]], masks[0], None, num_masks)
    for ours, expected in zip(parts.values(), at_once, strict=True):
        torch.testing.assert_close(ours, expected)
    ours = torch.autograd.grad(sum(parts.values()), mask_logits)[0]
    expected = torch.autograd.grad(sum(at_once), mask_logits)[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_a_full_size_picture_with_all_124_classes_fits():
    """100 matched masks of 480x853: transformers' loss keeps 1.5 GB for backward, this one 51 MB."""
    loss = criterion(124)
    height, width = 480, 853
    labels = (torch.arange(height * width) * 124 // (height * width)).view(1, height, width).to(torch.uint8)
    masks, classes = masks_from_labels(labels, 124)
    assert len(classes[0]) == 124 and masks[0].dtype == torch.bool  # 51 MB, an eighth of what float would take
    mask_logits = torch.randn(1, 100, 120, 214, requires_grad=True)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        parts = loss(mask_logits, torch.randn(1, 100, 125), masks, classes)
    assert all(part.isfinite() for part in parts.values())
    assert sum(kept.values()) <= 120e6


def test_swin_becomes_maskformers_own_before_a_model_is_built():
    config = VSSMaskFormerConfig(**fields("maskformer"))
    before = config.to_dict()
    assert config.backbone_config.model_type == "maskformer-swin" and len(config.backbone_config.out_features) == 4
    CLASSES["maskformer"][1](config)
    assert {k: v for k, v in config.to_dict().items() if k != "dtype"} == {
        k: v for k, v in before.items() if k != "dtype"
    }
    # Facebook's files on the Hub say "swin" and name no maps.
    bare = {key: value for key, value in fields("maskformer")["backbone_config"].items() if key != "out_features"}
    assert len(VSSMaskFormerConfig(backbone_config=bare).backbone_config.out_features) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fpn_feature_size": 48}, "fpn_feature_size=48: expected a multiple of 32"),
        ({"decoder_config": {"model_type": "bert"}}, "'bert' is no decoder"),
        ({"decoder_config": {"model_type": "detr", "num_queries": 0}}, "num_queries=0"),
        ({"decoder_config": {"model_type": "detr", "decoder_layers": 0}}, "decoder_layers=0"),
    ],
)
def test_wrong_configurations_are_named(changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        VSSMaskFormerConfig(**{**fields("maskformer"), **changes})


TWO_PROCESSES = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from accelerate import PartialState
from tiny_mask_models import make
state = PartialState(cpu=True)
criterion = make("maskformer", "resnet").criterion
mine = [torch.zeros(3 if state.is_main_process else 8, dtype=torch.long)]
criterion.train()
assert criterion.get_num_masks(mine, torch.device("cpu")).item() == 5.5
criterion.eval()
if state.is_main_process:  # alone, and it does not wait
    assert criterion.get_num_masks(mine, torch.device("cpu")).item() == 3
state.wait_for_everyone()
state.destroy_process_group()
"""


@pytest.mark.slow
def test_the_number_of_masks_is_the_mean_over_processes(request, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES))
    launch = "torch.distributed.run --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=localhost:0".split()
    command = [sys.executable, "-m", *launch, str(script), str(request.path.parents[1])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_criterion_is_transformers_with_its_buffer():
    loss = criterion(5)
    assert isinstance(loss, MaskFormerCriterion)
    assert loss.empty_weight.tolist() == pytest.approx([1, 1, 1, 1, 1, 0.1])
