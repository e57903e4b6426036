"""Optical flow of known motions, RAFT's files, and what moves along."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.models.optical_flow import raft_large, raft_small

from vss_hf.refinement.flow import LucasKanade, along, load_raft, open_flow
from vss_hf.refinement.motion import Motion


def texture(height, width, seed=0):
    """A random picture with structure of every size, as photographs have, uint8 (height, width, 3)."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 3, height, width)
    for cell in (3, 6, 12, 24, 48):
        noise = torch.rand(1, 3, height // cell + 3, width // cell + 3, generator=generator) - 0.5
        total += cell**0.5 * F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=False)
    return (total[0] * 20 + 128).clamp(0, 255).permute(1, 2, 0).byte().numpy()


def inner(flow, margin=16):
    return flow[:, margin:-margin, margin:-margin]


@pytest.mark.parametrize("x,y", [(0, 0), (3, -2), (-7, 5), (12, 0)])
def test_translation(x, y):
    whole = texture(160, 220)
    first = whole[20:-20, 20:-20]
    second = whole[20 - y : 140 - y, 20 - x : 200 - x]  # second(p + (x, y)) = first(p)
    flow = LucasKanade()(first, second)
    assert flow.shape == (2, 120, 180) and flow.dtype == torch.float32
    error = (inner(flow, 32) - torch.tensor([x, y])[:, None, None]).norm(dim=0)
    assert error.mean() < 0.1 and error.max() < 1


def test_synthetic_warp():
    """A zoom and a turn about the centre."""
    second = texture(161, 203)  # odd
    y, x = np.mgrid[:161, :203].astype(np.float32)
    true = torch.from_numpy(np.stack((0.04 * (x - 101) - 0.03 * (y - 80), 0.04 * (y - 80) + 0.03 * (x - 101))))
    image = torch.from_numpy(second).permute(2, 0, 1).float()
    first = along(image, true).round().byte().permute(1, 2, 0).numpy()
    flow = LucasKanade()(first, second)
    error = inner(flow - true).norm(dim=0)
    assert error.mean() < 0.15 and true.norm(dim=0).max() > 6
    # A flow the other way round is far off.
    assert inner(LucasKanade()(second, first) - true).norm(dim=0).mean() > 1


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (33, 64), (40, 31)])
def test_any_size_and_no_texture(size):
    grey = np.full((*size, 3), 90, np.uint8)
    flow = LucasKanade()(grey, grey)
    assert flow.shape == (2, *size) and flow.abs().max() < 1e-3
    assert LucasKanade()(texture(*size), texture(*size, seed=1)).isfinite().all()


def test_repeated_to_the_last_bit():
    first, second = texture(60, 80), texture(60, 80, seed=1)
    assert torch.equal(LucasKanade()(first, second), LucasKanade()(first, second))


def test_frames_of_two_sizes():
    with pytest.raises(ValueError, match=r"frames of \(8, 9, 3\) and \(9, 8, 3\)"):
        LucasKanade()(texture(8, 9), texture(9, 8))


def test_along_is_bilinear_sampling():
    """In float64, pixel by pixel."""
    image = torch.randn(3, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flow = torch.randn(2, 7, 9, generator=torch.Generator().manual_seed(1)) * 3
    wanted = torch.empty_like(image)
    for y in range(7):
        for x in range(9):
            column = min(max(x + float(flow[0, y, x]), 0), 8)
            row = min(max(y + float(flow[1, y, x]), 0), 6)
            left, top = min(int(column), 7), min(int(row), 5)
            a, b = column - left, row - top
            square = image[:, top : top + 2, left : left + 2]
            upper, lower = (square[:, n, 0] * (1 - a) + square[:, n, 1] * a for n in (0, 1))
            wanted[:, y, x] = upper * (1 - b) + lower * b
    torch.testing.assert_close(along(image, flow), wanted, atol=1e-6, rtol=0)
    half = along(image.half(), flow)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), wanted, atol=3e-3, rtol=0)


# --- what comes from the frame before


def test_occlusion_and_what_comes_from_outside():
    """A box appears: only there is the colour another one. A pan: what comes in has no frame before."""
    before = texture(64, 96)
    now = before.copy()
    now[20:40, 30:60] = 255 - now[20:40, 30:60] // 2
    motion = Motion(None, 1.0)
    device = torch.device("cpu")
    assert motion.step(before, device) is None
    difference = motion.step(now, device).difference
    wanted = np.abs(now.astype(float) - before).mean(axis=2) / 255
    np.testing.assert_allclose(difference.numpy(), wanted, atol=1e-6)
    whole = texture(64, 140)
    motion = Motion(LucasKanade(), 1.0, stride=4)
    motion.step(whole[:, 12:108], device)
    came = motion.step(whole[:, :96], device)  # what is at x was at x - 12
    assert came.flow.shape == (2, 16, 24) and came.difference.shape == (16, 24)
    assert came.difference[:, :2].isinf().all() and came.difference[:, 5:].isfinite().all()
    torch.testing.assert_close(came.flow[:, 3:-3, 5:-3].mean(dim=(1, 2)), torch.tensor([-3.0, 0.0]), atol=0.1, rtol=0)


