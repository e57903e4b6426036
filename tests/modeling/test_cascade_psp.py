"""CascadePSP's refinement network: against a straight-line computation, sizes, saving, precision, wrong input."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

import vss_hf
from vss_hf.convert import load_reference_state_dict, read_reference_file
from vss_hf.modeling.configuration_cascade_psp import BACKBONE, CascadePSPConfig
from vss_hf.modeling.modeling_cascade_psp import CascadePSPModel


TINY = dict(
    backbone_config={
        **BACKBONE,
        "stem_channels": 4,
        "depths": [1, 1, 2, 2],
        "hidden_sizes": [8, 12, 16, 20],
        "dilations": [[1], [1], [1, 2], [1, 4]],
    },
    channels=10,
    pool_scales=[1, 2, 3],
    upsample_channels=[9, 7, 6],
    head_channels=5,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = CascadePSPModel(CascadePSPConfig(**copy.deepcopy(TINY))).eval()
    for norm in model.modules():  # new norms hide mistakes
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1, 0.2)
            nn.init.normal_(norm.bias, 0, 0.2)
            nn.init.normal_(norm.running_mean, 0, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return model


def image_and_masks(size=(40, 56), count=2):
    """An image, a mask, and what other passes may have made of it."""
    return torch.randn(count, 3, *size), *(torch.rand(3, count, 1, *size) * 2 - 1)


def all_logits(output):
    return [output.logits, *output.logits_stride8, *output.logits_stride4]


def reference_names(model):
    """The model's tensors under the original's names, written down by hand."""
    renamed = {
        "backbone": "feats",
        "pyramid.pools": "psp.stages",
        "pyramid.merge": "psp.bottleneck",
        "head_stride8": "final_28",
        "head_stride4": "final_56",
        "head_stride1.0": "final_11",
        "head_stride1.2": "final_21",
    }
    for number, stride in ((1, 4), (2, 2), (3, 1)):
        for own, theirs in (("fuse", "conv"), ("refine", "conv2"), ("shortcut", "shortcut")):
            renamed[f"up_stride{stride}.{own}"] = f"up_{number}.{theirs}"
    names = {}
    for name, tensor in model.state_dict().items():
        (own,) = [own for own in renamed if name.startswith(own + ".")]
        names[renamed[own] + name.removeprefix(own)] = tensor.clone()
    return names


def straight_line(weights, image, mask, inter_8=None, inter_4=None):
    """The original's layers as they are written down there, in float64: logits, those of stride 8, of stride 4."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    image, mask, inter_8, inter_4 = (x if x is None else x.double() for x in (image, mask, inter_8, inter_4))

    def conv(x, name, **how):
        return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), **how)

    def norm(x, name):
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, w[f"{name}.weight"], w[f"{name}.bias"])

    def bigger(x, factor):
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    def feats(x):
        stem = conv(x, "feats.conv1", stride=2, padding=3)
        x = F.max_pool2d(norm(stem, "feats.bn1").relu(), 3, stride=2, padding=1)
        for stage, dilations in enumerate(((1,), (1,), (1, 2), (1, 4)), start=1):
            for b, dilation in enumerate(dilations):
                block, stride = f"feats.layer{stage}.{b}", 2 if stage == 2 and b == 0 else 1
                y = norm(conv(x, f"{block}.conv1"), f"{block}.bn1").relu()
                y = conv(y, f"{block}.conv2", stride=stride, padding=dilation, dilation=dilation)
                y = norm(conv(norm(y, f"{block}.bn2").relu(), f"{block}.conv3"), f"{block}.bn3")
                if b == 0:
                    x = norm(conv(x, f"{block}.downsample.0", stride=stride), f"{block}.downsample.1")
                x = (x + y).relu()
            if stage == 1:
                first = x
        return x, stem, first

    def psp(x):
        pooled = [conv(F.adaptive_avg_pool2d(x, scale), f"psp.stages.{i}.1") for i, scale in enumerate((1, 2, 3))]
        pooled = [F.interpolate(p, size=x.shape[2:], mode="bilinear", align_corners=False) for p in pooled]
        return conv(torch.cat([*pooled, x], dim=1), "psp.bottleneck").relu()

    def pair(x, name):
        x = conv(norm(x, f"{name}.0").relu(), f"{name}.2", padding=1)
        return conv(norm(x, f"{name}.3").relu(), f"{name}.5", padding=1)

    def up(x, skip, name):
        x = bigger(x, 2)
        p = pair(torch.cat([x, skip], dim=1), f"{name}.conv") + conv(x, f"{name}.shortcut")
        return p + pair(p, f"{name}.conv2")

    def final(x, name):
        return conv(conv(x, f"{name}.0").relu(), f"{name}.2")

    out_8, out_4 = [], []
    if inter_8 is None:
        f, _, _ = feats(torch.cat([image, mask, mask, mask], dim=1))
        out_8.append(bigger(final(psp(f), "final_28"), 8))
        inter_8 = out_8[-1].tanh()
    if inter_4 is None:
        f, _, first = feats(torch.cat([image, mask, inter_8, inter_8], dim=1))
        p = psp(f)
        out_8.append(bigger(final(p, "final_28"), 8))
        out_4.append(bigger(final(up(p, first, "up_1"), "final_56"), 4))
        inter_8, inter_4 = out_8[-1].tanh(), out_4[-1].tanh()
    f, stem, first = feats(torch.cat([image, mask, inter_8, inter_4], dim=1))
    p = psp(f)
    out_8.append(bigger(final(p, "final_28"), 8))
    p = up(p, first, "up_1")
    out_4.append(bigger(final(p, "final_56"), 4))
    p = up(up(p, stem, "up_2"), image, "up_3")
    out = conv(conv(torch.cat([p, image], dim=1), "final_11").relu(), "final_21")
    return [out, *out_8, *out_4]


