"""The attentions of HFGD against their formulas in float64; what they never keep; precisions, devices, export."""

import copy

import pytest
import torch
from largest_tensor import LargestTensor

from vss_hf.modeling.attention import AxialAttention, SelfAttention


BUILD = {"self": lambda: SelfAttention(16, 4), "axial": lambda: AxialAttention(16, 8, 4)}
each_attention = pytest.mark.parametrize("name", BUILD)
HALF = [torch.bfloat16, torch.float16]


def build(name, spread=1.0):
    """An attention whose softmaxes are neither flat nor at one place; `spread` scales queries and keys."""
    torch.manual_seed(0)
    attention = BUILD[name]()
    for projection in (attention.query, attention.key):
        projection.weight.data *= 2 * spread**0.5
        projection.bias.data += 0.3
    return attention


def maps_of(attention, features):
    """Queries, keys and values of every place, as nested loops of matrix products have them: (B, h, w, channels)."""
    parts = (attention.query, attention.key, attention.value)
    return [features.movedim(1, -1) @ part.weight[:, :, 0, 0].T + part.bias for part in parts]


def self_formula(attention, features):
    """All places of an image in a row; nothing is scaled."""
    results = []
    for image in zip(*maps_of(attention, features), strict=True):
        query, key, value = (part.flatten(0, 1) for part in image)  # (h * w, channels)
        weights = (query @ key.T).exp()
        results.append((weights / weights.sum(dim=1, keepdim=True)) @ value)
    return features + torch.stack(results).unflatten(1, features.shape[2:]).movedim(-1, 1)


def axial_formula(attention, features):
    """Head after head: each column, with the values; then each row, with what came out."""
    query, key, value = maps_of(attention, features)
    heads = attention.num_heads
    results = []
    for q, k, v in zip(*(part.chunk(heads, dim=-1) for part in (query, key, value)), strict=True):
        scale = q.shape[-1] ** 0.5
        columns = [  # (B, h, channels)
            torch.einsum("bic,bjc->bij", q[:, :, x], k[:, :, x]).div(scale).softmax(-1) @ v[:, :, x]
            for x in range(v.shape[2])
        ]
        v = torch.stack(columns, dim=2)
        rows = [
            torch.einsum("bic,bjc->bij", q[:, y], k[:, y]).div(scale).softmax(-1) @ v[:, y] for y in range(v.shape[1])
        ]
        results.append(torch.stack(rows, dim=1))
    return features + torch.cat(results, dim=-1).movedim(-1, 1)


FORMULAS = {"self": self_formula, "axial": axial_formula}


def exact(name, attention, features):
    """Result of the formula in float64, and the gradients of its features and weights for a fixed pattern."""
    attention = copy.deepcopy(attention).double()
    features = features.detach().double().requires_grad_()
    result = FORMULAS[name](attention, features)
    (result * pattern(result)).sum().backward()
    return result, [features.grad, *(parameter.grad for parameter in attention.parameters())]


def pattern(result):
    return torch.arange(result.numel(), device=result.device, dtype=torch.float64).cos().view(result.shape)


def found(attention, features):
    """The same of the module itself, in the precision of its features."""
    attention.zero_grad()
    features = features.detach().clone().requires_grad_()
    result = attention(features)
    (result * pattern(result)).sum().backward()
    return result, [features.grad, *(parameter.grad for parameter in attention.parameters())]


# --- the formulas


