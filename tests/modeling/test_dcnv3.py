"""DCNv3 against loops in float64, torchvision's and transformers' deformable operators, and its own promises."""

import io
import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torchvision.ops import deform_conv2d
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from vss_hf.modeling import dcnv3 as dcnv3_file
from vss_hf.modeling import dcnv3_gather
from vss_hf.modeling.dcnv3 import DCNv3, dcnv3
from vss_hf.modeling.dcnv3_gather import Geometry


# (batch, height, width), channels per group, geometry
CASES = {
    "plain": ((2, 6, 9), 8, Geometry(2, 3, 1, 1, 1, 1.0)),
    "offset scale, odd channels": ((1, 7, 4), 5, Geometry(3, 3, 1, 1, 1, 2.0)),
    "stride": ((1, 9, 12), 4, Geometry(2, 3, 2, 1, 1, 1.0)),
    "kernel 5": ((1, 5, 7), 3, Geometry(1, 5, 1, 2, 1, 0.5)),
    "dilation": ((1, 6, 5), 2, Geometry(2, 3, 1, 2, 2, 1.0)),
    "even kernel, odd span, smaller output": ((2, 6, 8), 2, Geometry(1, 2, 1, 0, 3, 1.5)),
    "one point": ((1, 4, 3), 3, Geometry(2, 1, 1, 0, 1, 1.0)),
    "one pixel": ((1, 1, 1), 4, Geometry(1, 3, 3, 3, 2, 1.0)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def _seed_and_small_blocks(monkeypatch):
    torch.manual_seed(0)
    # A few rows per block at the sizes above, so that tests cross block borders.
    monkeypatch.setattr(dcnv3_gather, "_BLOCK_SAMPLES_CPU", 400)


def make(case, dtype=torch.float64, spread=2.0):
    """value, offset and mask, which want gradients, and a gradient of the output."""
    (batch, height, width), depth, geometry = case
    out = (batch, geometry.out_size(height), geometry.out_size(width))
    per_pixel = geometry.groups * geometry.points
    value = torch.randn(batch, height, width, geometry.groups * depth, dtype=torch.float64)
    offset = spread * torch.randn(*out, per_pixel * 2, dtype=torch.float64)
    mask = torch.randn(*out, per_pixel, dtype=torch.float64)
    inputs = [tensor.to(dtype).requires_grad_() for tensor in (value, offset, mask)]
    return inputs, torch.randn(*out, value.shape[-1], dtype=torch.float64).to(dtype)


def run(inputs, geometry):
    return dcnv3(*inputs, **geometry._asdict())


def output_and_gradients(function, inputs, grad_output):
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad_output)]


