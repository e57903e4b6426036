"""What every video model of modeling/architectures.py must do alike; streams: test_clip_streaming.py."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_video_models import RESNET, TINY, build, build_config
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation

import vss_hf
from vss_hf.modeling.architectures import VIDEO_MODELS


every_model = pytest.mark.parametrize("model_type", VIDEO_MODELS)


def clip(batch=1, size=(33, 47)):
    return torch.randn(batch, 3, 3, *size)


def scores(model, pixels):
    with torch.no_grad():
        return model(pixels).logits


def random_labels(batch=2, size=(33, 47)):
    """Labels of three frames, some without a class, and not as many in each."""
    labels = torch.randint(0, 5, (batch, 3, *size))
    labels[:, :, :5] = 255
    labels[0, 1] = 255
    labels[1, 2, 20:] = 255
    return labels


def test_each_has_a_small_configuration_and_its_names_are_public():
    assert set(TINY) == set(VIDEO_MODELS)
    for _, configuration, model in VIDEO_MODELS.values():
        assert getattr(vss_hf, configuration).__name__ == configuration and getattr(vss_hf, model).__name__ == model


@every_model
def test_saved_and_loaded_it_is_the_same(model_type, tmp_path):
    model = build(model_type)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is type(model) and again.config.frame_offsets == [-4, -1]
    for (name, tensor), (other_name, other) in zip(
        [*model.named_parameters(), *model.named_buffers()],
        [*again.named_parameters(), *again.named_buffers()],
        strict=True,
    ):
        assert name == other_name and torch.equal(tensor, other), name
    pixels = clip()
    torch.testing.assert_close(scores(again, pixels), scores(model, pixels), rtol=1e-5, atol=1e-6)


@every_model
def test_it_is_no_image_model(model_type, tmp_path):
    build(model_type).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="AutoModelForSemanticSegmentation"):
        AutoModelForSemanticSegmentation.from_pretrained(tmp_path)


@every_model
def test_bfloat16_weights(model_type, tmp_path):
    model = build(model_type)
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    pixels = clip(size=(64, 96))
    ours, exact = scores(half, pixels.bfloat16()), scores(model, pixels)
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - exact).abs().mean() <= 0.05 * exact.abs().mean() + 0.02


@every_model
def test_on_the_meta_device_nothing_is_allocated(model_type, tmp_path):
    build(model_type).save_pretrained(tmp_path)
    empty = AutoModel.from_pretrained(tmp_path, device_map="meta")
    assert all(p.is_meta for p in empty.parameters())
    with torch.device("meta"):
        empty = AutoModel.from_config(AutoConfig.from_pretrained(tmp_path)).eval()
    assert scores(empty, clip().to("meta")).shape[:2] == (1, 5)


@every_model
def test_another_class_list_gets_a_new_classifier_only(model_type, tmp_path):
    model = build(model_type)
    model.save_pretrained(tmp_path)
    other, report = AutoModel.from_pretrained(
        tmp_path, id2label={0: "road", 1: "car"}, ignore_mismatched_sizes=True, output_loading_info=True
    )
    new = {name for name, *_ in report["mismatched_keys"]}
    assert new and all("classifier" in name for name in new) and not report["missing_keys"]
    assert scores(other, clip()).shape[:2] == (1, 2)


@every_model
def test_the_shapes_of_all_outputs(model_type):
    model = build(model_type)
    with torch.no_grad():
        output = model(clip(2), output_auxiliary_logits=True, output_hidden_states=True)
        assert model(clip(2)).auxiliary_logits is None and len(model(clip(2), return_dict=False)) == 1
    assert output.loss is None and output.hidden_states[0].shape[0] == 6
    batch, num_labels, *size = output.logits.shape
    assert (batch, num_labels) == (2, 5) and min(size) > 1
    assert [part.shape[:3] for part in output.auxiliary_logits] == [(2, 3, 5)]


@every_model
def test_every_frame_counts_and_only_the_last_has_details(model_type):
    """The order of the others does not matter to an average; which of the frames is the last one does."""
    model, pixels = build(model_type), clip()
    expected = scores(model, pixels)
    torch.testing.assert_close(scores(model, pixels[:, [1, 0, 2]]), expected, rtol=1e-4, atol=1e-5)
    for frames in ([0, 2], [1, 2], [2], [2, 1, 0]):
        assert (scores(model, pixels[:, frames]) - expected).abs().max() > 1e-4, frames


@every_model
def test_clips_of_a_batch_do_not_mix(model_type):
    model, pixels = build(model_type), clip(2)
    one_by_one = torch.cat([scores(model, pixels[:1]), scores(model, pixels[1:])])
    torch.testing.assert_close(scores(model, pixels), one_by_one, rtol=1e-4, atol=1e-5)


# --- training


def cross_entropy(logits, labels, reduction="mean"):
    upsampled = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
    return F.cross_entropy(upsampled, labels, ignore_index=255, reduction=reduction)


@every_model
def test_the_loss_is_that_of_the_last_frame_and_the_auxiliary_one_of_all(model_type):
    model, pixels, labels = build(model_type), clip(2), random_labels()
    with torch.no_grad():
        output = model(pixels, labels[:, -1], labels[:, :-1], output_auxiliary_logits=True)
        main = cross_entropy(output.logits, labels[:, -1])
        auxiliary = output.auxiliary_logits[0]
        deep = cross_entropy(auxiliary.flatten(0, 1), labels.flatten(0, 1))
        torch.testing.assert_close(output.loss, main + 0.4 * deep)
        shallow = cross_entropy(auxiliary[:, -1], labels[:, -1])
        torch.testing.assert_close(model(pixels, labels[:, -1]).loss, main + 0.4 * shallow)
        model.config.auxiliary_loss_weight = 0.0
        torch.testing.assert_close(model(pixels, labels[:, -1], labels[:, :-1]).loss, main)
    with pytest.raises(ValueError, match=r"reference_labels is \(2, 3, 33, 47\).*num_frames - 1 = 2"):
        model.config.auxiliary_loss_weight = 0.4
        model(pixels, labels[:, -1], labels)


@every_model
def test_micro_batches_add_up_to_one_batch(model_type):
    """The loss is divided by the labelled pixels of all last frames; for the others by as many for each frame."""
    model, pixels, labels = build(model_type), clip(2), random_labels()
    count = (labels[:, -1] != 255).sum()
    with torch.no_grad():
        parts = [model(pixels[i : i + 1], labels[i : i + 1, -1], labels[i : i + 1, :-1], count).loss for i in (0, 1)]
        output = model(pixels, output_auxiliary_logits=True)
        main = cross_entropy(output.logits, labels[:, -1], "sum") / count
        deep = cross_entropy(output.auxiliary_logits[0].flatten(0, 1), labels.flatten(0, 1), "sum") / (3 * count)
    torch.testing.assert_close(sum(parts), main + 0.4 * deep)


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_step_of_training_moves_every_parameter(model_type, dtype):
    model, labels = build(model_type).to(dtype).train(), random_labels()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(clip(2).to(dtype), labels=labels[:, -1], reference_labels=labels[:, :-1]).loss
    loss.backward()
    assert loss.isfinite() and loss.ndim == 0 and loss.dtype == torch.float32
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not unused, unused
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


@every_model
def test_a_single_clip_under_autocast(model_type):
    model, labels = build(model_type).train(), random_labels()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(clip(1), labels=labels[1:, -1], reference_labels=labels[1:, :-1]).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_gradients_reach_every_frame(model_type):
    model, pixels = build(model_type), clip().requires_grad_()
    model(pixels).logits.square().sum().backward()
    assert all(pixels.grad[0, i].abs().max() > 0 for i in range(3))


@every_model
def test_gradient_checkpointing_changes_memory_only(model_type):
    results, labels = [], random_labels()
    for checkpointing in (False, True):
        model = build(model_type).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        loss = model(clip(2), labels=labels[:, -1], reference_labels=labels[:, :-1]).loss
        loss.backward()
        gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
        results.append({"loss": loss.detach(), **gradients, **dict(model.named_buffers())})
    for name, plain in results[0].items():
        largest = max(plain.abs().max().item(), 1e-3) if plain.is_floating_point() else 1
        torch.testing.assert_close(results[1][name], plain, rtol=0, atol=1e-4 * largest, msg=name)


@pytest.mark.slow
@every_model
def test_compiles_without_graph_breaks(model_type):
    """On a ResNet: with sizes as symbols torch takes many minutes for the windows of transformers' Swin alone."""
    torch.compiler.reset()
    model = build(model_type, backbone_config=RESNET)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for size in ((64, 96), (33, 47)):  # the second with sizes as symbols
        pixels = clip(size=size)
        torch.testing.assert_close(scores(compiled, pixels), scores(model, pixels), rtol=1e-4, atol=1e-5)


