"""Data sets packed into Parquet shards: the same files and samples, by every way to read them."""

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from make_tree import CAMVID, frame_pixels, make_tree, mask_values, write_mask
from torchdata.stateful_dataloader import StatefulDataLoader
from typer.testing import CliRunner

from vss_hf import OCRNetConfig, OCRNetForSemanticSegmentation
from vss_hf.cli import app
from vss_hf.data import load_vspw, open_split, parquet_writer, verify_dataset
from vss_hf.data.packed import read_packed
from vss_hf.data.parquet import INDEX_FILE, hub_id, open_parquet_split, read_index, verify_parquet
from vss_hf.data.parquet_writer import RECORDS, write_parquet
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.scoring.evaluation import evaluate_model


SPLITS = {
    "train": {"2_b": [5, 6, 7, 9], "1_a": [1], "10_c": [2, 3, 11], "4_d": [1, 2]},
    "val": {"5_e": [1, 2, 3]},
    "test": {"7_g": [10, 20]},
}
TWO_VIDEOS = 11_500  # bytes: a shard of the tree holds one to three videos


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("parquet") / "tree", SPLITS)


@pytest.fixture(scope="module")
def whole(root):
    """The packed tree; not to be changed."""
    out = root.parent / "whole"
    write_parquet(root, out, shard_bytes=TWO_VIDEOS, license="for tests", progress=False)
    return out


@pytest.fixture
def out(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "out")


def contents(folder, *patterns):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for pattern in patterns or ["*.parquet"]
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    }


def equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        assert same, key


# --- what is written


def test_every_file_is_there_byte_for_byte(root, whole):
    for split in SPLITS:
        folder, packed = open_split(root, split), open_split(whole, split)
        assert (packed.source, packed.packed, folder.packed) == ("parquet", True, False)
        assert packed.classes == folder.classes and packed.has_masks == folder.has_masks == (split != "test")
        assert [video.name for video in packed.videos] == list(SPLITS[split])
        for video, same in zip(folder.videos, packed.videos, strict=True):
            for frame, inside in zip(video.frames, same.frames, strict=True):
                assert inside.stem == frame.stem and inside.image_path.name == frame.image_path.name
                assert read_packed(inside.image_path) == frame.image_path.read_bytes()
                if split == "test":
                    assert inside.mask_path is None
                else:
                    assert read_packed(inside.mask_path) == frame.mask_path.read_bytes()
    assert (whole / "label_num_dic_final.json").read_bytes() == (root / "label_num_dic_final.json").read_bytes()


def test_index_describes_the_shards(whole):
    index = read_index(whole)
    assert (index["name"], index["license"], index["num_classes"]) == ("tree", "for tests", 3)
    counts = {split: (found["videos"], found["frames"], found["masks"]) for split, found in index["splits"].items()}
    assert counts == {"train": (4, 10, 10), "val": (1, 3, 3), "test": (1, 2, 0)}
    train = [shard for shard in index["shards"] if shard["split"] == "train"]
    assert [shard["file"] for shard in train] == [f"data/train-{i:05d}-of-{len(train):05d}.parquet" for i in range(2)]
    assert index["splits"]["train"]["shards"] == 2
    for shard in index["shards"]:
        path = whole / shard["file"]
        assert (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) == (
            shard["bytes"],
            shard["sha256"],
        )
        file = pq.ParquetFile(path)
        names = [file.read_row_group(i, ["video"])["video"].unique().to_pylist() for i in range(file.num_row_groups)]
        assert names == [[video["name"]] for video in shard["videos"]]
        assert [video["row_group"] for video in shard["videos"]] == list(range(len(names)))
        about = json.loads(file.schema_arrow.metadata[b"vss_hf"])
        assert about["classes"] == {"road": 1, "sky": 2, "tree": 5} and about["split"] == shard["split"]
        assert (about["name"], about["license"]) == ("tree", "for tests")
    assert {path.name for path in whole.iterdir()} == {"data", INDEX_FILE, "label_num_dic_final.json"}


