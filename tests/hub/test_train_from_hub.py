"""Training on packed data of a Hub on this machine, streamed or downloaded: the same scores, and runs that go on."""

import json

import pytest
from safetensors.torch import load_file
from tiny import make_data, write_recipe

import vss_hf.data.packed as packed_files
from vss_hf.data.parquet_writer import write_parquet
from vss_hf.hub_cards import push_dataset
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.scoring.evaluation import evaluate_model
from vss_hf.training.recipe import load_recipe
from vss_hf.training.run import train


NAME = "alice/set"
VIDEOS = {"a": 4, "b": 3, "c": 5}


@pytest.fixture
def root(tmp_path):
    return make_data(tmp_path / "data", {"train": VIDEOS, "val": {"v": 10}})


@pytest.fixture
def pushed(hub, root, tmp_path, monkeypatch):
    monkeypatch.setattr(packed_files, "_videos", packed_files._Videos())
    write_parquet(root, tmp_path / "packed", progress=False)
    push_dataset(tmp_path / "packed", NAME)
    hub.forget()
    return hub


def run(tmp_path, name, root=NAME, data=None, **training):
    """A run of 6 steps of 2 samples, a pass over all 12 frames; its model folder."""
    sections = {"data": data or {}, "training": {"max_steps": 6, "save_total_limit": 9, **training}}
    return train(load_recipe(write_recipe(tmp_path / f"{name}.yaml", root, tmp_path / name, **sections)))


def weights(folder):
    return {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.slow
def test_downloaded_is_as_from_the_folder(pushed, root, tmp_path):
    """Every weight after the training, and every score; the repository's files come once."""
    here, there = run(tmp_path, "here", root), run(tmp_path, "there")
    assert weights(here) == weights(there)
    scores = [json.loads((folder / "eval_results.json").read_text()) for folder in (here, there)]
    assert scores[0]["mean_iou"] == scores[1]["mean_iou"] and scores[1]["frames"] == 10
    assert len(pushed.seen("GET /storage/")) == 2  # the shard of each split


def test_streamed(pushed, root, tmp_path):
    """Each video is fetched once a pass; an interrupted run goes on to the same weights."""
    folder = run(tmp_path, "whole", data={"streaming": True})
    assert len([request for request in pushed.seen("GET /storage/") if request.range]) == len(VIDEOS)
    results = json.loads((folder / "eval_results.json").read_text())
    again = evaluate_model(VideoSegmenter.from_pretrained(folder, "cpu"), root, "val")
    assert results["mean_iou"] == again["mean_iou"]

    checkpoint = str(tmp_path / "whole" / "checkpoint-4")
    resumed = run(tmp_path, "resumed", data={"streaming": True}, resume_from_checkpoint=checkpoint)
    assert weights(resumed) == weights(folder)


def test_streamed_videos_beside_a_folder(pushed, tmp_path):
    """Two readers with a lane each; after three batches the second one's is due, and a new loader begins with it."""
    other = make_data(tmp_path / "other", {"train": {"x": 5}})
    data = {"streaming": True, "sources": [{}, {"root": str(other)}], "mix_by": "weights"}
    settings = {"save_steps": 3, "eval_steps": 3, "dataloader_num_workers": 2}
    folder = run(tmp_path, "whole", data=data, **settings)
    results = json.loads((folder / "train_results.json").read_text())
    assert results["samples_vspw_0"] + results["samples_vspw_1"] == 12
    assert 1 <= results["samples_vspw_0"] <= 11
    checkpoint = str(tmp_path / "whole" / "checkpoint-3")
    resumed = run(tmp_path, "resumed", data=data, resume_from_checkpoint=checkpoint, **settings)
    assert weights(resumed) == weights(folder)
    with pytest.raises(ValueError, match="1 processes, 2 readers each, batches of 2 samples and is .* 1 readers each"):
        run(tmp_path, "other readers", data=data, **{**settings, "dataloader_num_workers": 0},
            resume_from_checkpoint=checkpoint)  # fmt: skip


def test_a_whole_video_for_one_frame_is_refused(pushed, tmp_path):
    with pytest.raises(ValueError, match="one_per_video of alice/set with data.streaming would fetch a whole"):
        run(tmp_path, "streamed", data={"streaming": True, "sampling": "one_per_video"})
    assert (run(tmp_path, "downloaded", data={"sampling": "one_per_video"}, max_steps=2) / "README.md").is_file()
