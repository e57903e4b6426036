"""HFGD: what learns from which loss, the shared class tokens, the whole model written down in float64, its cost."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from test_every_architecture import FOUR_MAPS, RESNET, TINY
from test_every_architecture import build_config as build_any_config
from torch import nn

from benchmarks.model_cost import model_cost
from vss_hf.inference import VideoSegmenter
from vss_hf.modeling.configuration_hfgd import HFGDConfig
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.modeling_hfgd import HFGDForSemanticSegmentation


def build_config(**changes):
    return build_any_config("vss_hfgd", **changes)


def build(**changes):
    """A small model in eval mode with random norms and statistics, which hide no mistake."""
    torch.manual_seed(0)
    model = HFGDForSemanticSegmentation(build_config(**changes)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.5)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    nn.init.normal_(model.decode_head.classifier.weight)  # the usual start is so small that classes hardly differ
    return model


def batch(size=(65, 97), count=2):
    """Images and labels, of which some pixels have none."""
    labels = torch.randint(0, 5, (count, *size))
    labels[torch.rand(labels.shape) < 0.1] = 255
    return torch.randn(count, 3, *size), labels


def cross_entropy(logits, labels):
    logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=True)
    return F.cross_entropy(logits, labels, ignore_index=255)


# --- what learns from which loss (section 3.1)

BEFORE, AFTER = {"backbone", "encoding", "classifier"}, {"upsampler", "attention"}


def parts(model):
    head = model.decode_head
    named = {"backbone": model.backbone, "encoding": head.encoding, "classifier": head.classifier}
    return {**named, "upsampler": head.upsampler, "attention": head.attention}


def that_learn(model, loss):
    """The parts of a model that learn from a loss; of each at least the weights do, or nothing at all."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    learning = set()
    for name, part in parts(model).items():
        weights = [p.grad for p in part.parameters() if p.ndim == 4]
        moved = [gradient is not None and bool(gradient.any()) for gradient in weights]
        everything = [p.grad is None or not p.grad.any() for p in part.parameters()]
        assert sum(moved) > 0.7 * len(moved) or all(everything), name
        learning |= {name} if any(moved) else set()
    return learning


@pytest.mark.parametrize("upsampler", ["semantic_fpn", "usfpn", "fapn", "upernet", "deeplabv3plus"])
@pytest.mark.parametrize(
    ("changes", "from_logits"),
    [({}, AFTER), ({"stop_gradient": False}, BEFORE | AFTER), ({"guidance": False}, BEFORE | AFTER)],
    ids=["HFGM", "no stop", "no guidance"],
)
def test_what_learns_from_which_logits(upsampler, changes, from_logits):
    model, (pixels, labels) = build(upsampler=upsampler, **changes).train(), batch()
    if upsampler == "fapn":
        for alignment in model.decode_head.upsampler.alignments:
            nn.init.normal_(alignment.align.offset.weight)  # zeros let no gradient through
    output = model(pixels)
    assert that_learn(model, cross_entropy(output.logits, labels)) == from_logits
    if model.config.guidance:
        (guidance_logits,) = output.auxiliary_logits
        assert that_learn(model, cross_entropy(guidance_logits, labels)) == BEFORE
    else:
        assert output.auxiliary_logits is None
    car = model.regularisation_loss(output.regularised_features, labels)
    assert that_learn(model, car) == {"backbone", "encoding"}
    assert model.decode_head.encoding.out[0].weight.grad is None  # the trailing convolution comes after it


@pytest.mark.parametrize("name", ["swin", "convnext", "vss_hrnet"])
def test_behind_the_stop_gradients_are_zero_and_not_missing(name):
    """DistributedDataParallel waits for one of every parameter; these backbones have some for each map alone."""
    backbone = copy.deepcopy(FOUR_MAPS[name])
    model, (pixels, labels) = build(backbone_config=backbone).train(), batch((64, 96))
    model(pixels, labels=labels).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    norms = dict(model.backbone.named_parameters()).get("hidden_states_norms.stage1.weight")
    assert norms is None or not norms.grad.any()


# --- the class tokens