def test_plain_datasets_reads_it(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    loaded = datasets.load_dataset(str(whole), cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 10, "val": 3, "test": 2}
    rows = loaded["train"]
    assert isinstance(rows.features["mask"], datasets.Image)
    numbers = [(video, number) for video, of in SPLITS["train"].items() for number in of]
    assert rows["video"][:] == [video for video, _ in numbers]
    assert rows["index"][:] == [i for of in SPLITS["train"].values() for i in range(len(of))]
    for row, (video, number) in zip(rows, numbers, strict=True):
        assert (np.array(row["image"]) == frame_pixels(video, number)).all()
        assert (np.array(row["mask"]) == mask_values(video, number)).all()
        assert row["frame"] == f"{number:08d}" and row["mask"].mode in "LP"
    assert {row["mask"].mode for row in rows} == {"L", "P"}  # as in the folder
    assert loaded["test"][0]["mask"] is None
    files = str(whole / "data/val-*.parquet")
    assert len(datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))) == 3


def test_equal_input_gives_equal_bytes(root, whole, tmp_path):
    copy = shutil.copytree(root, tmp_path / "tree", copy_function=shutil.copyfile)  # other times of files
    write_parquet(copy, tmp_path / "out", shard_bytes=TWO_VIDEOS, license="for tests", progress=False)
    assert contents(tmp_path / "out") == contents(whole)


# --- samples


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"frame_offsets": (-2, -1), "reference_labels": True, "raw_labels": True},
        {"frame_offsets": (-1,), "clip_start": "drop"},
        {"frame_offsets": (-3, -1), "clip_start": "mirror", "cache": True},
    ],
)
def test_samples_are_those_of_the_folder(root, whole, options):
    folder, packed = load_vspw(root, "train", **options), load_vspw(whole, "train", **options)
    assert len(folder) == len(packed)
    for one, other in zip(folder, packed, strict=True):
        equal(one, other)
    options.pop("cache", None)
    for one, other in zip(folder, load_vspw(whole, "train", streaming=True, **options), strict=True):
        equal(one, other)
    stream = load_vspw(whole, "train", streaming=True, shuffle_seed=1, **options)
    expected = {(sample["video"], sample["frame"]): sample for sample in folder}
    for sample in stream:
        equal(sample, expected.pop((sample["video"], sample["frame"])))
    assert not expected


def test_unlabelled_split(root, whole):
    for one, other in zip(load_vspw(root, "test"), load_vspw(whole, "test"), strict=True):
        assert "labels" not in other
        equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_is_whole_over_ranks_and_workers_and_resumes(whole, workers):
    def loader(rank):
        stream = load_vspw(whole, "train", streaming=True, shuffle_seed=3).shard(2, rank)
        return StatefulDataLoader(stream, batch_size=2, num_workers=workers)

    def names(batches):
        return [name for batch in batches for name in zip(batch["video"], batch["frame"], strict=True)]

    everything = []
    for rank in range(2):
        running = loader(rank)
        iterator = iter(running)
        head = names([next(iterator)])
        state = running.state_dict()
        rest = names(iterator)
        resumed = loader(rank)
        resumed.load_state_dict(state)
        assert names(resumed) == rest
        everything += head + rest
    numbers = [(video, f"{number:08d}") for video, of in SPLITS["train"].items() for number in of]
    assert sorted(everything) == sorted(numbers)


def test_another_export_of_the_same_size_is_noticed(root, whole, out, tmp_path):
    def stream(folder):
        return load_vspw(folder, "train", streaming=True, shuffle_seed=2)

    state = stream(whole).state_dict()
    stream(out).load_state_dict(state)  # a copy
    changed = shutil.copytree(root, tmp_path / "changed")
    mask = changed / "data/1_a/mask/00000001.png"
    write_mask(mask, mask_values("1_a", 2))
    other = tmp_path / "other"
    write_parquet(changed, other, shard_bytes=TWO_VIDEOS, progress=False)
    assert open_split(other, "train").num_frames == open_split(whole, "train").num_frames
    with pytest.raises(ValueError, match="other files"):
        stream(other).load_state_dict(state)
    assert open_split(whole, "train").fingerprint == open_split(out, "train").fingerprint
    assert open_split(whole, "train").fingerprint != open_split(whole, "val").fingerprint


