"""Packed data streamed from a Hub on this machine: pixel for pixel, each sample once, whatever happens on the way."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import streaming
import torch
from hub_server import OTHER_TOKEN
from huggingface_hub import HfApi, constants
from make_tree import make_tree
from torchdata.stateful_dataloader import StatefulDataLoader

from vss_hf.data import load_vspw
from vss_hf.data import packed as packed_files
from vss_hf.data.parquet_writer import write_parquet
from vss_hf.hub_cards import push_dataset


NAME = "alice/set"
VIDEOS = {f"video{i:02d}": [*range(3 + i % 5)] for i in range(14)}
VIDEO = "GET /storage/"  # how the frames of a video are asked for


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree") / "streets", {"train": VIDEOS, "val": {"v": [0, 1]}})


@pytest.fixture(scope="module")
def packed(root) -> Path:
    write_parquet(root, root.parent / "packed", shard_bytes=30_000, progress=False)
    return root.parent / "packed"


@pytest.fixture(scope="module")
def expected(root) -> list[str]:
    """The notes on one epoch from the folder, sorted."""
    return sorted(streaming.line(0, sample) for sample in load_vspw(root, "train"))


@pytest.fixture
def pushed(hub, packed, monkeypatch):
    """The server with the data set on it, no requests noted, and no video known to this process."""
    monkeypatch.setattr(packed_files, "_videos", packed_files._Videos())
    push_dataset(packed, NAME)
    hub.forget()
    return hub


def size_of_train(packed) -> int:
    return sum(path.stat().st_size for path in packed.glob("data/train-*"))


def notes(source, epoch=0) -> list[str]:
    return [streaming.line(epoch, sample) for sample in source]


def stream_of(name=NAME, **settings):
    return load_vspw(name, "train", streaming=True, shuffle_seed=0, **settings)


# --- in this process


def test_samples_are_those_of_the_folder(pushed, root, packed):
    """In both forms of stream, downloaded, and from the packed folder; with clips, reference and raw labels."""
    settings = {"frame_offsets": (-2, -1), "reference_labels": True, "raw_labels": True}
    wanted = {(s["video"], s["index"]): s for s in load_vspw(root, "train", **settings)}
    sources = [
        load_vspw(NAME, "train", streaming=True, **settings), stream_of(**settings),
        load_vspw(NAME, "train", **settings), load_vspw(packed, "train", **settings),
    ]  # fmt: skip
    for source in sources:
        samples = {(s["video"], s["index"]): s for s in source}
        assert samples.keys() == wanted.keys()
        for place, sample in samples.items():
            assert sample.keys() == wanted[place].keys() and sample["frame"] == wanted[place]["frame"]
            for key in ("frames", "labels", "reference_labels", "raw_labels"):
                assert torch.equal(torch.as_tensor(sample[key]), wanted[place][key]), key


def test_each_video_is_fetched_once(pushed, packed, expected):
    """Not once per frame, and only the video's own bytes."""
    stream = stream_of()
    pushed.forget()
    assert sorted(notes(stream)) == expected
    requests = pushed.seen(VIDEO)
    assert len(requests) == len(VIDEOS) and all(request.range for request in requests)
    assert pushed.bytes_sent() < size_of_train(packed)
    assert all(request.authorization is None for request in requests)  # another host: no token for it
    assert len(pushed.requests) == 2 * len(VIDEOS)  # the Hub itself is only asked where they are


def test_two_ranks_with_two_workers_each(pushed, packed, expected):
    parts = []
    for rank in range(2):
        loader = StatefulDataLoader(stream_of().shard(2, rank), batch_size=None, num_workers=2)
        parts.append(notes(loader))
    assert abs(len(parts[0]) - len(parts[1])) <= 1
    assert sorted(parts[0] + parts[1]) == expected
    assert len(pushed.seen(VIDEO)) <= len(VIDEOS) + 3  # four stretches: a video may be cut at each border
    assert pushed.bytes_sent() < size_of_train(packed) * (len(VIDEOS) + 3) / len(VIDEOS)


FAULTS = [
    {"do": "status", "status": 503, "times": 2},
    {"do": "status", "status": 429, "headers": {"Retry-After": "7"}},
    {"do": "hang up", "times": 2},
    {"do": "cut", "at": 3000},
    {"do": "lose answer"},
]


