"""Every code block of README.md and docs/ is sound, and what takes seconds is carried out.

hub/test_whole_pages.py, slow, carries out all of it, with what only readers have.
"""

import ast
import contextlib
import functools
import importlib
import io
import json
import re
import shlex
import shutil

import pytest
import typer
import yaml
from page_blocks import PAGES, ROOT, make_demo, page_blocks

from vss_hf.cli import app, main
from vss_hf.data import make_sample_dataset
from vss_hf.training.plan import without
from vss_hf.training.recipe import load_recipe, parse_overrides, resolve_key
from vss_hf.training.recipe_files import find_recipe


# Pages that have quick tests of their own; every other one is a guide, which is run here.
OTHERS = {
    "README.md": "test_readme.py",
    "docs/add_architecture.md": "test_docs_architecture.py",
    "docs/analysis.md": "test_analysis.py",
    "docs/data.md": "test_readme.py",
    "docs/export.md": "modeling/test_export.py",
    "docs/hub.md": "hub/test_hub_page.py",
    "docs/inference.md": "test_readme.py",
    "docs/models.md": "test_models_page.py",
    "docs/scale.md": "test_readme.py",
    "docs/training.md": "test_readme.py",
    "docs/video.md": "test_readme.py",
}
GUIDES = [page for page in PAGES if page not in OTHERS and page_blocks(page)]
# What takes something of the reader's, several processes, a visitor or many seconds: hub/test_whole_pages.py runs it.
NOT_QUICK = re.compile(
    r"path/to/|your-name/|--camera|(accelerate|torchrun|python|vss-hf (demo|export)) |--kind ambiguous"
)
# What a test cannot have: the network, an account, a terminal. Nothing else may be marked as not run.
IMPOSSIBLE = re.compile(r"pip install|hf auth login")
# What the guides' trainings and sample videos are cut down to. The guides train `demo-ocrnet`, or from it.
SMALL = [
    *["--max_steps", "2", "--warmup_steps", "1", "--per_device_train_batch_size", "2", "--bf16", "false"],
    *["--augmentation.crop_size", "[48,64]", "--logged_overlays", "1"],
    *["--model.config.backbone_config.hidden_sizes", "[8,8,8,8]", "--model.config.channels", "8"],
    *["--model.config.ocr_channels", "8", "--model.config.coarse_channels", "8"],
]
SMALL_SETS = dict(
    height=48, width=64, train_videos=2, val_videos=1, test_videos=1, frames_per_video=2, val_frames_per_video=3
)


# --- what is on the pages is sound


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_sound(page, tmp_path):
    """Python compiles and its names can be imported, commands and their options exist, recipes have such fields."""
    for block in page_blocks(page):
        place = f"{page}:{block.line}"
        if block.language == "python" and not re.match(r"# \S+/\S+\.py\n", block.text):
            check_imports(block.text, place)
        elif block.language == "bash":
            for command in block.commands:
                check_command(shlex.split(command), place)
        elif block.language == "yaml" and page in GUIDES:
            path = tmp_path / "recipe.yaml"
            path.write_text(block.text, encoding="utf-8")
            assert load_recipe(path).training.output_dir, place
        elif block.language == "yaml":
            assert yaml.safe_load(block.text), place
        elif block.language == "json":
            assert json.loads(block.text), place
        else:
            assert block.language in ("", "python"), f"{place}: nobody reads blocks of {block.language}"


