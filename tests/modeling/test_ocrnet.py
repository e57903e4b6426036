"""OCRNet: shapes, gradients, loss, saving, half precision, compiling, on small random backbones.

Numbers of the original implementation are in tests/parity.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForSemanticSegmentation, SwinConfig, SwinForImageClassification

from vss_hf.modeling.backbone import build_backbone, load_backbone_weights
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation, gather_regions


ALL = ["swin", "resnet", "timm", "timm_dilated"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def make(tiny_ocrnet_config):
    """A small model in eval mode."""

    def build(backbone="swin", **fields):
        return OCRNetForSemanticSegmentation(tiny_ocrnet_config(backbone, **fields)).eval()

    return build


def batch(size=(64, 96), count=2, num_labels=5, ignored=0.1):
    labels = torch.randint(0, num_labels, (count, *size))
    labels[torch.rand(labels.shape) < ignored] = 255
    return torch.randn(count, 3, *size), labels


def naive_loss(output, labels, reduction="mean"):
    """The definition: upsample everything in float64, cross entropy, coarse head with weight 0.4."""
    losses = []
    for logits in (output.logits, *output.auxiliary_logits):
        upsampled = F.interpolate(logits.double(), size=labels.shape[1:], mode="bilinear", align_corners=False)
        losses.append(F.cross_entropy(upsampled, labels, ignore_index=255, reduction=reduction))
    return losses[0] + 0.4 * losses[1]


# --- shapes


@pytest.mark.parametrize("backbone", ALL)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 161)])
def test_any_size_gives_logits_at_the_stride_of_the_first_map(make, backbone, size):
    stride = 8 if backbone == "timm_dilated" else 4
    model, (pixels, labels) = make(backbone), batch(size, count=1)
    with torch.no_grad():
        output = model(pixels, labels=labels)
    assert output.logits.shape == (1, 5, -(-size[0] // stride), -(-size[1] // stride))
    assert output.logits.isfinite().all() and output.loss.isfinite()


@pytest.mark.parametrize("backbone", ALL)
@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_one_small_odd_image_trains(make, backbone, size):
    model, (pixels, labels) = make(backbone).train(), batch(size, count=1)
    loss = model(pixels, labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_images_of_a_batch_do_not_mix(make):
    model, (pixels, _) = make(), batch((33, 47), count=2)
    with torch.no_grad():
        together = model(pixels).logits
        apart = torch.cat([model(image[None]).logits for image in pixels])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)


def test_auxiliary_logits_come_in_training_or_on_request(make):
    model, (pixels, labels) = make(), batch()
    assert model(pixels).auxiliary_logits is None
    assert model(pixels, labels=labels).auxiliary_logits is None
    (on_request,) = model(pixels, output_auxiliary_logits=True).auxiliary_logits
    assert on_request.shape == (2, 5, 16, 24)
    model.train()
    assert len(model(pixels).auxiliary_logits) == 1
    assert model(pixels, output_auxiliary_logits=False).auxiliary_logits is None


@pytest.mark.parametrize("backbone", ALL)
def test_hidden_states_and_plain_tuples(make, backbone):
    model, (pixels, labels) = make(backbone), batch()
    assert model(pixels).hidden_states is None
    hidden_states = model(pixels, output_hidden_states=True).hidden_states
    assert len(hidden_states) > len(model.config.in_indices) and all(h.ndim == 4 for h in hidden_states)
    output = model(pixels, labels=labels)
    loss, logits = model(pixels, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
    assert torch.equal(model(pixels, return_dict=False)[0], output.logits)


def test_heads_may_read_different_maps_of_one_stride(make, tiny_ocrnet_config):
    # OCRNet-R101-D8's wiring: coarse head on stage 3, OCR head on stage 4, both at stride 8.
    model = make("timm_dilated", in_indices=[1], coarse_in_indices=[0])
    assert model.coarse_head.convs[0][0].in_channels == model.backbone.channels[0]
    assert model.decode_head.pixel_conv[0].in_channels == model.backbone.channels[1]
    assert model(batch()[0]).logits.shape == (2, 5, 8, 12)
    # Stride 4 and stride 8 cannot meet.
    wrong = make("swin", in_indices=[1], coarse_in_indices=[0])
    with pytest.raises(ValueError, match=r"\(16, 24\).*\(8, 12\).*coarse_in_indices"):
        wrong(batch()[0])


def test_the_order_of_maps_decides_the_stride(make):
    assert make(in_indices=[2, 0], coarse_in_indices=None)(batch()[0]).logits.shape == (2, 5, 4, 6)


# --- what is computed


def test_permuting_the_classes_permutes_the_logits(make):
    model, (pixels, _) = make(), batch((33, 47))
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = copy.deepcopy(model)
    for head in (permuted.coarse_head, permuted.decode_head):
        head.classifier.weight.data = head.classifier.weight.data[order]
        head.classifier.bias.data = head.classifier.bias.data[order]
    with torch.no_grad():
        torch.testing.assert_close(permuted(pixels).logits, model(pixels).logits[:, order], rtol=0, atol=1e-6)


def test_eval_is_deterministic_and_train_uses_dropout(make):
    model, (pixels, _) = make(classifier_dropout=0.5), batch()
    assert torch.equal(model(pixels).logits, model(pixels).logits)
    model.decode_head.dropout.train()
    assert not torch.equal(model(pixels).logits, model(pixels).logits)


def test_regions_are_the_weighted_means_of_their_pixels():
    pixels, coarse = torch.randn(2, 6, 5, 7), torch.randn(2, 3, 5, 7)
    regions = gather_regions(pixels, coarse)
    assert regions.shape == (2, 6, 3, 1)
    for image in range(2):
        for label in range(3):
            weights = coarse[image, label].double().exp()
            mean = (weights * pixels[image].double()).sum(dim=(1, 2)) / weights.sum()
            torch.testing.assert_close(regions[image, :, label, 0].double(), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.bfloat16, (120, 136)),  # 1 / 16320 lies in the middle between two bf16 numbers, 0.4 % from either
        (torch.float16, (240, 240)),  # 1 / 57600 is subnormal in fp16, rounded by 0.1 %
        (torch.float32, (120, 136)),
    ],
)
@pytest.mark.parametrize("autocast", [True, False])
def test_the_mean_over_a_large_map_is_not_taken_in_half_precision(dtype, size, autocast):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        regions = gather_regions(torch.full((1, 4, *size), 3.0, dtype=dtype), torch.zeros(1, 2, *size, dtype=dtype))
    assert regions.dtype == dtype
    torch.testing.assert_close(regions, torch.full_like(regions, 3.0), rtol=0, atol=1e-4)


# --- loss


@pytest.mark.parametrize("label_size", [(64, 96), (97, 161), (31, 20)])
def test_loss_is_cross_entropy_of_the_upsampled_logits(make, label_size):
    model, pixels = make(), batch()[0]
    labels = batch(label_size)[1]
    output = model(pixels, labels=labels, output_auxiliary_logits=True)
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss.double(), naive_loss(output, labels), rtol=1e-6, atol=0)
    # The coarse logits get both gradients: their own loss and, through the regions, the OCR head's.
    weight = model.coarse_head.classifier.weight
    ours = torch.autograd.grad(output.loss, weight, retain_graph=True)[0]
    naive = torch.autograd.grad(naive_loss(output, labels), weight)[0]
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-5 * naive.abs().max().item())


def test_auxiliary_weight_zero_leaves_the_main_loss(make):
    model, (pixels, labels) = make(auxiliary_loss_weight=0.0), batch()
    output = model(pixels, labels=labels)
    upsampled = F.interpolate(output.logits, size=labels.shape[1:], mode="bilinear")
    torch.testing.assert_close(output.loss, F.cross_entropy(upsampled, labels, ignore_index=255))


def test_micro_batches_add_up_to_one_big_batch(make):
    """With num_items_in_batch the sum over unequally labelled micro-batches is the mean over the whole batch."""
    model, (pixels, labels) = make(), batch(count=3)
    labels[0, :50] = 255
    labelled = (labels != 255).sum()
    parts = [model(p[None], labels=y[None], num_items_in_batch=labelled) for p, y in zip(pixels, labels, strict=True)]
    whole = model(pixels, labels=labels)
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss, rtol=1e-5, atol=0)
    weight = model.decode_head.classifier.weight
    summed = sum(torch.autograd.grad(part.loss, weight)[0] for part in parts)
    torch.testing.assert_close(summed, torch.autograd.grad(whole.loss, weight)[0], rtol=0, atol=1e-6)
    as_int = model(pixels, labels=labels, num_items_in_batch=int(labelled)).loss
    torch.testing.assert_close(as_int, whole.loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("num_items", [None, 0, 1000])
def test_nothing_labelled_gives_zero_loss_and_zero_gradients(make, num_items):
    model, (pixels, labels) = make().train(), batch()
    loss = model(pixels, labels=torch.full_like(labels, 255), num_items_in_batch=num_items).loss
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in model.parameters() if p.requires_grad)


def test_another_ignore_index(make):
    model, (pixels, labels) = make(ignore_index=0), batch(ignored=0)
    output = model(pixels, labels=labels)
    model.config.ignore_index = 255
    expected = model(pixels, labels=torch.where(labels == 0, 255, labels)).loss
    assert torch.equal(output.loss, expected)
    with pytest.raises(ValueError, match="5"):
        model(pixels, labels=torch.full_like(labels, 5))


# --- gradients


def without_gradient(model):
    return [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


@pytest.mark.parametrize("backbone", ALL)
@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
def test_every_trainable_parameter_gets_a_gradient(make, backbone, precision):
    model, (pixels, labels) = make(backbone).train(), batch()
    # timm starts the last norm of each residual branch at 0, which keeps gradients from what lies before it.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    if precision == "bf16":
        model, pixels = model.to(torch.bfloat16), pixels.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        output = model(pixels, labels=labels)
    assert output.loss.dtype == torch.float32
    assert output.logits.dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)
    output.loss.backward()
    assert without_gradient(model) == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("backbone", ALL)
def test_half_precision_predicts_like_fp32(make, backbone):
    model, (pixels, labels) = make(backbone), batch()
    for head in (model.coarse_head, model.decode_head):
        head.classifier.weight.data *= 100  # logits of everyday size
    with torch.no_grad():
        expected = model(pixels, labels=labels)
        half = copy.deepcopy(model).to(torch.bfloat16)(pixels.to(torch.bfloat16), labels=labels)
    scale = expected.logits.abs().max()
    assert (half.logits.float() - expected.logits).abs().max() <= 0.05 * scale
    torch.testing.assert_close(half.loss, expected.loss, rtol=0.02, atol=0)


def test_gradient_checkpointing_changes_memory_only(make):
    model, (pixels, labels) = make("swin").train(), batch()
    calls = []
    model.backbone.swin.encoder.layers[0].blocks[0].register_forward_hook(lambda *_: calls.append(1))

    def step():
        model.zero_grad()
        calls.clear()
        loss = model(pixels, labels=labels).loss
        loss.backward()
        return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}, len(calls)

    loss, gradients, once = step()
    model.gradient_checkpointing_enable()
    same_loss, same_gradients, twice = step()
    assert (once, twice > 1) == (1, True)  # computed again in backward
    assert torch.equal(loss, same_loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize("backbone", ["resnet", "timm"])
def test_gradient_checkpointing_is_refused_where_the_backbone_has_none(make, backbone):
    with pytest.raises(ValueError, match="not compatible with gradient checkpointing"):
        make(backbone).gradient_checkpointing_enable()


# --- initial weights, saving and loading


@pytest.mark.parametrize("backbone", ALL)
def test_save_and_load_are_exact(make, tmp_path, backbone):
    model, (pixels, labels) = make(backbone), batch((33, 47))
    with torch.no_grad():
        model.train()(pixels)  # batch statistics that are not the initial ones
        expected = model.eval()(pixels, labels=labels, output_auxiliary_logits=True)
        model.save_pretrained(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
        loaded, report = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
        loaded = copy.deepcopy(loaded)  # a mapped file lies otherwise in memory, where sums may run in another order
        assert type(loaded) is OCRNetForSemanticSegmentation and not loaded.training
        assert not any(report.values())
        output = loaded(pixels, labels=labels, output_auxiliary_logits=True)
    for ours, theirs in zip(output.to_tuple()[:2], expected.to_tuple()[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    # DistributedDataParallel waits for ever for a parameter that is never used, such as Swin's own last norm.
    loaded.train()(pixels, labels=labels).loss.backward()
    assert [n for n, p in loaded.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("backbone", ALL)
def test_initial_weights(tiny_ocrnet_config, backbone):
    config = tiny_ocrnet_config(backbone, num_labels=60, channels=64, coarse_channels=64)
    model = AutoModelForSemanticSegmentation.from_config(config)
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), name
    for head in (model.coarse_head, model.decode_head):
        weight = head.classifier.weight  # 60 x 64 draws: the estimate of the spread is good to a few per cent
        assert weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert abs(weight.mean().item()) < 1e-3
        assert not head.classifier.bias.any()
        for module in head.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all() and (module.running_var == 1).all()
                assert not (module.bias.any() or module.running_mean.any())
    # He et al. 2015, fan out: 64 filters of 3 x 3.
    assert model.decode_head.pixel_conv[0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)

    # The backbone initialises itself, exactly as it does alone.
    torch.manual_seed(3)
    alone = build_backbone(config.backbone_config)
    torch.manual_seed(3)
    inside = AutoModelForSemanticSegmentation.from_config(config).backbone
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, inside.state_dict()[name]), name
    convolutions = [m for m in inside.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions and all(m.weight.any() for m in convolutions)


@pytest.mark.parametrize("backbone", ALL)
def test_another_class_list_gets_new_classifiers_only(make, tmp_path, backbone):
    model = make(backbone, num_labels=5, channels=128, coarse_channels=128)
    model.save_pretrained(tmp_path)
    names = {i: f"new {i}" for i in range(40)}
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForSemanticSegmentation.from_pretrained(tmp_path, id2label=names)
    other = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, id2label=names, ignore_mismatched_sizes=True)
    assert (other.config.num_labels, other.config.label2id["new 39"]) == (40, 39)
    for name, tensor in other.state_dict().items():
        if ".classifier." not in name:
            assert torch.equal(tensor, model.state_dict()[name]), name
    for head in (other.coarse_head, other.decode_head):
        assert head.classifier.weight.shape == (40, 128, 1, 1)
        assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not head.classifier.bias.any()


def test_attention_implementation_reaches_the_backbone(make, tmp_path):
    model, (pixels, _) = make("swin"), batch()
    model.save_pretrained(tmp_path)
    for implementation in ("eager", "sdpa"):
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, attn_implementation=implementation)
        assert loaded.backbone.config._attn_implementation == implementation
        torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits, rtol=0, atol=1e-6)
    eager = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, attn_implementation="eager")
    windows = [attention.shape[-1] for attention in eager(pixels, output_attentions=True).attentions]
    assert windows == [16, 16, 16]  # 4 x 4 pixels, one map per stage


def test_backbone_weights_of_a_classifier_folder(make, tmp_path):
    swin = dict(embed_dim=8, depths=[2, 2, 2], num_heads=[1, 2, 2])
    classifier = SwinForImageClassification(SwinConfig(**swin, window_size=4))
    classifier.save_pretrained(tmp_path / "classifier")
    model = make("swin")
    new = load_backbone_weights(model.backbone, str(tmp_path / "classifier"))
    assert new == sorted(f"hidden_states_norms.stage{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias"))
    theirs = classifier.swin.state_dict()
    assert any("relative_position_bias_table" in name for name in theirs)
    for name, tensor in model.backbone.swin.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    # The folder's place on this machine stays out of the model's configuration.
    model.save_pretrained(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()

    # Another window: the tables of relative positions cannot be used, and are named.
    wide = SwinForImageClassification(SwinConfig(**swin, window_size=5))
    wide.save_pretrained(tmp_path / "wide")
    tables = [n for n in load_backbone_weights(model.backbone, str(tmp_path / "wide")) if "position_bias_table" in n]
    assert len(tables) == 6
    with pytest.raises(ValueError, match="no tensor fits the backbone swin"):
        make("resnet").save_pretrained(tmp_path / "resnet")
        load_backbone_weights(make("swin").backbone, str(tmp_path / "resnet"))


def test_backbone_weights_of_timm(make, monkeypatch):
    import timm

    create_model = timm.create_model

    def without_download(*args, **kwargs):  # the world outside: the "pretrained" weights are random ones here
        return create_model(*args, **{**kwargs, "pretrained": False})

    monkeypatch.setattr(timm, "create_model", without_download)
    model = make("timm_dilated")
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    assert load_backbone_weights(model.backbone, "test_resnet") == []
    after = model.backbone.state_dict()
    assert all(not torch.equal(after[name], tensor) for name, tensor in before.items() if tensor.ndim == 4)


# --- compilers


@pytest.mark.parametrize("backbone", ["swin", "resnet", "timm"])
def test_compiled_eval_forward_has_no_graph_break(make, backbone):
    model, (pixels, _) = make(backbone), batch()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits, rtol=0, atol=1e-6)


def test_compiled_training_step(make):
    model, (pixels, labels) = make("resnet").train().double(), batch()
    pixels = pixels.double()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    losses = []
    for each in (model, compiled):
        loss = each(pixels, labels=labels).loss
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
    for (name, ours), theirs in zip(model.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=0, atol=1e-8 * ours.grad.abs().max().item(), msg=name)


@pytest.mark.parametrize("backbone", ["swin", "resnet", "timm"])
def test_exported_eval_forward(make, backbone):
    model, (pixels, _) = make(backbone), batch()
    exported = torch.export.export(model, (pixels,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(pixels).logits, model(pixels).logits, rtol=0, atol=1e-6)
