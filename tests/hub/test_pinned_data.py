"""Data on the Hub that change while a run is under way: one version for all processes, and for a run that goes on."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny import make_data, write_recipe

import vss_hf.data.packed as packed_files
from vss_hf.data.parquet_writer import write_parquet
from vss_hf.hub_cards import push_dataset
from vss_hf.training.recipe import load_recipe
from vss_hf.training.run import train


NAME = "alice/set"


@pytest.fixture
def pushed(hub, tmp_path, monkeypatch):
    """The server with a data set of which a second version, of as many frames, is ready in tmp_path/second_packed."""
    monkeypatch.setattr(packed_files, "_videos", packed_files._Videos())
    first = make_data(tmp_path / "first", {"train": {"a": 4, "b": 3, "c": 5}, "val": {"v": 10}})
    second = shutil.copytree(first, tmp_path / "second")
    mask = second / "data" / "b" / "mask" / "00000001.png"
    Image.fromarray(np.full_like(np.array(Image.open(mask)), 5)).save(mask)
    for root in (first, second):
        write_parquet(root, tmp_path / f"{root.name}_packed", progress=False)
    push_dataset(tmp_path / "first_packed", NAME)
    return hub


def run(tmp_path, name, root=NAME, streaming=True, **training):
    sections = {"data": {"streaming": streaming}, "training": {"max_steps": 4, "save_total_limit": 9, **training}}
    return train(load_recipe(write_recipe(tmp_path / f"{name}.yaml", root, tmp_path / name, **sections)))


@pytest.mark.parametrize("streaming", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_the_version_that_it_began_with_or_not_at_all(pushed, tmp_path, streaming):
    folder = run(tmp_path, "whole", streaming=streaming)
    commit = pushed.repo(NAME, "datasets").branches["main"]
    saved = yaml.safe_load((folder / "training_recipe.yaml").read_text())["data"]
    assert saved["root"] == f"{NAME}@{commit}"
    told = [json.loads((folder / file).read_text()) for file in ("eval_results.json", "train_results.json")]
    assert told[0]["dataset"] == told[1]["sources"][0]["dataset"] == NAME

    push_dataset(tmp_path / "second_packed", NAME)
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    with pytest.raises(ValueError, match="the files of vspw are not those .* root: owner/name@commit"):
        run(tmp_path, "other", streaming=streaming, resume_from_checkpoint=checkpoint)
    resumed = run(tmp_path, "resumed", f"{NAME}@{commit}", streaming, resume_from_checkpoint=checkpoint)
    ours, theirs = (load_file(place / "model.safetensors") for place in (folder, resumed))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


LOOK = """
import json, os, sys
if os.environ["RANK"] == "1":
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody listens there
import torch.distributed as dist
from vss_hf.scoring.ground_truth import pinned_everywhere
dist.init_process_group("gloo")
found = pinned_everywhere(["alice/set", "hf://datasets/alice/set@main", "here/set"])
open(sys.argv[1] + os.environ["RANK"], "w").write(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_the_first_process_decides_for_all(pushed, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "look.py").write_text(LOOK)
    launcher = "torch.distributed.run --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=localhost:0".split()
    words = [sys.executable, "-m", *launcher, "look.py", "found"]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    commit = pushed.repo(NAME, "datasets").branches["main"]
    expected = {NAME: f"{NAME}@{commit}", f"hf://datasets/{NAME}@main": f"hf://datasets/{NAME}@{commit}"}
    for rank in "01":
        assert json.loads((tmp_path / f"found{rank}").read_text()) == expected