def test_checksums_tell_exports_apart(out):
    """Bytes may change and every place stay the same."""
    before = open_split(out, "train").fingerprint
    index = read_index(out)
    index["shards"][0]["sha256"] = "0" * 64
    (out / INDEX_FILE).write_text(json.dumps(index))
    assert open_split(out, "train").fingerprint != before


def test_evaluation_gives_the_same_numbers(root, whole, tmp_path):
    torch.manual_seed(0)
    names = dict(enumerate(["road", "sky", "tree"]))
    backbone = {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1],
        "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
    }  # fmt: skip
    config = OCRNetConfig(backbone_config=backbone, channels=16, ocr_channels=16, coarse_channels=16, id2label=names)
    OCRNetForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    VSSImageProcessor(do_resize=True, size={"height": 48, "width": 64}).save_pretrained(tmp_path / "model")
    segmenter = VideoSegmenter.from_pretrained(tmp_path / "model", "cpu")
    of_folder, packed = (evaluate_model(segmenter, data, "train") for data in (root, whole))
    assert of_folder["frames"] == 10 and of_folder["mean_iou"] > 0
    for results in (of_folder, packed):
        del results["frames_per_second"], results["dataset"], results["class_groups_of"]  # speed and names
    assert of_folder == packed


@pytest.mark.skipif(not CAMVID.is_dir(), reason="needs CamVid")
def test_camvid(tmp_path):
    summary = write_parquet(CAMVID, tmp_path, progress=False)
    payload = sum(path.stat().st_size for path in (CAMVID / "data").rglob("*") if path.is_file())
    assert payload < sum(shard["bytes"] for shard in summary["shards"]) < 1.01 * payload
    for split in ("train", "val"):
        folder, packed = load_vspw(CAMVID, split, frame_offsets=(-1,)), load_vspw(tmp_path, split, frame_offsets=(-1,))
        for index in range(0, len(folder), 60):
            equal(folder[index], packed[index])


# --- interruption and damage


def killed_at(call, root, out):
    """Writes in a process that is killed at the given row group."""
    child = os.fork()
    if child == 0:
        calls, rows = [], parquet_writer._rows

        def dying(*arguments):
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return rows(*arguments)

        parquet_writer._rows = dying
        write_parquet(root, out, shard_bytes=TWO_VIDEOS, license="for tests", progress=False)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(("call", "ready"), [(1, 0), (4, 1), (6, 3)])
def test_goes_on_after_a_kill(root, whole, tmp_path, call, ready):
    killed_at(call, root, tmp_path)
    assert len(contents(tmp_path)) == ready and not (tmp_path / INDEX_FILE).exists()
    with pytest.raises(FileNotFoundError):
        open_parquet_split(tmp_path, "train")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").glob("*.parquet")}
    summary = write_parquet(root, tmp_path, shard_bytes=TWO_VIDEOS, license="for tests", progress=False)
    assert summary["written"] == len(summary["shards"]) - ready
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(tmp_path) == contents(whole) and not (tmp_path / RECORDS).exists()
    assert verify_parquet(tmp_path, progress=False) == []


def test_a_second_call_changes_nothing(root, out):
    before = contents(out, "*")
    assert write_parquet(root, out, shard_bytes=TWO_VIDEOS, license="for tests", progress=False)["written"] == 0
    assert contents(out, "*") == before


def test_tampered_shard_is_found_and_written_again(root, whole, out):
    shard = out / "data/train-00001-of-00002.parquet"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    assert [(f.kind, f.path) for f in verify_parquet(out, progress=False)] == [("wrong_checksum", str(shard))]
    report = verify_dataset(out, progress=False)
    assert not report.ok and report.splits["train"].frames == 10 and report.class_list == "3 classes"
    assert write_parquet(root, out, shard_bytes=TWO_VIDEOS, license="for tests", progress=False)["written"] == 1
    assert contents(out) == contents(whole) and verify_dataset(out, progress=False).ok


def test_changed_source_is_packed_again(root, tmp_path):
    tree, out = shutil.copytree(root, tmp_path / "tree"), tmp_path / "out"
    write_parquet(tree, out, shard_bytes=TWO_VIDEOS, progress=False)
    image = tree / "data/5_e/origin/00000002.png"
    image.write_bytes((tree / "data/5_e/origin/00000003.png").read_bytes())
    assert write_parquet(tree, out, shard_bytes=TWO_VIDEOS, progress=False)["written"] == 1
    assert read_packed(open_split(out, "val").videos[0].frames[1].image_path) == image.read_bytes()
    assert verify_parquet(out, progress=False) == []


