"""The shipped recipes: every row of the papers' tables says what it is, and its network, losses and schedule train.

All of them take two steps on the sample videos, as narrow networks on small crops; what starts from the result of
another recipe starts from that recipe's narrow network.
"""

import copy
import functools
import gc
import math
from pathlib import Path

import pytest
import torch
from tiny import losses, make_default_data, state_of
from transformers import AutoModelForSemanticSegmentation

from benchmarks.recipe_table import INFERENCE, MARKS, PAGE, table
from vss_hf.data.sample import make_sample_dataset
from vss_hf.hub_cards.architectures import BETTERTHING, DUT, PUBLISHED, TBN_VIT, USTC
from vss_hf.modeling.architectures import presets
from vss_hf.training import run
from vss_hf.training.papers import DATA_SETS, PAPERS
from vss_hf.training.recipe import SECTIONS, ModelRecipe, build_recipe, load_recipe
from vss_hf.training.recipe_files import find_recipe, merge_fields, paper_of, read_recipe, shipped_recipes
from vss_hf.training.stages import has_stages, load_stages


NAMES = [name for name in shipped_recipes() if not name.startswith("bases/")]
OF_PAPERS = [name for name in NAMES if "/" in name]
paper_section = functools.cache(paper_of)


def stages_of(name, *words):
    """The recipe's stages as recipes; a plain one is its only stage."""
    words = ["--data.root", "videos", *words]
    return [stage.recipe for stage in load_stages(name, words)] if has_stages(name) else [load_recipe(name, words)]


# --- what they say


def test_every_folder_is_a_paper():
    assert {name.split("/")[0] for name in OF_PAPERS} == set(PAPERS)
    for name in OF_PAPERS:
        paper = paper_section(name)
        assert paper.name == name.split("/")[0] and paper.uncertain, name


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name.startswith("bases/")])
def test_bases_are_recipes_without_a_model(name):
    assert paper_section(name) is None
    assert load_recipe(name, ["--data.root", "videos"]).given["model"] == {}


def test_every_row_has_one_recipe_or_needs_none():
    """The rows of the papers' tables, counted by hand."""
    expected = {
        "betterthing": {1: 7, 2: 5, 3: 4},
        "ustc": {1: 4, 2: 4, 3: 4, 4: 4, 5: 2},
        "tbn-vit": {1: 5},
        "pvuw2023": {1: 4, 2: 3, 3: 5, 4: 4},
        "hfgd": {1: 15, 3: 4, 4: 6, 5: 4, 6: 4, 7: 9, 8: 8, 9: 4, 12: 3},
    }
    # HFGD's own rows in its tables of other authors' figures (not table 14, of a test set without labels)
    among_others = [("hfgd", *row) for row in [(10, 11), (11, 6), (13, 13), (13, 14), (15, 9), (16, 6)]]
    found = [(paper_section(name).name, row.table, row.row) for name in OF_PAPERS for row in paper_section(name).rows]
    found += [(paper, row.table, row.row) for paper, rows in INFERENCE.items() for row, *_ in rows]
    counted = [
        (paper, table, row) for paper in expected for table, rows in expected[paper].items()
        for row in range(1, rows + 1)
    ]  # fmt: skip
    assert sorted(found) == sorted(counted + among_others)


def test_figures_name_the_data_set_that_the_recipe_is_evaluated_on():
    for name in OF_PAPERS:
        for row in paper_section(name).rows:
            given = read_recipe(name, SECTIONS)
            data = [given["data"], *(stage.get("data", {}) for stage in given["stages"].values())][-1]
            assert DATA_SETS[row.data] == data.get("source", "vspw"), name
    assert {row.data for rows in INFERENCE.values() for row, *_ in rows} == {"VSPW"}


def test_figures_agree_with_those_in_the_cards():
    names = {BETTERTHING: "betterthing", USTC: "ustc", DUT: "pvuw2023", TBN_VIT: "tbn-vit"}
    in_cards = {
        (names[paper], val, test)
        for published in PUBLISHED.values() for paper, _, val, test in published.vspw
    }  # fmt: skip
    in_recipes = {
        (paper_section(name).name, row.val, row.test) for name in OF_PAPERS for row in paper_section(name).rows
    }
    assert in_cards <= in_recipes


def test_table_in_the_docs():
    text = PAGE.read_text(encoding="utf-8")
    assert text.split(MARKS[0])[1].split(MARKS[1])[0].strip() == "\n".join(table()), (
        "write it anew: python benchmarks/recipe_table.py --markdown docs/recipes.md"
    )


