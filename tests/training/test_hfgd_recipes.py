"""The recipes of the HFGD paper: each row's network, figure and settings, against the tables typed off the paper.

Two of them, made narrow, train on drawn trees of Pascal Context and Cityscapes in the data sets' own classes.
"""

import functools
import json
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch.nn.functional import interpolate
from transformers import AutoModelForSemanticSegmentation

from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.training.papers import DATA_SETS
from vss_hf.training.plan import make_plans
from vss_hf.training.recipe import SECTIONS, ModelRecipe
from vss_hf.training.recipe_files import paper_of, read_recipe, shipped_recipes
from vss_hf.training.run import main


sys.path.append(str(Path(__file__).parents[1] / "data"))  # for `official_trees`, when only these tests are collected

from official_trees import make_cityscapes, make_pascal_context  # noqa: E402


# table, row: backbone, upsampler, extra encoding, HFGM, mIoU. Table 4 leaves out "Identity" and Table 8 an encoding.
PASCAL_CONTEXT = """
1 1: R50 - identity - 45.87
1 2: D8 - identity - 47.72
1 3: R50 SFPN identity - 47.14
1 4: R50 - aspp - 46.41
1 5: D8 - aspp - 48.59
1 6: R50 SFPN aspp - 47.81
1 7: R50 - ocr - 45.50
1 8: D8 - ocr - 48.23
1 9: R50 SFPN ocr - 47.39
1 10: R50 - sa - 45.02
1 11: D8 - sa - 48.32
1 12: R50 SFPN sa - 45.90
1 13: R50 - sa_car - 47.18
1 14: D8 - sa_car - 50.50
1 15: R50 SFPN sa_car - 48.51
3 1: R50 SFPN identity - 47.14
3 2: R50 SFPN identity guidance 47.67
3 3: R50 SFPN identity AA 47.88
3 4: R50 SFPN identity full 48.94
4 1: R50 - sa_car - 47.18
4 2: R50 - cae - 47.35
4 3: R50 SFPN sa_car - 48.51
4 4: R50 SFPN cae - 48.76
4 5: R50 SFPN sa_car full 50.00
4 6: R50 SFPN cae full 50.28
5 1: R50 SFPN cae - 48.76
5 2: R50 SFPN cae guidance 49.22
5 3: R50 SFPN cae AA 49.06
5 4: R50 SFPN cae full 50.28
6 1: R50 SFPN cae full 50.28
6 2: R50 U-SFPN cae full 50.76
6 3: Swin-L SFPN cae full 59.32
6 4: Swin-L U-SFPN cae full 60.46
7 1: R50 SFPN identity - 47.14
7 2: R50 SFPN cae - 48.76
7 3: R50 U-SFPN identity - 46.99
7 4: R50 U-SFPN cae - 48.67
7 5: R50 U-SFPN cae full 50.76
7 6: Swin-L SFPN cae - 56.78
7 7: Swin-L U-SFPN identity - 58.69
7 8: Swin-L U-SFPN cae - 55.76
7 9: Swin-L U-SFPN cae full 60.46
8 1: R50 U-SFPN cae - 48.67
8 2: R50 U-SFPN cae full 50.76
8 3: R50 FaPN identity - 47.50
8 4: R50 FaPN identity full 49.87
8 5: R50 UperNet ppm - 48.25
8 6: R50 UperNet ppm full 49.96
8 7: D8 DeepLabV3+ aspp - 48.11
8 8: D8 DeepLabV3+ aspp full 49.70
9 1: D8 - sa_car - 50.50
9 2: R50 SFPN identity - 47.14
9 3: R50 U-SFPN cae full 50.76
9 4: R50 U-SFPN/2 cae full 51.00
10 11: ConvNeXt-L U-SFPN cae full 63.8
"""
OTHERS = {
    "Cityscapes": """
12 1: R50 SFPN identity - 76.44
12 2: R50 U-SFPN cae full 79.11
12 3: R50 U-SFPN/2 cae full 79.81
13 13: ConvNeXt-L U-SFPN cae full 83.1
13 14: ConvNeXt-L U-SFPN/2 cae full 83.2
""",
    "COCO-Stuff 164k": "11 6: ConvNeXt-L U-SFPN cae full 49.0",
    "ADE20K": "15 9: ConvNeXt-L U-SFPN cae full 54.3",
    "COCO-Stuff 10k": "16 6: ConvNeXt-L U-SFPN cae full 49.5",
}
ROWS = [
    (data, line)
    for data, text in [("Pascal Context", PASCAL_CONTEXT), *OTHERS.items()]
    for line in text.split("\n")
    if line
]
UPSAMPLERS = {
    "-": "none",
    "SFPN": "semantic_fpn",
    "U-SFPN": "usfpn",
    "FaPN": "fapn",
    "UperNet": "upernet",
    "DeepLabV3+": "deeplabv3plus",
}
BACKBONES = {  # model type, width of the last map, strides of the last map
    "R50": ("vss_resnet", 2048, 32),
    "D8": ("vss_resnet", 2048, 8),
    "Swin-L": ("swin", 1536, 32),
    "ConvNeXt-L": ("convnext", 1536, 32),
}
HFGM = {"-": (False, False), "guidance": (True, False), "AA": (False, True), "full": (True, True)}  # guidance, axial
NAMES = [name for name in shipped_recipes() if name.startswith("hfgd/")]


