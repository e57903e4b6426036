"""mmseg's Mask2FormerHead under both of its namings, against a straight-line computation from its own tensors."""

import math

import pytest
import torch
from tiny_mask_models import make
from torch.nn import functional as F

from vss_hf.convert import load_reference_state_dict


CLASSES, QUERIES, WIDTH, MASK_WIDTH, HIDDEN, HEADS = 5, 7, 64, 16, 48, 2
MAPS = (16, 32, 64, 128)  # channels of the backbone's maps
RESNET = {
    "model_type": "vss_resnet",
    "stem_channels": 8,
    "hidden_sizes": list(MAPS),
    "depths": [1, 1, 1, 1],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
PIXELS, DECODER = "decode_head.pixel_decoder.", "decode_head.transformer_decoder."
# mmdetection 3 says which attention it is; before they were numbered.
NEWER = {
    ".encoder.layers.{}.attentions.0.": ".encoder.layers.{}.self_attn.",
    ".encoder.layers.{}.ffns.0.": ".encoder.layers.{}.ffn.",
    "transformer_decoder.layers.{}.attentions.0.": "transformer_decoder.layers.{}.cross_attn.",
    "transformer_decoder.layers.{}.attentions.1.": "transformer_decoder.layers.{}.self_attn.",
    "transformer_decoder.layers.{}.ffns.0.": "transformer_decoder.layers.{}.ffn.",
}


def head_shapes():
    """Every tensor of a head with two encoder and three decoder layers, read from mmseg's and mmcv's modules."""
    shapes = {}

    def layer(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = (shape[0],)

    for i, channels in enumerate(reversed(MAPS[1:])):  # stride 32 first
        layer(f"{PIXELS}input_convs.{i}.conv", WIDTH, channels, 1, 1)
        layer(f"{PIXELS}input_convs.{i}.gn", WIDTH)
    shapes[f"{PIXELS}level_encoding.weight"] = (3, WIDTH)
    for i in range(2):
        attention = f"{PIXELS}encoder.layers.{i}.attentions.0."
        layer(attention + "sampling_offsets", HEADS * 3 * 4 * 2, WIDTH)
        layer(attention + "attention_weights", HEADS * 3 * 4, WIDTH)
        layer(attention + "value_proj", WIDTH, WIDTH)
        layer(attention + "output_proj", WIDTH, WIDTH)
        layer(f"{PIXELS}encoder.layers.{i}.ffns.0.layers.0.0", HIDDEN, WIDTH)
        layer(f"{PIXELS}encoder.layers.{i}.ffns.0.layers.1", WIDTH, HIDDEN)
        for norm in (0, 1):
            layer(f"{PIXELS}encoder.layers.{i}.norms.{norm}", WIDTH)
    layer(f"{PIXELS}lateral_convs.0.conv", WIDTH, MAPS[0], 1, 1, bias=False)
    layer(f"{PIXELS}lateral_convs.0.gn", WIDTH)
    layer(f"{PIXELS}output_convs.0.conv", WIDTH, WIDTH, 3, 3, bias=False)
    layer(f"{PIXELS}output_convs.0.gn", WIDTH)
    layer(f"{PIXELS}mask_feature", MASK_WIDTH, WIDTH, 1, 1)
    for i in range(3):
        for attention in (0, 1):
            name = f"{DECODER}layers.{i}.attentions.{attention}.attn."
            shapes[name + "in_proj_weight"], shapes[name + "in_proj_bias"] = (3 * WIDTH, WIDTH), (3 * WIDTH,)
            layer(name + "out_proj", WIDTH, WIDTH)
        layer(f"{DECODER}layers.{i}.ffns.0.layers.0.0", HIDDEN, WIDTH)
        layer(f"{DECODER}layers.{i}.ffns.0.layers.1", WIDTH, HIDDEN)
        for norm in (0, 1, 2):
            layer(f"{DECODER}layers.{i}.norms.{norm}", WIDTH)
    layer(f"{DECODER}post_norm", WIDTH)
    for name in ("query_embed", "query_feat"):
        shapes[f"decode_head.{name}.weight"] = (QUERIES, WIDTH)
    shapes["decode_head.level_embed.weight"] = (3, WIDTH)
    layer("decode_head.cls_embed", CLASSES + 1, WIDTH)
    for index, width in ((0, WIDTH), (2, WIDTH), (4, MASK_WIDTH)):
        layer(f"decode_head.mask_embed.{index}", width, WIDTH)
    return shapes


def random_tensors(shapes):
    """Float64, so that no mask lies on the edge between attended and not; norms around 1."""
    tensors = {}
    for name, shape in shapes.items():
        scale = 0.3 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
        tensors[name] = scale * torch.randn(shape, dtype=torch.float64)
        if len(shape) == 1 and name.endswith("weight"):
            tensors[name] += 1
    return tensors


def small_model():
    widths = dict(feature_size=WIDTH, hidden_dim=WIDTH, mask_feature_size=MASK_WIDTH, num_attention_heads=HEADS)
    widths.update(encoder_feedforward_dim=HIDDEN, dim_feedforward=HIDDEN, encoder_layers=2, decoder_layers=4)
    return make("mask2former", RESNET, num_labels=CLASSES, num_queries=QUERIES, **widths).double()


@pytest.fixture(scope="module")
def reference():
    """A whole checkpoint: the head, and the backbone, whose names are torchvision's there and here."""
    torch.manual_seed(0)
    backbone = {f"backbone.{name}": tensor for name, tensor in small_model().backbone.state_dict().items()}
    return {**backbone, **random_tensors(head_shapes())}


# --- the head, line by line


def sine_positions(height, width):
    """(height * width, WIDTH): sines and cosines of the row, then of the column, both running from above 0 to 2 pi."""
    half = WIDTH // 2
    scale = 10000 ** (2 * (torch.arange(half) // 2).double() / half)

    def encode(size):
        phases = 2 * math.pi * torch.arange(1, size + 1).double() / (size + 1e-6)
        angles = phases[:, None] / scale
        return torch.where(torch.arange(half) % 2 == 0, angles.sin(), angles.cos())

    rows = encode(height)[:, None].expand(height, width, half)
    columns = encode(width)[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def linear(x, tensors, name):
    return F.linear(x, tensors[name + ".weight"], tensors[name + ".bias"])


def layer_norm(x, tensors, name):
    return F.layer_norm(x, (WIDTH,), tensors[name + ".weight"], tensors[name + ".bias"])


def conv_norm(x, tensors, name, padding=0):
    x = F.conv2d(x, tensors[name + ".conv.weight"], tensors.get(name + ".conv.bias"), padding=padding)
    return F.group_norm(x, 32, tensors[name + ".gn.weight"], tensors[name + ".gn.bias"])


def feed_forward(x, tensors, name):
    return x + linear(linear(x, tensors, name + ".0.0").relu(), tensors, name + ".1")


def deformable_attention(x, positions, sizes, tensors, name):
    """x: (places, WIDTH) of one image."""
    queries, places = x + positions, len(x)
    values = linear(x, tensors, name + "value_proj").view(places, HEADS, -1)
    offsets = linear(queries, tensors, name + "sampling_offsets").view(places, HEADS, 3, 4, 2)
    weights = linear(queries, tensors, name + "attention_weights").view(places, HEADS, 12).softmax(2)
    weights = weights.view(places, HEADS, 3, 4)
    grids = [torch.meshgrid(*((torch.arange(n).double() + 0.5) / n for n in size), indexing="ij") for size in sizes]
    centres = torch.cat([torch.stack([x, y], dim=2).flatten(0, 1) for y, x in grids])
    context = 0
    for level, (height, width) in enumerate(sizes):
        start = sum(h * w for h, w in sizes[:level])
        maps = values[start : start + height * width].permute(1, 2, 0).unflatten(2, (height, width))
        at = centres[:, None, None] + offsets[:, :, level] / torch.tensor([width, height])
        sampled = F.grid_sample(maps, 2 * at.transpose(0, 1) - 1, align_corners=False)  # (HEADS, C, places, 4)
        context = context + (sampled * weights[:, :, level].transpose(0, 1)[:, None]).sum(3)
    return x + linear(context.permute(2, 0, 1).flatten(1), tensors, name + "output_proj")


def attention(x, query, key, value, tensors, name, mask=None):
    result, _ = F.multi_head_attention_forward(
        query, key, value, WIDTH, HEADS, tensors[name + "in_proj_weight"], tensors[name + "in_proj_bias"], None, None,
        False, 0.0, tensors[name + "out_proj.weight"], tensors[name + "out_proj.bias"], attn_mask=mask,
    )  # fmt: skip
    return x + result


def mmseg_head(maps, tensors):
    """Class logits (QUERIES, CLASSES + 1) and mask logits (QUERIES, h, w) after every layer, for one image's maps."""
    low_to_high = [maps[3], maps[2], maps[1]]
    sizes = [tuple(each.shape[-2:]) for each in low_to_high]
    lengths = [height * width for height, width in sizes]
    sines = [sine_positions(*size) for size in sizes]
    x = torch.cat([conv_norm(each, tensors, f"{PIXELS}input_convs.{i}")[0].flatten(1).T
                   for i, each in enumerate(low_to_high)])  # fmt: skip
    levels = tensors[PIXELS + "level_encoding.weight"]
    positions = torch.cat([sine + level for sine, level in zip(sines, levels, strict=True)])
    for i in range(2):
        name = f"{PIXELS}encoder.layers.{i}."
        x = layer_norm(deformable_attention(x, positions, sizes, tensors, name + "attentions.0."), tensors,
                       name + "norms.0")  # fmt: skip
        x = layer_norm(feed_forward(x, tensors, name + "ffns.0.layers"), tensors, name + "norms.1")
    memories = x.split(lengths)
    finest = memories[2].T.unflatten(1, sizes[2])[None]
    lateral = conv_norm(maps[0], tensors, PIXELS + "lateral_convs.0")
    y = lateral + F.interpolate(finest, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
    y = conv_norm(y, tensors, PIXELS + "output_convs.0", padding=1).relu()
    pixels = F.conv2d(y, tensors[PIXELS + "mask_feature.weight"], tensors[PIXELS + "mask_feature.bias"])[0]

    embeddings = tensors["decode_head.query_embed.weight"]
    keys = [memory + level for memory, level in zip(memories, tensors["decode_head.level_embed.weight"], strict=True)]

    def predict(queries, size):
        queries = layer_norm(queries, tensors, DECODER + "post_norm")
        hidden = linear(queries, tensors, "decode_head.mask_embed.0").relu()
        hidden = linear(
            linear(hidden, tensors, "decode_head.mask_embed.2").relu(), tensors, "decode_head.mask_embed.4"
        )
        masks = torch.einsum("qc,chw->qhw", hidden, pixels)
        closed = F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0].flatten(1) < 0
        closed[closed.all(1)] = False  # who may look nowhere looks everywhere
        return linear(queries, tensors, "decode_head.cls_embed"), masks, closed

    x = tensors["decode_head.query_feat.weight"]
    classes, masks, closed = predict(x, sizes[0])
    predictions = [(classes, masks)]
    for i in range(3):
        name, level = f"{DECODER}layers.{i}.", i % 3
        x = attention(x, x + embeddings, keys[level] + sines[level], keys[level], tensors, name + "attentions.0.attn.",
                      closed)  # fmt: skip
        x = layer_norm(x, tensors, name + "norms.0")
        x = attention(x, x + embeddings, x + embeddings, x, tensors, name + "attentions.1.attn.")
        x = layer_norm(x, tensors, name + "norms.1")
        x = layer_norm(feed_forward(x, tensors, name + "ffns.0.layers"), tensors, name + "norms.2")
        classes, masks, closed = predict(x, sizes[(i + 1) % 3])
        predictions.append((classes, masks))
    return predictions


def renamed(tensors):
    """The same tensors under mmdetection 3's names."""
    result = {}
    for name, tensor in tensors.items():
        for old, new in NEWER.items():
            for i in range(3):
                name = name.replace(old.format(i), new.format(i))
        result[name] = tensor
    return result


# --- tests


@pytest.mark.parametrize("naming", ["mmseg 0.x", "mmdetection 3"])
def test_every_layer_computes_what_mmseg_computes(reference, naming):
    model = small_model()
    report = load_reference_state_dict(model, reference if naming == "mmseg 0.x" else renamed(reference), "mmseg")
    assert set(report.loaded) == set(model.state_dict()) - {"criterion.empty_weight"}
    assert set(report.kept) == {"criterion.empty_weight"} and not report.unused
    with torch.no_grad():
        pixel_values = torch.randn(1, 3, 97, 161, dtype=torch.float64)
        expected = mmseg_head(model.backbone(pixel_values).feature_maps, reference)
        output = model(pixel_values, output_auxiliary_logits=True)
    ours = [*output.auxiliary_logits, output]
    assert len(ours) == len(expected) == 4
    for each, (classes, masks) in zip(ours, expected, strict=True):
        torch.testing.assert_close(each["class_queries_logits"][0], classes, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(each["masks_queries_logits"][0], masks, rtol=1e-7, atol=1e-7)


def test_a_classifier_that_no_mask_head_uses_is_told(reference):
    extra = {**reference, "decode_head.conv_seg.weight": torch.zeros(5, 64, 1, 1, dtype=torch.float64)}
    assert set(load_reference_state_dict(small_model(), extra, "mmseg").unused) == {"decode_head.conv_seg.weight"}


@pytest.mark.parametrize("name", ["decode_head.query_feat.weight", PIXELS + "lateral_convs.0.gn.bias"])
def test_one_missing_key_is_named(reference, name):
    with pytest.raises(ValueError, match="missing: model"):
        load_reference_state_dict(small_model(), {k: v for k, v in reference.items() if k != name}, "mmseg")


def test_an_unknown_key_is_named(reference):
    with pytest.raises(ValueError, match=r"no layer.*decode_head\.else"):
        load_reference_state_dict(small_model(), {**reference, "decode_head.else": torch.zeros(1)}, "mmseg")