def assert_same(ours, reference, relative=1e-12):
    for one, other in zip(ours, reference, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= relative * other.abs().max()


# --- against independent formulations


def sample_in_loops(image, x, y):
    """Bilinear sample (C,) of an image (H, W, C), zeros outside."""
    height, width, _ = image.shape
    left, top = math.floor(x), math.floor(y)
    total = torch.zeros_like(image[0, 0])
    for column, row in itertools.product((left, left + 1), (top, top + 1)):
        if 0 <= column < width and 0 <= row < height:
            total += (1 - abs(x - column)) * (1 - abs(y - row)) * image[row, column]
    return total


def dcnv3_in_loops(value, offset, mask, geometry):
    groups, k, stride, padding, dilation, scale = geometry
    middle = dilation * (k - 1) // 2
    output = torch.zeros(*offset.shape[:3], value.shape[3], dtype=value.dtype)
    depth = value.shape[3] // groups
    offset = offset.detach().unflatten(-1, (groups, k, k, 2))
    mask = mask.detach().unflatten(-1, (groups, k, k))
    for n, i, j, g in itertools.product(*(range(size) for size in offset.shape[:4])):
        channels = slice(g * depth, (g + 1) * depth)
        for kx, ky in itertools.product(range(k), range(k)):
            dx, dy = offset[n, i, j, g, kx, ky].tolist()
            x = j * stride - padding + middle + scale * (kx * dilation - middle + dx)
            y = i * stride - padding + middle + scale * (ky * dilation - middle + dy)
            sample = sample_in_loops(value.detach()[n, :, :, channels], x, y)
            output[n, i, j, channels] += mask[n, i, j, g, kx, ky] * sample
    return output


@each_case
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_equals_loops(case, spread):
    inputs, _ = make(case, spread=spread)
    reference = dcnv3_in_loops(*inputs, case[2])
    assert_same([run(inputs, case[2])], [reference])
    assert_same([dcnv3_gather.grid_sample_forward(*inputs, case[2])], [reference])


def dcnv3_of_torchvision(value, offset, mask, geometry):
    """deform_conv2d counts points row by row, takes (y, x), and knows no scale: what it adds to the grid is in the
    offsets."""
    groups, k, stride, padding, dilation, scale = geometry
    channels = value.shape[-1]
    steps = torch.arange(k, dtype=offset.dtype) * dilation - dilation * (k - 1) // 2
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)  # (kx, ky, 2)
    by_row = (scale * offset.unflatten(-1, (groups, k, k, 2)) + (scale - 1) * grid).flip(-1).transpose(4, 5)
    output = deform_conv2d(
        value.permute(0, 3, 1, 2),
        by_row.flatten(3).permute(0, 3, 1, 2),
        torch.ones(channels, 1, k, k, dtype=value.dtype),
        stride=stride,
        padding=padding,
        dilation=dilation,
        mask=mask.unflatten(-1, (groups, k, k)).transpose(4, 5).flatten(3).permute(0, 3, 1, 2),
    )
    return output.permute(0, 2, 3, 1)


@each_case
def test_equals_deform_conv2d_with_gradients(case):
    inputs, grad_output = make(case)
    ours = output_and_gradients(lambda *i: run(i, case[2]), inputs, grad_output)
    theirs = output_and_gradients(lambda *i: dcnv3_of_torchvision(*i, case[2]), inputs, grad_output)
    assert_same(ours, theirs, relative=1e-11)


def test_equals_deformable_attention_with_gradients():
    case = ((2, 5, 8), 4, Geometry(3, 3, 1, 1, 1, 1.0))
    (_, height, width), _, geometry = case
    inputs, grad_output = make(case, dtype=torch.float32)

    def attention(value, offset, mask):
        steps = torch.arange(3) - 1
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).view(9, 2)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        pixels = torch.stack((columns, rows), dim=-1)[:, :, None, None]  # (H, W, 1, 1, 2)
        places = (offset.unflatten(-1, (3, 9, 2)) + grid + pixels + 0.5) / torch.tensor([width, height])
        output = multi_scale_deformable_attention(
            value.unflatten(-1, (3, -1)).flatten(1, 2),
            [(height, width)],
            places.flatten(1, 2).unsqueeze(3),
            mask.unflatten(-1, (3, 9)).flatten(1, 2).unsqueeze(3),
        )
        return output.view(2, height, width, -1)

    ours = output_and_gradients(lambda *i: run(i, geometry), inputs, grad_output)
    assert_same(ours, output_and_gradients(attention, inputs, grad_output), relative=1e-5)


@each_case
def test_gradients_equal_finite_differences(case):
    inputs, _ = make(case)
    assert torch.autograd.gradcheck(lambda *i: run(i, case[2]), inputs, fast_mode=True)


# --- promises