# Samples of an optimisation step, and steps of each stage, as papers or the code that they name tell them.
TOLD = {
    "betterthing/swin-large-512": (16, [160000]),
    "betterthing/swin-large-480": (16, [160000]),
    "betterthing/swin-large-480-coco": (16, [160000, 40000]),
    "ustc/swin-640-ohem": (16, [160000]),
    "ustc/swin-640-ohem-swa": (16, [20000]),
    "ustc/maskformer": (16, [160000]),
    "ustc/maskformer-swa": (16, [20000]),
    "tbn-vit/st-ppm-resnet101": (8, [42000]),
    "tbn-vit/tbn-swin-large": (8, [42000]),
    "tbn-vit/tbn-swin-large-ohem": (8, [42000, 42000]),
    "pvuw2023/swin-large": (16, [25000]),
    "pvuw2023/convnext-xlarge": (16, [62000]),
    "pvuw2023/internimage-xl": (16, [160000]),
    "pvuw2023/internimage-h": (16, [25000]),
    "pvuw2023/mask2former-internimage-h": (8, [197253]),
    "pvuw2023/mask2former-internimage-h-coco": (8, [164000, 197253]),
}


@pytest.mark.parametrize("name", OF_PAPERS)
def test_global_batch(name):
    batch, steps = TOLD.get(name, (8 if name.startswith("tbn-vit/") else 16, None))
    stages = stages_of(name)
    for recipe in stages:
        args = recipe.training
        assert args.global_batch_size == batch
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps == batch  # of one process
    assert steps in (None, [recipe.training.max_steps for recipe in stages])


def test_names():
    assert find_recipe("betterthing/swin-large-480").name == "swin-large-480.yaml"
    with pytest.raises(
        FileNotFoundError, match="no recipe 'beterthing/swin-large-48': .*did you mean betterthing/swin"
    ):
        find_recipe("beterthing/swin-large-48")
    with pytest.raises(FileNotFoundError, match="did you mean .*pvuw2023/mask2former-internimage-h"):
        find_recipe("mask2former-internimage-h")


# --- the section `paper`


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{name: betterthin}", "paper.name: there is no paper 'betterthin'; did you mean 'betterthing'"),
        ("[x]", "recipe .*: paper: expected the fields name, data, rows, uncertain; found"),
        ("{name: ustc, data: Cityscape}", "data: no paper has figures on 'Cityscape'; did you mean 'Cityscapes'"),
        ("{name: ustc, row: []}", "paper has no field 'row'; did you mean 'rows'"),
        ("{name: ustc, rows: {}}", "paper.rows: expected a list"),
        ("{name: ustc, rows: [{table: 1, setting: x}]}", r"paper.rows\[0\]: give row"),
        ("{name: ustc, rows: [{table: 1, row: 1, setting: x, vall: 3}]}", r"rows\[0\] has no field 'vall'; did you m"),
        ("{name: ustc, rows: [{table: one, row: 1, setting: x}]}", r"rows\[0\].table: expected a whole number"),
        ("{name: ustc, rows: [{table: 1, row: 1, setting: x, val: 0.55}]}", r"rows\[0\].val: 0.55: expected percent"),
        ("{name: ustc, uncertain: [1]}", r"paper.uncertain\[0\]: expected text"),
    ],
)
def test_mistakes_in_the_section(tmp_path, section, message):
    file = tmp_path / "wrong.yaml"
    file.write_text(f"base: demo-ocrnet\npaper: {section}\n")
    for read in (paper_of, lambda path: load_recipe(path, ["--data.root", "x"])):
        with pytest.raises(ValueError, match=message):
            read(file)


