"""The cosine classifier of every per-pixel architecture (`config.cosine_scale`)."""

import pytest
import test_every_architecture as image_models
import tiny_video_models as video_models
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from vss_hf.modeling.architectures import MODELS, VIDEO_MODELS, configuration_class
from vss_hf.modeling.layers import PixelClassifier
from vss_hf.modeling.loading import load_strictly


PER_PIXEL = [name for name in (*MODELS, *VIDEO_MODELS) if hasattr(configuration_class(name), "cosine_scale")]
every_model = pytest.mark.parametrize("model_type", PER_PIXEL)


def build(model_type, **changes):
    """A small model in eval mode with random statistics and classifiers."""
    torch.manual_seed(0)
    module = video_models if model_type in VIDEO_MODELS else image_models
    config = module.build_config(model_type, **{"classifier_dropout": 0.0, **changes})
    model = AutoModel.from_config(config).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    return model


def pictures(model, count=1, size=(33, 47)):
    shape = (3, *size) if model.main_input_name == "pixel_values" else (3, 3, *size)
    return torch.randn(count, *shape)


def test_only_mask_models_have_none():
    assert set(MODELS) - set(PER_PIXEL) == {"vss_maskformer", "vss_mask2former"} and set(VIDEO_MODELS) <= set(
        PER_PIXEL
    )


@every_model
def test_logits_are_cosines_of_what_the_plain_classifier_reads(model_type):
    """Computed again in float64 from the classifier's input; the other heads are as they were."""
    plain, cosine = build(model_type), build(model_type, cosine_scale=3.0)
    assert cosine.decode_head.classifier.bias is None
    assert plain.decode_head.classifier.bias is not None
    cosine.load_state_dict({k: v for k, v in plain.state_dict().items() if k != "decode_head.classifier.bias"})
    read = []
    plain.decode_head.classifier.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    pixels = pictures(plain)
    with torch.no_grad():
        before = plain(pixels, output_auxiliary_logits=True).auxiliary_logits
        output = cosine(pixels, output_auxiliary_logits=True)
    weight = plain.decode_head.classifier.weight.double()[:, :, 0, 0]
    weight = weight / weight.square().sum(dim=1, keepdim=True).sqrt()

    def cosines(features):
        features = features.double()
        features = features / features.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-3)
        return 3 * torch.einsum("kc,bchw->bkhw", weight, features)

    if model_type == "vss_hfgd":  # the classifier reads the upsampler's features, then those that guide them
        read, before = read[:1], (cosines(read[1]),)
    torch.testing.assert_close(output.logits.double(), cosines(read[-1]), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(output.auxiliary_logits or (), before or (), strict=True):
        exact = dict(rtol=0, atol=0) if theirs.dtype == ours.dtype else dict(rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.to(theirs.dtype), theirs, **exact)


@every_model
def test_saved_and_loaded_it_is_the_same_and_a_plain_model_goes_on_with_it(model_type, tmp_path):
    model = build(model_type, cosine_scale=20.0)
    model.save_pretrained(tmp_path / "cosine")
    again = load_strictly(AutoModel, tmp_path / "cosine")
    assert again.config.cosine_scale == again.decode_head.classifier.cosine_scale == 20.0
    pixels = pictures(model)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-4)

    plain = build(model_type)
    plain.save_pretrained(tmp_path / "plain")
    changed = load_strictly(AutoModel, tmp_path / "plain", cosine_scale=20.0)
    kept = {name: tensor for name, tensor in plain.state_dict().items() if name != "decode_head.classifier.bias"}
    assert changed.state_dict().keys() == kept.keys()
    assert all(torch.equal(changed.state_dict()[name], tensor) for name, tensor in kept.items())


def test_cosines_do_not_become_a_plain_classifier(tmp_path):
    build("vss_fcn", cosine_scale=2.0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing: decode_head\.classifier\.bias"):
        load_strictly(AutoModel, tmp_path, cosine_scale=None)


@every_model
@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_one_step_of_training_moves_every_parameter(model_type, precision):
    model = build(model_type, cosine_scale=1.0).train()
    pixels, labels = pictures(model, count=2), torch.randint(0, 5, (2, 33, 47))
    labels[:, :5] = 255
    if precision == "bfloat16":
        model, pixels = model.bfloat16(), pixels.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        output = model(pixels, labels=labels)
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.logits.abs().max() <= 1.01
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@every_model
def test_compiles_without_graph_breaks(model_type):
    torch.compiler.reset()
    changes = {"backbone_config": video_models.RESNET} if model_type in ("vss_st_ppm", "vss_tbn_vit") else {}
    model = build(model_type, cosine_scale=2.0, **changes)
    pixels = pictures(model, size=(64, 96))
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-5)


