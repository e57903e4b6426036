"""What MaskFormer and Mask2Former have in common: shapes, files, precision, losses, on small random backbones.

Numbers of the original losses are in tests/parity, those of whole heads in tests/convert.
"""

import copy
import warnings

import pytest
import tiny_mask_models as tiny
import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from tiny_mask_models import BACKBONES, CLASSES, KINDS, batch, make
from transformers import (
    AutoModelForSemanticSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    SwinConfig,
    SwinForImageClassification,
)

from vss_hf.inference import semantic_labels, semantic_scores
from vss_hf.modeling.mask_labels import masks_from_labels
from vss_hf.modeling.mask_losses import VOID_LOGIT


TRANSFORMERS = {
    "maskformer": (MaskFormerConfig, MaskFormerForInstanceSegmentation),
    "mask2former": (Mask2FormerConfig, Mask2FormerForUniversalSegmentation),
}
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def transformers_model(kind, backbone="swin", **changes):
    """transformers' own small model; its warning about the backbone is not about us."""
    config_class, model_class = TRANSFORMERS[kind]
    return model_class(config_class(**tiny.fields(kind, backbone, **changes))).eval()


def logits(output):
    return output.class_queries_logits, output.masks_queries_logits


def assert_same_logits(ours, theirs, **tolerance):
    for a, b in zip(logits(ours), logits(theirs), strict=True):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 0, "atol": 0}))


# --- shapes and outputs


