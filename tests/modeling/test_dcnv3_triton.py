"""The Triton kernels of DCNv3 against the torch path: in Triton's interpreter, through its compiler, on a GPU.

Run as a script (by the test itself, because TRITON_INTERPRET counts when Triton is imported) this file interprets the
kernels on the CPU and prints, for each case, the largest deviation of the output and of each gradient.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vss_hf.modeling import dcnv3 as dcnv3_file  # noqa: E402
from vss_hf.modeling.dcnv3 import DCNv3, dcnv3  # noqa: E402
from vss_hf.modeling.dcnv3_gather import Geometry, gather_backward, gather_forward  # noqa: E402


pytest.importorskip("triton")

# (batch, height, width), channels per group, geometry, dtypes of value and offset
CASES = {
    "16 channels": ((2, 3, 7), 16, Geometry(2, 3, 1, 1, 1, 1.0), "float32", "float32"),
    "32 channels, offset scale": ((1, 4, 5), 32, Geometry(1, 3, 1, 1, 1, 2.0), "float32", "float32"),
    "8 channels, stride": ((1, 7, 6), 8, Geometry(3, 3, 2, 1, 1, 1.0), "float32", "float32"),
    "24 channels": ((1, 3, 5), 24, Geometry(2, 3, 1, 1, 1, 1.0), "float32", "float32"),
    "5 channels, kernel 5, dilation": ((1, 3, 4), 5, Geometry(1, 5, 1, 4, 2, 0.5), "float32", "float32"),
    "one channel, one pixel, one point": ((1, 1, 1), 1, Geometry(1, 1, 1, 0, 1, 1.0), "float32", "float32"),
    "bfloat16": ((1, 1, 300), 8, Geometry(1, 3, 1, 1, 1, 1.0), "bfloat16", "bfloat16"),
    "float16": ((1, 3, 4), 16, Geometry(2, 3, 1, 1, 1, 1.0), "float16", "float16"),
    "mixed": ((1, 3, 4), 16, Geometry(2, 3, 1, 1, 1, 1.0), "bfloat16", "float32"),
}


def make(size, depth, geometry, value_dtype, offset_dtype, device="cpu"):
    """value, offset and mask, and a gradient of the output; some places are far outside, some exactly on the grid."""
    generator = torch.Generator(device).manual_seed(0)
    batch, height, width = size
    out = (batch, geometry.out_size(height), geometry.out_size(width))
    per_pixel = geometry.groups * geometry.points

    def random(*shape, dtype):
        return torch.randn(shape, generator=generator, device=device).to(getattr(torch, dtype))

    channels = geometry.groups * depth
    offset = 2 * random(*out, per_pixel * 2, dtype=offset_dtype)
    offset.view(-1)[::7] = 0
    offset.view(-1)[3::31] = 6e4
    offset.view(-1)[5::31] = -6e4 if offset_dtype == "float16" else -3e38
    inputs = (random(batch, height, width, channels, dtype=value_dtype), offset)
    mask = random(*out, per_pixel, dtype=offset_dtype)
    return *inputs, mask, random(*out, channels, dtype=value_dtype)


def deviations(ours, reference):
    """Largest difference of each tensor, relative to the largest value; NaN where a dtype or shape differs."""
    result = []
    for one, other in zip(ours, reference, strict=True):
        if one.dtype != other.dtype or one.shape != other.shape:
            result.append(float("nan"))
            continue
        difference = (one.double() - other.double()).abs().max()
        result.append((difference / other.double().abs().max().clamp(min=1e-30)).item())
    return result


def all_of(forward, backward, inputs, geometry):
    value, offset, mask, grad_output = inputs
    return [
        forward(value, offset, mask, geometry),
        *backward(grad_output, value, offset, mask, geometry),
    ]


def interpret():
    from vss_hf.modeling.dcnv3_triton import triton_backward, triton_forward

    results = {}
    for name, (*_, geometry, _, _) in CASES.items():
        inputs = make(*CASES[name])
        ours = all_of(triton_forward, triton_backward, inputs, geometry)
        results[name] = deviations(ours, all_of(gather_forward, gather_backward, inputs, geometry))
    print(json.dumps(results))


@pytest.fixture(scope="module")
def interpreted():
    child = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernels_equal_the_torch_path(interpreted, name):
    half = CASES[name][3] != "float32"
    # Rounding in another order of sums can end on the neighbouring half-precision number.
    allowed = torch.finfo(getattr(torch, CASES[name][3])).eps if half else 2e-6
    assert len(interpreted[name]) == 4
    for deviation in interpreted[name]:
        assert deviation <= allowed


@pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_kernel"])
def test_kernels_compile_for_a_gpu_and_read_rows_in_16_bytes(kernel, monkeypatch, tmp_path):
    """Triton brings its own assembler: no GPU needed."""
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vss_hf.modeling import dcnv3_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(dcnv3_triton, kernel).fn
    constants = {"KERNEL_SIZE": 3, "CHANNELS": 32, "PADDED_CHANNELS": 32, "BLOCK": 32}
    types = {
        name: "*bf16" for name in ("value", "offset", "mask", "output", "grad_output", "grad_offset", "grad_mask")
    }
    types |= {"grad_value": "*fp32", "offset_scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in function.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t.startswith("*")}
    source = ASTSource(function, signature, constants, aligned)
    compiled = triton_compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert "ld.global.v4.b32" in compiled.asm["ptx"]
    assert ("red.global.gpu.relaxed.add.v4.f32" in compiled.asm["ptx"]) == (kernel == "_backward_kernel")
    assert len(compiled.asm["cubin"]) > 0


def test_device_dtype_and_determinism_choose(monkeypatch):
    def chosen(**options):
        with FakeTensorMode():
            tensor = torch.empty(1, **options)
        return [function.__name__ for function in dcnv3_file._implementation(tensor, tensor)]

    triton, gather = ["triton_forward", "triton_backward"], ["gather_forward", "gather_backward"]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert chosen(device="cuda", dtype=dtype) == triton
    assert chosen(device="cuda", dtype=torch.float64) == gather
    assert chosen(device="cpu") == gather
    with monkeypatch.context() as patch:
        patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert chosen(device="cuda") == gather
    monkeypatch.setattr(dcnv3_file, "_triton_is_installed", lambda: False)
    assert chosen(device="cuda") == gather


def test_more_pairs_than_int32_counts_are_refused():
    from vss_hf.modeling.dcnv3_triton import triton_forward

    value = torch.empty(5, 2**14, 2**14, 1, dtype=torch.float16, device="meta")
    offset, mask = (value.new_empty(5, 2**14, 2**14, n) for n in (2, 1))
    with pytest.raises(ValueError, match="less than 2[*][*]30 output pixels x groups at a time, got 1342177280"):
        triton_forward(value, offset, mask, Geometry(1, 1, 1, 0, 1, 1.0))


# --- on a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
INTERNIMAGE_H = [((1, 120, 214), 10), ((1, 60, 107), 20), ((1, 30, 54), 40), ((1, 15, 27), 80)]  # 480 x 853 pixels


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_torch_path_on_the_cpu(name):
    from vss_hf.modeling.dcnv3_triton import triton_backward, triton_forward

    geometry = CASES[name][2]
    inputs = make(*CASES[name])
    ours = all_of(triton_forward, triton_backward, [tensor.cuda() for tensor in inputs], geometry)
    half = CASES[name][3] != "float32"
    allowed = torch.finfo(getattr(torch, CASES[name][3])).eps if half else 1e-5
    reference = all_of(gather_forward, gather_backward, inputs, geometry)
    assert all(deviation <= allowed for deviation in deviations([tensor.cpu() for tensor in ours], reference))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("size, groups", INTERNIMAGE_H)
def test_bfloat16_at_the_sizes_of_internimage_h(size, groups):
    case = (size, 32, Geometry(groups, 3, 1, 1, 1, 1.0), "bfloat16", "bfloat16")
    inputs = make(*case, device="cuda")
    value, offset, mask, grad_output = inputs
    wanted = [tensor.requires_grad_() for tensor in (value, offset, mask)]
    output = dcnv3(*wanted, groups=groups)
    ours = [output.detach(), *torch.autograd.grad(output, wanted, grad_output)]
    exact = [tensor.detach().double() for tensor in inputs]
    reference = all_of(gather_forward, gather_backward, exact, case[2])
    reference = [tensor.bfloat16() for tensor in reference]
    assert all(deviation <= torch.finfo(torch.bfloat16).eps for deviation in deviations(ours, reference))


@pytest.mark.gpu
@needs_gpu
def test_maps_of_more_than_2_to_the_31_elements():
    """Three images of 1500 x 1500 x 320: the last one is where a 32-bit address would have wrapped around."""
    geometry = Geometry(10, 3, 1, 1, 1, 1.0)
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GB of GPU memory")
    value = torch.randn(3, 1500, 1500, 320, dtype=torch.bfloat16, device="cuda")
    offset = torch.randn(3, 1500, 1500, 180, dtype=torch.bfloat16, device="cuda")
    mask = torch.rand(3, 1500, 1500, 90, dtype=torch.bfloat16, device="cuda")
    together = dcnv3(value, offset, mask, groups=geometry.groups)
    alone = dcnv3(value[2:], offset[2:], mask[2:], groups=geometry.groups)
    assert torch.equal(together[2:], alone)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_on_the_gpu(dtype):
    torch.compiler.reset()
    layer = DCNv3(64, 4, center_feature_scale=True).to("cuda", dtype)
    torch.nn.init.normal_(layer.offset.weight, std=0.1)
    hidden_states = torch.randn(2, 17, 23, 64, device="cuda", dtype=dtype)
    expected, output = layer(hidden_states), torch.compile(layer, fullgraph=True)(hidden_states)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    weights = list(layer.parameters())
    ours = torch.autograd.grad(output.float().sum(), weights)
    reference = torch.autograd.grad(expected.float().sum(), weights)
    for one, other in zip(ours, reference, strict=True):
        assert (one - other).abs().max() <= 10 * tolerance * other.abs().max()


@pytest.mark.gpu
@needs_gpu
def test_gradients_in_float64_on_the_gpu():
    value, offset, mask, _ = (t.double() for t in make((1, 4, 5), 2, Geometry(2, 3, 1, 1, 1, 1.0), *["float32"] * 2))
    inputs = [tensor.cuda().requires_grad_() for tensor in (value, offset + 0.1, mask)]
    assert torch.autograd.gradcheck(lambda *i: dcnv3(*i, groups=2), inputs, nondet_tol=1e-9, fast_mode=True)


if __name__ == "__main__":
    interpret()
