"""Training on several sources: shares, passes, counters, exact resume; videos with still images; readers in lanes."""

import json
import shutil
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny import COLOURS, NAMES, make_data, mask_values, write_recipe
from tiny_video_models import TINY
from torch.utils.data import DataLoader

from vss_hf.data.order import ClassBalanced, EveryFrame, EveryNth, OnePerVideo, VideoWindows
from vss_hf.data.scan import scan_labels
from vss_hf.data.splits import open_split
from vss_hf.data.statistics import frame_weights, label_statistics
from vss_hf.training.draws import DrawOrder, EndlessSampler, Source, TrainingDraws, TrainingStream
from vss_hf.training.recipe import load_recipe
from vss_hf.training.run import build_model, class_pixels, main
from vss_hf.training.sources import check_classes, open_evaluation, open_sources, training_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """videos/: 7 frames to train on and 10 to evaluate on, in VSPW's layout; images/: 5 still images in folders."""
    folder = tmp_path_factory.mktemp("data")
    make_data(folder / "videos", {"train": {"a": 4, "b": 3}, "val": {"v": 10}})
    for kind in ("images", "masks"):
        (folder / "images" / kind / "train").mkdir(parents=True)
    for number in range(5):
        mask = mask_values("image", number)
        mask[:number] = 255
        image = sum((mask == value)[..., None] * np.array(rgb) for value, rgb in COLOURS.items()).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / "images" / "train" / f"i{number}.png")
        Image.fromarray(mask).save(folder / "images" / "masks" / "train" / f"i{number}.png")
    (folder / "images" / "label_num_dic_final.json").write_text(json.dumps(NAMES))
    return folder


def recipe_of(folder, output, data=None, model=None, **training):
    """A recipe of two thirds videos and one third images; `data` changes the section."""
    sources = [{"weight": 2}, {"root": str(folder / "images"), "source": "folder"}]
    sections = {"data": {"sources": sources, "mix_by": "weights", **(data or {})}, "training": training}
    output.mkdir(parents=True, exist_ok=True)
    path = write_recipe(output / "recipe.yaml", folder / "videos", output / "out", **sections)
    if model:
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "model": model}))
    return path


def opened(path, *words):
    """(the training data of a recipe, its sources)."""
    recipe = load_recipe(path, list(words))
    evaluated = open_evaluation(recipe.data)[1]
    sources = open_sources(recipe.data)
    check_classes(sources, evaluated)
    return training_data(recipe, build_model(recipe.model, evaluated.classes).config, sources), sources


def names_of(data, draws):
    """The samples of draws as "source: video V, frame F"."""
    return [data.name(draw) for draw in draws]


# --- what is drawn


def test_shares_and_passes(folder, tmp_path):
    data, _ = opened(recipe_of(folder, tmp_path))
    names = names_of(data, range(384))
    assert [source.name for source in data.sources] == ["vspw", "folder"] and data.num_samples == 12
    for name, size, count in (("vspw", 7, 256), ("folder", 5, 128)):
        drawn = [text for text in names if text.startswith(f"{name}: ")]
        assert len(drawn) == count
        for first in range(0, count - count % size, size):
            assert len(set(drawn[first : first + size])) == size
    for done in (0, 10, 384):
        expected = Counter(text.split(":")[0] for text in names[:done])
        assert data.counts(done) == {name: expected[name] for name in ("vspw", "folder")}
    seen = [data.readable(draw) for draw in range(40)]
    told = [f"video {sample['video']}, frame {sample['frame']}" for sample in seen]
    assert [text.split(": ")[1] for text in names[:40]] == told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [7, 5]),  # as many as there are frames: all sources end their passes together
        (["--data.mix_temperature=2"], [7**0.5, 5**0.5]),
        (["--data.mix_by=videos"], [2, 5]),
        (["--data.mix_by=weights"], [1, 1]),
        (["--data.sources.1.weight=4"], [7, 20]),
        (["--data.sampling=one_per_video"], [2, 5]),
        (["--data.sampling=every_nth", "--data.every_nth=2"], [4, 5]),
        (["--data.sources.0.sampling=every_nth", "--data.sources.0.every_nth=4"], [2, 5]),
    ],
)
def test_weights(folder, tmp_path, words, expected):
    sources = [{}, {"root": str(folder / "images"), "source": "folder"}]
    path = recipe_of(folder, tmp_path, {"sources": sources, "mix_by": "frames"})
    data, _ = opened(path, *words)
    assert data.mixture.shares == pytest.approx(np.array(expected) / sum(expected))