@both
@pytest.mark.parametrize("backbone", list(BACKBONES))
@pytest.mark.parametrize("size", [(32, 32), (97, 161)])
def test_any_backbone_and_size(kind, backbone, size):
    model, (pixels, labels) = make(kind, backbone), batch(size, count=1)
    with torch.no_grad():
        output = model(pixels, labels=labels)
        scores = semantic_scores(model, output, size)
    assert output.class_queries_logits.shape == (1, 7, 6)
    # ConvNeXt drops the pixels of an incomplete patch.
    rows, columns = (side // 4 if backbone == "convnext" else -(-side // 4) for side in size)
    assert output.masks_queries_logits.shape == (1, 7, rows, columns)
    assert output.loss.isfinite() and output.loss.dtype == torch.float32
    assert scores.shape == (1, 5, *size)
    torch.testing.assert_close(scores.sum(1), torch.ones(1, *size))
    assert torch.equal(semantic_labels(model, output, size).long(), scores.argmax(1))


@both
def test_images_of_a_batch_do_not_mix(kind):
    model, (pixels, _) = make(kind), batch((33, 47))
    with torch.no_grad():
        together = model(pixels)
        apart = [model(image[None]) for image in pixels]
    for index, name in enumerate(("class_queries_logits", "masks_queries_logits")):
        expected = torch.cat([logits(each)[index] for each in apart])
        torch.testing.assert_close(getattr(together, name), expected, rtol=0, atol=1e-5)


@both
def test_extra_outputs_come_on_request(kind):
    model, (pixels, labels) = make(kind), batch()
    plain = model(pixels, labels=labels)
    assert plain.auxiliary_logits is None and plain.encoder_hidden_states is None
    full = model(pixels, labels=labels, output_auxiliary_logits=True, output_hidden_states=True)
    assert len(full.auxiliary_logits) == {"maskformer": 2, "mask2former": 3}[kind]
    for each in full.auxiliary_logits:
        assert each["masks_queries_logits"].shape == full.masks_queries_logits.shape
        assert each["class_queries_logits"].shape == full.class_queries_logits.shape
    assert len(full.encoder_hidden_states) == 4 and full.pixel_decoder_hidden_states
    assert (
        len(full.transformer_decoder_hidden_states) == 4
    )  # what goes into the first layer, and what comes out of three
    assert_same_logits(full, plain)
    loss, *rest = model(pixels, return_dict=False, labels=labels)
    assert loss.ndim == 0 and torch.equal(rest[0], plain.class_queries_logits)


# --- transformers' files


@both
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_transformers_files_load_unchanged_and_ours_load_there(kind, backbone, tmp_path):
    # With its auxiliary loss transformers' MaskFormer does not even segment.
    changes = {"use_auxiliary_loss": False} if kind == "maskformer" else {}
    theirs, (pixels, _) = transformers_model(kind, backbone, **changes), batch((97, 161))
    for parameter in theirs.parameters():  # no value is left at a default that another model has, too
        torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, report = CLASSES[kind][1].from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"] and not report["error_msgs"]
    assert all("layernorm" in name for name in report["unexpected_keys"])  # Swin's last norm, which nothing reads
    assert type(ours.config) is CLASSES[kind][0]
    with torch.no_grad():
        assert_same_logits(ours(pixels), theirs(pixels))
        ours.save_pretrained(tmp_path / "ours")
        again, report = TRANSFORMERS[kind][1].from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not report["unexpected_keys"] and all("layernorm" in name for name in report["missing_keys"])
        assert_same_logits(again(pixels), theirs(pixels))


@both
@pytest.mark.parametrize("masks_given", [False, True])
def test_the_loss_is_transformers_own(kind, masks_given):
    changes = {"use_auxiliary_loss": False} if kind == "maskformer" else {}  # there theirs is another one
    theirs, ours = transformers_model(kind, "resnet", **changes), make(kind, "resnet", **changes)
    ours.load_state_dict(theirs.state_dict())
    pixels, labels = batch((97, 161))
    masks, classes = masks_from_labels(labels, 5)
    targets = dict(mask_labels=[mask.float() for mask in masks], class_labels=classes)
    losses, gradients = [], []
    for model, arguments in ((theirs, targets), (ours, targets if masks_given else {"labels": labels})):
        torch.manual_seed(1)  # the same random points
        loss = model(pixels, **arguments).loss
        loss.backward()
        losses.append(loss)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    largest = max(gradient.abs().max() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-5 * largest.item(), msg=name)


# --- labels


@both
def test_uint8_and_int64_labels_are_the_same(kind):
    model, (pixels, labels) = make(kind), batch()
    losses = []
    for dtype in (torch.uint8, torch.int64):
        torch.manual_seed(1)
        losses.append(model(pixels, labels=labels.to(dtype)).loss)
    assert torch.equal(*losses)


@both
@pytest.mark.parametrize("void_images", [(0,), (0, 1)])
@pytest.mark.parametrize("void_pixels", ["negative", "ignore"])
def test_images_without_any_class_train(kind, void_images, void_pixels):
    """Crops of nothing but void occur: they teach every query to say "no object"."""
    model, (pixels, labels) = make(kind, "resnet", void_pixels=void_pixels).train(), batch()
    labels[list(void_images)] = 255
    loss = model(pixels, labels=labels).loss
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.class_predictor.weight.grad.any()


@both
@pytest.mark.parametrize("num_items", [0, 1000])
def test_a_void_micro_batch_adds_nothing_to_a_step(kind, num_items):
    model, (pixels, labels) = make(kind), batch()
    loss = model(pixels, labels=torch.full_like(labels, 255), num_items_in_batch=num_items).loss
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in model.parameters())


@both
def test_more_classes_than_queries(kind):
    """Only as many masks as there are queries can be matched."""
    model, (pixels, labels) = make(kind, "resnet", num_labels=20), batch((128, 128), count=1, num_labels=20)
    assert len(labels.unique()) > 8 > 7
    assert model(pixels, labels=labels).loss.isfinite()


@both
def test_another_ignore_index_and_wrong_values(kind):
    model, (pixels, labels) = make(kind, ignore_index=0), batch(ignored=0)
    assert model.config.ignore_index == 0
    torch.manual_seed(1)
    loss = model(pixels, labels=labels).loss
    model.config.ignore_index = 255
    torch.manual_seed(1)
    assert torch.equal(loss, model(pixels, labels=torch.where(labels == 0, 255, labels)).loss)
    with pytest.raises(ValueError, match="hold the value 5"):
        model(pixels, labels=torch.full_like(labels, 5))