def test_both_branches_have_one_classifier():
    model, (pixels, _) = build(), batch()
    names = [name for name in model.state_dict() if "classifier" in name]
    assert names == ["decode_head.classifier.weight", "decode_head.classifier.bias"]
    read = []
    classifier = model.decode_head.classifier
    classifier.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    with torch.no_grad():
        nn.init.normal_(classifier.bias)
        output = model(pixels, output_auxiliary_logits=True)
        fine, coarse = (F.conv2d(features, classifier.weight, classifier.bias) for features in read)
    assert torch.equal(output.logits, fine) and fine.shape == (2, 5, 17, 25)
    (guidance_logits,) = output.auxiliary_logits
    assert torch.equal(guidance_logits, coarse) and coarse.shape == (2, 5, 3, 4)


def test_a_cosine_classifier_is_shared_and_stopped_too():
    model, (pixels, labels) = build(cosine_scale=10.0).train(), batch()
    output = model(pixels)
    assert that_learn(model, cross_entropy(output.logits, labels)) == AFTER
    assert that_learn(model, cross_entropy(output.auxiliary_logits[0], labels)) == BEFORE


def test_permuted_classes_permute_the_logits_and_leave_the_loss():
    model, (pixels, labels) = build(), batch()
    order = torch.tensor([3, 0, 4, 1, 2])  # new class k was class order[k]
    other = copy.deepcopy(model)
    other.config.id2label = {new: model.config.id2label[int(old)] for new, old in enumerate(order)}
    classifier = other.decode_head.classifier
    with torch.no_grad():
        nn.init.normal_(model.decode_head.classifier.bias)
        classifier.weight.copy_(model.decode_head.classifier.weight[order])
        classifier.bias.copy_(model.decode_head.classifier.bias[order])
        new_labels = torch.where(labels == 255, 255, order.argsort()[labels.clamp(max=4)])
        ours, theirs = model(pixels, labels=labels), other(pixels, labels=new_labels)
    torch.testing.assert_close(theirs.logits, ours.logits[:, order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.loss, ours.loss, rtol=1e-5, atol=0)
    names = [
        [m.config.id2label[int(c)] for c in o.logits.argmax(1).flatten()] for m, o in ((model, ours), (other, theirs))
    ]
    assert names[0] == names[1] and len(set(names[0])) > 1


# --- the whole of it, written down


class Written:
    """Functional float64 layers on the tensors of a head in eval mode, by their names."""

    def __init__(self, head):
        self.tensors = {name: tensor.double() for name, tensor in head.state_dict().items()}

    def conv(self, x, name, padding=0):
        return F.conv2d(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"), padding=padding)

    def cbr(self, x, name):
        """Convolution, BatchNorm, ReLU."""
        kernel, (norm, get) = self.tensors[f"{name}.0.weight"], (f"{name}.1", self.tensors.get)
        x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        mean, variance = (get(f"{norm}.running_{kind}").view(-1, 1, 1) for kind in ("mean", "var"))
        weight, bias = (get(f"{norm}.{kind}").view(-1, 1, 1) for kind in ("weight", "bias"))
        return ((x - mean) / (variance + 1e-5).sqrt() * weight + bias).clamp(min=0)

    def up(self, x, like):
        size = like if isinstance(like, tuple) else like.shape[-2:]
        return F.interpolate(x, size, mode="bilinear", align_corners=True)

    def cae(self, c5):
        """The high-level features and those that are regularised (section 3.2)."""
        x = self.cbr(self.cbr(c5, "encoding.wide_linear"), "encoding.narrow_linear")
        query, key, value = (self.conv(x, f"encoding.attention.{part}") for part in ("query", "key", "value"))
        likeness = torch.einsum("bchw,bcij->bhwij", query, key)
        weights = likeness.flatten(3).softmax(-1).view_as(likeness)
        x = x + torch.einsum("bhwij,bcij->bchw", weights, value)
        linear = self.conv(x, "encoding.linear")
        return self.cbr(linear, "encoding.out"), linear

    def usfpn(self, c2, c3, c4, high_level, stride):
        """Section 3.3 and Figure 5."""
        p4 = self.cbr(c4, "upsampler.lateral.2") + self.up(high_level, c4)
        p3 = self.cbr(c3, "upsampler.lateral.1") + self.up(p4, c3)
        p2 = self.cbr(c2, "upsampler.lateral.0") + self.up(p3, c2)
        return self.branches([p2, p3, p4, high_level], stride)

    def branches(self, levels, stride):
        """Each level's convolutions and doublings, the sum, the last convolution."""
        (c2, c3, c4, _), (p2, p3, p4, p5) = levels, levels
        name = "upsampler.branches.branches"
        b2 = self.cbr(p2, "upsampler.branches.finest")
        b3 = self.up(self.cbr(p3, f"{name}.1.0.conv"), c2)
        b4 = self.up(self.cbr(self.up(self.cbr(p4, f"{name}.2.0.conv"), c3), f"{name}.2.1.conv"), c2)
        b5 = self.up(self.cbr(p5, f"{name}.3.0.conv"), c4)
        b5 = self.up(self.cbr(self.up(self.cbr(b5, f"{name}.3.1.conv"), c3), f"{name}.3.2.conv"), c2)
        branches = [b2, b3, b4, b5]
        if stride == 2:
            size = tuple(2 * side - 1 for side in c2.shape[-2:])
            branches = [self.up(self.cbr(b, f"{name}.{i}.{i}.conv"), size) for i, b in enumerate(branches)]
        return self.cbr(sum(branches), "upsampler.branches.out")

    def axial(self, y, heads):
        """Columns, then rows, from the same queries and keys."""
        query, key, value = (
            self.conv(y, f"attention.{part}").unflatten(1, (heads, -1)) for part in ("query", "key", "value")
        )
        scale = query.shape[2] ** -0.5
        columns = (torch.einsum("bnchw,bnciw->bnwhi", query, key) * scale).softmax(-1)
        value = torch.einsum("bnwhi,bnciw->bnchw", columns, value)
        rows = (torch.einsum("bnchw,bnchj->bnhwj", query, key) * scale).softmax(-1)
        return y + torch.einsum("bnhwj,bnchj->bnchw", rows, value).flatten(1, 2)


def written_car(features, labels, num_labels):
    """Class-aware regularisation, class by class and place by place; labels (N, h, w) at the features' size."""
    flat, labels = features.movedim(1, -1).flatten(0, 2), labels.flatten()
    flat, labels = flat[labels != 255], labels[labels != 255]
    classes = [k for k in range(num_labels) if (labels == k).any()]
    centers = torch.stack([flat[labels == k].mean(0) for k in classes])
    width, others = flat.shape[1], len(classes) - 1
    own = torch.tensor([classes.index(int(k)) for k in labels])
    intra = (flat - centers[own]).abs().mean() ** 2

    between = (centers @ centers.T / width**0.5).softmax(1)
    c2c = [(row[torch.arange(len(row)) != k] - 0.5 / others).clamp(min=0).sum() for k, row in enumerate(between)]
    c2p = []
    for x, k in zip(flat, own, strict=True):
        products = centers @ x
        products[k] = centers[k] @ centers[k]
        probabilities = (products / width**0.5).softmax(0)
        c2p.append((probabilities[torch.arange(others + 1) != k] - 0.25 / others).clamp(min=0).sum())
    return intra + torch.stack(c2c).mean() ** 2 + torch.stack(c2p).mean() ** 2


@pytest.mark.parametrize("stride", [4, 2])
def test_the_whole_model_as_written_down(stride):
    """At 65x97 pixels the corners of labels and maps coincide: every 32nd label is a place's own."""
    model, (pixels, labels) = build(output_stride=stride, car_loss_weight=0.3).double(), batch()
    with torch.no_grad():
        output = model(pixels.double(), labels=labels, output_auxiliary_logits=True)
        c2, c3, c4, c5 = model.backbone(pixels.double()).feature_maps
        head = Written(model.decode_head)
        high_level, regularised = head.cae(c5)
        features = head.axial(head.usfpn(c2, c3, c4, high_level, stride), heads=2)
        logits, guidance_logits = head.conv(features, "classifier"), head.conv(high_level, "classifier")
        car = written_car(regularised, labels[:, ::32, ::32], 5)
        loss = cross_entropy(logits, labels) + cross_entropy(guidance_logits, labels) + 0.3 * car
    assert logits.shape == (2, 5, *((17, 25) if stride == 4 else (33, 49)))
    exact = dict(rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.regularised_features, regularised, **exact)
    torch.testing.assert_close(output.logits, logits, **exact)
    torch.testing.assert_close(output.auxiliary_logits[0], guidance_logits, **exact)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-5)  # the loss is computed in float32


def test_inference_aligns_corners_as_training_does(tmp_path):
    """The finished labels are those of logits whose corners lie on the frame's."""
    model = build()
    model.save_pretrained(tmp_path)
    VSSImageProcessor().save_pretrained(tmp_path)
    frame = np.random.default_rng(0).integers(0, 256, (65, 97, 3), dtype=np.uint8)
    labels = VideoSegmenter.from_pretrained(tmp_path, "cpu").step(frame)
    pixels = VSSImageProcessor()(frame, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(pixels).logits
    aligned, otherwise = (
        F.interpolate(logits, (65, 97), mode="bilinear", align_corners=corners).argmax(1)[0].numpy()
        for corners in (True, False)
    )
    assert pixels.shape[-2:] == (65, 97) and (labels == aligned).mean() > 0.999 > (labels == otherwise).mean()


# --- Table 9


@pytest.mark.parametrize(
    ("preset", "gmac", "measured"),
    [
        ("hfgd-sa-car-resnet50-d8", 158.96, 156.61),
        ("hfgd-semantic-fpn-resnet50", 45.65, 44.72),
        ("hfgd-resnet50", 71.63, 73.51),
        ("hfgd-resnet50-os2", 153.62, 157.01),
    ],
)
def test_it_costs_what_the_paper_says(preset, gmac, measured):
    """513x513 pixels, 59 classes; the paper's "GFLOPs" are multiply-accumulates, attention's included."""
    cost = model_cost(preset, num_labels=59, size=(513, 513))["gmac"]
    assert cost == pytest.approx(gmac, rel=0.03)
    assert cost == pytest.approx(measured, abs=0.01)


# --- what is refused

NONE = dict(upsampler="none")
DILATED = {**RESNET, "output_stride": 8}
VOLO = {
    "model_type": "vss_volo",
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 16, 16, 16],
    "num_heads": [1, 2, 2, 2],
    "out_features": ["stem", "stage1", "stage4"],
}
EARLY = {**RESNET, "out_features": ["stem", "stage1", "stage2", "stage3"]}
LATE = {**RESNET, "out_features": ["stage3", "stage4"]}
ONE = {**RESNET, "out_features": ["stage4"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(upsampler="usfnp"), "upsampler='usfnp'.*expected one of none, semantic_fpn, usfpn"),
        (dict(extra_encoding="car"), "extra_encoding='car'.*identity, aspp"),
        (dict(output_stride=8), "output_stride=8: expected 4 or 2"),
        (dict(guidance="true"), "guidance"),
        (NONE | dict(guidance=True), "guidance=True with upsampler='none': there is no upsampler"),
        (NONE | dict(stop_gradient=True), "stop_gradient=True with upsampler='none': there is no upsampler"),
        (NONE | dict(axial_attention=True), "axial_attention=True with upsampler='none'"),
        (NONE | dict(output_stride=4), "output_stride=4 with upsampler='none'"),
        (dict(guidance=False, stop_gradient=True), "stop_gradient=True with guidance=False: .* nothing before"),
        (dict(auxiliary_loss_weight=0.0), "auxiliary_loss_weight=0.* nothing before the upsampler would"),
        (dict(guidance=False, auxiliary_loss_weight=0.7), "auxiliary_loss_weight=0.7 with guidance=False.*no auxil"),
        (NONE | dict(auxiliary_loss_weight=0.7), "auxiliary_loss_weight=0.7 with .*'cae': there is no auxiliary loss"),
        (dict(upsampler="upernet", output_stride=2), "output_stride=2 with upsampler='upernet': it ends at"),
        (dict(upsampler="deeplabv3plus", output_stride=2), "output_stride=2 with upsampler='deeplabv3plus'"),
        (dict(backbone_config=DILATED), r"'usfpn'.*4 maps, of strides \[4, 8, 8, 8\].*dilated backbone takes 'none'"),
        (dict(upsampler="fapn", backbone_config=EARLY), r"'fapn'.*\[2, 4, 8, 16\]: expected four maps of strides 4,"),
        (
            dict(upsampler="upernet", backbone_config=VOLO),
            r"'upernet' with a backbone of 3 maps, of strides \[2, 8, 16\]",
        ),
        (dict(upsampler="deeplabv3plus", backbone_config=VOLO), r"strides \[2, 8, 16\].* the first of stride 4"),
        (dict(upsampler="deeplabv3plus", backbone_config=LATE), r"strides \[16, 32\].*first of stride 4"),
        (dict(upsampler="deeplabv3plus", backbone_config=ONE), r"1 maps, of strides \[32\]: expected two or more"),
        (dict(axial_heads=3), "channels=8: expected a multiple of axial_heads=3"),
        (dict(axial_heads=1, key_channels=9, encoding_channels=16), "key_channels=9: expected at most channels=8"),
        (dict(axial_attention=False, key_channels=9), "key_channels=9: expected at most encoding_channels=8"),
        (dict(wide_channels=0), "wide_channels=0: expected at least 1"),
        (dict(encoding_channels=2**17), "encoding_channels=131072: expected at most 65536"),
        (dict(car_loss_weight=float("nan")), "car_loss_weight=nan: expected a finite number"),
        (
            dict(extra_encoding="sa", car_loss_weight=0.5),
            "car_loss_weight=0.5 with extra_encoding='sa'.*sa_car or cae",
        ),
        (dict(extra_encoding="ocr", car_faithful=True), "car_faithful=True with extra_encoding='ocr'"),
        (dict(guidence=True), "no field 'guidence'; did you mean 'guidance'"),
    ],
)
def test_impossible_combinations_are_refused(changes, words):
    with pytest.raises((ValueError, StrictDataclassError), match=words):
        build_config(**copy.deepcopy(changes))