@pytest.mark.parametrize("where", [VIDEO, "GET /datasets/.*resolve/.*parquet"], ids=["storage", "hub"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault['do']} {fault.get('status', '')}")
def test_a_passing_fault_in_the_middle(pushed, expected, fault, where):
    stream = stream_of()
    found = pushed.fail(where, first=4, **fault)
    assert sorted(notes(stream)) == expected
    assert found.seen > 4


def test_a_lasting_fault_is_told(pushed):
    stream = stream_of()
    pushed.fail(VIDEO, status=503, first=4, times=1000)
    with pytest.raises(OSError, match=r"alice/set.*data/train-0000\d.*503"):
        notes(stream)


def test_a_branch_that_moves_does_not_mix(pushed, packed, expected, tmp_path):
    """What was opened stays what it was; a stream that is opened later has the new data."""
    stream = stream_of()
    iterator = iter(stream)
    begun = [next(iterator) for _ in range(5)]
    other = make_tree(tmp_path / "other", {"train": {f"new{i}": [0, 1, 2] for i in range(9)}})
    write_parquet(other, tmp_path / "other_packed", shard_bytes=30_000, progress=False)
    first = pushed.repo(NAME, "datasets").branches["main"]
    push_dataset(tmp_path / "other_packed", NAME)
    assert sorted(notes(begun) + notes(iterator)) == expected
    assert {sample["video"] for sample in stream_of()} == {f"new{i}" for i in range(9)}
    assert sorted(notes(stream_of(f"{NAME}@{first}"))) == expected


def test_a_position_is_of_one_export(pushed, root, packed, tmp_path):
    """A branch that moved to other data of the same size is noticed; one that moved and has the same data goes on."""
    stream = stream_of()
    next(iter(stream))
    state = stream.state_dict()
    load_vspw(packed, "train", streaming=True, shuffle_seed=0).load_state_dict(state)
    first = pushed.repo(NAME, "datasets").branches["main"]
    changed = shutil.copytree(root, tmp_path / "changed")
    mask = changed / "data/video00/mask/00000000.png"
    mask.write_bytes((changed / "data/video01/mask/00000001.png").read_bytes())
    write_parquet(changed, tmp_path / "changed_packed", shard_bytes=30_000, progress=False)
    push_dataset(tmp_path / "changed_packed", NAME)
    assert stream_of().num_samples == stream.num_samples
    with pytest.raises(ValueError, match="holds other files than when the position was saved"):
        stream_of().load_state_dict(state)
    stream_of(f"{NAME}@{first}").load_state_dict(state)


def test_what_cannot_be_opened(pushed, monkeypatch):
    with pytest.raises(FileNotFoundError, match="alice/set.*no such data set on the Hub.*private.*hf auth login"):
        with monkeypatch.context() as other:
            other.setenv("HF_TOKEN", OTHER_TOKEN)
            stream_of()
    with pytest.raises(FileNotFoundError, match="alice/set@nowhere.*no such revision"):
        stream_of(f"{NAME}@nowhere")
    with pytest.raises(ValueError, match="unknown split 'trian'.*train, val"):
        load_vspw(NAME, "trian", streaming=True, shuffle_seed=0)
    HfApi(endpoint=pushed.url).create_repo("alice/empty", repo_type="dataset", private=True)
    with pytest.raises(FileNotFoundError, match="alice/empty.*vss-hf data parquet"):
        stream_of("alice/empty")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="alice/other"):
        stream_of("alice/other")


def test_without_a_token(pushed, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FileNotFoundError, match="alice/set.*private.*hf auth login"):
        stream_of()


# --- in processes of their own


def start(out: Path, epochs: int) -> subprocess.Popen:
    """Two processes with two workers each, in a process group of their own."""
    out.mkdir(exist_ok=True)
    launcher = "torch.distributed.run --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=localhost:0".split()
    words = [sys.executable, "-m", *launcher, streaming.__file__, NAME, str(out), str(epochs)]
    log = open(out / "log.txt", "a")
    return subprocess.Popen(words, stdout=log, stderr=log, env=os.environ, start_new_session=True)


def finish(process: subprocess.Popen, out: Path) -> list[str]:
    assert process.wait(timeout=240) == 0, (out / "log.txt").read_text()[-5000:]
    return [line for rank in range(2) for line in (out / f"{rank}.txt").read_text().splitlines(keepends=True)]


def of_epoch(lines: list[str], epoch: int) -> list[str]:
    """The notes on an epoch, sorted, as if it were the first."""
    return sorted("0" + line[1:] for line in lines if line.startswith(f"{epoch} "))


def in_order(packed) -> list[str]:
    """What both processes must note in two epochs, in this order: the same stream from the folder, here."""
    lines = []
    for rank in range(2):
        stream = load_vspw(packed, "train", streaming=True, shuffle_seed=3).shard(2, rank)
        loader = StatefulDataLoader(stream, batch_size=None, num_workers=2)
        for epoch in range(2):
            stream.set_epoch(epoch)
            lines += notes(loader, epoch)
    return lines


@pytest.mark.slow
def test_two_processes(pushed, packed, expected, tmp_path):
    lines = finish(start(tmp_path / "out", 2), tmp_path / "out")
    assert of_epoch(lines, 0) == of_epoch(lines, 1) == expected
    assert lines == in_order(packed)
    assert pushed.bytes_sent() < 2 * size_of_train(packed) * (len(VIDEOS) + 3) / len(VIDEOS)


@pytest.mark.slow
@pytest.mark.parametrize("videos", [3, 20])
def test_killed_and_resumed(pushed, packed, expected, tmp_path, videos):
    """SIGKILL to all processes while one of them waits in the middle of a video: the rest comes, nothing twice."""
    out = tmp_path / "out"
    pushed.fail(VIDEO, "stall", first=videos)
    process = start(out, 2)
    assert pushed.stalled.wait(120), (out / "log.txt").read_text()[-5000:]
    time.sleep(1)  # the others go on meanwhile
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = [(out / f"{rank}.txt").read_text() if (out / f"{rank}.txt").exists() else "" for rank in range(2)]
    assert 0 < sum(text.count("\n") for text in before) < 2 * len(expected)
    pushed.go_on.set()
    pushed.forget()
    lines = finish(start(out, 2), out)
    assert lines == in_order(packed)
    assert of_epoch(lines, 0) == of_epoch(lines, 1) == expected
    assert len(pushed.seen(VIDEO)) < 2 * (len(VIDEOS) + 3)  # what was over is not fetched again