@both
def test_wrong_combinations_of_labels(kind):
    model, (pixels, labels) = make(kind), batch()
    masks, classes = masks_from_labels(labels, 5)
    for arguments in (
        dict(labels=labels, mask_labels=masks, class_labels=classes),
        dict(mask_labels=masks),
        dict(class_labels=classes),
        dict(labels=labels, class_labels=classes),
    ):
        with pytest.raises(ValueError, match="either labels, or both mask_labels and class_labels"):
            model(pixels, **arguments)
    with pytest.raises(ValueError, match="num_items_in_batch.*needs labels"):
        model(pixels, mask_labels=masks, class_labels=classes, num_items_in_batch=7)


@both
def test_masks_of_several_sizes_are_padded(kind):
    """As Detectron2 pads: below and on the right."""
    model, (pixels, labels) = make(kind, "resnet"), batch((64, 96))
    cropped = labels.clone()
    cropped[1, 50:], cropped[1, :, 70:] = 255, 255
    whole = masks_from_labels(cropped, 5)
    parts = [whole[0][0], whole[0][1][:, :50, :70]]
    losses = []
    for masks in (whole[0], parts):
        torch.manual_seed(1)
        losses.append(model(pixels, mask_labels=masks, class_labels=whole[1]).loss)
    assert torch.equal(*losses)


# --- what void pixels do


@both
def test_ignored_void_pixels_have_no_influence(kind):
    criterion = make(kind, "resnet", void_pixels="ignore").criterion
    labels = torch.randint(0, 5, (1, 24, 32))
    labels[:, :, 20:] = 255
    masks, classes = masks_from_labels(labels, 5)
    class_logits, mask_logits = torch.randn(1, 7, 6), torch.randn(1, 7, 24, 32)
    other_logits = mask_logits.clone()
    other_logits[..., 21:] += 3 * torch.randn(7, 24, 11)  # a point in column 19 may read column 20
    criterion.importance_sample_ratio = 0.0  # Mask2Former's points by uncertainty would follow the logits
    results = {}
    for name, void in (("ignore", labels == 255), ("negative", None)):
        for each in (mask_logits, other_logits):
            torch.manual_seed(1)
            losses = criterion(each, class_logits, masks, classes, None, void)
            results.setdefault(name, []).append(losses["loss_mask"] + losses["loss_dice"])
    assert torch.equal(*results["ignore"])
    assert not torch.equal(*results["negative"])
    assert not torch.equal(results["ignore"][0], results["negative"][0])


def test_the_logit_of_void_is_exactly_nothing():
    logit = torch.tensor(VOID_LOGIT)
    assert logit.sigmoid() == 0
    assert torch.nn.functional.binary_cross_entropy_with_logits(logit, torch.tensor(0.0)) == 0


# --- steps of several micro-batches and processes


@both
def test_micro_batches_add_up_to_a_mean_weighted_by_labelled_pixels(kind):
    model, (pixels, labels) = make(kind, "resnet"), batch(count=3)
    labels[0, :50] = 255
    labelled = (labels != 255).flatten(1).sum(1)
    separate, shares = [], []
    for i in range(3):
        torch.manual_seed(i)
        separate.append(model(pixels[i, None], labels=labels[i, None]).loss)
        torch.manual_seed(i)
        shares.append(model(pixels[i, None], labels=labels[i, None], num_items_in_batch=labelled.sum()).loss)
    expected = sum(count * loss for count, loss in zip(labelled, separate, strict=True)) / labelled.sum()
    torch.testing.assert_close(sum(shares), expected, rtol=1e-6, atol=0)
    torch.manual_seed(0)
    as_int = model(pixels[0, None], labels=labels[0, None], num_items_in_batch=int(labelled.sum())).loss
    assert torch.equal(as_int, shares[0])