@pytest.mark.parametrize("given", [1, 2, 3])
@pytest.mark.parametrize("size", [(40, 56), (64, 32), (8, 8)])
def test_logits_are_those_of_the_layers_written_down(model, size, given):
    image, *masks = image_and_masks(size)
    with torch.no_grad():
        ours = all_logits(model(image, *masks[:given]))
        theirs = straight_line(reference_names(model), image, *masks[:given])
    assert len(ours) == {1: 6, 2: 5, 3: 3}[given]
    for logits, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("size", "padded"), [((33, 47), (40, 48)), ((40, 47), (48, 48)), ((1, 16), (8, 24)), ((7, 9), (8, 16))]
)
def test_other_sizes_are_padded_as_in_the_original(model, size, padded):
    """To the next multiples of 8, of which the second case's height is one already."""
    image, *masks = image_and_masks(size, count=1)
    bigger_image = torch.zeros(1, 3, *padded)
    bigger_image[..., : size[0], : size[1]] = image
    bigger_masks = [torch.full((1, 1, *padded), -1.0) for _ in masks]
    for bigger, mask in zip(bigger_masks, masks, strict=True):
        bigger[..., : size[0], : size[1]] = mask
    for given in (1, 2, 3):
        with torch.no_grad():
            ours = all_logits(model(image, *masks[:given]))
            expected = all_logits(model(bigger_image, *bigger_masks[:given]))
        for logits, whole in zip(ours, expected, strict=True):
            assert logits.shape == (1, 1, *size) and torch.equal(logits, whole[..., : size[0], : size[1]])