@each_attention
@pytest.mark.parametrize("size", [(9, 7), (1, 1), (1, 12), (5, 1)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_the_formula(name, size, batch, layout):
    attention = build(name).double()
    features = torch.randn(batch, 16, *size, dtype=torch.float64).contiguous(memory_format=layout)
    expected, gradients = exact(name, attention, features)
    result, ours = found(attention, features)
    assert result.dtype == torch.float64 and result.shape == features.shape
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(ours, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)

    single, ours = found(attention.float(), features.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(ours, gradients, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-3)


def test_what_is_compared():
    """Self-attention: every place with every place. Axial: with its column and its row, then all through them."""
    for name in BUILD:
        attention = build(name)
        features = torch.randn(1, 16, 6, 5)
        changed = features.clone()
        changed[0, :, 2, 3] += 1
        difference = (attention(changed) - attention(features))[0].abs().sum(dim=0)
        assert (difference > 1e-5).all()  # (6, 5): a place reaches all others
    order = torch.randperm(30)
    shuffled = features.flatten(2)[:, :, order].view_as(features)
    attention = build("self")
    expected = attention(features).flatten(2)[:, :, order]
    torch.testing.assert_close(attention(shuffled).flatten(2), expected, rtol=1e-4, atol=1e-5)  # places have no order
    attention, moved = build("axial"), features[:, :, :, [3, 0, 4, 1, 2]][:, :, [5, 2, 0, 1, 4, 3]]
    expected = attention(features)[:, :, :, [3, 0, 4, 1, 2]][:, :, [5, 2, 0, 1, 4, 3]]
    torch.testing.assert_close(attention(moved), expected, rtol=1e-4, atol=1e-5)  # nor have columns and rows


# --- precisions


@each_attention
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(name, dtype, autocast):
    """No more is lost than by rounding what comes in and out."""
    attention, features = build(name), torch.randn(2, 16, 11, 9)
    expected, gradients = exact(name, attention, features)
    if autocast:
        with torch.autocast("cpu", dtype=dtype):
            result, ours = found(attention, features)
        assert result.dtype == torch.float32
    else:
        result, ours = found(attention.to(dtype), features.to(dtype))
        assert result.dtype == dtype
    coarse = 0.02 if dtype == torch.bfloat16 else 0.004
    for mine, theirs in zip((result, *ours), (expected, *gradients), strict=True):
        assert (mine.double() - theirs).norm() < coarse * (3 + theirs.norm())  # the key's bias has no gradient


@pytest.mark.parametrize("dtype", HALF)
def test_products_beyond_half_precision(dtype):
    """Queries and keys that are not scaled: their products are some 100,000, and the softmax is at one place each."""
    attention = build("self", spread=20_000).to(dtype)
    features = torch.randn(1, 16, 8, 8, dtype=dtype)
    query, key, _ = maps_of(copy.deepcopy(attention).double(), features.double())
    assert (query.flatten(0, 2) @ key.flatten(0, 2).T).abs().max() > 2 * torch.finfo(torch.float16).max
    result, gradients = found(attention, features)
    assert result.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)


# --- memory


@each_attention
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("batch", "dtype"), [(1, torch.float32), (2, torch.float32), (1, torch.bfloat16)])
def test_no_map_of_all_pairs(name, layout, batch, dtype):
    """Forward and backward: no tensor has more elements than the features, though a map of all pairs would."""
    attention = BUILD[name]().to(dtype)
    features = torch.randn(batch, 16, 48, 44, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    pairs = {"self": (48 * 44) ** 2, "axial": 4 * 44 * 48 * 44}[name]
    assert pairs > 10 * features[0].numel()
    with LargestTensor() as mode:
        attention(features).sum().backward()
    assert mode.elements <= features.numel()


def test_the_map_of_a_dilated_backbone():
    """513 pixels at stride 8: 65 x 65 places, 18 million pairs."""
    attention, features = build("self"), torch.randn(1, 16, 65, 65)
    with LargestTensor() as mode, torch.no_grad():
        result = attention(features)
    assert mode.elements <= features.numel()
    query, key, value = (part.flatten(1, 2)[0].double() for part in maps_of(attention, features))
    some = torch.tensor([0, 1234, 4224])
    expected = features.flatten(2)[0].T[some] + (query[some] @ key.T).softmax(dim=1) @ value
    torch.testing.assert_close(result.flatten(2)[0].T[some].double(), expected, rtol=1e-4, atol=1e-4)


# --- beyond eager mode


@each_attention
def test_on_the_meta_device(name):
    assert BUILD[name]().to("meta")(torch.empty(2, 16, 9, 7, device="meta")).shape == (2, 16, 9, 7)


@each_attention
def test_exported_with_any_batch_height_and_width(name):
    attention = build(name).eval()
    sizes = {axis: torch.export.Dim(word) for axis, word in ((0, "batch"), (2, "height"), (3, "width"))}
    program = torch.export.export(attention, (torch.randn(2, 16, 9, 7),), dynamic_shapes=(sizes,))
    for shape in ((1, 16, 12, 5), (3, 16, 4, 13)):
        features = torch.randn(shape)
        torch.testing.assert_close(program.module()(features), attention(features))
