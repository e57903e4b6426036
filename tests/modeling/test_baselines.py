"""UperNet and the CNN baselines on a small random ResNet: sizes, gradients, loss, saving, precision, compiling.

Numbers of the original implementations are in tests/parity and tests/convert/test_mmseg_heads.py.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from vss_hf.modeling.architectures import configuration_class
from vss_hf.modeling.layers import BatchNorm2d


BACKBONE = {
    "model_type": "vss_resnet",
    "stem": "3x3x3",
    "stem_channels": 8,
    "block": "basic",
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 12, 16, 20],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
DILATED = {**BACKBONE, "output_stride": 8}
# model type -> its fields, and the stride of its logits
ARCHITECTURES = {
    "vss_upernet": (dict(backbone_config=BACKBONE, hidden_size=16), 4),
    "vss_fcn": (dict(backbone_config=DILATED, channels=16), 8),
    "vss_pspnet": (dict(backbone_config=DILATED, channels=16), 8),
    "vss_deeplabv3": (dict(backbone_config=DILATED, channels=16), 8),
    "vss_deeplabv3plus": (dict(backbone_config=DILATED, channels=16, low_level_channels=6), 4),
    "vss_semantic_fpn": (
        dict(backbone_config=BACKBONE, channels=16, pyramid_channels=12, use_auxiliary_head=True),
        4,
    ),
}
each_architecture = pytest.mark.parametrize("kind", ARCHITECTURES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def config_of(kind, num_labels=5, **fields):
    shared = dict(auxiliary_channels=12, id2label={i: f"class {i}" for i in range(num_labels)})
    return configuration_class(kind)(**{**copy.deepcopy(ARCHITECTURES[kind][0]), **shared, **fields})


def make(kind, **fields):
    """A small model in eval mode."""
    return AutoModelForSemanticSegmentation.from_config(config_of(kind, **fields)).eval()


def batch(size=(64, 96), count=2, num_labels=5, ignored=0.1):
    labels = torch.randint(0, num_labels, (count, *size))
    labels[torch.rand(labels.shape) < ignored] = 255
    return torch.randn(count, 3, *size), labels


@each_architecture
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 161)])
def test_any_size_gives_logits_at_the_heads_stride(kind, size):
    model, (pixels, labels) = make(kind), batch(size, count=1)
    with torch.no_grad():
        output = model(pixels, labels=labels, output_auxiliary_logits=True)
    stride = ARCHITECTURES[kind][1]
    assert output.logits.shape == (1, 5, -(-size[0] // stride), -(-size[1] // stride))
    (auxiliary,) = output.auxiliary_logits
    stride = 16 if BACKBONE is ARCHITECTURES[kind][0]["backbone_config"] else 8
    assert auxiliary.shape == (1, 5, -(-size[0] // stride), -(-size[1] // stride))
    assert output.logits.isfinite().all() and output.loss.isfinite()


@each_architecture
@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
def test_one_odd_image_trains_every_parameter(kind, precision):
    """One image: pooling to a single pixel leaves BatchNorm one value per channel, which torch refuses."""
    model, (pixels, labels) = make(kind).train(), batch((49, 67), count=1)
    for module in model.modules():  # residual branches start at 0, which keeps gradients from what lies before
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    if precision == "bf16":
        model, pixels = model.to(torch.bfloat16), pixels.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        output = model(pixels, labels=labels)
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert output.logits.dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)
    unmoved = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unmoved == []


def test_the_norm_of_one_value_uses_the_running_statistics():
    norm = BatchNorm2d(3)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm.running_var.copy_(torch.tensor([4.0, 1.0, 0.25]))
    values = torch.tensor([5.0, 1.0, 4.0]).view(1, 3, 1, 1)
    expected = torch.tensor([2.0, -1.0, 2.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(norm(values), expected, rtol=0, atol=1e-4)
    assert norm.running_mean.tolist() == [1, 2, 3] and norm.num_batches_tracked == 0
    norm(torch.randn(2, 3, 1, 1))  # two values have statistics
    assert norm.num_batches_tracked == 1


@each_architecture
def test_images_of_a_batch_do_not_mix(kind):
    model, (pixels, _) = make(kind), batch((33, 47), count=2)
    with torch.no_grad():
        together = model(pixels).logits
        apart = torch.cat([model(image[None]).logits for image in pixels])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)


@each_architecture
def test_loss_is_cross_entropy_of_the_upsampled_logits(kind):
    model, (pixels, labels) = make(kind), batch((33, 47))
    output = model(pixels, labels=labels, output_auxiliary_logits=True)
    losses = []
    for logits in (output.logits, *output.auxiliary_logits):
        upsampled = F.interpolate(logits.double(), size=labels.shape[1:], mode="bilinear")
        losses.append(F.cross_entropy(upsampled, labels, ignore_index=255))
    torch.testing.assert_close(output.loss.double(), losses[0] + 0.4 * losses[1], rtol=1e-6, atol=0)


@each_architecture
def test_without_auxiliary_head(kind):
    model, (pixels, labels) = make(kind, use_auxiliary_head=False), batch()
    output = model.train()(pixels, labels=labels)
    assert output.auxiliary_logits is None
    upsampled = F.interpolate(output.logits, size=labels.shape[1:], mode="bilinear")
    torch.testing.assert_close(output.loss, F.cross_entropy(upsampled, labels, ignore_index=255), rtol=1e-5, atol=0)
    assert not any("auxiliary" in name for name in model.state_dict())


@each_architecture
def test_both_classifiers_drop_channels_in_training_only(kind):
    model, (pixels, _) = make(kind, classifier_dropout=0.5), batch()
    for module in model.modules():  # nothing else may be random or depend on the batch
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True: None
    outputs = [model.train()(pixels, output_auxiliary_logits=True) for _ in range(2)]
    assert not torch.equal(outputs[0].logits, outputs[1].logits)
    assert not torch.equal(outputs[0].auxiliary_logits[0], outputs[1].auxiliary_logits[0])
    outputs = [model.eval()(pixels, output_auxiliary_logits=True) for _ in range(2)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)


@each_architecture
def test_align_corners_reaches_the_head(kind):
    # On odd sizes maps of several strides have to be resized; FCN and DeepLabV3 read one map, or spread one pixel.
    fields = dict(in_indices=[0, 3]) if kind == "vss_fcn" else {}
    model, (pixels, _) = make(kind, **fields), batch((49, 67), count=1)
    other = make(kind, align_corners=True, **fields)
    other.load_state_dict(model.state_dict())
    same = torch.equal(model(pixels).logits, other(pixels).logits)
    assert same == (kind == "vss_deeplabv3")


@each_architecture
def test_save_and_load_are_exact(kind, tmp_path):
    model, (pixels, labels) = make(kind), batch((33, 47))
    with torch.no_grad():
        model.train()(pixels)  # batch statistics that are not the initial ones
        expected = model.eval()(pixels, labels=labels, output_auxiliary_logits=True)
        model.save_pretrained(tmp_path)
        loaded, report = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
        loaded = copy.deepcopy(loaded)  # a mapped file lies otherwise in memory, where sums may run in another order
        assert type(loaded) is type(model) and not any(report.values())
        output = loaded(pixels, labels=labels, output_auxiliary_logits=True)
        for ours, theirs in zip(output.to_tuple()[:2], expected.to_tuple()[:2], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        half = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
        difference = half(pixels.to(torch.bfloat16)).logits.float() - expected.logits
    assert difference.abs().max() <= 0.05 * expected.logits.abs().max()


@each_architecture
def test_another_class_list_gets_new_classifiers_only(kind, tmp_path):
    model = make(kind, channels=128) if kind != "vss_upernet" else make(kind, hidden_size=128)
    model.save_pretrained(tmp_path)
    names = {i: f"new {i}" for i in range(40)}
    other = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, id2label=names, ignore_mismatched_sizes=True)
    for name, tensor in other.state_dict().items():
        if ".classifier." not in name:
            assert torch.equal(tensor, model.state_dict()[name]), name
    classifier = other.decode_head.classifier
    assert classifier.weight.shape == (40, 128, 1, 1) and not classifier.bias.any()
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert other.auxiliary_head.classifier.weight.shape[0] == 40


@each_architecture
def test_initial_weights(kind):
    model = make(kind, num_labels=200)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    for head in (model.decode_head, model.auxiliary_head):
        assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not head.classifier.bias.any()


def test_the_pyramids_convolutions_are_no_classifiers():
    pyramid = make("vss_semantic_fpn", pyramid_channels=64).decode_head.pyramid
    for convolution in (*pyramid.lateral, *pyramid.out):
        fan_out, fan_in, height, width = convolution.weight.shape
        bound = (6 / ((fan_in + fan_out) * height * width)) ** 0.5  # Glorot, uniform
        assert convolution.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert 0.9 * bound < convolution.weight.abs().max() <= bound and not convolution.bias.any()


@each_architecture
def test_gradient_checkpointing_changes_memory_only(kind):
    model, (pixels, labels) = make(kind, classifier_dropout=0.0).train(), batch()

    def step():
        model.zero_grad()
        loss = model(pixels, labels=labels).loss
        loss.backward()
        return loss, {n: p.grad.clone() for n, p in model.named_parameters()}

    loss, gradients = step()
    model.gradient_checkpointing_enable()
    same_loss, same_gradients = step()
    assert torch.equal(loss, same_loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=0, atol=1e-6, msg=name)


@each_architecture
def test_compiled_eval_forward_has_no_graph_break(kind):
    model, (pixels, _) = make(kind), batch()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("vss_upernet", dict(hidden_size=0), "UperNetConfig.hidden_size=0: expected at least 1"),
        ("vss_upernet", dict(pool_scales=[1, 0]), r"pool_scales=\[1, 0\]: expected one or more numbers from 1 up"),
        ("vss_upernet", dict(auxiliary_in_index=4), "auxiliary_in_index=4: expected indices from 0 to 3"),
        ("vss_fcn", dict(in_indices=[]), r"FCNConfig.in_indices=\[\]: expected indices from 0 to 3"),
        ("vss_fcn", dict(kernel_size=2), "kernel_size=2: expected an odd number"),
        ("vss_fcn", dict(num_convs=10**9), "num_convs=1000000000: expected at most 1000"),
        ("vss_fcn", dict(auxiliary_num_convs=0), "auxiliary_num_convs=0: expected at least 1"),
        ("vss_fcn", dict(auxilary_channels=8), "no field 'auxilary_channels'; did you mean 'auxiliary_channels'"),
        ("vss_pspnet", dict(in_index=7), "PSPNetConfig.in_index=7: expected indices from 0 to 3"),
        ("vss_pspnet", dict(pool_scales=[]), "pool_scales=.*expected one or more numbers"),
        ("vss_deeplabv3", dict(dilations=[1, -2]), "dilations=.*expected one or more numbers from 1 up"),
        ("vss_deeplabv3plus", dict(low_level_in_index=-1), "low_level_in_index=-1: expected indices from 0 to 3"),
        ("vss_deeplabv3plus", dict(low_level_channels=0), "low_level_channels=0: expected at least 1"),
        ("vss_semantic_fpn", dict(feature_strides=[4, 8, 16]), "expected 4 strides, one for each map"),
        ("vss_semantic_fpn", dict(feature_strides=[4, 8, 12, 32]), r"feature_strides=\[4, 8, 12, 32\]: expected 4"),
    ],
)
def test_wrong_configurations_are_refused(kind, fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        config_of(kind, **fields)