def test_it_is_exported():
    classifier = PixelClassifier(8, 5, cosine_scale=2.0).eval()
    pixels = torch.randn(1, 8, 7, 9)
    program = torch.export.export(classifier, (pixels,))
    torch.testing.assert_close(program.module()(pixels), classifier(pixels))


# --- the layer itself


def test_lengths_do_not_matter_and_directions_do():
    classifier = PixelClassifier(6, 4, cosine_scale=5.0)
    features = torch.randn(2, 6, 3, 3)
    logits = classifier(features)
    with torch.no_grad():
        classifier.weight.mul_(torch.tensor([0.5, 2.0, 10.0, 100.0])[:, None, None, None])
    torch.testing.assert_close(classifier(features * 7), logits)
    with torch.no_grad():
        classifier.weight[1].neg_()
    torch.testing.assert_close(classifier(features)[:, 1], -logits[:, 1])


def test_gradients_in_float64():
    classifier = PixelClassifier(4, 3, cosine_scale=2.0).double()
    features = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)

    def run(features, weight):
        return torch.func.functional_call(classifier, {"weight": weight}, (features,))

    assert torch.autograd.gradcheck(run, (features, classifier.weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_of_zeros_give_zeros_and_finite_gradients(dtype):
    classifier = PixelClassifier(512, 124, cosine_scale=30.0).to(dtype)
    features = torch.zeros(1, 512, 2, 2, dtype=dtype, requires_grad=True)
    logits = classifier(features)
    assert logits.dtype == dtype and not logits.any()
    logits.float().sum().backward()
    assert features.grad.isfinite().all() and classifier.weight.grad.isfinite().all()


def test_half_precision_is_within_rounding():
    """Features so long that their squares overflow float16."""
    torch.manual_seed(0)
    classifier = PixelClassifier(256, 20, cosine_scale=1.0)
    torch.nn.init.normal_(classifier.weight, std=0.01)
    features = torch.randn(1, 256, 5, 5) * 300
    exact = classifier(features)
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
        half = PixelClassifier(256, 20, cosine_scale=1.0).to(dtype)
        half.load_state_dict(classifier.state_dict())
        assert (half(features.to(dtype)).float() - exact).abs().max() < tolerance
        with torch.autocast("cpu", dtype):
            assert (classifier(features).float() - exact).abs().max() < tolerance


@pytest.mark.parametrize("size", [0.01, 2500.0])
def test_short_and_long_features_in_float16(size):
    """The products are as large as the features are long: up to what float16 can hold."""
    classifier = PixelClassifier(512, 3, cosine_scale=1.0).half()
    with torch.no_grad():
        classifier.weight[0], classifier.weight[1], classifier.weight[2, :256] = 0.02, -0.02, 0
        classifier.weight[2, 256:] = 0.02
    features = torch.full((1, 512, 1, 1), size).half().requires_grad_()
    logits = classifier(features)[0, :, 0, 0]
    torch.testing.assert_close(logits.float(), torch.tensor([1.0, -1.0, 0.5**0.5]), rtol=2e-3, atol=0)
    logits.float().sum().backward()
    assert features.grad.isfinite().all() and classifier.weight.grad.isfinite().all()


def test_dropout_is_the_last_thing_before_the_product():
    classifier = PixelClassifier(64, 3, cosine_scale=1.0, dropout=0.5)
    features = torch.randn(1, 64, 4, 4)
    classifier.eval()
    torch.testing.assert_close(classifier(features), classifier(features))
    classifier.train()
    assert (classifier(features) - classifier(features)).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_scales_are_named(scale):
    with pytest.raises((ValueError, StrictDataclassError), match=r"cosine_scale=.*above 0, or None"):
        image_models.build_config("vss_fcn", cosine_scale=scale)