def test_what_is_left_out_follows_from_the_upsampler():
    fields = ("guidance", "stop_gradient", "axial_attention", "output_stride", "auxiliary_loss_weight")

    def told(**changes):
        return tuple(getattr(build_config(**changes), field) for field in fields)

    assert told() == (True, True, True, 4, 1.0)
    assert told(guidance=False) == (False, False, True, 4, 0.4)
    assert told(stop_gradient=False, axial_attention=False) == (True, False, False, 4, 1.0)
    assert told(upsampler="none") == (False, False, False, None, 0.4)
    assert told(guidance=False, extra_encoding="ocr", auxiliary_loss_weight=0.7)[4] == 0.7
    assert told(guidance=False, auxiliary_loss_weight=0.0)[4] == 0.0
    # widths that nothing has are not compared
    assert told(extra_encoding="identity", axial_attention=False, key_channels=64)[0]


@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [1, 2, 3]])
def test_timms_strides_are_known_when_the_model_is_built(indices):
    backbone = {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": indices}
    fields = TINY["vss_hfgd"] | dict(backbone_config=backbone)
    with pytest.raises((ValueError, StrictDataclassError), match="upsampler='usfpn' with a backbone of . maps"):
        HFGDForSemanticSegmentation(HFGDConfig(**fields))
    if len(indices) == 3:
        model = HFGDForSemanticSegmentation(HFGDConfig(**fields, upsampler="deeplabv3plus"))
        with torch.no_grad():
            assert model.eval()(torch.randn(1, 3, 64, 96)).logits.shape[-2:] == (16, 24)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(upsampler="none"), "guidance=True with upsampler='none': there is no upsampler"),
        (dict(guidance=False), "stop_gradient=True with guidance=False: .* nothing before"),
        (dict(extra_encoding="ppm", car_loss_weight=0.5), "car_loss_weight=0.5 with extra_encoding='ppm'"),
    ],
)
def test_impossible_changes_of_a_saved_model_are_refused(changes, words, tmp_path):
    HFGDForSemanticSegmentation(build_config()).save_pretrained(tmp_path)
    with pytest.raises((ValueError, StrictDataclassError), match=words):
        HFGDForSemanticSegmentation.from_pretrained(tmp_path, **changes)


def test_a_saved_model_without_its_upsampler(tmp_path):
    """The teacher alone: what the guidance branch says."""
    model, (pixels, _) = build(), batch()
    model.save_pretrained(tmp_path)
    less = dict(upsampler="none", guidance=None, stop_gradient=None, axial_attention=None, output_stride=None)
    teacher = HFGDForSemanticSegmentation.from_pretrained(tmp_path, **less)
    with torch.no_grad():
        (expected,) = model(pixels, output_auxiliary_logits=True).auxiliary_logits
        torch.testing.assert_close(teacher.eval()(pixels).logits, expected)
