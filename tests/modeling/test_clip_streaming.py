"""Streams: frame after frame with what is kept of the past, against whole clips."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_video_models import build, build_config

from vss_hf.modeling.architectures import VIDEO_MODELS
from vss_hf.modeling.configuration_clip import CLIP_STARTS
from vss_hf.modeling.modeling_clip import StreamState


every_model = pytest.mark.parametrize("model_type", VIDEO_MODELS)
# Frame -> its clip with offsets -9, -6, -3.
CLIPS = {
    "repeat": {0: [0, 0, 0, 0], 2: [0, 0, 0, 2], 7: [0, 1, 4, 7], 9: [0, 3, 6, 9], 100: [91, 94, 97, 100]},
    "existing": {0: [0], 2: [2], 3: [0, 3], 7: [1, 4, 7], 9: [0, 3, 6, 9], 100: [91, 94, 97, 100]},
    "mirror": {0: [0, 0, 0, 0], 2: [2, 2, 1, 2], 5: [4, 1, 2, 5], 7: [2, 1, 4, 7], 100: [91, 94, 97, 100]},
}


@pytest.mark.parametrize("clip_start", CLIP_STARTS)
def test_the_frames_of_a_clip(clip_start):
    config = build_config("vss_st_ppm", frame_offsets=[-9, -6, -3], clip_start=clip_start)
    assert {index: config.clip_indices(index) for index in CLIPS[clip_start]} == CLIPS[clip_start]


def stream(model, video, state=None):
    """The logits of each frame of (batch, frames, 3, height, width), and the last state."""
    state, logits = model.init_state() if state is None else state, []
    for index in range(video.shape[1]):
        output, state = model.step(video[:, index], state)
        logits.append(output.logits)
    return logits, state


@every_model
@pytest.mark.parametrize("clip_start", CLIP_STARTS)
@pytest.mark.parametrize("offsets", [[-4, -3, -1], [-2], []], ids=str)
def test_stepping_equals_forward_on_every_clip(model_type, clip_start, offsets):
    model = build(model_type, frame_offsets=offsets, clip_start=clip_start)
    video = torch.randn(2, 10, 3, 33, 47)
    logits, _ = stream(model, video)
    for index, ours in enumerate(logits):
        with torch.no_grad():
            expected = model(video[:, model.config.clip_indices(index)]).logits
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5, msg=f"frame {index}")


@every_model
def test_a_stream_encodes_a_frame_once_and_remembers_a_few(model_type):
    model, encoded = build(model_type, frame_offsets=[-6, -2]), []
    model.backbone.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))
    sizes, state = [], model.init_state()
    for _ in range(20):
        _, state = model.step(torch.randn(1, 3, 33, 47), state)
        sizes.append((len(state.frames), sum(part.numel() for frame in state.frames for part in frame)))
    assert encoded == [1] * 20
    assert [frames for frames, _ in sizes] == [1, 2, 3, 4, 5] + [6] * 15 and len({size for _, size in sizes[5:]}) == 1
    assert not any(part.requires_grad for frame in state.frames for part in frame)


@every_model
def test_memories_are_smaller_than_the_frame(model_type):
    """What is kept are pooled maps and region vectors: as large for a large frame."""
    model, kept = build(model_type), []
    for size in ((33, 47), (128, 160)):
        _, state = model.step(torch.randn(1, 3, *size), model.init_state())
        kept.append(state.frames[0])
    assert [part.shape for part in kept[0]] == [part.shape for part in kept[1]]


@every_model
def test_a_stream_goes_on_when_the_size_of_the_frames_changes(model_type):
    model = build(model_type, clip_start="existing")
    _, state = stream(model, torch.randn(1, 5, 3, 33, 47))
    output, _ = model.step(torch.randn(1, 3, 96, 64), state)
    alone, _ = model.step(torch.randn(1, 3, 96, 64), model.init_state())
    assert output.logits.shape == alone.logits.shape and output.logits.isfinite().all()


@every_model
def test_a_state_is_saved_restored_and_moved(model_type, tmp_path):
    model, video = build(model_type, frame_offsets=[-12, -1]), torch.randn(1, 16, 3, 33, 47)
    expected, _ = stream(model, video)
    _, state = stream(model, video[:, :14])
    save_file(state.state_dict(), tmp_path / "state.safetensors")
    restored = StreamState.from_state_dict(load_file(tmp_path / "state.safetensors"))
    torch.save(state.state_dict(), tmp_path / "state.pt")
    for again in (restored, StreamState.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)), state):
        logits, _ = stream(model, video[:, 14:], again)
        assert all(torch.equal(ours, other) for ours, other in zip(logits, expected[14:], strict=True))
    assert model.init_state().state_dict() == {} and StreamState.from_state_dict({}) == model.init_state()
    moved = state.to("meta")
    assert len(moved.frames) == 12 and all(part.is_meta for frame in moved.frames for part in frame)
    assert state.to(torch.float64).frames[3][0].dtype == torch.float64


@every_model
def test_a_step_leaves_its_state_alone(model_type):
    model, frame = build(model_type), torch.randn(1, 3, 33, 47)
    _, state = stream(model, torch.randn(1, 6, 3, 33, 47))
    first, _ = model.step(frame, state)
    model.step(torch.randn(1, 3, 33, 47), state)
    again, _ = model.step(frame, state)
    assert torch.equal(first.logits, again.logits)


@every_model
def test_wrong_frames_and_states_are_named(model_type):
    model = build(model_type)
    _, state = model.step(torch.randn(1, 3, 33, 47), model.init_state())
    with pytest.raises(ValueError, match=r"state is of another stream: .*begin with init_state\(\)"):
        model.step(torch.randn(2, 3, 33, 47), state)
    with pytest.raises(ValueError, match=r"pixel_values is \(1, 3, 3, 64, 64\): expected \(batch, 3, height, width\)"):
        model.step(torch.zeros(1, 3, 3, 64, 64), model.init_state())
    with pytest.raises(ValueError, match=r"pixel_values is \(1, 3, 20, 64\).*at least 32"):
        model.step(torch.zeros(1, 3, 20, 64), model.init_state())