def test_samplings(folder, tmp_path):
    path = recipe_of(folder, tmp_path, {"sources": []})
    for words, kind in (
        ([], EveryFrame),
        (["--data.sampling=one_per_video"], OnePerVideo),
        (["--data.sampling=every_nth", "--data.every_nth=2"], EveryNth),
        (["--data.sampling=class_balanced"], ClassBalanced),
    ):
        data, [source] = opened(path, *words)
        assert type(data.mixture.orders[0]) is kind and source.name == "vspw"
    for by in ("videos", "pixels"):
        data, [source] = opened(path, "--data.sampling=class_balanced", f"--data.balance_by={by}")
        expected = frame_weights(scan_labels(source.split), by=by)
        assert data.mixture.orders[0].weights.tolist() == expected.tolist()
    data, _ = opened(path, "--data.sampling=one_per_video")
    passes = [sorted(names_of(data, range(first, first + 2))) for first in range(0, 40, 2)]
    assert all(one.startswith("video a") and two.startswith("video b") for one, two in passes)
    assert len(set(map(tuple, passes))) > 5  # other frames in other passes


def test_rare_classes_are_seen_more_often(tmp_path):
    """A class in one of ten videos: with `class_balanced` its frames come as often as their weights say."""
    root = make_data(tmp_path / "videos", {"train": {f"v{i}": 2 for i in range(10)}, "val": {"v": 1}})
    for number in range(2):
        path = root / "data" / "v3" / "mask" / f"{number:08d}.png"
        values = np.array(Image.open(path))
        values[:4] = 9
        Image.fromarray(values).save(path)
    (root / "label_num_dic_final.json").write_text(json.dumps({**NAMES, "rare": 9}))
    path = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out")
    data, _ = opened(path, "--data.sampling=class_balanced")
    order = data.mixture.orders[0]
    weights = order.weights / order.weights.sum()
    assert weights[6] > 2 * weights[0]
    drawn = Counter(names_of(data, range(20 * 50)))
    rare = sum(count for name, count in drawn.items() if "video v3" in name)
    assert abs(rare - 1000 * weights[6:8].sum()) <= 2 * 50  # each pass gives each frame one of two neighbours


# --- clips


def test_still_images_in_clips(folder, tmp_path):
    """The image stands for all frames of its clip, also where other clips must exist in full."""
    for clip_start, videos in (("repeat", 7), ("existing", 3), ("mirror", 7)):
        config = {"model_type": "vss_st_ppm", **json.loads(json.dumps(TINY["vss_st_ppm"]))}
        config |= {"frame_offsets": [-2, -1], "clip_start": clip_start}
        path = recipe_of(folder, tmp_path / clip_start, model={"config": config})
        data, _ = opened(path)
        assert [len(source.samples) for source in data.sources] == [videos, 5]
        image = data.sources[1].samples[0]
        assert image["frames"].shape[0] == 3 and torch.equal(image["frames"][0], image["frames"][2])
        assert torch.equal(image["reference_labels"][0], image["labels"])
        assert data[0].keys() == data[1].keys() and data[0]["pixel_values_videos"].shape[0] == 3


