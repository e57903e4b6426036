"""The moving average against its recursion in float64."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_default_data, state_of, tiny_model
from torch import nn

from vss_hf.training.ema import EMA


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def disturb(model: nn.Module, generator: torch.Generator) -> None:
    """Some change of every tensor, as a training step makes it."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_equals_the_recursion(decay):
    """First the weights themselves, then d * average + (1 - d) * weights with d = min(decay, (1 + n) / (10 + n))."""
    model, generator = small_model(), torch.Generator().manual_seed(1)
    ema = EMA(model, decay)
    expected = None
    for n in range(30):
        disturb(model, generator)
        ema.update_parameters(model)
        current = {name: tensor.double() for name, tensor in state_of(model).items()}
        d = min(decay, (1 + n) / (10 + n))
        expected = current if expected is None else {k: d * expected[k] + (1 - d) * current[k] for k in current}
    for name, tensor in ema.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-5)
        else:  # a counter is no average
            assert name == "1.num_batches_tracked" and tensor.dtype == torch.int64 and int(tensor) == 30


def test_does_not_touch_the_model():
    model = small_model()
    ema = EMA(model, 0.9)
    disturb(model, torch.Generator().manual_seed(1))
    before = state_of(model)
    ema.update_parameters(model)
    disturb(ema.module, torch.Generator().manual_seed(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("raises", [False, True])
def test_swapped_into_gives_back_every_bit(raises, tmp_path):
    model = tiny_model(make_default_data(tmp_path / "videos"))
    ema, generator = EMA(model, 0.9), torch.Generator().manual_seed(1)
    for _ in range(3):
        disturb(model, generator)
        ema.update_parameters(model)
    before, addresses = state_of(model), [p.data_ptr() for p in model.parameters()]
    try:
        with ema.swapped_into(model):
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, ema.module.state_dict()[name]), name
            assert not torch.equal(model.decode_head.classifier.weight, before["decode_head.classifier.weight"])
            if raises:
                raise KeyError("in the middle")
    except KeyError:
        assert raises
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == addresses  # the optimizer still holds these tensors


def test_goes_on_from_a_file(tmp_path):
    model, generator = small_model(), torch.Generator().manual_seed(1)
    ema = EMA(model, 0.99)
    for _ in range(4):
        disturb(model, generator)
        ema.update_parameters(model)
    save_file(dict(ema.state_dict()), tmp_path / "ema.safetensors")
    other = EMA(small_model(), 0.99)
    other.load_state_dict(load_file(tmp_path / "ema.safetensors"))
    for _ in range(3):
        disturb(model, generator)
        ema.update_parameters(model)
        other.update_parameters(model)
    for name, tensor in ema.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_tied_weights_stay_tied():
    """In memory; saving them is safetensors' matter, which refuses tensors that share memory."""
    model = small_model()
    model.add_module("twin", nn.Conv2d(4, 2, 1))
    model.twin.weight = model[2].weight
    ema = EMA(model, 0.5)
    disturb(model, torch.Generator().manual_seed(1))
    ema.update_parameters(model)
    ema.update_parameters(model)
    assert ema.module.twin.weight is ema.module[2].weight
    before = state_of(model)
    with ema.swapped_into(model):
        assert torch.equal(model.twin.weight, ema.module[2].weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