def test_the_section_is_not_inherited(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: ustc/swin-640\n")
    assert paper_of("ustc/swin-640") is not None and paper_of(file) is None
    assert "paper" not in load_recipe(file, ["--data.root", "x"]).to_dict()


# --- two steps of each

# What makes a backbone narrow. Depths are cut, not set, so that a Swin which gets deeper still does.
NARROW = {
    "swin": {"embed_dim": 8, "num_heads": [1, 1, 2, 2], "window_size": 4},
    "maskformer-swin": {"embed_dim": 8, "num_heads": [1, 1, 2, 2], "window_size": 4},
    "convnext": {"hidden_sizes": [8, 8, 16, 16]},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16]},
    "vss_resnet": {"stem_channels": 8, "hidden_sizes": [8, 8, 16, 16]},
    "vss_hrnet": {
        "stage1_channels": 4, "hidden_sizes": [4, 4, 8, 8], "num_modules": [1, 1, 1, 1],
        "num_blocks": [[1], [1, 1], [1, 1, 1], [1, 1, 1, 1]],
    },
    "vss_internimage": {"channels": 8, "groups": [1, 2, 4, 8]},
    "vss_volo": {"stem_channels": 8, "hidden_sizes": [8, 16, 16, 16], "num_heads": [1, 2, 2, 2], "image_size": 64},
}  # fmt: skip
DEEPEST = {"swin": 4}  # blocks of a stage; 1 in other backbones
WIDTHS = {
    **dict.fromkeys(["channels", "ocr_channels", "coarse_channels", "hidden_size", "auxiliary_channels"], 8),
    **dict.fromkeys(["context_channels", "fusion_channels", "key_channels", "value_channels"], 8),
    **dict.fromkeys(["encoding_channels", "wide_channels", "low_level_channels"], 8),
    "neck_channels": [8, 8, 8],
}
OF_DECODER = {"d_model": 8, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "num_queries": 5}
MASK_HEADS = {
    "vss_maskformer": {"fpn_feature_size": 32, "mask_feature_size": 8, "decoder_config": OF_DECODER},
    "vss_mask2former": {
        "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2, "num_queries": 5,
        "encoder_layers": 1, "decoder_layers": 2, "encoder_feedforward_dim": 8, "dim_feedforward": 8,
        "train_num_points": 64,
    },
}  # fmt: skip
TWO_STEPS = {
    "max_steps": 2, "global_batch_size": 2, "per_device_train_batch_size": 2, "swa_batchnorm_batches": 1,
    "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "bf16": False, "use_cpu": True,
    "dataloader_num_workers": 0, "logging_steps": 1, "report_to": "none", "disable_tqdm": True,
}  # fmt: skip


def narrow(config):
    """Fields that make the network of a configuration small."""
    backbone = config.backbone_config
    fields = dict(NARROW[backbone.model_type])
    if hasattr(backbone, "depths"):
        fields["depths"] = [min(depth, DEEPEST.get(backbone.model_type, 1)) for depth in backbone.depths]
    if getattr(backbone, "level2_post_norm", False):
        fields["level2_post_norm_block_ids"] = [0]
    if config.model_type in MASK_HEADS:
        return {"backbone_config": fields, **MASK_HEADS[config.model_type]}
    widths = {name: width for name, width in WIDTHS.items() if getattr(config, name, None) is not None}
    if hasattr(config, "spatial_channels"):
        widths["spatial_channels"] = [8] * len(config.spatial_channels)
    return {"backbone_config": fields, **widths}