@functools.cache
def rows():
    """{(table, row): (name of the recipe, what it says of the row)}."""
    return {(row.table, row.row): (name, row) for name in NAMES for row in paper_of(name).rows}


@functools.cache
def model_of(name):
    """The recipe's network without memory, and its recipe's sections as they stand."""
    given = read_recipe(name, SECTIONS)
    config = ModelRecipe(**given["model"]).build_config(num_labels=59)
    with torch.device("meta"):
        return AutoModelForSemanticSegmentation.from_config(config), given


@pytest.mark.parametrize(("data", "line"), ROWS, ids=[line.split(":")[0].replace(" ", "-") for _, line in ROWS])
def test_row(data, line):
    place, _, told = line.partition(": ")
    table, number = map(int, place.split())
    backbone, upsampler, encoding, hfgm, figure = told.split()
    upsampler, _, finer = upsampler.partition("/")
    name, row = rows()[table, number]
    assert (row.data, row.val, row.test) == (data, float(figure), None)

    model, given = model_of(name)
    config, (guidance, axial) = model.config, HFGM[hfgm]
    assert (config.upsampler, config.extra_encoding) == (UPSAMPLERS[upsampler], encoding)
    assert (config.guidance, config.stop_gradient, config.axial_attention) == (guidance, guidance, axial)
    assert config.output_stride == (2 if finer else None if upsampler == "-" else 4)
    kind, width, stride = BACKBONES[backbone]
    assert config.backbone_config.model_type == kind and model.backbone.channels[-1] == width
    assert getattr(config.backbone_config, "output_stride", 32) == stride
    assert (model.decode_head.upsampler is None) == (upsampler == "-")
    assert (model.decode_head.attention is not None) == axial

    training, crop = given["training"], given["augmentation"]["crop_size"]
    plain = backbone != "ConvNeXt-L"
    assert given["data"] == {"source": DATA_SETS[data]}
    assert crop == {"Cityscapes": [513, 1025], "ADE20K": [641, 641]}.get(data, [513, 513])
    assert (training["optim"], training["learning_rate"]) == (("sgd", 0.01) if plain else ("adamw_torch", 4e-5))
    assert training["weight_decay"] == (1e-4 if plain else 0.05)
    steps = 30000 if backbone in ("R50", "D8") else 40000
    if table == 13:
        steps = 80000 if finer else 60000
    assert training["max_steps"] == steps and steps % training["save_steps"] == 0
    assert training["sync_batchnorm"] and training["output_dir"] == f"runs/{name}"
    # brightness changes in both; the other colours, called photometric distortion, in the advanced settings only
    assert (given["augmentation"]["contrast"] == [1.0, 1.0]) == plain and given["augmentation"]["hue"] == 0
    assert math.isclose(given["augmentation"]["brightness"], 32 / 255, rel_tol=1e-3)