def check_imports(code, place):
    compile(code, place, "exec")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{place}: {node.module} has no {alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


def check_command(words, place):
    """The program is one that the pages may name, and takes these options."""
    program, *rest = words
    assert program in CHECKS, f"{place}: nobody checks {program!r}"
    CHECKS[program](rest)


def check_vss_hf(words):
    """Click parses the words as in a real call, but nothing is run."""
    command, context = typer.main.get_command(app), None
    path, words = "vss-hf", list(words)
    while True:
        if path == "train":
            check_recipe(words)
            return
        is_group = hasattr(command, "commands")
        given = words[:1] if is_group else words
        context = command.make_context(path, list(given), parent=context)
        if not is_group:
            return
        path, words = words[0], words[1:]
        command = command.commands[path]


def check_recipe(words):
    recipe, *fields = words
    if not recipe.endswith(".yaml"):
        find_recipe(recipe)
    for key, _ in parse_overrides(without(fields, ("dry_run", "json", "restart"))):
        if not key.startswith("stages."):
            resolve_key(key)


def check_launched(words):
    """`accelerate launch` and `torchrun`: their files exist, and so does what they start."""
    if "--config_file" in words:
        assert (ROOT / words[words.index("--config_file") + 1]).is_file()
    if "train.py" in words:
        check_recipe(words[words.index("train.py") + 1 :])
    else:
        check_vss_hf(words[words.index("vss_hf") + 1 :])


def check_python(words):
    if words[0] == "-m":
        assert words[1] == "vss_hf"
        check_vss_hf(words[2:])
    else:
        assert (ROOT / words[0]).is_file(), words[0]


def check_pytest(words):
    for word in words:
        assert not word.startswith("tests/") or (ROOT / word).exists(), word


def check_pip(words):
    extras = [extra for word in words for extra in re.findall(r"\[(\w+)\]", word)]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert words[0] == "install" and all(re.search(rf"^{extra} = \[", text, re.MULTILINE) for extra in extras)


def check_make(words):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [word for word in words if "=" not in word][0] in targets


CHECKS = {
    "vss-hf": check_vss_hf,
    "accelerate": check_launched,
    "torchrun": check_launched,
    "python": check_python,
    "pytest": check_pytest,
    "pip": check_pip,
    "make": check_make,
    "hf": lambda words: None,  # the Hub's own program
}


@pytest.mark.parametrize(
    "line",
    [
        "vss-hf predict MODEL --out OUT --overlap",
        "vss-hf predikt MODEL",
        "vss-hf train betterthing/swin-lodge-480",
        "vss-hf train my_recipe.yaml --learning_rat 1",
        "accelerate launch --config_file training/no.yaml train.py my_recipe.yaml",
        "python benchmarks/nothing.py",
        "make coffee",
        "pip install 'vss-hf[nothing]'",
        "curl https://example.org",
    ],
)
def test_the_check_of_commands_would_notice(line):
    with pytest.raises((Exception, SystemExit)):
        check_command(shlex.split(line), "here")


# --- nothing goes without a word


@pytest.mark.parametrize("page", PAGES)
def test_only_the_impossible_is_not_run(page):
    """Everything else is run by hub/test_whole_pages.py, page by page, and most of it by quick tests, too."""
    for block in page_blocks(page):
        if block.needs is not None and page != "docs/add_architecture.md":
            assert block.language == "bash", f"{page}:{block.line}"
            assert all(IMPOSSIBLE.match(command) for command in block.commands), f"{page}:{block.line}"


def test_every_other_page_has_its_test():
    for page, test in OTHERS.items():
        text = (ROOT / "tests" / test).read_text(encoding="utf-8")
        assert page in text, f"{test} does not read {page}"


# --- the guides, from top to bottom


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo"))


@pytest.mark.parametrize("page", GUIDES)
def test_guide(page, demo_folder, tmp_path, monkeypatch):
    """All blocks in order in one folder, which holds what `make demo` leaves; trainings take two steps."""
    folder = tmp_path / "here"
    shutil.copytree(demo_folder, folder)
    monkeypatch.chdir(folder)
    small = functools.partial(make_sample_dataset, **SMALL_SETS)
    monkeypatch.setattr("vss_hf.data.make_sample_dataset", small)
    names = {"__name__": "__main__"}
    for block in page_blocks(page):
        if block.needs is not None:
            continue
        if block.language == "python" and not NOT_QUICK.search(block.text):
            run_python(block, names)
        elif block.language == "yaml":
            name = re.match(r"# (\S+\.yaml)\n", block.text)
            assert name, f"{page}:{block.line}: a recipe begins with the name of its file, as a comment"
            (folder / name[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            for command in block.commands:
                run_command(command, f"{page}:{block.line}")


def run_python(block, names):
    """Run a block; what stands behind `print(...)` as a comment is what it must print."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(block.text, f"{block.page}:{block.line}", "exec"), names)
    expected = re.findall(r"^ *print\(.*\)  # (.+)$", block.text, re.MULTILINE)
    printed = output.getvalue().splitlines()
    assert [line for line in expected if line not in printed] == [], printed


def run_command(command, place):
    if NOT_QUICK.search(command):
        return
    program, *words = shlex.split(command)
    assert program == "vss-hf", f"{place}: no test runs {command!r}; say above the block what it needs"
    if words[0] == "train" and "--dry_run" not in words:
        words[2:2] = SMALL
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0, f"{place}: {command}"