@both
def test_accelerates_process_state_changes_nothing_in_one_process(kind):
    model, (pixels, labels) = make(kind, "resnet", dropout=0.0).train(), batch()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    losses = []
    for state in (False, True):
        if state:
            PartialState(cpu=True)
        try:
            torch.manual_seed(1)
            losses.append(model(pixels, labels=labels).loss)
        finally:
            PartialState._reset_state()
    assert torch.equal(*losses)


# --- precision and memory


@both
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
@pytest.mark.parametrize("precision", ["autocast", "bf16"])
def test_half_precision_trains_like_fp32(kind, backbone, precision):
    model, (pixels, labels) = make(kind, backbone), batch((97, 161))
    half = copy.deepcopy(model)
    half_pixels = pixels
    if precision == "bf16":
        half, half_pixels = half.to(torch.bfloat16), pixels.to(torch.bfloat16)
    torch.manual_seed(1)
    expected = model(pixels, labels=labels)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        output = half(half_pixels, labels=labels)
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.02, atol=0)
    # Not the largest difference: Mask2Former attends where a mask is likelier than 0.5, a question of rounding.
    difference = output.masks_queries_logits.float() - expected.masks_queries_logits
    assert difference.std() <= 0.2 * expected.masks_queries_logits.std()
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in half.parameters())


@both
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_gradient_checkpointing_changes_memory_only(kind, backbone):
    model, (pixels, labels) = make(kind, backbone).train(), batch()
    calls = []
    model.model.transformer_module.decoder.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))

    def step():
        model.zero_grad()
        calls.clear()
        torch.manual_seed(1)
        loss = model(pixels, labels=labels).loss
        loss.backward()
        return loss, {n: p.grad.clone() for n, p in model.named_parameters()}, len(calls)

    loss, gradients, once = step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5.23 renames it, older ones know this name only
        model.gradient_checkpointing_enable()
    same_loss, same_gradients, twice = step()
    assert (once, twice) == (1, 2)  # computed again in backward
    torch.testing.assert_close(same_loss, loss, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        atol = 1e-5 * gradient.abs().max().item() + 1e-8
        torch.testing.assert_close(same_gradients[name], gradient, rtol=0, atol=atol, msg=name)


@both
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_no_parameter_is_unused(kind, backbone):
    """DistributedDataParallel waits for ever for a gradient that never comes."""
    model, (pixels, labels) = make(kind, backbone).train(), batch()
    model(pixels, labels=labels).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


# --- saving, loading, building


@both
@pytest.mark.parametrize("backbone", ["swin", "timm"])
def test_save_and_load_are_exact(kind, backbone, tmp_path):
    model, (pixels, _) = make(kind, backbone, void_pixels="ignore"), batch((33, 47))
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    loaded = copy.deepcopy(loaded)  # a mapped file lies otherwise in memory, where sums may run in another order
    assert type(loaded) is CLASSES[kind][1] and not loaded.training and not any(report.values())
    assert loaded.config.void_pixels == "ignore"
    for name, tensor in {**model.state_dict(), **dict(model.named_buffers())}.items():
        own = loaded.state_dict().get(name, dict(loaded.named_buffers()).get(name))
        assert torch.equal(own, tensor), name
    with torch.no_grad():
        assert_same_logits(loaded(pixels), model(pixels))
    half = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in half.parameters())
    assert half(pixels.to(torch.bfloat16)).masks_queries_logits.isfinite().all()


@both
def test_another_number_of_classes_replaces_the_classifier_only(kind, tmp_path):
    model = make(kind, "resnet")
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        CLASSES[kind][1].from_pretrained(tmp_path, num_labels=9)
    other, report = CLASSES[kind][1].from_pretrained(
        tmp_path, num_labels=9, ignore_mismatched_sizes=True, output_loading_info=True
    )
    names = {name for name, *_ in report["mismatched_keys"]}
    assert names == {"class_predictor.weight", "class_predictor.bias", "criterion.empty_weight"}
    assert other.criterion.empty_weight.tolist() == pytest.approx([1.0] * 9 + [0.1])
    pixels, labels = batch(num_labels=9)
    assert other(pixels, labels=labels).loss.isfinite()
    for name, tensor in model.state_dict().items():
        assert name in names or torch.equal(other.state_dict()[name], tensor), name


