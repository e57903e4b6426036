"""Streams: frame after frame with what is kept of the past, against whole clips."""

import gc

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_video_models import ENCODES_CLIPS, REMEMBERS_MAPS, build, build_config

from vss_hf.modeling.architectures import VIDEO_MODELS
from vss_hf.modeling.clip_frames import CLIP_STARTS
from vss_hf.modeling.modeling_clip import StreamState


every_model = pytest.mark.parametrize("model_type", VIDEO_MODELS)
small_memories = pytest.mark.parametrize("model_type", [name for name in VIDEO_MODELS if name not in REMEMBERS_MAPS])
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
    assert encoded == [1] * 20 or model_type in ENCODES_CLIPS
    assert [frames for frames, _ in sizes] == [1, 2, 3, 4, 5] + [6] * 15 and len({size for _, size in sizes[5:]}) == 1
    assert not any(part.requires_grad for frame in state.frames for part in frame)


def tensors_alive():
    """Their number and their bytes."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return len(tensors), sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@every_model
def test_an_endless_stream_keeps_no_more_memory(model_type):
    """All tensors that are alive, and whatever stands behind those of the state, after 60 and after 300 frames."""
    model, alive = build(model_type, frame_offsets=[-5, -2]), []
    state = model.init_state()
    for index in range(300):
        _, state = model.step(torch.randn(1, 3, 33, 47), state)
        if index in (60, 299):
            alive.append(tensors_alive())
    assert alive[0] == alive[1]
    kept = {part.untyped_storage().data_ptr(): part.untyped_storage() for frame in state.frames for part in frame}
    assert sum(storage.nbytes() for storage in kept.values()) == sum(
        part.numel() * part.element_size() for frame in state.frames for part in frame
    )


@every_model
def test_streams_side_by_side_do_not_mix(model_type):
    model, videos = build(model_type, frame_offsets=[-3, -1]), torch.randn(2, 6, 3, 33, 47)
    together, _ = stream(model, videos)
    for index in range(2):
        alone, _ = stream(model, videos[index : index + 1])
        for ours, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[index : index + 1], expected, rtol=1e-4, atol=1e-5)


@small_memories
def test_memories_are_smaller_than_the_frame(model_type):
    """What is kept are pooled maps and region vectors: as large for a large frame."""
    model, kept = build(model_type), []
    for size in ((33, 47), (128, 160)):
        _, state = model.step(torch.randn(1, 3, *size), model.init_state())
        kept.append(state.frames[0])
    assert [part.shape for part in kept[0]] == [part.shape for part in kept[1]]


@small_memories
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
    logits, _ = stream(model.double(), video[:, 14:].double(), state.to(torch.float64))
    for ours, other in zip(logits, expected[14:], strict=True):
        torch.testing.assert_close(ours.float(), other, rtol=1e-4, atol=1e-4)


@every_model
def test_frames_may_come_in_one_buffer(model_type):
    """As those of a camera do: what is remembered of a frame does not change with it."""
    model, video = build(model_type), torch.randn(1, 6, 3, 33, 47)
    expected, _ = stream(model, video)
    buffer, state = torch.empty(1, 3, 33, 47), model.init_state()
    for index in range(6):
        output, state = model.step(buffer.copy_(video[:, index]), state)
        assert torch.equal(output.logits, expected[index])


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
    if model_type in REMEMBERS_MAPS:
        with pytest.raises(ValueError, match=r"state is of another stream: .*the size, changes"):
            model.step(torch.randn(1, 3, 96, 64), state)
    with pytest.raises(ValueError, match=r"pixel_values is \(1, 3, 3, 64, 64\): expected \(batch, 3, height, width\)"):
        model.step(torch.zeros(1, 3, 3, 64, 64), model.init_state())
    with pytest.raises(ValueError, match=r"pixel_values is \(1, 3, 20, 64\).*at least 32"):
        model.step(torch.zeros(1, 3, 20, 64), model.init_state())