def test_images_of_a_batch_do_not_mix(model):
    image, mask, *_ = image_and_masks(count=2)
    with torch.no_grad():
        together = model(image, mask).logits
        apart = torch.cat([model(image[i : i + 1], mask[i : i + 1]).logits for i in range(2)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_reference_checkpoint_gives_the_same_model(model, prefix, tmp_path):
    names = {prefix + name: tensor for name, tensor in reference_names(model).items()}
    torch.save(names, tmp_path / "model")
    for tensors in (names, read_reference_file(tmp_path / "model")):
        other = CascadePSPModel(model.config).eval()
        report = load_reference_state_dict(other, tensors, "cascadepsp")
        assert set(report.loaded) == set(model.state_dict()) and not report.unused and not report.kept
        image, mask, *_ = image_and_masks()
        assert torch.equal(other(image, mask).logits, model(image, mask).logits)


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    again, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is vss_hf.CascadePSPModel and not again.training and not any(report.values())
    assert type(AutoConfig.from_pretrained(tmp_path)) is vss_hf.CascadePSPConfig
    backbones = [{**m.config.backbone_config.to_dict(), "dtype": None} for m in (model, again)]
    assert backbones[0] == backbones[1]  # but for the type of numbers, which is noted on loading
    for (name, tensor), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    image, mask, *_ = image_and_masks()
    torch.testing.assert_close(again(image, mask).logits, model(image, mask).logits, rtol=1e-5, atol=1e-6)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    ours, exact = half(image.bfloat16(), mask.bfloat16()).logits, model(image, mask).logits
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - exact).abs().mean() <= 0.05 * exact.abs().mean() + 0.02
    empty = AutoModel.from_pretrained(tmp_path, device_map="meta")
    assert all(p.is_meta for p in empty.parameters())
    assert empty(torch.empty(1, 3, 33, 47, device="meta"), torch.empty(1, 1, 33, 47, device="meta")).logits.is_meta


@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
def test_one_odd_image_trains_every_parameter(model, precision):
    image, mask, *_ = image_and_masks((33, 47), count=1)
    if precision == "bf16":
        model, image, mask = model.bfloat16(), image.bfloat16(), mask.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        output = model.train()(image, mask)
    losses = [F.binary_cross_entropy_with_logits(logits.float(), (mask > 0).float()) for logits in all_logits(output)]
    sum(losses).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_gradient_checkpointing_changes_memory_only(model):
    image, mask, *_ = image_and_masks()
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable()
    outputs = [m.train()(image, mask).logits for m in (model, other)]
    for output in outputs:
        output.square().mean().backward()
    assert torch.equal(*outputs)
    for (name, parameter), same in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(same[1].grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    for (name, buffer), same in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(buffer, same), name


@pytest.mark.slow
def test_compiles_without_graph_breaks(model):
    image, mask, *_ = image_and_masks((33, 47), count=1)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(image, mask).logits
        torch.testing.assert_close(compiled, model(image, mask).logits, rtol=0, atol=1e-6)


def test_initial_weights():
    """Masks of a new network are near 0: none of the hyperbolic tangents between its passes is saturated."""
    torch.manual_seed(0)
    model = CascadePSPModel(CascadePSPConfig(**copy.deepcopy(TINY))).eval()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    with torch.no_grad():
        assert max(logits.abs().max() for logits in all_logits(model(*image_and_masks()[:2]))) < 2
    merge = model.pyramid.merge
    bound = merge.in_channels**-0.5  # torch's own initial weights
    for tensor in (merge.weight, merge.bias):
        assert 0.5 * bound < tensor.abs().max() <= bound
    assert model.up_stride4.fuse[0].weight.unique().item() == 1 and not model.up_stride4.fuse[0].bias.any()


def test_plain_tuples(model):
    image, mask, *_ = image_and_masks()
    with torch.no_grad():
        output = model(image, mask, return_dict=False)
        assert type(output) is tuple and torch.equal(output[0], model(image, mask).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mask=torch.zeros(2, 40, 56)), r"mask: shape \(2, 40, 56\), expected \(2, 1, 40, 56\)"),
        (dict(mask_stride8=torch.zeros(2, 1, 5, 7)), r"mask_stride8: shape .*expected \(2, 1, 40, 56\)"),
        (dict(mask_stride4=torch.zeros(2, 1, 40, 56)), "mask_stride4 is given without mask_stride8"),
        (dict(pixel_values=torch.zeros(2, 1, 40, 56)), r"pixel_values: shape .*expected \(batch, 3, height, width\)"),
    ],
)
def test_wrong_input_is_named(model, change, message):
    image, mask, *_ = image_and_masks()
    with pytest.raises(ValueError, match=message):
        model(**{"pixel_values": image, "mask": mask, **change})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(backbone_config={**BACKBONE, "num_channels": 3}), "backbone_config.num_channels=3: expected 6"),
        (dict(backbone_config={**BACKBONE, "output_stride": 16}), "backbone_config.output_stride=16: expected 8"),
        (dict(backbone_config={**BACKBONE, "out_features": ["stage4"]}), "out_features=.*expected .'stem', 'stage1'"),
        (dict(backbone_config={"model_type": "resnet"}), "model_type is 'resnet', expected 'vss_resnet'"),
        (dict(backbone_config={"depths": [1]}), "no 'model_type'"),
        (dict(pool_scales=[0, 1]), r"pool_scales=\[0, 1\]: expected one or more numbers from 1 up"),
        (dict(upsample_channels=[512, 256]), "upsample_channels=.*expected 3 numbers"),
        (dict(head_channels=0), "head_channels=0: expected at least 1"),
        (dict(pool_scale=[1]), "no field 'pool_scale'; did you mean 'pool_scales'"),
    ],
)
def test_wrong_configurations_are_refused(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        CascadePSPConfig(**fields)
