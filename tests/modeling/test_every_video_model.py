"""What every video model of modeling/architectures.py must do alike; streams: test_clip_streaming.py."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_video_models import ENCODES_CLIPS, ORDER_COUNTS, RESNET, TINY, build, build_config
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation

import vss_hf
from vss_hf.modeling.architectures import VIDEO_MODELS


every_model = pytest.mark.parametrize("model_type", VIDEO_MODELS)
frame_by_frame = pytest.mark.parametrize("model_type", [name for name in VIDEO_MODELS if name not in ENCODES_CLIPS])
each_supervision = pytest.mark.parametrize(
    ("model_type", "supervise"),
    [(name, flag) for name in VIDEO_MODELS for flag in (False, True) if not (flag and name in ENCODES_CLIPS)],
)


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
    torch.testing.assert_close(scores(again, pixels), scores(model, pixels), rtol=1e-5, atol=1e-5)


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


@each_supervision
def test_the_shapes_of_all_outputs(model_type, supervise):
    model = build(model_type, supervise_references=supervise)
    with torch.no_grad():
        output = model(clip(2), output_auxiliary_logits=True, output_hidden_states=True)
        assert model(clip(2)).auxiliary_logits is None and len(model(clip(2), return_dict=False)) == 1
    assert output.loss is None and output.hidden_states[0].shape[0] == (2 if model_type in ENCODES_CLIPS else 6)
    batch, num_labels, *size = output.logits.shape
    assert (batch, num_labels) == (2, 5) and min(size) > 1
    assert output.auxiliary_logits
    assert all(part.shape[:3] == (2, 3 if supervise else 1, 5) for part in output.auxiliary_logits)


@frame_by_frame
def test_the_auxiliary_logits_of_the_last_frame_are_the_same_beside_others(model_type):
    pixels, of_last = clip(2), []
    for supervise in (True, False):
        with torch.no_grad():
            output = build(model_type, supervise_references=supervise)(pixels, output_auxiliary_logits=True)
        of_last.append([part[:, -1] for part in output.auxiliary_logits])
    torch.testing.assert_close(*of_last, rtol=1e-4, atol=1e-5)


@every_model
def test_every_frame_counts_and_only_the_last_has_details(model_type):
    """The order of the others does not matter to an average; which of the frames is the last one does."""
    model, pixels = build(model_type), clip()
    expected = scores(model, pixels)
    swapped = scores(model, pixels[:, [1, 0, 2]])
    if model_type in ORDER_COUNTS:
        assert (swapped - expected).abs().max() > 1e-4
    else:
        torch.testing.assert_close(swapped, expected, rtol=1e-4, atol=1e-5)
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


def auxiliary_loss(model, output, labels, reduction="mean"):
    """The weighted losses of the auxiliary heads, of the frames that they gave logits for."""
    labels = labels[:, -output.auxiliary_logits[0].shape[1] :].flatten(0, 1)
    losses = [cross_entropy(part.flatten(0, 1), labels, reduction) for part in output.auxiliary_logits]
    return model.config.auxiliary_loss_weight * sum(losses)


@each_supervision
def test_the_loss_is_that_of_the_last_frame_and_the_auxiliary_one_of_those_supervised(model_type, supervise):
    model, pixels, labels = build(model_type, supervise_references=supervise), clip(2), random_labels()
    with torch.no_grad():
        output = model(pixels, labels[:, -1], labels[:, :-1], output_auxiliary_logits=True)
        main = cross_entropy(output.logits, labels[:, -1])
        torch.testing.assert_close(output.loss, main + auxiliary_loss(model, output, labels))
        output.auxiliary_logits = tuple(part[:, -1:] for part in output.auxiliary_logits)
        only_last = main + auxiliary_loss(model, output, labels)
        torch.testing.assert_close(model(pixels, labels[:, -1]).loss, only_last)
        model.config.auxiliary_loss_weight = 0.0
        torch.testing.assert_close(model(pixels, labels[:, -1], labels[:, :-1]).loss, main)


@frame_by_frame
def test_labels_for_another_number_of_frames_are_named(model_type):
    model, labels = build(model_type, supervise_references=True), random_labels()
    with pytest.raises(ValueError, match=r"reference_labels is \(2, 3, 33, 47\).*num_frames - 1 = 2"):
        model(clip(2), labels[:, -1], labels)


@each_supervision
def test_micro_batches_add_up_to_one_batch(model_type, supervise):
    """The loss is divided by the labelled pixels of all last frames; for the others by as many for each frame."""
    model, pixels, labels = build(model_type, supervise_references=supervise), clip(2), random_labels()
    count = (labels[:, -1] != 255).sum()
    with torch.no_grad():
        parts = [model(pixels[i : i + 1], labels[i : i + 1, -1], labels[i : i + 1, :-1], count).loss for i in (0, 1)]
        output = model(pixels, output_auxiliary_logits=True)
        main = cross_entropy(output.logits, labels[:, -1], "sum") / count
        num_frames = 3 if supervise else 1
        auxiliary = auxiliary_loss(model, output, labels, "sum") / (num_frames * count)
    torch.testing.assert_close(sum(parts), main + auxiliary)


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


def trained_with(model_type, detach, **changes):
    """Loss, gradients by the frames and bytes kept for them, of one backward pass with fixed norms and no dropout."""
    model = build(model_type, frame_offsets=[-3, -2, -1], detach_references=detach, **changes)
    model.training = True  # but none of its modules
    torch.manual_seed(1)
    pixels, labels, kept = torch.randn(2, 4, 3, 33, 47).requires_grad_(), random_labels(), {}
    weights = {p.data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = 0 if tensor.data_ptr() in weights else storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(pixels, labels=labels[:, -1], reference_labels=labels[:, [0, 0, 1]]).loss
    loss.backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not unused, unused  # DistributedDataParallel would wait for their gradients
    return loss.detach(), pixels.grad, sum(kept.values())


@frame_by_frame
def test_detached_references_are_not_kept(model_type):
    """They count for the loss as before, and so do the last frame's gradients; four frames need the memory of one."""
    loss, gradients, kept = trained_with(model_type, detach=False, supervise_references=False)
    detached_loss, detached_gradients, less = trained_with(model_type, detach=True)
    torch.testing.assert_close(detached_loss, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(detached_gradients[:, -1], gradients[:, -1], rtol=1e-3, atol=1e-6)
    assert gradients[:, :-1].abs().amax(dim=(2, 3, 4)).min() > 0 and not detached_gradients[:, :-1].any()
    assert less < 0.5 * kept, (less, kept)


@frame_by_frame
def test_detached_references_under_autocast(model_type):
    """The casts of the weights that autocast keeps from the other frames' pass must not do without gradients."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained_with(model_type, detach=True)


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
@frame_by_frame
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
