"""Class weights under several processes: one counts the labels, the others read what it kept."""

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from tiny import make_data

from vss_hf.data.masks import LabelReader
from vss_hf.data.splits import open_split
from vss_hf.data.statistics import label_statistics
from vss_hf.training.run import class_pixels


@pytest.fixture
def folder(tmp_path) -> Path:
    root = make_data(tmp_path / "videos", {"train": {"a": 4, "b": 3}})
    for mask in root.rglob("mask/*.png"):
        os.utime(mask, (time.time() - 60,) * 2)
    return tmp_path


def weigh(rank: int, folder: Path, results) -> None:
    """One of two processes of torch.distributed: sends (rank, masks that it decoded, weights or error)."""
    decoded, values = [], LabelReader.values

    def noting(self, path):
        decoded.append(path)
        time.sleep(0.02)  # long enough that the other process would begin, if it did not wait
        return values(self, path)

    LabelReader.values = noting
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        weights = class_pixels([open_split(folder / "videos", "train")]).tolist()
    except Exception as error:
        weights = f"{type(error).__name__}: {error}"
    results.put((rank, len(decoded), weights))
    dist.destroy_process_group()


def in_two_processes(folder: Path) -> list[tuple]:
    context = multiprocessing.get_context("fork")  # spawned ones would import torch anew
    results = context.Queue()
    processes = [context.Process(target=weigh, args=(rank, folder, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return found


def test_only_the_first_process_counts(folder):
    (_, first, weights), (_, second, same) = in_two_processes(folder)
    assert (first, second) == (7, 0)
    assert weights == same == class_pixels([open_split(folder / "videos", "train")]).tolist()


def test_both_end_when_the_first_fails(folder):
    (folder / "videos/data/b/mask/00000001.png").write_bytes(b"")
    (_, _, first), (_, second, other) = in_two_processes(folder)
    assert first.startswith("ValueError") and "b/mask/00000001.png: empty file" in first
    assert other.startswith("OtherProcessFailed: process 0 of 2 failed: ValueError") and second == 0


def test_several_splits(folder):
    """Each counts by its share of the samples, whatever its size: here the pixels of a frame, on average."""
    other = open_split(make_data(folder / "other", {"train": {"c": 2}}), "train")
    split = open_split(folder / "videos", "train")
    pixels = np.array([label_statistics(s).pixels / label_statistics(s).num_frames for s in (split, other)])
    for shares in ((0.5, 0.5), (0.9, 0.1)):
        expected = np.average(pixels, axis=0, weights=shares)
        found = class_pixels([split, other], "raise", shares)
        assert (found / found.sum()).tolist() == pytest.approx((expected / expected.sum()).tolist(), rel=1e-6)
