"""benchmarks/training.py compares like with like: its sides have the same weights, losses and gradients."""

import argparse

import pytest

from benchmarks import training


@pytest.fixture
def options():
    return argparse.Namespace(device="cpu", dtype="fp32", batch=2, steps=1, quick=True, threads=1)


def test_the_models_agree(options):
    apart = training.differences(options)
    assert apart["logits"] < 1e-5 and apart["loss"] < 1e-6 and apart["gradient"] < 1e-5


def test_a_round(options, tmp_path, monkeypatch):
    """All sides train to the same loss, and every part takes some time."""
    monkeypatch.setattr(training, "keep_freed_memory", lambda: True)  # it cannot be taken back
    files = tmp_path / "files"
    sizes = dict(height=64, width=96, val_videos=1, val_frames_per_video=1, test_videos=0)
    training.make_sample_dataset(files, train_videos=2, frames_per_video=4, **sizes, progress=False)
    measured = {side: training.measure_here(side, (64, 96), options, files) for side in training.SIDES}
    for side, of in measured.items():
        assert of["loss"] == pytest.approx(measured["transformers"]["loss"], rel=1e-5), side
        assert len(of["seconds"]) == options.steps and list(of["parts"]) == list(training.PARTS)
        assert min(of["parts"].values()) > 0
        of["extra_mib"] = 1 + training.SIDES.index(side)  # of one process for all it means nothing
    results = training.summary([measured], options.batch)
    assert results["transformers"]["speed"] == results["transformers"]["memory"] == 1
    assert results["vss_hf"]["memory"] == 3
    assert results["vss_hf"]["speed"] == measured["transformers"]["seconds"][0] / measured["vss_hf"]["seconds"][0]