@both
def test_built_on_meta_and_from_a_preset(kind):
    preset = {"maskformer": "maskformer-swin-large", "mask2former": "mask2former-swin-large"}[kind]
    config_class, model_class = CLASSES[kind]
    with torch.device("meta"):
        model = model_class(config_class.from_preset(preset, num_labels=124))
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    # transformers' own count for this size, without Swin's last norm
    expected = {"maskformer": 211.6, "mask2former": 215.5}[kind]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(expected, abs=0.05)
    assert model.config.backbone_config.window_size == 12


@pytest.mark.slow
@both
def test_compiled_eval_forward_has_no_graph_break(kind):
    model, (pixels, _) = make(kind, "resnet"), batch()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_same_logits(compiled(pixels), model(pixels), rtol=0, atol=1e-6)


@both
def test_from_backbone_pretrained(kind, tmp_path):
    fields = {key: value for key, value in BACKBONES["swin"].items() if key not in ("model_type", "out_features")}
    classifier = SwinForImageClassification(SwinConfig(**fields))
    classifier.save_pretrained(tmp_path)
    config_class, model_class = CLASSES[kind]
    model = model_class.from_backbone_pretrained(str(tmp_path), config_class(**tiny.fields(kind)))
    swin = model.backbone.model if kind == "maskformer" else model.backbone.swin
    expected = classifier.swin.encoder.layers[1].blocks[1].attention.k_proj.weight
    attention = swin.encoder.layers[1].blocks[1].attention
    own = attention.self.key if kind == "maskformer" else attention.k_proj
    assert torch.equal(own.weight, expected)
    assert torch.equal(
        swin.embeddings.patch_embeddings.projection.weight,
        classifier.swin.embeddings.patch_embeddings.projection.weight,
    )


# --- configuration errors


@both
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_feature_sise": 16}, "did you mean 'mask_feature_size'"),
        ({"num_labels": 0}, "num_labels=0"),
        ({"ignore_index": 300}, "ignore_index=300|ignore_value=300"),
        ({"void_pixels": "skip"}, "void_pixels='skip': expected 'negative' or 'ignore'"),
        ({"mask_weight": -1.0}, "mask_weight=-1.0: expected a finite number"),
        ({"dice_weight": float("nan")}, "dice_weight=nan"),
        ({"backbone_config": {**BACKBONES["resnet"], "out_features": ["stage3", "stage4"]}}, "four maps"),
        ({"backbone_config": {"model_type": "bert"}}, "'bert' is no backbone"),
        ({"backbone_config": {**BACKBONES["resnet"], "model_type": "resnett"}}, "resnett"),
    ],
)
def test_wrong_configurations_are_named(kind, changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        CLASSES[kind][0](**{**tiny.fields(kind), **changes})


@both
def test_an_unknown_preset_is_refused_with_the_known_ones(kind):
    with pytest.raises(ValueError, match=f"'nothing' is not known; one of: {kind}-swin-large"):
        CLASSES[kind][0].from_preset("nothing")


@both
def test_transformers_files_may_carry_fields_of_older_versions(kind, tmp_path):
    TRANSFORMERS[kind][0](**tiny.fields(kind), mask_weights=3, use_pretrained_backbone=True).save_pretrained(tmp_path)
    config = CLASSES[kind][0].from_pretrained(tmp_path)
    assert config.mask_weight == {"maskformer": 20, "mask2former": 5}[kind] and not hasattr(config, "mask_weights")
    config.save_pretrained(tmp_path)
    assert CLASSES[kind][0].from_pretrained(tmp_path).to_dict() == config.to_dict()