def test_float32_is_as_good_as_float32_gets():
    case = ((2, 12, 300), 4, Geometry(2, 3, 1, 1, 1, 1.0))
    inputs, grad_output = make(case)
    exact = output_and_gradients(lambda *i: run(i, case[2]), inputs, grad_output)
    single = [tensor.detach().float().requires_grad_() for tensor in inputs]
    rounded = output_and_gradients(lambda *i: run(i, case[2]), single, grad_output.float())
    assert all(tensor.dtype == torch.float32 for tensor in rounded)
    assert_same(rounded, exact, relative=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_only_rounds_what_goes_in_and_out(dtype):
    """The map is wider than bfloat16 can count: places in that dtype would be off by a pixel."""
    case = ((1, 4, 520), 8, Geometry(2, 3, 1, 1, 1, 1.0))
    inputs, grad_output = make(case, dtype=dtype)
    ours = output_and_gradients(lambda *i: run(i, case[2]), inputs, grad_output)
    assert all(tensor.dtype == dtype for tensor in ours)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    reference = output_and_gradients(lambda *i: run(i, case[2]), exact, grad_output.double())
    assert_same([tensor.double() for tensor in ours], reference, relative=torch.finfo(dtype).eps)


def test_dtypes_may_differ_and_each_gradient_has_its_own():
    case = CASES["plain"]
    (value, offset, mask), grad_output = make(case, dtype=torch.float32)
    value = value.detach().bfloat16().requires_grad_()
    output, *gradients = output_and_gradients(
        lambda *i: run(i, case[2]), [value, offset, mask], grad_output.bfloat16()
    )
    assert output.dtype == torch.bfloat16
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run((value, offset, mask), case[2]), output)


@pytest.mark.parametrize("far", [1e8, -1e8, 3e38, math.inf])
def test_far_places_read_zeros_and_stay_finite(far):
    case = CASES["plain"]
    (value, offset, mask), grad_output = make(case, dtype=torch.float32)
    offset = torch.full_like(offset, far).requires_grad_()
    result = output_and_gradients(lambda *i: run(i, case[2]), [value, offset, mask], grad_output)
    assert all((tensor == 0).all() for tensor in result)


def test_places_that_are_no_numbers_are_seen_in_the_output_and_nowhere_else():
    (value, offset, mask), _ = make(CASES["plain"])
    broken = offset.detach().clone()
    broken[0, 2, 3, :2] = math.nan
    output, clean = (run((value, o, mask), CASES["plain"][2]) for o in (broken, offset))
    assert output[0, 2, 3, :8].isnan().all()  # the first group of that pixel
    output[0, 2, 3, :8] = clean[0, 2, 3, :8]
    assert torch.equal(output, clean)


def test_memory_layouts_and_block_sizes_do_not_matter(monkeypatch):
    case = CASES["plain"]
    inputs, grad_output = make(case)
    reference = output_and_gradients(lambda *i: run(i, case[2]), inputs, grad_output)
    turned = [tensor.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for tensor in inputs]
    expanded = grad_output.mean().expand_as(grad_output)
    assert_same(output_and_gradients(lambda *i: run(i, case[2]), turned, grad_output), reference)
    with_expanded = output_and_gradients(lambda *i: run(i, case[2]), inputs, expanded)
    assert_same(with_expanded, output_and_gradients(lambda *i: run(i, case[2]), inputs, expanded.contiguous()))
    for samples in (1, 10**9):
        monkeypatch.setattr(dcnv3_gather, "_BLOCK_SAMPLES_CPU", samples)
        assert_same(output_and_gradients(lambda *i: run(i, case[2]), inputs, grad_output), reference)


def test_no_images():
    inputs, _ = make(((0, 4, 5), 2, Geometry(2, 3, 1, 1, 1, 1.0)))
    output = dcnv3(*inputs, groups=2)
    assert output.shape == (0, 4, 5, 4)
    output.sum().backward()
    assert inputs[0].grad.shape == inputs[0].shape