def test_every_recipe_is_a_row_that_is_typed_above():
    typed = sorted(tuple(map(int, line.split(":")[0].split())) for _, line in ROWS)
    assert typed == sorted(rows()) and len(set(typed)) == len(typed)
    assert {name for name, _ in rows().values()} == set(NAMES)


# --- whole runs in the classes of Pascal Context and Cityscapes

NARROW = {
    "backbone_config": {
        "block": "basic", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "stem_channels": 8
    },
    **dict.fromkeys(["channels", "encoding_channels", "wide_channels", "key_channels"], 8),
}  # fmt: skip
TWO_STEPS = {
    "max_steps": 2, "global_batch_size": 2, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "bf16": False,
    "use_cpu": True, "dataloader_num_workers": 0, "report_to": "none", "disable_tqdm": True, "logged_overlays": 0,
    "learning_rate": 0.1,  # so that the frequent classes are found at once
}  # fmt: skip


def run_narrow(base, root, folder):
    """The model folder of two steps of a narrow copy of a recipe."""
    recipe = {
        "base": base,
        "model": {"config": NARROW, "backbone_weights": None},
        "data": {"root": str(root)},
        "augmentation": {"crop_size": [65, 65]},
        "training": {**TWO_STEPS, "output_dir": str(folder / "run")},
    }
    (folder / "narrow.yaml").write_text(yaml.safe_dump(recipe))
    return main([str(folder / "narrow.yaml")])


@pytest.mark.filterwarnings("ignore:--sync_batchnorm changes nothing")
@pytest.mark.parametrize(
    ("base", "make_tree", "frame", "first", "last", "num_labels"),
    [
        ("pascal-usfpn-cae-hfgm", make_pascal_context, "VOCdevkit/VOC2010/JPEGImages/{}.jpg", "aeroplane", "wood", 59),
        ("cityscapes-usfpn-cae-hfgm-os2", make_cityscapes, "leftImg8bit/val/lindau/{}.png", "road", "bicycle", 19),
    ],
    ids=["pascal-context", "cityscapes"],
)
def test_run_in_the_data_sets_own_classes(base, make_tree, frame, first, last, num_labels, tmp_path):
    tree = make_tree(tmp_path / "data")
    folder = run_narrow(f"hfgd/{base}", tree.root, tmp_path)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    names = list(model.config.id2label.values())
    assert (names[0], names[-1], len(names)) == (first, last, num_labels)
    [source] = json.loads((folder / "train_results.json").read_text())["sources"]
    data = paper_of(f"hfgd/{base}").rows[0].data
    assert (source["source"], source["table"], source["frames"]) == (DATA_SETS[data], None, 2)

    # what the run measured, against the drawing and this computation; classes that are not the 59 or 19 are ignored
    results = json.loads((folder / "eval_results.json").read_text())
    [(stem, drawing)] = next(iter(tree.drawings["val"].values())).items()
    labels = torch.from_numpy(
        tree.expected(drawing, {p: n if n in names else None for p, n in tree.names.items()}, tuple(names))
    ).long()
    with Image.open(tree.root / frame.format(stem)) as image, torch.no_grad():
        inputs = VSSImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
        logits = model(**inputs).logits
    size = tuple(labels.shape)
    predicted = interpolate(logits, size, mode="bilinear", align_corners=True).argmax(1)[0]
    true = labels != 255
    for label, name in enumerate(names):
        seen, found = (labels == label) & true, (predicted == label) & true
        assert results["per_class_pixels"][name] == seen.sum()
        iou = (seen & found).sum().item() / (seen | found).sum().item() if seen.any() else None
        assert results["per_class_iou"][name] == (None if iou is None else pytest.approx(iou)), name
    assert 0 < true.sum() < labels.numel()  # some pixels are no class
    assert results["mean_iou"] > 0

    [plan] = make_plans(str(tmp_path / "narrow.yaml"), [], devices=1, memory=False)
    assert (plan.model["num_labels"], plan.data[0]["frames"], plan.batch["effective"]) == (num_labels, 2, 2)
