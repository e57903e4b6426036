"""What README.md and docs tell people to paste is pasted here, in a folder as it is after `make demo`."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


sys.path.append(str(Path(__file__).parent / "data"))  # for `official_trees`, when only these tests are collected

from official_trees import make_ade20k, make_cityscapes, make_coco_stuff  # noqa: E402
from page_blocks import make_demo  # noqa: E402

from vss_hf.cli import main
from vss_hf.cli_inference import read_value
from vss_hf.data import make_sample_dataset
from vss_hf.data.splits import open_split
from vss_hf.fields import settings_from
from vss_hf.refinement.cascade_psp import CascadePSPSettings
from vss_hf.refinement.ssa import SSASettings
from vss_hf.training.recipe import build_recipe
from vss_hf.training.stages import load_stages


ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


PYTHON = blocks("README.md", "python")
SHELL = [
    line.split("  #")[0].strip()
    for page in ("README.md", "docs/video.md", "docs/data.md", "docs/scale.md")
    for block in blocks(page, "bash")
    for line in block.splitlines()
]
INFERENCE = [line.split("  #")[0].strip() for b in blocks("docs/inference.md", "bash") for line in b.splitlines()]
PSEUDO_LABELS = [line.split("  #")[0].strip() for b in blocks("docs/training.md", "bash") for line in b.splitlines()]
DATA = [line.split("  #")[0].strip() for b in blocks("docs/data.md", "bash") for line in b.splitlines()]
# What of these is run here, by the tests that run it; all of it: hub/test_whole_pages.py.
ON_DEMO = [c for c in SHELL if c.startswith("vss-hf") and "demo/" in c]
INFERENCE_ON_DEMO = [line for line in INFERENCE if "demo/" in line]
PSEUDO_LABELS_ON_DEMO = [c for c in PSEUDO_LABELS if c.startswith("vss-hf pseudo-label")]
DATA_HERE = [c for c in DATA if c.startswith("vss-hf data") and " push " not in c]


@pytest.fixture(scope="module")
def after_demo(tmp_path_factory) -> Path:
    """A folder with demo/sample_videos, demo/demo-ocrnet/model (untrained) and video.mp4."""
    return make_demo(tmp_path_factory.mktemp("readme"))


def test_python_blocks(after_demo):
    """All blocks in one process, one after the other, as a reader would paste them; pushing needs the Hub."""
    offline = [block for block in PYTHON if "push_to_hub" not in block]
    assert len(offline) == 4
    result = run_blocks(offline, after_demo)
    assert 0.5 < float(result.stdout.split()[-1]) < 1  # mIoU of labels of which a tenth was overwritten


def test_blocks_about_videos(after_demo):
    result = run_blocks(blocks("docs/video.md", "python"), after_demo)
    offsets, *lines, first, second, batch = result.stdout.splitlines()
    assert "(213, 120)" in first and "(90, 160)" in second and batch == "[(213, 120), (90, 160)]"  # pictures
    count = len(lines) // 2  # each frame by VideoSegmenter, then by the pipeline
    assert offsets == "[-9, -6, -3]" and [line[-8:] for line in lines[:count]] == ["(48, 64)"] * count
    assert [line.split()[0] for line in lines[count:]] == [str(number) for number in range(count)] and count > 1


def run_blocks(code: list[str], folder: Path, *, rename: bool = True) -> subprocess.CompletedProcess:
    """Run code in `folder`; with `rename` on a video that is there: the demo itself has longer names."""
    text = "\n".join(code)
    if rename:
        name = next((folder / "demo/sample_videos/data").iterdir()).name
        text = re.sub(r"sample_videos/data/[^/\"]+", f"sample_videos/data/{name}", text)
    result = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result


def test_pushing_compiles():
    for block in PYTHON:
        compile(block, "README", "exec")


@pytest.mark.parametrize("command", ON_DEMO)
def test_commands_on_the_demo(command, after_demo, monkeypatch):
    monkeypatch.chdir(after_demo)
    with pytest.raises(SystemExit) as end:
        main(shlex.split(command)[1:])
    assert end.value.code == 0


def test_the_way_through_inference(after_demo, monkeypatch):
    """Every command of docs/inference.md on the demo, in order."""
    monkeypatch.chdir(after_demo)
    done = []
    for command in INFERENCE_ON_DEMO:
        with pytest.raises(SystemExit) as end:
            main(shlex.split(command)[1:])
        assert end.value.code == 0, command
        done.append(command.split()[1])
    assert set(done) == {"evaluate", "predict", "ensemble", "score", "submission"} and len(done) >= 12
    run_blocks(blocks("docs/inference.md", "python"), after_demo)


def test_refiners_of_the_page_have_these_fields():
    words = [shlex.split(line) for line in INFERENCE if "--refine" in line]
    kinds = []
    for kind, _, value in (line[line.index("--refine") + 1].partition(":") for line in words):
        given = read_value(value, "--refine")
        settings = settings_from(
            {"cascade-psp": CascadePSPSettings, "ssa": SSASettings}[kind],
            {"model": given} if isinstance(given, str) else given,
            kind,
        )
        kinds.append((kind, settings.model))
    assert len(kinds) == 4 and ("cascade-psp", "models/cascade-psp") in kinds


def test_recipe_is_valid():
    (block,) = blocks("README.md", "yaml")
    recipe = build_recipe({"model": {}, "data": {}, "augmentation": {}, "training": {}, **yaml.safe_load(block)})
    assert recipe.training.max_steps == 160000 and recipe.augmentation.crop_size == (480, 853)


def test_recipe_of_a_video_model_is_valid():
    (block,) = blocks("docs/video.md", "yaml")
    given = {"model": {}, "data": {"root": "."}, "augmentation": {}, "training": {}, **yaml.safe_load(block)}
    recipe = build_recipe(given)
    assert recipe.model.build_config().model_type == "vss_tbn_vit" and recipe.training.losses == [{"name": "ohem"}]


def test_recipe_that_mixes_is_valid():
    (block,) = blocks("docs/data.md", "yaml")
    given = {"model": {}, "augmentation": {"crop_size": [64, 64]}, "training": {}, **yaml.safe_load(block)}
    recipe = build_recipe(given)
    vspw, coco, ade = recipe.data.training_sources()
    assert (vspw.root, vspw.sampling, vspw.split) == ("path/to/VSPW_480p", "one_per_video", "train")
    assert (coco.source, coco.weight, ade.source, ade.min_labelled) == ("coco_stuff", 0.5, "ade20k", 0.8)


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory) -> Path:
    """A folder with small trees at the places that docs/data.md names."""
    folder = tmp_path_factory.mktemp("data") / "path" / "to"
    make_ade20k(folder)
    make_coco_stuff(folder / "coco")
    make_cityscapes(folder / "cityscapes")
    sizes = {"train_videos": 2, "val_videos": 1, "test_videos": 1, "frames_per_video": 2, "val_frames_per_video": 2}
    make_sample_dataset(folder / "VSPW_480p", height=480, width=640, progress=False, **sizes)
    shutil.copytree(folder / "VSPW_480p", folder / "VSPW")
    return folder.parents[1]


def test_the_way_through_data(data_folder, monkeypatch):
    """Every command and block of docs/data.md that needs neither the Hub nor a GPU nor hours."""
    monkeypatch.chdir(data_folder)
    done = []
    for command in DATA_HERE:
        with pytest.raises(SystemExit) as end:
            main(shlex.split(command)[1:])
        assert end.value.code == 0, command
        done.append(command.split()[2])
    assert set(done) == {"verify", "remap", "stats", "parquet"}
    first, second = blocks("docs/data.md", "python")
    local = "\n".join(line for line in second.splitlines() if "your-name" not in line)
    run_blocks([first, local, "print(len(train), sample['labels'].shape)"], data_folder, rename=False)


def test_recipes_about_training_are_valid(tmp_path):
    staged, rates, pseudo = blocks("docs/training.md", "yaml")
    path = tmp_path / "two_parts.yaml"
    path.write_text(staged, encoding="utf-8")
    words = ["--data.root", "path/to/VSPW_480p", "--data.sources", "[]", "--global_batch_size", "8"]
    stages = load_stages(path, words)
    assert [stage.recipe.training.max_steps for stage in stages] == [160000, 40000]
    assert stages[1].recipe.model.config == {"backbone_config": {"depths": [4, 6, 20, 4]}}
    empty = {"model": {}, "data": {"root": "."}, "augmentation": {"crop_size": [64, 64]}, "training": {}}
    assert build_recipe({**empty, **yaml.safe_load(rates)}).training.layer_decay == 0.95
    real, labelled_by_a_model = build_recipe({**empty, **yaml.safe_load(pseudo)}).data.training_sources()
    assert (real.root, labelled_by_a_model.root, labelled_by_a_model.weight) == ("path/to/VSPW_480p", "pseudo", 0.5)


@pytest.mark.parametrize("line", PSEUDO_LABELS_ON_DEMO)
def test_pseudo_labels_of_the_demo(line, after_demo, tmp_path):
    """The commands of docs/training.md with the demo's model, which is not sure of anything."""
    demo, videos, out = after_demo / "demo", tmp_path / "videos", tmp_path / "pseudo"
    videos.mkdir()
    shutil.copy(after_demo / "video.mp4", videos)
    places = {"to/model": demo / "demo-ocrnet/model", "to/VSPW_480p": demo / "sample_videos", "to/videos": videos}
    for place, here in places.items():
        line = line.replace(f"path/{place}", str(here))
    words = shlex.split(line)[1:]
    words[words.index("--out") + 1] = str(out)
    with pytest.raises(SystemExit) as end:
        main([*words, *([] if "--class_balanced" in words else ["--threshold", "0"]), "--min_labelled", "0"])
    assert end.value.code == 0
    assert open_split(out, "train").videos