def test_clips_of_a_source_that_is_too_short(folder, tmp_path):
    config = {"model_type": "vss_st_ppm", **json.loads(json.dumps(TINY["vss_st_ppm"])), "frame_offsets": [-6, -3]}
    path = recipe_of(folder, tmp_path, model={"config": config})
    with pytest.raises(ValueError, match="no video of split 'train' of .*videos is that long; the longest has 4 fra"):
        main([str(path)])


# --- whole runs


def run(folder, output, *words, **training):
    path = recipe_of(folder, output, max_steps=6, save_steps=3, save_total_limit=9, eval_steps=3, **training)
    return main([str(path), *words])


@pytest.fixture(scope="module")
def straight(folder, tmp_path_factory):
    """A run that was never interrupted."""
    return run(folder, tmp_path_factory.mktemp("straight"), "--ema_decay=0.5")


def test_counters(straight):
    log = json.loads((straight / "training_log.json").read_text())
    results = json.loads((straight / "train_results.json").read_text())
    entries = [entry for entry in log if "loss" in entry]
    assert [entry["samples_vspw"] + entry["samples_folder"] for entry in entries] == [2, 4, 6, 8, 10, 12]
    assert (results["samples_vspw"], results["samples_folder"]) == tuple(
        entries[-1][f"samples_{name}"] for name in ("vspw", "folder")
    )
    assert results["train_frames"] == 12 and results["samples"] == 12
    assert not any("samples_vspw" in entry for entry in log if "eval_mean_iou" in entry)
    assert results["sources"] == [
        {"dataset": "videos", "split": "train", "source": "vspw", "table": None, "frames": 7, "share": 2 / 3},
        {"dataset": "images", "split": "train", "source": "folder", "table": None, "frames": 5, "share": 1 / 3},
    ]
    card = (straight / "README.md").read_text()
    assert "- images, split train, read as folder, 5 labelled frames, 33.3 % of the samples" in card
    saved = yaml.safe_load((straight / "training_recipe.yaml").read_text())["data"]
    assert [source.get("weight", 1) for source in saved["sources"]] == [2, 1]


@pytest.mark.parametrize(
    ("streaming", "workers"),
    [(True, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((False, 0), (False, 2), (True, 0)))],
)
def test_resumed_run_is_the_uninterrupted_one(folder, straight, tmp_path, streaming, workers):
    """From step 3 on, with other readers: weights, average and counters, bit for bit."""
    checkpoint = straight.parent / "checkpoint-3"
    shutil.copytree(checkpoint, tmp_path / "out" / "checkpoint-3")
    words = [f"--dataloader_num_workers={workers}", f"--data.streaming={streaming}", "--resume_from_checkpoint"]
    again = run(folder, tmp_path, "--ema_decay=0.5", *words)
    for file in ("model/model", "checkpoint-6/model", "checkpoint-6/ema"):
        ours, theirs = (load_file(place.parent / f"{file}.safetensors") for place in (straight, again))
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()), file
    logs = [json.loads((place / "training_log.json").read_text())[-3:] for place in (straight, again)]
    for ours, theirs in zip(*logs, strict=True):
        assert ours["step"] == theirs["step"]
        assert all(theirs[name] == value for name, value in ours.items() if name.startswith("samples_"))


@pytest.mark.parametrize(
    "words",
    [["--data.sources.0.weight=3"], ["--data.sources.0.sampling=one_per_video"], ["--data.mix_by=frames"],
     ["--data.sources=[{}]"]],
)  # fmt: skip
def test_another_mixture_cannot_go_on(folder, straight, tmp_path, words):
    shutil.copytree(straight.parent / "checkpoint-3", tmp_path / "out" / "checkpoint-3")
    with pytest.raises(ValueError, match="--resume_from_checkpoint .*(was .*vspw 0.666|samples in a pass was 12)"):
        run(folder, tmp_path, "--ema_decay=0.5", *words, "--resume_from_checkpoint")