def test_scene_cut():
    device = torch.device("cpu")
    dark, bright = texture(48, 64) // 4, texture(48, 64) // 4 + 120
    motion = Motion(None, 0.1)
    assert motion.step(dark, device) is None
    assert motion.step(dark, device) is not None
    assert motion.step(bright, device) is None  # a cut
    assert motion.step(bright, device) is not None
    assert motion.step(bright[:40], device) is None  # of another size
    motion.reset()
    assert motion.step(bright[:40], device) is None  # another video
    tolerant = Motion(None, 0.5)
    assert tolerant.step(dark, device) is None and tolerant.step(bright, device) is not None


def test_a_buffer_that_is_used_again():
    device, buffer = torch.device("cpu"), texture(16, 16)
    motion = Motion(None, 1.0)
    motion.step(buffer, device)
    buffer[:] = 255 - buffer
    assert motion.step(buffer, device).difference.max() > 0


# --- RAFT


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / "small.pth"
    torch.save(raft_small(weights=None, progress=False).state_dict(), path)
    return path


def test_raft_is_that_of_torchvision(small_weights, tmp_path):
    """Padded on both sides, -1..1, the last of its updates, cut to the frame."""
    first, second = texture(130, 141), texture(130, 141, seed=1)
    flow = load_raft(small_weights, updates=1)
    assert flow.settings == {"name": "raft_small", "weights": "small.pth", "updates": 1}
    found = flow(first, second)
    model = raft_small(weights=None, progress=False).eval()
    tensors = torch.load(small_weights, weights_only=True)
    model.load_state_dict(tensors)
    padded = [np.pad(one / np.float32(127.5) - 1, ((3, 3), (1, 2), (0, 0)), "edge") for one in (first, second)]
    with torch.no_grad():
        pair = (torch.from_numpy(one).permute(2, 0, 1)[None] for one in padded)
        wanted = model(*pair, num_flow_updates=1)[-1][0, :, 3:-3, 1:-2]
    assert found.shape == (2, 130, 141)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    save_file(tensors, tmp_path / "same.safetensors")
    assert torch.equal(load_raft(tmp_path / "same.safetensors", updates=1)(first, second), found)
    tiny = flow(first[:20, :30], second[:20, :30])  # smaller than it can take
    assert tiny.shape == (2, 20, 30) and tiny.isfinite().all()


def test_raft_large_is_told_from_its_weights(tmp_path):
    path = tmp_path / "large.pth"
    torch.save(raft_large(weights=None, progress=False).state_dict(), path)
    assert load_raft(path).settings["name"] == "raft_large"


def test_files_that_hold_no_raft(small_weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.pth"):
        load_raft(tmp_path / "missing.pth")
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, other)
    with pytest.raises(
        ValueError, match=r"other.safetensors: expected torchvision's weights of raft_small or raft_la"
    ):
        load_raft(other)
    tensors = torch.load(small_weights, weights_only=True)
    name = next(iter(tensors))
    tensors[name] = tensors[name][:1]
    save_file(tensors, other)
    with pytest.raises(ValueError, match=f"of another shape, the first is {name}"):
        load_raft(other)
    pickled = tmp_path / "pickled.pth"
    torch.save({"weight": LucasKanade()}, pickled)
    with pytest.raises(ValueError, match="pickled.pth: refused"):
        load_raft(pickled)


def test_flow_by_name(small_weights):
    assert isinstance(open_flow("lucas-kanade", "cpu"), LucasKanade)
    assert open_flow(str(small_weights), "cpu").settings["name"] == "raft_small"
    with pytest.raises(
        ValueError, match="x.flow: there is no file .* and no flow 'lucas-kanada'; did you mean 'lucas"
    ):
        open_flow("lucas-kanada", "cpu", "x.flow")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    first, second = texture(161, 203), texture(161, 203, seed=1)
    found = LucasKanade("cuda")(first, second)
    assert found.device.type == "cuda" and torch.equal(found, LucasKanade("cuda")(first, second))
    torch.testing.assert_close(found.cpu(), LucasKanade()(first, second), atol=1e-2, rtol=0)