def test_verify_names_everything(out):
    first, second, third, *_ = sorted((out / "data").glob("*.parquet"))
    first.rename(out / "data/train-00007-of-00009.parquet")
    second.write_bytes(second.read_bytes()[:-1])
    (out / "label_num_dic_final.json").unlink()
    (out / f"data/._{third.name}").write_text("of a Mac")
    kinds = [(finding.kind, Path(finding.path).name) for finding in verify_parquet(out, progress=False)]
    assert kinds == [
        ("no_class_list", "label_num_dic_final.json"),
        *sorted([("missing_shard", first.name), ("wrong_checksum", second.name)], key=lambda kind: order(kind[1])),
        ("unlisted_shard", "train-00007-of-00009.parquet"),
    ]
    (out / INDEX_FILE).write_text("[]")
    assert [finding.kind for finding in verify_parquet(out, progress=False)] == ["bad_index"]


def order(name):
    return ("train", "val", "test").index(name.split("-")[0])


# --- what is refused


def test_damaged_files_are_not_packed(root, tmp_path):
    cases = {
        "data/5_e/origin/00000002.png": (b"", "empty file"),
        "data/5_e/mask/00000003.png": (None, "cannot be read as an image"),
        "data/2_b/mask/00000005.png": (frame_pixels, "mask must hold 8-bit class indices"),
    }
    for number, (name, (content, message)) in enumerate(cases.items()):
        tree, out = shutil.copytree(root, tmp_path / f"tree{number}"), tmp_path / f"out{number}"
        path = tree / name
        if content is frame_pixels:
            shutil.copy(tree / "data/2_b/origin/00000005.png", path)
        else:
            path.write_bytes(path.read_bytes()[:-40] if content is None else content)
        with pytest.raises(ValueError, match=f"{path.name}: .*{message}.*vss-hf data verify"):
            write_parquet(tree, out, progress=False)
        assert not list(out.rglob("*.part")) and not (out / INDEX_FILE).exists()


def test_other_folders_are_left_alone(root, whole, out, tmp_path):
    with pytest.raises(FileExistsError, match="not a file of this packed data set"):
        write_parquet(root, root, progress=False)
    with pytest.raises(FileExistsError, match="other splits or another size of shards"):
        write_parquet(root, out, shard_bytes=100, progress=False)
    with pytest.raises(FileExistsError, match="a file"):
        write_parquet(root, out / INDEX_FILE, progress=False)
    (out / "README.md").write_text("a card")
    (out / ".vss_hf").mkdir()
    (out / ".vss_hf/scan").write_text("of labels")
    (out / "data/._train-00000-of-00002.parquet").write_text("of a Mac")
    assert write_parquet(root, out, shard_bytes=TWO_VIDEOS, license="for tests", progress=False)["written"] == 0
    with pytest.raises(ValueError, match="packed already"):
        write_parquet(out, tmp_path / "again", progress=False)
    with pytest.raises(FileNotFoundError, match="no/where: no such folder"):
        write_parquet("no/where", tmp_path / "none", progress=False)
    with pytest.raises(ValueError, match="different ones"):
        write_parquet(root, tmp_path / "twice", splits=["val", "val"], progress=False)
    tree = shutil.copytree(root, tmp_path / "tree")
    shutil.copy(tree / "val.txt", tree / "val-2.txt")
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        write_parquet(tree, tmp_path / "name", splits=["val-2"], progress=False)


