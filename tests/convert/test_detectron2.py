"""Facebook's MaskFormer and Mask2Former: every name and shape, what they compute, and their pickles.

MaskFormer's head is computed line by line from the reference's own tensors. Mask2Former's is the same network as
mmseg's (test_mmseg_mask2former.py), so there the same tensors under both sets of names must give the same model.
"""

import collections
import io
import math
import os
import pickle

import numpy as np
import pytest
import torch
from test_mmseg_mask2former import DECODER, PIXELS, head_shapes, random_tensors, sine_positions, small_model
from tiny_mask_models import BACKBONES, CLASSES, make
from torch.nn import functional as F

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.detectron2 import read_detectron2_pickle
from vss_hf.convert.state_dict import read_reference_file, table_for
from vss_hf.convert.tables import rename
from vss_hf.modeling.backbone import build_backbone
from vss_hf.modeling.configuration_segmenter import backbone_config_from_dict


HEAD, PREDICTOR = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."


# --- backbones


def swin_shapes(width, depths, heads, window):
    """`D2SwinTransformer`: Microsoft's names, four norms, the index tables as buffers."""
    shapes = {"patch_embed.proj.weight": (width, 3, 4, 4), "patch_embed.proj.bias": (width,)}
    shapes.update({"patch_embed.norm.weight": (width,), "patch_embed.norm.bias": (width,)})

    def layer(name, out, *rest, bias=True):
        shapes[f"{name}.weight"] = (out, *rest)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    for i, (depth, number) in enumerate(zip(depths, heads, strict=True)):
        c = width * 2**i
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}."
            for norm in ("norm1", "norm2"):
                layer(block + norm, c)
            shapes[block + "attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, number)
            shapes[block + "attn.relative_position_index"] = (window**2, window**2)
            layer(block + "attn.qkv", 3 * c, c)
            layer(block + "attn.proj", c, c)
            layer(block + "mlp.fc1", 4 * c, c)
            layer(block + "mlp.fc2", c, 4 * c)
        if i < len(depths) - 1:
            layer(f"layers.{i}.downsample.norm", 4 * c)
            layer(f"layers.{i}.downsample.reduction", 2 * c, 4 * c, bias=False)
        layer(f"norm{i}", c)
    return shapes


def resnet_shapes(stem, widths, depths):
    """Detectron2's bottleneck ResNet; a norm is inside its convolution."""
    shapes = {}

    def conv(name, out, inner, kernel):
        shapes[f"{name}.weight"] = (out, inner, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.norm.{part}"] = (out,)

    if stem == "basic":
        conv("stem.conv1", 64, 3, 7)
        inner = 64
    else:
        conv("stem.conv1_1", 64, 3, 3)
        conv("stem.conv1_2", 64, 64, 3)
        conv("stem.conv1_3", 128, 64, 3)
        inner = 128
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for j in range(depth):
            name = f"res{stage + 2}.{j}."
            conv(name + "conv1", width // 4, inner, 1)
            conv(name + "conv2", width // 4, width // 4, 3)
            conv(name + "conv3", width, width // 4, 1)
            if j == 0:
                conv(name + "shortcut", width, inner, 1)
            inner = width
    return shapes


def on_meta(shapes, prefix=""):
    return {prefix + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def index_table(window):
    """Which row of the bias table belongs to a pair of pixels in a window."""
    pixels = [(row, column) for row in range(window) for column in range(window)]
    side = 2 * window - 1
    return torch.tensor([[(a - c + window - 1) * side + b - d + window - 1 for c, d in pixels] for a, b in pixels])


def tiny_swin():
    shapes = swin_shapes(8, (2, 2, 2, 2), (1, 2, 2, 2), 4)
    tensors = {name: tensor.float() for name, tensor in random_tensors(shapes).items()}
    tables = {name: index_table(4) for name in shapes if name.endswith("index")}
    return {**tensors, **tables}


def test_both_of_transformers_swins_compute_the_same():
    torch.manual_seed(0)
    tensors = {f"backbone.{name}": tensor for name, tensor in tiny_swin().items()}
    pixel_values, maps = torch.randn(1, 3, 97, 161), []
    for kind in CLASSES:
        model = make(kind)
        renamed = rename(tensors, table_for("detectron2", model.config))
        prefix = "model.pixel_level_module.encoder."
        assert set(renamed.tensors) == {name for name in model.state_dict() if name.startswith(prefix)}
        model.load_state_dict(renamed.tensors, strict=False)
        with torch.no_grad():
            maps.append(model.backbone(pixel_values).feature_maps)
    for a, b in zip(*maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", ["basic", "deeplab"])
def test_names_and_shapes_of_resnets(stem):
    shapes = resnet_shapes(stem, (256, 512, 1024, 2048), (3, 4, 6, 3))
    fields = dict(model_type="vss_resnet", hidden_sizes=[256, 512, 1024, 2048], depths=[3, 4, 6, 3])
    if stem == "deeplab":
        fields.update(stem="3x3x3", stem_channels=128)
    with torch.device("meta"):
        backbone = build_backbone(backbone_config_from_dict({**fields, "block": "bottleneck"}))
    report = load_reference_state_dict(backbone, on_meta(shapes), "detectron2")
    assert all(name.endswith("num_batches_tracked") for name in report.kept) and not report.unused


# --- heads


def maskformer_shapes(maps, width, mask_width, hidden, layers, queries, classes):
    shapes = {}

    def layer(name, out, *rest, bias=True):
        shapes[f"{name}.weight"] = (out, *rest)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    for stage in (1, 2, 3, 4):
        if stage < 4:
            layer(f"{HEAD}adapter_{stage}", width, maps[stage - 1], 1, 1, bias=False)
            layer(f"{HEAD}adapter_{stage}.norm", width)
        layer(f"{HEAD}layer_{stage}", width, width if stage < 4 else maps[3], 3, 3, bias=False)
        layer(f"{HEAD}layer_{stage}.norm", width)
    layer(f"{HEAD}mask_features", mask_width, width, 3, 3)
    for i in range(layers):
        name = f"{PREDICTOR}transformer.decoder.layers.{i}."
        for attention in ("self_attn", "multihead_attn"):
            shapes[f"{name}{attention}.in_proj_weight"] = (3 * width, width)
            shapes[f"{name}{attention}.in_proj_bias"] = (3 * width,)
            layer(f"{name}{attention}.out_proj", width, width)
        layer(name + "linear1", hidden, width)
        layer(name + "linear2", width, hidden)
        for norm in (1, 2, 3):
            layer(f"{name}norm{norm}", width)
    layer(f"{PREDICTOR}transformer.decoder.norm", width)
    shapes[f"{PREDICTOR}query_embed.weight"] = (queries, width)
    layer(f"{PREDICTOR}input_proj", width, maps[3], 1, 1)
    layer(f"{PREDICTOR}class_embed", classes + 1, width)
    for i, out in enumerate((width, width, mask_width)):
        layer(f"{PREDICTOR}mask_embed.layers.{i}", out, width)
    shapes["criterion.empty_weight"] = (classes + 1,)
    return shapes


def maskformer_head(maps, tensors):
    """Class and mask logits after every decoder layer, for one image's maps; in float64."""

    def conv(x, name, padding):
        x = F.conv2d(x, tensors[name + ".weight"], padding=padding)
        return F.group_norm(x, 32, tensors[name + ".norm.weight"], tensors[name + ".norm.bias"])

    def linear(x, name):
        return F.linear(x, tensors[name + ".weight"], tensors[name + ".bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], tensors[name + ".weight"], tensors[name + ".bias"])

    def attention(query, key, value, name):
        return F.multi_head_attention_forward(
            query, key, value, 64, 2, tensors[name + ".in_proj_weight"], tensors[name + ".in_proj_bias"], None, None,
            False, 0.0, tensors[name + ".out_proj.weight"], tensors[name + ".out_proj.bias"],
        )[0]  # fmt: skip

    y = conv(maps[3], HEAD + "layer_4", 1).relu()
    for stage in (3, 2, 1):
        lateral = conv(maps[stage - 1], f"{HEAD}adapter_{stage}", 0)
        y = lateral + F.interpolate(y, size=lateral.shape[-2:], mode="nearest")
        y = conv(y, f"{HEAD}layer_{stage}", 1).relu()
    pixels = F.conv2d(y, tensors[HEAD + "mask_features.weight"], tensors[HEAD + "mask_features.bias"], padding=1)[0]

    positions = sine_positions(*maps[3].shape[-2:])  # its width is 64, as here
    memory = F.conv2d(maps[3], tensors[PREDICTOR + "input_proj.weight"], tensors[PREDICTOR + "input_proj.bias"])
    memory = memory[0].flatten(1).T
    queries = tensors[PREDICTOR + "query_embed.weight"]
    x, predictions = torch.zeros_like(queries), []
    for i in range(3):
        name = f"{PREDICTOR}transformer.decoder.layers.{i}."
        x = norm(x + attention(x + queries, x + queries, x, name + "self_attn"), name + "norm1")
        x = norm(x + attention(x + queries, memory + positions, memory, name + "multihead_attn"), name + "norm2")
        x = norm(x + linear(linear(x, name + "linear1").relu(), name + "linear2"), name + "norm3")
        state = norm(x, PREDICTOR + "transformer.decoder.norm")
        mlp = PREDICTOR + "mask_embed.layers."
        masks = linear(linear(linear(state, mlp + "0").relu(), mlp + "1").relu(), mlp + "2")
        predictions.append((linear(state, PREDICTOR + "class_embed"), torch.einsum("qc,chw->qhw", masks, pixels)))
    return predictions


@pytest.mark.parametrize("age", ["new", "old"])
def test_maskformer_computes_what_facebooks_does(age):
    torch.manual_seed(0)
    decoder = dict(model_type="detr", d_model=64, decoder_layers=3, decoder_attention_heads=2, decoder_ffn_dim=48)
    model = make("maskformer", decoder_config={**decoder, "num_queries": 7}).double()
    head = random_tensors(maskformer_shapes((8, 16, 32, 64), 64, 16, 48, 3, 7, 5) | {})
    reference = {**{f"backbone.{name}": tensor for name, tensor in tiny_swin().items()}, **head}
    if age == "old":  # before the pixel decoder had a part of its own
        reference = {name.replace(HEAD, "sem_seg_head."): tensor for name, tensor in reference.items()}
    reference["pixel_mean"] = torch.zeros(3, 1, 1)
    # A head of 64 channels on a map of 64 has no input projection in either code.
    reference = {name: tensor for name, tensor in reference.items() if "input_proj." not in name}
    head[PREDICTOR + "input_proj.weight"] = torch.eye(64, dtype=torch.float64)[..., None, None]
    head[PREDICTOR + "input_proj.bias"] = torch.zeros(64, dtype=torch.float64)
    report = load_reference_state_dict(model, reference, "detectron2")
    assert set(report.loaded) == set(model.state_dict()) and set(report.unused) == {"pixel_mean"}
    with torch.no_grad():
        pixel_values = torch.randn(1, 3, 97, 161, dtype=torch.float64)
        expected = maskformer_head(model.backbone(pixel_values).feature_maps, head)
        output = model(pixel_values, output_auxiliary_logits=True)
    ours = [*output.auxiliary_logits, output]
    assert len(ours) == len(expected) == 3
    for each, (classes, masks) in zip(ours, expected, strict=True):
        torch.testing.assert_close(each["class_queries_logits"][0], classes, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(each["masks_queries_logits"][0], masks, rtol=1e-7, atol=1e-7)


def facebooks_mask2former_names(name):
    """What Facebook calls a tensor of mmseg's head."""
    words = name.removeprefix("decode_head.").split(".")
    kind = words[-1]
    if name.startswith(PIXELS + "encoder.layers"):
        layer = f"{HEAD}transformer.encoder.layers.{words[3]}."
        if words[4] == "attentions":
            return layer + "self_attn." + ".".join(words[6:])
        if words[4] == "norms":
            return f"{layer}norm{int(words[5]) + 1}.{kind}"
        return f"{layer}linear{1 if words[7] == '0' else 2}.{kind}"
    if name.startswith(DECODER + "layers"):
        i = words[2]
        if words[3] == "ffns":
            return f"{PREDICTOR}transformer_ffn_layers.{i}.linear{1 if words[6] == '0' else 2}.{kind}"
        part = {"0": "cross_attention", "1": "self_attention", "2": "ffn"}[words[4]]
        layer = f"{PREDICTOR}transformer_{part}_layers.{i}."
        if words[3] == "norms":
            return layer + "norm." + kind
        return layer + ("multihead_attn." if part == "cross_attention" else "self_attn.") + ".".join(words[6:])
    plain = {
        "pixel_decoder.level_encoding.weight": HEAD + "transformer.level_embed",
        "pixel_decoder.lateral_convs.0.conv.weight": HEAD + "adapter_1.weight",
        "pixel_decoder.output_convs.0.conv.weight": HEAD + "layer_1.weight",
        "query_embed.weight": PREDICTOR + "query_embed.weight",
        "query_feat.weight": PREDICTOR + "query_feat.weight",
        "level_embed.weight": PREDICTOR + "level_embed.weight",
    }
    short = ".".join(words)
    if short in plain:
        return plain[short]
    places = {
        "pixel_decoder.lateral_convs.0.gn": HEAD + "adapter_1.norm",
        "pixel_decoder.output_convs.0.gn": HEAD + "layer_1.norm",
        "pixel_decoder.mask_feature": HEAD + "mask_features",
        "transformer_decoder.post_norm": PREDICTOR + "decoder_norm",
        "cls_embed": PREDICTOR + "class_embed",
        **{f"pixel_decoder.input_convs.{i}.conv": f"{HEAD}input_proj.{i}.0" for i in range(3)},
        **{f"pixel_decoder.input_convs.{i}.gn": f"{HEAD}input_proj.{i}.1" for i in range(3)},
        **{f"mask_embed.{2 * i}": f"{PREDICTOR}mask_embed.layers.{i}" for i in range(3)},
    }
    return f"{places['.'.join(words[:-1])]}.{kind}"


@pytest.mark.parametrize("age", ["new", "old"])
def test_mask2former_is_the_network_that_mmseg_names_differently(age):
    torch.manual_seed(0)
    first, second = small_model(), small_model()
    tensors = random_tensors(head_shapes())
    ours = {f"backbone.{name}": tensor for name, tensor in first.backbone.state_dict().items()}
    load_reference_state_dict(first, {**ours, **tensors}, "mmseg")
    reference = {facebooks_mask2former_names(name): tensor for name, tensor in tensors.items()}
    reference["criterion.empty_weight"] = torch.tensor([1.0] * 5 + [0.1], dtype=torch.float64)
    if age == "old":
        names = {name: name.replace(HEAD, "sem_seg_head.").replace("query_feat", "static_query") for name in reference}
        reference = {names[name]: tensor for name, tensor in reference.items()}
    heads = {name: row for name, row in rename(reference, table_for("detectron2", second.config)).tensors.items()}
    assert set(heads) == {name for name in second.state_dict() if "pixel_level_module.encoder" not in name}
    for name, tensor in heads.items():
        torch.testing.assert_close(tensor, first.state_dict()[name], rtol=0, atol=1e-7, msg=name)


def test_full_size_checkpoints_have_a_place_for_every_tensor():
    """Swin-L as published: on meta, nothing missing and nothing left over."""
    config_class, model_class = CLASSES["maskformer"]
    with torch.device("meta"):
        model = model_class(config_class.from_preset("maskformer-swin-large", num_labels=150))
    swin = swin_shapes(192, (2, 2, 18, 2), (6, 12, 24, 48), 12)
    head = maskformer_shapes((192, 384, 768, 1536), 256, 256, 2048, 6, 100, 150)
    reference = {**on_meta(swin, "backbone."), **on_meta(head)}
    for name in reference:
        if name.endswith("relative_position_index"):
            reference[name] = reference[name].long()
    report = load_reference_state_dict(model, reference, "detectron2")
    assert set(report.loaded) == set(model.state_dict()) and not report.unused and not report.kept


# --- pickles


ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "a.big": np.arange(3, dtype=">f4"),
    "a.index": np.arange(4, dtype=np.int64),
    "a.flag": np.array([True, False]),
    "a.scalar": np.array(3.5, dtype=np.float16),
    "a.empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrapped", [True, False])
def test_pickled_arrays_are_read(tmp_path, protocol, wrapped):
    path = tmp_path / "model_final_abcdef.pkl"
    checkpoint = {"model": ARRAYS, "__author__": "third party", "matching_heuristics": True} if wrapped else ARRAYS
    path.write_bytes(pickle.dumps(checkpoint, protocol=protocol))
    tensors = read_reference_file(path)
    assert set(tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert tensors[name].shape == array.shape and tensors[name].is_contiguous()
        np.testing.assert_array_equal(tensors[name].numpy(), array)
        tensors[name].zero_()  # one's own memory


def test_pickles_of_python_2_are_read(tmp_path):
    """Byte strings of protocol 2 without the detour over codecs, as detectron's oldest files have them."""
    # {'model': {'w': float32 array([1, 2])}} as Python 2 wrote it
    data = (
        b"\x80\x02}q\x00U\x05modelq\x01}q\x02U\x01wq\x03cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\n"
        b"q\x05K\x00\x85q\x06U\x01bq\x07\x87q\x08Rq\t(K\x01K\x02\x85q\ncnumpy\ndtype\nq\x0bU\x02f4q\x0cK\x00K\x01\x87"
        b"q\rRq\x0e(K\x03U\x01<q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x10b\x89U\x08\x00\x00\x80?\x00\x00"
        b"\x00@q\x11tq\x12bss."
    )
    path = tmp_path / "old.pkl"
    path.write_bytes(data)
    assert read_detectron2_pickle(path)["w"].tolist() == [1, 2]


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda trap: Calls(os.system, f"touch {trap}"), r"asks for (posix|nt)\.system"),
        (lambda trap: Calls(eval, f"open({str(trap)!r}, 'w')"), r"asks for builtins\.eval"),
        (lambda trap: Calls(exec, f"open({str(trap)!r}, 'w')"), r"asks for builtins\.exec"),
        (lambda trap: Calls(open, str(trap), "w"), r"asks for _?io\.open"),
        (lambda trap: Calls(getattr, "", "join"), r"asks for builtins\.getattr"),
        (lambda trap: Calls(np.load, str(trap)), r"asks for numpy"),
        (lambda trap: np.array([Calls(os.system, f"touch {trap}")], dtype=object), "asks for"),
        (lambda trap: np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]), "asks for values of type 'V8'"),
        (lambda trap: np.array(["text"]), "asks for values of type 'U4'"),
        (lambda trap: np.float32(1), r"asks for numpy\.core\.multiarray\.scalar"),
        (lambda trap: io.BytesIO(b"x"), r"asks for _io\.BytesIO"),
        (lambda trap: collections.Counter("a"), r"asks for collections\.Counter"),
        (lambda trap: torch.zeros(2), "asks for torch"),
    ],
)
def test_whatever_else_a_pickle_asks_for_is_refused(tmp_path, content, message):
    path, trap = tmp_path / "evil.pkl", tmp_path / "trap"
    path.write_bytes(pickle.dumps({"model": {"w": content(trap)}}))
    with pytest.raises(ValueError, match=f"evil.pkl: refused.*{message}"):
        read_detectron2_pickle(path)
    assert not trap.exists()


def test_an_array_of_any_size_is_not_made_out_of_nothing(tmp_path):
    path = tmp_path / "huge.pkl"
    reconstruct = ARRAYS["a.weight"].__reduce__()[0]
    path.write_bytes(pickle.dumps({"w": Calls(reconstruct, np.ndarray, (10**15,), b"b")}))
    with pytest.raises(ValueError, match=r"shape \(1000000000000000,\)"):
        read_detectron2_pickle(path)


@pytest.mark.parametrize("content", [{"model": [1, 2]}, {"w": 3}, [1], {1: ARRAYS["a.weight"]}])
def test_pickles_without_arrays_by_name_are_refused(tmp_path, content):
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="other.pkl: expected arrays of numbers by name"):
        read_detectron2_pickle(path)


def test_damaged_pickles_are_refused(tmp_path):
    path = tmp_path / "damaged.pkl"
    whole = pickle.dumps({"model": {"w": ARRAYS["a.weight"]}}, protocol=2)
    generator = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole[: generator.integers(0, len(whole))] if generator.random() < 0.3 else whole)
        for _ in range(generator.integers(0, 4)):
            if data:
                data[generator.integers(0, len(data))] = generator.integers(0, 256)
        path.write_bytes(data)
        try:
            read_detectron2_pickle(path)
        except ValueError as error:
            assert "damaged.pkl" in str(error)
    with pytest.raises(FileNotFoundError, match="nothing.pkl"):
        read_detectron2_pickle(tmp_path / "nothing.pkl")


def test_math_of_the_index_table():
    """The reference's own index tables are loaded into MaskFormer's Swin, which keeps them in its files."""
    model = make("maskformer", dict(BACKBONES["swin"]))
    own = model.backbone.model.encoder.layers[0].blocks[0].attention.self.relative_position_index
    assert torch.equal(own, index_table(4)) and math.isqrt(own.shape[0]) == 4