class LargestTensor(TorchDispatchMode):
    """Remembers the most bytes of any tensor that an operation returned."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.nbytes = max(self.nbytes, *sizes, 0)
        return result


def test_the_samples_are_never_made(monkeypatch):
    """Two to four times the map would be places and weights of all samples, nine times the map the samples."""
    monkeypatch.setattr(dcnv3_gather, "_BLOCK_SAMPLES_CPU", 2**13)
    case = ((1, 40, 40), 32, Geometry(4, 3, 1, 1, 1, 1.0))
    inputs, grad_output = make(case, dtype=torch.float32)
    bordered = 42 * 42 * 128 * 4
    with torch.no_grad(), LargestTensor() as largest:
        dcnv3_gather.gather_forward(*inputs, case[2])
    assert largest.nbytes == bordered
    with torch.no_grad(), LargestTensor() as largest:
        dcnv3_gather.gather_backward(grad_output, *inputs, case[2])
    assert largest.nbytes <= 1.2 * bordered  # rows of one block
    with torch.no_grad(), LargestTensor() as largest:  # and the measure would notice
        dcnv3_gather.grid_sample_forward(*inputs, case[2])
    assert largest.nbytes >= 9 * 40 * 40 * 128 * 4


def test_second_derivatives_are_refused():
    inputs, _ = make(CASES["plain"])
    (gradient,) = torch.autograd.grad(run(inputs, CASES["plain"][2]).pow(2).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_wrong_arguments_are_named():
    (value, offset, mask), _ = make(CASES["plain"])
    for message, arguments, settings in (
        (r"groups=3, got 16", (value, offset, mask), {"groups": 3}),
        (r"offset must be \(2, 6, 9, 36\)", (value, offset[:, :5], mask), {"groups": 2}),
        (r"mask must be \(2, 6, 9, 18\)", (value, offset, mask[..., :9]), {"groups": 2}),
        (r"offset must be \(2, 3, 5, 36\)", (value, offset, mask), {"groups": 2, "stride": 2}),
        ("stride must be at least 1, got 0", (value, offset, mask), {"groups": 2, "stride": 0}),
        ("padding must not be negative", (value, offset, mask), {"groups": 2, "padding": -1}),
        ("value must be floating point", (value.long(), offset, mask), {"groups": 2}),
        ("mask must be floating point", (value, offset, mask[0]), {"groups": 2}),
        ("offset is on meta", (value, offset.to("meta"), mask), {"groups": 2}),
    ):
        with pytest.raises(ValueError, match=message):
            dcnv3(*arguments, **settings)


# --- torch.compile, export, CUDA's choice


def test_the_operator_is_registered_as_torch_wants_it():
    inputs, _ = make(CASES["stride"], dtype=torch.float32)
    *grid, offset_scale = CASES["stride"][2]
    torch.library.opcheck(dcnv3_file._operator, (*inputs, grid, offset_scale))


def test_compiles_without_graph_breaks_forward_and_backward():
    torch.compiler.reset()
    layer = DCNv3(12, 3, center_feature_scale=True)
    scatter(layer)
    hidden_states = torch.randn(2, 7, 9, 12)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected, output = layer(hidden_states), compiled(hidden_states)
    torch.testing.assert_close(output, expected)
    weights = list(layer.parameters())
    for ours, reference in zip(
        torch.autograd.grad(output.sum(), weights), torch.autograd.grad(expected.sum(), weights), strict=True
    ):
        torch.testing.assert_close(ours, reference)


@pytest.mark.slow
def test_compiles_with_inductor():
    torch.compiler.reset()
    layer = scatter(DCNv3(12, 3)).eval()
    hidden_states = torch.randn(1, 7, 9, 12)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(hidden_states), layer(hidden_states))


def test_exports_as_plain_grid_sample_for_any_size():
    layer = scatter(DCNv3(8, 2, dw_kernel_size=5, offset_scale=2.0, center_feature_scale=True)).eval()
    sizes = {n: torch.export.Dim(name) for n, name in enumerate(("batch", "height", "width"))}
    program = torch.export.export(layer, (torch.randn(2, 6, 9, 8),), dynamic_shapes=(sizes,))
    operators = {str(node.target) for node in program.graph.nodes}
    assert any("grid_sampler" in name for name in operators) and not any("vss_hf" in name for name in operators)
    other = torch.randn(3, 5, 4, 8)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(other), layer(other), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.filterwarnings("ignore")  # torch's own, about its exporters
def test_onnx_runs(dynamo):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = scatter(DCNv3(8, 2, center_feature_scale=True)).eval()
    hidden_states = torch.randn(1, 6, 9, 8)
    file = io.BytesIO()
    torch.onnx.export(layer, (hidden_states,), file, dynamo=dynamo, opset_version=18, input_names=["input"])
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": hidden_states.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(output), layer(hidden_states), rtol=1e-4, atol=1e-5)


# --- the layer


def scatter(layer):
    """Weights with which places and shares differ from pixel to pixel."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if not name.startswith("dw_norm"):
                parameter.normal_(std=0.5)
    return layer