def test_class_weights_follow_the_mixture(folder, tmp_path):
    """Pixels per frame of each source, weighted with its share, and not simply all pixels together."""
    data, sources = opened(recipe_of(folder, tmp_path))
    splits = [source.split for source in sources]
    ours = class_pixels(splits, "raise", data.mixture.shares.tolist())
    videos, images = (label_statistics(split).pixels for split in splits)
    expected = 2 / 3 * videos / 7 + 1 / 3 * images / 5
    assert (ours / ours.sum()).tolist() == pytest.approx((expected / expected.sum()).tolist(), rel=1e-6)


# --- bad samples


def test_a_bad_sample_is_replaced_by_one_of_its_source(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "images" / "images" / "train" / "i3.png").write_bytes(b"")
    path = recipe_of(copy, tmp_path)
    data, _ = opened(path)
    names = names_of(data, range(60))
    bad = [draw for draw, name in enumerate(names) if name == "folder: video i3, frame i3"]
    with pytest.raises(ValueError, match=r"^folder: video i3, frame i3: .*i3.png: empty file"):
        data.readable(bad[0])
    data, _ = opened(path, "--data.on_bad_sample=skip")
    own = [draw for draw, name in enumerate(names) if name.startswith("folder")]
    with pytest.warns(RuntimeWarning, match="skipped: folder: video i3"):
        for draw in bad[:3]:
            following = next(names[later] for later in own if later > draw and names[later] != names[bad[0]])
            assert following == f"folder: video {(s := data.readable(draw))['video']}, frame {s['frame']}"
    assert data.skipped == 3


# --- readers in lanes: what is fetched a video at a time


def packed_data(kind, transform=lambda sample, seed: {"sample": sample, "seed": seed}):
    """Five videos of 8 samples that are packed, and 13 images that are not."""
    videos = Source(range(40), VideoWindows([8] * 5, 2), 2.0, "videos", packed=True)
    images = Source(range(100, 113), None, 1.0, "images")
    return kind([videos, images], transform, 3)


def lane_batches(kind, count, start=0, world=2, workers=2, batch_size=3):
    """The batches of all processes: {process: [[(sample, seed), ...], ...]}."""
    found = {}
    for rank in range(world):
        data = packed_data(kind)
        data.order = order = DrawOrder(batch_size, rank, world, start, max(1, workers))
        sampler = {} if kind is TrainingStream else {"sampler": EndlessSampler(order)}
        loader = DataLoader(data, batch_size, num_workers=workers, **sampler)
        found[rank] = [
            list(zip(batch["sample"].tolist(), batch["seed"].tolist(), strict=True)) for batch in islice(loader, count)
        ]
    return found


def test_lanes_are_the_same_by_access_and_as_a_stream():
    assert lane_batches(TrainingDraws, 12) == lane_batches(TrainingStream, 12)