def test_full_disk_is_said_before(root, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(parquet_writer.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="out: no space left .* bytes needed, 1,000 bytes free"):
        write_parquet(root, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_opened(whole, out):
    with pytest.raises(ValueError, match="unknown split 'trian' of .*; found: train, val, test"):
        open_split(out, "trian")
    shard = out / "data/val-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"val-00000-of-00001.parquet: [\d,]+ bytes; .* is of a shard with"):
        open_split(out, "val")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="val-00000-of-00001.parquet: no such file, but"):
        open_split(out, "val")
    assert open_split(out, "test").num_frames == 2  # of the others nothing is asked
    index = json.loads((out / INDEX_FILE).read_text())
    (out / INDEX_FILE).write_text(json.dumps({**index, "format_version": 2}))
    with pytest.raises(ValueError, match="format 2, this version of vss_hf reads format 1"):
        open_split(out, "train")
    (out / INDEX_FILE).write_text("{")
    with pytest.raises(ValueError, match="not the index of a packed data set"):
        open_split(out, "train")


def first_shard(**facts):
    return lambda index: index["shards"][0].update(facts)


def first_video(**facts):
    return lambda index: index["shards"][0]["videos"][0].update(facts)


FOREIGN = {
    "a shard outside": first_shard(file="../train-00000-of-00002.parquet"),
    "a shard outside, by its full name": first_shard(file="/train-00000-of-00002.parquet"),
    "a file that is no shard": first_shard(file="data/../label_num_dic_final.json"),
    "a shard without a size": first_shard(bytes=None),
    "a shard without a checksum": lambda index: index["shards"][0].pop("sha256"),
    "splits without counts": lambda index: index.update(splits={"train": 4}),
    "a split without shards": lambda index: index["splits"].update(empty=index["splits"]["train"]),
    "no object": lambda index: index["shards"].append(7),
}
FOREIGN_FILES = {
    "a video outside": first_video(name="../../2_b"),
    "a video without a name": first_video(name=""),
    "a frame outside": first_video(images=[["../../00000005.png", 4, 9]], masks=[]),
    "a frame named with a number": first_video(images=[[5, 4, 9]], masks=[]),
    "bytes before the video": first_video(range=[100, 200], images=[["a.png", 90, 20]], masks=[]),
    "bytes behind the video": first_video(range=[100, 200], images=[["a.png", 190, 20]], masks=[]),
    "bytes behind the shard": first_video(range=[100, 10**15], images=[["a.png", 190, 10**14]], masks=[]),
    "less than no bytes": first_video(range=[100, 200], images=[["a.png", 150, -20]], masks=[]),
    "half a character": first_video(images=[["\ud800.png", 4, 9]], masks=[]),
    "no frames": first_video(images=[], masks=[]),
    "a frame without a mask": lambda index: index["shards"][0]["videos"][0]["masks"].pop(),
    "a video without files": lambda index: index["shards"][0]["videos"][0].pop("images"),
}


@pytest.mark.parametrize("what", [*FOREIGN, *FOREIGN_FILES])
def test_a_foreign_index_reaches_no_other_file(out, what):
    index = read_index(out)
    ({**FOREIGN, **FOREIGN_FILES}[what])(index)
    (out / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="vss_hf_dataset.json: not the index of a packed data set"):
        open_split(out, "train")
    report = verify_dataset(out, progress=False)  # compares shards, whatever the index says is in them
    assert [finding.kind for finding in report.errors] == (["bad_index"] if what in FOREIGN else [])


def test_command(root, tmp_path):
    run = CliRunner().invoke(app, ["data", "parquet", str(root), str(tmp_path / "out"), "--split", "val"])
    assert run.exit_code == 0 and "val: 1 videos, 3 frames in 1 shards" in run.output
    assert read_index(tmp_path / "out")["license"] is None
    run = CliRunner().invoke(app, ["data", "verify", str(tmp_path / "out")])
    assert run.exit_code == 0 and "no errors" in run.output
    (tmp_path / "out/data/val-00000-of-00001.parquet").write_bytes(b"x")
    run = CliRunner().invoke(app, ["data", "verify", str(tmp_path / "out")])
    assert run.exit_code == 1 and "wrong_checksum" in run.output


def test_names_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("me/set") == hub_id(Path("me/set")) == ("me/set", None)
    assert hub_id("me/set@v1/x") == ("me/set", "v1/x")
    for path in ("set", "/me/set", "./me/set", "a/b/c", str(tmp_path), "me/", ""):
        assert hub_id(path) is None
    (tmp_path / "me").mkdir()
    assert hub_id("me/set") is None  # a folder that is not there, in one that is
    assert hub_id("hf://datasets/me/set@main") == hub_id(Path("hf://datasets/me/set@main")) == ("me/set", "main")