class Runs:
    """Trains shipped recipes small, each once.

    Args:
        folder: where data and results go.
    """

    def __init__(self, folder):
        self.folder, self.done, self.trainers = folder, {}, {}
        sizes = {
            "height": 64,
            "width": 114,
            "train_videos": 5,
            "test_videos": 0,
            "frames_per_video": 10,
            "val_frames_per_video": 1,
        }
        make_sample_dataset(folder / "videos", **sizes, progress=False)
        make_default_data(folder / "other_classes")  # stands for data sets that keep their own classes

    def train(self, name):
        """[(losses, weights before, model after)] of the recipe's stages."""
        if name not in self.done:
            with pytest.MonkeyPatch.context() as patch:
                self.seen = []
                patch.setattr(run, "build_model", self.noting(run.build_model))
                patch.setattr(run, "finish", self.finish)
                for recipe in stages_of(name, "--output_dir", str(self.folder / name)):
                    run.train(self.small(recipe), more_to_come=True)
            self.done[name] = self.seen
        return self.done[name]

    def noting(self, build_model):
        """`build_model`, and a copy of what the run starts from."""

        def build(recipe, classes):
            model = build_model(recipe, classes)
            self.start = state_of(model)
            return model

        return build

    def finish(self, folder, recipe, trainer, *args):
        """Stands for `run.finish`: neither evaluation nor card."""
        self.trainers[folder] = trainer
        self.seen.append((losses(trainer), self.start, trainer.model))

    def saved(self, folder):
        """The model folder of a run, written now that it is needed."""
        self.trainers[Path(folder)].save_model_folder(Path(folder))
        return str(folder)

    def small(self, recipe):
        """The recipe with a narrow network, small crops, two steps, and the sample videos as all of its data sets."""
        given = copy.deepcopy(recipe.given)
        model, data, augmentation, args = (given[name] for name in ("model", "data", "augmentation", "training"))
        model.pop("backbone_weights", None)
        depths = model.get("config", {}).get("backbone_config", {}).get("depths")
        if recipe.model.init_from:
            model["init_from"] = self.start_of(recipe.model.init_from)
            if depths:
                model["config"]["backbone_config"]["depths"] = [min(depth, DEEPEST["swin"]) for depth in depths]
        else:
            model["config"] = merge_fields(model.get("config", {}), narrow(recipe.model.build_config()))
        data["root"] = str(self.folder / ("other_classes" if data.pop("source", None) else "videos"))
        data.pop("shortest_edge", None)
        for source in data.get("sources", []):
            for field in ("root", "source", "table"):
                source.pop(field, None)
        height, width = augmentation["crop_size"]
        augmentation["crop_size"] = [64, round(64 * width / height)]
        if isinstance(augmentation.get("base_size"), list):
            augmentation["base_size"] = [round(64 * side / height) for side in augmentation["base_size"]]
        for loss in args.get("losses", []):
            if "teacher" in loss:
                self.saved(loss["teacher"])
        args.update(TWO_STEPS, warmup_steps=min(1, args.get("warmup_steps", 0)))
        if "swa_every" in args:
            args["swa_every"] = 1
        return build_recipe(given)

    def start_of(self, source):
        """The narrow model that stands for `model.init_from`."""
        if Path(source) in self.trainers:  # of the stage before
            return self.saved(source)
        folder, *parts = Path(source).parts
        if folder == "runs":
            *name, last = parts
            assert last == "model"
            return self.result_of("/".join(name))
        preset = max((preset for preset in presets() if parts[0].startswith(preset)), key=len)
        recipe = ModelRecipe(preset=preset)
        recipe = ModelRecipe(preset=preset, config=narrow(recipe.build_config()))
        build = AutoModelForSemanticSegmentation.from_config
        build(recipe.build_config(num_labels=7)).save_pretrained(self.folder / source)
        return str(self.folder / source)

    def result_of(self, name):
        """The model folder of another recipe, which is trained within the training of this one."""
        seen = self.seen
        self.train(name)
        self.seen = seen
        last = stages_of(name, "--output_dir", str(self.folder / name))[-1]
        return self.saved(Path(last.training.output_dir) / "model")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    gc.collect()
    gc.freeze()  # every run ends with a collection, which otherwise goes through all that was imported
    yield Runs(tmp_path_factory.mktemp("recipes"))
    gc.unfreeze()


# Of HFGD's 48, these are always trained; test_hfgd_recipes.py builds the networks of all of them.
HFGD = ["pascal-fapn-identity-hfgm", "pascal-swin-usfpn-cae-hfgm", "pascal-d8-ocr", "cityscapes-convnext-os2"]
SLOW = [name for name in NAMES if name.startswith("hfgd/") and name.removeprefix("hfgd/") not in HFGD]


@pytest.mark.filterwarnings("ignore:--sync_batchnorm changes nothing")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in NAMES]
)
def test_two_steps(runs, name):
    stages = runs.train(name)
    assert len(stages) == len(stages_of(name))
    for values, start, model in stages:
        assert len(values) == 2 and all(math.isfinite(value) and value > 0 for value in values)
        moved = {key.split(".")[0] for key, tensor in model.named_parameters() if not tensor.equal(start[key])}
        assert moved == {key.split(".")[0] for key, _ in model.named_parameters()}
        assert all(torch.isfinite(tensor).all() for tensor in model.parameters())


def test_deeper_swin(runs):
    (_, start, first), (_, second_start, second) = runs.train("betterthing/swin-large-480-coco")
    assert list(first.config.backbone_config.depths) == [2, 2, 4, 2]
    assert list(second.config.backbone_config.depths) == [4, 4, 4, 4]
    ends = first.state_dict()
    assert all(second_start[key].equal(tensor) for key, tensor in ends.items() if "position_index" not in key)


def test_classes_of_pretraining_are_replaced(runs):
    (_, _, coco), (_, start, vspw) = runs.train("pvuw2023/mask2former-internimage-h-coco")
    assert (coco.config.num_labels, vspw.config.num_labels) == (3, 124)
    left = coco.state_dict()
    assert all(start[key].equal(tensor) for key, tensor in left.items() if tensor.shape == start[key].shape)