@pytest.mark.parametrize(("kind", "stop"), [(TrainingDraws, 5), (TrainingStream, 1), (TrainingStream, 4)])
def test_lanes_resume_in_another_workers_turn(kind, stop):
    """After an odd number of batches the other worker's lane is due, and a new loader begins with worker 0."""
    whole, rest = lane_batches(kind, 9), lane_batches(kind, 9 - stop, start=stop * 6)
    assert rest == {rank: batches[stop:] for rank, batches in whole.items()}


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 2)])
def test_lanes_share_every_pass(world, workers):
    """Each lane walks its part of a source pass by pass; the parts are the whole."""
    found = lane_batches(TrainingStream, 40, world=world, workers=workers, batch_size=5)
    lanes = {}
    for rank, batches in found.items():
        for number, batch in enumerate(batches):
            lanes.setdefault((rank, number % max(1, workers)), []).extend(sample for sample, _ in batch)
    orders = packed_data(TrainingStream).mixture.orders
    for source, samples in enumerate((set(range(40)), set(range(100, 113)))):
        for epoch in range(2):
            drawn = []
            for lane, key in enumerate(sorted(lanes)):
                own = [sample for sample in lanes[key] if sample in samples]
                size = orders[source].lane_length(lane, len(lanes))
                drawn += own[epoch * size : (epoch + 1) * size]
            assert sorted(drawn) == sorted(samples)
    videos = [sample // 8 for sample in lanes[0, 0] if sample < 40]
    assert len(set(videos[:8])) <= 3  # few videos at a time


def test_counts_of_lanes():
    data = packed_data(TrainingDraws)
    data.order = DrawOrder(3, 0, 2, workers=2)
    batches = lane_batches(TrainingDraws, 7)
    for done in (0, 1, 2, 7):
        drawn = [sample for rank in batches for batch in batches[rank][:done] for sample, _ in batch]
        videos = sum(sample < 40 for sample in drawn)
        assert data.counts(done * 6) == {"videos": videos, "images": len(drawn) - videos}


def test_names_and_order_in_lanes():
    data = packed_data(TrainingDraws)
    with pytest.raises(ValueError, match="TrainingDraws.order is not set"):
        data[0]
    data.order = DrawOrder(3, 0, 2, workers=2)
    for draw in range(30):
        source, sample = data.name(draw).split(": sample ")
        assert data[draw]["sample"] == int(sample) + (100 if source == "images" else 0)


# --- what cannot be mixed


def test_other_classes(folder, tmp_path):
    other = make_data(tmp_path / "other", {"train": {"a": 2}}, {"road": 1, "tree": 5, "sky": 6})
    cases = [
        ({"root": str(other)}, r"data.sources\[1\]: split 'train' of .*other has other classes than split 'val' of .*"
         "videos: class 1 is 'tree', expected 'sky'; one class list is needed for all"),
        ({"root": str(make_data(tmp_path / "fewer", {"train": {"c": 1}}, {"road": 1, "sky": 2}))},
         "2 classes, expected 3"),
    ]  # fmt: skip
    for source, message in cases:
        with pytest.raises(ValueError, match=message):
            main([str(recipe_of(folder, tmp_path, {"sources": [{}, source]}))])


def test_advice_about_tables(folder, tmp_path):
    """Which `table` would help: of the source, where the model has VSPW's classes, else of what is evaluated on."""
    from vss_hf.data.labels import VSPW

    recipe = load_recipe(recipe_of(folder, tmp_path))
    sources, own = open_sources(recipe.data), open_split(folder / "videos", "val")
    vspw = open_split(folder / "videos", "val", classes=VSPW)
    with pytest.raises(ValueError, match="class 0 is 'road', expected 'wall'; table: default turns vspw into VSPW's"):
        check_classes(sources[:1], vspw)
    sources[0].split = vspw
    with pytest.raises(ValueError, match="class 0 is 'wall', expected 'road'; data.table: default turns the data set"):
        check_classes(sources[:1], own)


def test_a_source_without_masks(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    for video in "ab":
        shutil.rmtree(copy / "videos" / "data" / video / "mask")
    with pytest.raises(ValueError, match="split 'train' of .* has no masks: it can be predicted, not trained on"):
        main([str(recipe_of(copy, tmp_path))])


def test_min_labelled_leaves_frames_out(folder, tmp_path):
    """With a class list that ignores much; the frames that are left are those above the share."""
    data, [_, images] = opened(recipe_of(folder, tmp_path))
    split = images.split
    shares = [float((split.reader.labels(video.frames[0].mask_path) != 255).mean()) for video in split.videos]
    limit = sorted(shares)[2]
    _, [_, fewer] = opened(recipe_of(folder, tmp_path), f"--data.sources.1.min_labelled={limit}")
    kept = [video.name for video, share in zip(split.videos, shares, strict=True) if share >= limit]
    assert [video.name for video in fewer.split.videos] == kept and 0 < len(kept) < 5
