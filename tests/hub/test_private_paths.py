"""Folders of this machine stay here: what a push sends names them by their last part, and is otherwise the same."""

import json
import re
from pathlib import Path

import pytest
import yaml
from folders import contents, fingerprint

from vss_hf.cli import main
from vss_hf.hub_cards import push_folder, write_card
from vss_hf.hub_cards.private_paths import without_paths
from vss_hf.training.recipe_files import RECIPES
from vss_hf.training.recipe_yaml import parse_yaml, to_yaml


NAME = "alice/street"
MACHINES = re.compile(rb"alice/|bob|carol|C:.{0,2}Users", re.IGNORECASE)
RECIPE = {
    "model": {"init_from": "/home/bob/runs/first try/model", "config": {"align": "1e5", "ratio": 1e-05}},
    "data": {
        "root": "/home/bob/data sets/streets",
        "sources": [{"root": "C:\\Users\\carol\\cam vid"}, {"root": "~bob/coco"}, {"root": "their/ade20k"}],
        "cache": "../../bob/cache",
    },
    "training": {
        "output_dir": "/home/bob/out",
        "lr_scheduler_type": "polynomial",
        "report": "see file:///home/bob/a.b",
    },
}
SHORT = {
    "model": {"init_from": "first try", "config": {"align": "1e5", "ratio": 1e-05}},
    "data": {
        "root": "streets",
        "sources": [{"root": "cam vid"}, {"root": "coco"}, {"root": "their/ade20k"}],
        "cache": "cache",
    },
    "training": {"output_dir": "out", "lr_scheduler_type": "polynomial", "report": "see a.b"},
}
TRAINED = {
    "recipe": "demo-ocrnet",
    "recipe_changes": {"data.root": "/home/bob/streets", "training.learning_rate": 0.1},
    "sources": [{"dataset": "streets", "split": "train", "frames": 7, "share": 1.0}],
    "teachers_sha256": {"/home/bob/a/model": "11", "/home/carol/a/model": "22", "their/teacher": "33"},
}


@pytest.fixture
def told(folder):
    """A model folder of a run that was told absolute paths."""
    (folder / "training_recipe.yaml").write_text("# by hand\n" + to_yaml(RECIPE), encoding="utf-8")
    (folder / "train_results.json").write_text(json.dumps(TRAINED))
    results = json.loads((folder / "eval_results.json").read_text())
    (folder / "eval_results.json").write_text(json.dumps({**results, "model": "/home/bob/out/model"}))
    (folder / "training_stages.json").write_text(json.dumps({"one": {"steps": 3, "mean_iou": 0.5, "recipe": RECIPE}}))
    members = [{"model": "/home/bob/a", "weight": 1, "trained_on": ["streets"], "sha256": {}}]
    (folder / "averaging.json").write_text(json.dumps({"members": members}))
    write_card(folder)
    return folder


def test_a_push_names_no_folder_of_this_machine(hub, told, capsys):
    before = contents(told)
    with pytest.raises(SystemExit) as end:
        main(["push", str(told), NAME])
    assert end.value.code == 0
    there = hub.files(NAME)
    assert not {name: MACHINES.findall(data.replace(NAME.encode(), b"")) for name, data in there.items()
                if MACHINES.search(data.replace(NAME.encode(), b""))}  # fmt: skip
    changed = sorted(name for name in before if there[name] != before[name] and name != "README.md")
    expected = ["averaging.json", "eval_results.json", "train_results.json", "training_recipe.yaml"]
    assert changed == [*expected, "training_stages.json"]
    said = next(line for line in capsys.readouterr().out.splitlines() if "folders of this machine" in line)
    assert all(name in said for name in changed)
    assert {name: data for name, data in contents(told).items() if name != "README.md"} == {
        name: data for name, data in before.items() if name != "README.md"
    }

    recipe = there["training_recipe.yaml"].decode()
    assert parse_yaml(recipe, "recipe") == SHORT and recipe.startswith("# by hand\n")
    assert json.loads(there["training_stages.json"])["one"]["recipe"] == SHORT
    trained = json.loads(there["train_results.json"])
    assert trained["recipe_changes"] == {"data.root": "streets", "training.learning_rate": 0.1}
    assert trained["teachers_sha256"] == {"a": "11", "a'": "22", "their/teacher": "33"}
    assert json.loads(there["eval_results.json"])["model"] == "out"
    assert push_folder(told, NAME).sent == []


def test_nothing_else_is_touched(tmp_path):
    """The settings of every recipe, and files that somebody else wrote."""
    for number, path in enumerate(sorted(RECIPES.rglob("*.yaml"))):
        (tmp_path / f"{number}.yaml").write_text(to_yaml(yaml.safe_load(path.read_text(encoding="utf-8"))))
        assert without_paths({"training_recipe.yaml": tmp_path / f"{number}.yaml"}) == {}, path
    (tmp_path / "labels.json").write_text(json.dumps({"/": "/home", "~": "~/x"}))
    assert without_paths({"labels.json": tmp_path / "labels.json", "config.json": tmp_path / "labels.json"}) == {}


def test_what_somebody_wrote_is_sent_with_a_warning(hub, folder):
    (folder / "notes.txt").write_text("first\nlies in C:\\Users\\carol\\x\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "draw.py").write_text("#!/usr/bin/env python\n# see https://huggingface.co/home/a\n")
    before = fingerprint(folder)
    with pytest.warns(UserWarning, match="a home folder of this machine is named in notes.txt, line 2: it is sent"):
        push_folder(folder, NAME)
    assert hub.files(NAME)["notes.txt"] == (folder / "notes.txt").read_bytes()
    assert {name: value for name, value in fingerprint(folder).items() if name != "README.md"} == {
        name: value for name, value in before.items() if name != "README.md"
    }


def test_a_file_that_cannot_be_read(hub, folder):
    for name, content in [("training_recipe.yaml", "a: [b"), ("train_results.json", "{")]:
        kept = (folder / name).read_bytes() if (folder / name).exists() else None
        Path(folder / name).write_text(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            push_folder(folder, NAME)
        (folder / name).unlink() if kept is None else (folder / name).write_bytes(kept)
    assert not hub.repos
