"""docs/add_architecture.md: its four files give an architecture that passes the checks, and its other blocks run."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from page_blocks import ROOT, page_blocks
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation

import vss_hf.modeling
from vss_hf.modeling import architectures


sys.path.append(str(Path(__file__).parent / "modeling"))  # when only these tests are collected

import test_every_architecture as shared  # noqa: E402


TABLES = {"modeling/architectures.py": "MODELS = {\n", "tests/modeling/test_every_architecture.py": "TINY = {\n"}
BLOCKS = page_blocks("docs/add_architecture.md")
PASTED = dict(
    re.fullmatch(r"# (\S+)\n(.*)", block.text, re.DOTALL).groups() for block in BLOCKS if block.text.startswith("# ")
)


def test_it_passes_some_shared_checks(tmp_path, monkeypatch):
    """In this process: the two files beside the others, the two lines in their tables."""
    assert len(PASTED) == 4 and set(TABLES) <= set(PASTED)
    for name, text in PASTED.items():
        if name not in TABLES:
            (tmp_path / Path(name).name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(vss_hf.modeling, "__path__", [*vss_hf.modeling.__path__, str(tmp_path)])
    line, tiny = (PASTED[name].strip().rstrip(",") for name in TABLES)
    ((model_type, classes),) = ast.literal_eval(f"{{{line}}}").items()
    monkeypatch.setitem(architectures.MODELS, model_type, classes)
    monkeypatch.setitem(architectures.ALL, model_type, classes)
    monkeypatch.setitem(shared.TINY, model_type, eval(f"{{{tiny}}}", vars(shared))[model_type])
    importlib.invalidate_caches()
    config, model = architectures.configuration_class(model_type), architectures.model_class(model_type)
    AutoConfig.register(model_type, config, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
        auto_class.register(config, model, exist_ok=True)
    assert model_type == config.model_type and set(config.PRESETS) <= set(architectures.presets())
    shared.test_saved_and_loaded_it_is_the_same(model_type, tmp_path / "saved")
    shared.test_any_backbone_will_do(model_type, "swin", tmp_path / "on_swin")
    shared.test_one_step_of_training_moves_every_parameter(model_type)
    shared.test_wrong_backbones_and_images_are_named(model_type)
    shared.test_presets_are_valid_configurations(config.DEFAULT_PRESET, tmp_path / "preset")


@pytest.mark.slow
def test_in_a_copy_of_the_repository(tmp_path):
    """As a reader would: the four blocks pasted into files, then the other two."""
    copy = tmp_path / "copy"
    for room in ("modeling", "training", "hub_cards", "vss_hf", "tests", "benchmarks"):
        shutil.copytree(ROOT / room, copy / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "train.py", "README.md", "CONTRIBUTING.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for name, text in PASTED.items():
        paste(copy, name, text)
    commands, code = (block for block in BLOCKS if block.language in ("bash", "python") and block.text[0] != "#")
    said = [run(copy, "-m", *shlex.split(command), "-q", "-p", "no:cacheprovider") for command in commands.commands]
    assert int(re.search(r"(\d+) passed", said[0])[1]) >= 19  # the shared checks of one image model
    assert "TopDown" in run(copy, "-c", f"{code.text}print(type(model))")


def paste(folder, name, text):
    """A new file, or lines at the head of the table that the file holds."""
    path = folder / name
    if name in TABLES:
        before, after = path.read_text(encoding="utf-8").split(TABLES[name])
        text = f"{before}{TABLES[name]}{text}{after}"
    else:
        assert not path.exists()
    path.write_text(text, encoding="utf-8")


def run(folder, *words):
    """What Python says; imports come from `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