def test_a_new_layer_averages_the_neighbourhood():
    layer = DCNv3(6, 2, offset_scale=2.0)
    hidden_states = torch.randn(1, 7, 8, 6)
    value = layer.input_proj(hidden_states).permute(0, 3, 1, 2)
    nine = torch.ones(6, 1, 3, 3) / 9
    mean = torch.nn.functional.conv2d(value, nine, padding=2, dilation=2, groups=6).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(hidden_states), layer.output_proj(mean), rtol=1e-4, atol=1e-6)


def test_the_center_feature_scale_mixes_in_the_value():
    layer = scatter(DCNv3(6, 2, center_feature_scale=True))
    hidden_states = torch.randn(1, 4, 5, 6)
    with torch.no_grad():
        layer.center_feature_scale_proj.weight.zero_()
        layer.center_feature_scale_proj.bias.copy_(torch.tensor([100.0, -100.0]))  # all of group 0, none of group 1
    mixed = layer(hidden_states)
    scale, layer.center_feature_scale_proj = layer.center_feature_scale_proj, None
    layer.output_proj = torch.nn.Identity()
    sampled = layer(hidden_states)
    layer.center_feature_scale_proj = scale
    expected = torch.cat((layer.input_proj(hidden_states)[..., :3], sampled[..., 3:]), dim=-1)
    torch.testing.assert_close(layer(hidden_states), expected)
    assert mixed.shape == expected.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 3)])
def test_layer_learns_in_every_weight(size, dtype):
    layer = scatter(DCNv3(8, 2, dw_kernel_size=5, center_feature_scale=True)).to(dtype)
    hidden_states = torch.randn(*size, 8, dtype=dtype, requires_grad=True)
    output = layer(hidden_states)
    assert output.shape == (*size, 8) and output.dtype == dtype
    output.float().pow(2).sum().backward()
    for parameter in (hidden_states, *layer.parameters()):
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0


def test_layer_takes_any_memory_layout_and_autocast():
    layer = scatter(DCNv3(8, 2, center_feature_scale=True))
    hidden_states = torch.randn(2, 8, 5, 6).permute(0, 2, 3, 1)
    output = layer(hidden_states.contiguous())
    torch.testing.assert_close(layer(hidden_states), output)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = layer(hidden_states)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - output).abs().mean() < 0.1 * output.abs().mean()


def test_gradient_checkpointing_changes_nothing():
    layer = scatter(DCNv3(8, 2))
    hidden_states = torch.randn(1, 5, 6, 8)
    weights = list(layer.parameters())
    plain = torch.autograd.grad(layer(hidden_states).sum(), weights)
    again = torch.autograd.grad(checkpoint(layer, hidden_states, use_reentrant=False).sum(), weights)
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_layer_on_meta():
    with torch.device("meta"):
        layer = DCNv3(8, 2, center_feature_scale=True)
        output = layer(torch.randn(1, 5, 6, 8))
    assert output.is_meta and output.shape == (1, 5, 6, 8)


def test_wrong_layers_are_named():
    with pytest.raises(ValueError, match="channels=10, groups=3"):
        DCNv3(10, 3)
    with pytest.raises(ValueError, match="kernel_size must be odd and positive.*got 4"):
        DCNv3(8, 2, kernel_size=4)
    with pytest.raises(ValueError, match="dw_kernel_size must be odd and positive.*got 2"):
        DCNv3(8, 2, dw_kernel_size=2)
