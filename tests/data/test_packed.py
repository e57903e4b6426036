"""Files inside Parquet shards, by virtual path; from the Hub over HTTP that the test serves itself."""

import os
import pickle
import threading
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants
from make_tree import frame_pixels, make_tree, mask_values

from vss_hf.data import packed
from vss_hf.data.packed import fitting_window, is_packed, packed_path, parse_packed, read_packed
from vss_hf.data.parquet import open_parquet_split
from vss_hf.data.parquet_writer import write_parquet
from vss_hf.data.splits import open_split
from vss_hf.data.statistics import label_statistics
from vss_hf.data.vspw import decode_frame, open_mask, read_image, read_mask


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    splits = {"train": {f"{i}_v": [3, 7, 8] for i in range(4)}}
    return make_tree(tmp_path_factory.mktemp("packed") / "tree", splits)


@pytest.fixture(scope="module")
def videos(root):
    write_parquet(root, root.parent / "out", progress=False)
    return open_parquet_split(root.parent / "out", "train").videos


def test_paths_there_and_back():
    path = "data/x.parquet" + packed_path((4, 90), (10, 30), "mask", "00 0#7.png")
    assert path == "data/x.parquet#4-90/10-30/mask/00 0#7.png"
    assert parse_packed(Path(path)) == ("data/x.parquet", 4, 90, 10, 30)
    assert is_packed(Path(path)) and not is_packed("data/x.parquet") and Path(path).stem == "00 0#7"
    with pytest.raises(ValueError, match="x.parquet#4-90: not a file in a Parquet shard"):
        parse_packed("x.parquet#4-90")


def test_folders_that_sound_packed(tmp_path):
    """A file is told by the whole form of its path, not by a folder that somebody called like a part of it."""
    root = make_tree(tmp_path / "all #1.parquet#q", {"train": {"a.parquet#b": [1, 2], "#": [3]}})
    opened = open_split(root, "train")
    for video in opened.videos:
        assert not any(is_packed(path) for frame in video.frames for path in frame[1:])
        assert [(read_mask(f.mask_path) == mask_values(video.name, int(f.stem))).all() for f in video.frames]
    assert label_statistics(opened, progress=False).num_frames == 3
    write_parquet(root, tmp_path / "out #2.parquet#q", progress=False)
    packed_split = open_split(tmp_path / "out #2.parquet#q", "train")
    assert label_statistics(packed_split, progress=False).pixels.tolist() == label_statistics(opened).pixels.tolist()
    assert (read_image(packed_split.videos[0].frames[1].image_path) == frame_pixels("a.parquet#b", 2)).all()


def test_decoding_does_not_notice(root, videos):
    for video in videos:
        for frame, number in zip(video.frames, (3, 7, 8), strict=True):
            assert frame.stem == f"{number:08d}" == frame.image_path.stem == frame.mask_path.stem
            assert (read_image(frame.image_path) == frame_pixels(video.name, number)).all()
            assert (read_mask(str(frame.mask_path)) == mask_values(video.name, number)).all()
    assert [open_mask(frame.mask_path).mode for frame in videos[0].frames] == ["L", "P", "L"]
    image, labels = decode_frame(pickle.loads(pickle.dumps(videos[1].frames[0])))
    assert image.shape[1:] == labels.shape


def test_missing_and_short_shards(videos, tmp_path):
    path = videos[0].frames[2].mask_path
    file = parse_packed(path)
    text = str(path).removeprefix(file.shard)
    with pytest.raises(FileNotFoundError, match="gone.parquet: no such file; it is a shard"):
        read_mask(f"{tmp_path}/gone.parquet{text}")
    short = tmp_path / "short.parquet"
    short.write_bytes(Path(file.shard).read_bytes()[: file.end - 1])
    with pytest.raises(ValueError, match=r"short.parquet: ends before byte .*incomplete"):
        read_mask(f"{short}{text}")
    with pytest.raises(ValueError, match="image/00000003.png: cannot be read as an image"):
        read_image(file.shard + packed_path((4, 90), (10, 80), "image", "00000003.png"))


def test_window_fits_into_memory(videos, monkeypatch):
    sizes = [parse_packed(v.frames[0].image_path)[2] - parse_packed(v.frames[0].image_path)[1] for v in videos]
    for limit, window in ((sum(sizes), 4), (sum(sizes) - 1, 3), (max(sizes), 1), (1, 1)):
        monkeypatch.setattr(packed, "CACHE_BYTES", limit)
        assert fitting_window(videos) == window
    monkeypatch.setattr(packed, "CACHE_BYTES", 2**40)
    assert fitting_window(videos * 9) == 16


# --- from the Hub


class Requests:
    """Stands for the Hub: answers ranges of one shard, and notes them."""

    def __init__(self, shard):
        self.content, self.asked, self.pids = Path(shard).read_bytes(), [], []

    def __call__(self, repo, revision, file, start, end):
        assert (repo, revision, file) == ("me/set", "c0ffee", "data/x.parquet")
        self.asked.append((start, end))
        return self.content[start:end]


@pytest.fixture
def remote(videos, monkeypatch):
    """(the files of the videos on the Hub, what was asked for)"""
    shard = parse_packed(videos[0].frames[0].image_path).shard
    requests = Requests(shard)
    monkeypatch.setattr(packed, "fetch_range", requests)
    monkeypatch.setattr(packed, "_videos", packed._Videos())
    paths = [
        [Path("hf://datasets/me/set@c0ffee/data/x.parquet" + str(frame.image_path).removeprefix(shard))
         for frame in video.frames]
        for video in videos
    ]  # fmt: skip
    return paths, requests


def test_a_video_is_fetched_once(remote, videos):
    paths, requests = remote
    assert str(paths[0][0]).startswith("hf:/datasets")  # pathlib has eaten a slash
    for video, files in zip(videos, paths, strict=True):
        for frame, path in zip(video.frames, files, strict=True):
            assert (
                read_packed(path) == read_packed(str(path).replace("hf:/", "hf://")) == read_packed(frame.image_path)
            )
    assert requests.asked == [parse_packed(files[0])[1:3] for files in paths]


def test_old_videos_make_room(remote, monkeypatch):
    paths, requests = remote
    sizes = [parse_packed(files[0])[2] - parse_packed(files[0])[1] for files in paths]
    monkeypatch.setattr(packed, "CACHE_BYTES", sizes[0] + max(sizes))
    for video in (0, 1, 0, 2, 0, 1):  # 2 displaces 1, which was used longest ago
        read_packed(paths[video][1])
    assert len(requests.asked) == 4
    assert packed._videos.size == sum(map(len, packed._videos.kept.values())) <= sizes[0] + max(sizes)
    monkeypatch.setattr(packed, "CACHE_BYTES", 1)
    assert read_packed(paths[3][0]) and len(packed._videos.kept) == 1


def test_threads_and_forks(remote):
    paths, requests = remote
    threads = [threading.Thread(target=read_packed, args=(paths[0][i % 3],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(requests.asked) == 1
    with packed._videos.lock:  # as a thread of the parent may have it at the moment of a fork
        child = os.fork()
        if child == 0:
            read_packed(paths[0][0])
            os._exit(len(requests.asked))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


def test_nobody_answers(monkeypatch):
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(packed, "TRIES", 1)
    close_session()
    with pytest.raises(OSError, match="^data set me/set, data/x.parquet: could not be read from the Hub: .*refused"):
        packed.fetch_range("me/set", "c0ffee", "data/x.parquet", 0, 9)