# --- errors


@every_model
def test_wrong_clips_are_named(model_type):
    model = build(model_type)
    for shape in ((1, 3, 64, 64), (1, 0, 3, 64, 64), (1, 3, 3, 16, 64)):
        with pytest.raises(ValueError, match=r"pixel_values_videos is .*expected \(batch, num_frames, 3, height,"):
            model(torch.zeros(shape))


@every_model
@pytest.mark.parametrize("offsets", [[-3, -6], [-3, -3], [-3, 0], [-3, 2], [-(10**9), -1]])
def test_wrong_offsets_are_named(model_type, offsets):
    with pytest.raises((ValueError, StrictDataclassError), match="frame_offsets=.*from -1000 to -1 in ascending"):
        build_config(model_type, frame_offsets=offsets)


@every_model
def test_wrong_names_are_named(model_type):
    with pytest.raises((ValueError, StrictDataclassError), match="clip_start='wrap': expected one of .'repeat'"):
        build_config(model_type, clip_start="wrap")
    with pytest.raises((ValueError, StrictDataclassError), match="did you mean 'frame_offsets'"):
        build_config(model_type, frame_ofsets=[-1])
    with pytest.raises((ValueError, StrictDataclassError), match="'swim' is not known; did you mean 'swin'"):
        build_config(model_type, backbone_config={"model_type": "swim"})
