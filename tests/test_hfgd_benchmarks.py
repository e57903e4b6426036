"""benchmarks/hfgd.py and hfgd_on_camvid.py compare like with like, and go on where they were stopped."""

import argparse
import json

import pytest
import torch
import yaml

from benchmarks import hfgd, hfgd_on_camvid
from vss_hf.modeling.configuration_hfgd import HFGDConfig
from vss_hf.training.recipe_files import RECIPES


# --- time and memory


@pytest.fixture
def options():
    return argparse.Namespace(device="cpu", dtype="fp32", batch=2, steps=1, quick=True, threads=1)


def test_the_two_attentions_agree():
    assert max(hfgd.axial_difference().values()) < 1e-5


def test_all_models_have_the_same_backbone():
    """But the one that is dilated, which changes no weight's shape."""
    backbones = [hfgd.build_model(name, quick=True).backbone.state_dict() for name in hfgd.MODELS]
    shapes = [{name: tensor.shape for name, tensor in backbone.items()} for backbone in backbones]
    assert all(each == shapes[0] for each in shapes)


def test_one_measurement(options, monkeypatch):
    monkeypatch.setattr(hfgd, "keep_freed_memory", lambda: True)  # it cannot be taken back
    measured = hfgd.measure_training("HFGD, stride 2", (65, 97), options)
    assert len(measured["seconds"]) == options.steps and measured["seconds"][0] > 0
    assert measured["loss"] > 2 * torch.tensor(124.0).log() - 1  # both branches' cross entropy at random weights
    assert len(hfgd.measure_axial("naive", (17, 33), options)["seconds"]) == options.steps


def test_ratios_are_those_within_a_round():
    """By hand: 4 / 2, 9 / 3 and 5 / 5 seconds; 30 / 10, 40 / 10 and 20 / 10 MiB."""
    rounds = [
        {"plain": {"seconds": [plain], "extra_mib": 10.0}, "other": {"seconds": [1.0, other, 99.0], "extra_mib": mib}}
        for plain, other, mib in ((2.0, 4.0, 30.0), (3.0, 9.0, 40.0), (5.0, 5.0, 20.0))
    ]
    found = hfgd.summary(rounds, "plain")
    assert found["plain"]["time_range"] == [1, 1] and found["plain"]["seconds"] == 3
    assert found["other"] == {"seconds": 5, "time": 2, "time_range": [1, 3], "extra_mib": 30, "memory": 3}


# --- CamVid

PARTS = {  # row -> upsampler, encoding, guidance, stopped gradients, axial attention
    "SemanticFPN": ("semantic_fpn", "identity", False, False, False),
    "+ guidance": ("semantic_fpn", "identity", True, True, False),
    "+ axial attention": ("semantic_fpn", "identity", False, False, True),
    "full HFGM": ("semantic_fpn", "identity", True, True, True),
    "full HFGD": ("usfpn", "cae", True, True, True),
}


def test_rows_have_the_parts_that_their_names_say():
    recipe = yaml.safe_load((RECIPES / "camvid-hfgd.yaml").read_text(encoding="utf-8"))
    fields = ("upsampler", "extra_encoding", "guidance", "stop_gradient", "axial_attention")
    found = {}
    for row, changes in hfgd_on_camvid.ROWS.items():
        config = HFGDConfig(**{**recipe["model"]["config"], **changes})
        found[row] = tuple(getattr(config, field) for field in fields)
    assert found == PARTS


def made_run(folder, seed, mean_iou):
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "train_results.json").write_text(json.dumps({"steps": 10, "seconds": 12.5, "seed": seed}))
    scores = {"mean_iou": mean_iou, "vc8": 0.9, "vc16": 0.8, "pixel_accuracy": 0.7}
    rest = {"per_class_iou": {}, "vc_clips": {}, "videos": 1, "frames": 9}
    (model / "eval_results.json").write_text(json.dumps({**scores, **rest}))
    (model / "README.md").write_text("card")


def test_a_stopped_comparison_goes_on(tmp_path, monkeypatch):
    """The outside, a training process, is replaced: one writes a run, another one fails."""
    options = argparse.Namespace(data=tmp_path, out=tmp_path, seeds=[42, 43], steps=10, jobs=1)
    options.only = ["SemanticFPN", "+ guidance"]
    made_run(tmp_path / "semanticfpn-42", 42, 0.3)
    (tmp_path / "guidance-42").mkdir()
    (tmp_path / "guidance-42" / "leftover").write_text("of a killed run")
    started = []

    def process(words, threads, log):
        started.append(log.stem)
        assert threads == 1 and ("--model.config.guidance" in words) == ("semanticfpn" in log.stem)
        if log.stem == "guidance-43":
            return 1
        made_run(tmp_path / log.stem, int(log.stem[-2:]), {"guidance-42": 0.4, "semanticfpn-43": 0.5}[log.stem])
        return 0

    monkeypatch.setattr(hfgd_on_camvid, "run_python", process)
    failed = hfgd_on_camvid.train_all(options)
    assert started == ["guidance-42", "semanticfpn-43", "guidance-43"]
    assert failed == [str(tmp_path / "guidance-43.log")] and not (tmp_path / "guidance-42" / "leftover").exists()
    assert hfgd_on_camvid.collect(options)[2:] == [
        "| SemanticFPN | 2 | 0.400 ± 0.141 | 0.900 ± 0.000 | 0.800 ± 0.000 | 0.700 ± 0.000 |  |",
        "| + guidance | 1 | 0.400 | 0.900 | 0.800 | 0.700 | +0.100 (+0.100) |",
    ]
