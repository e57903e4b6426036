"""`vss-hf analyze`: class dependencies, samples of what the classifier reads, and their pictures."""

import json
import re
import shlex
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from vss_hf import VSPW
from vss_hf.analysis import (
    check_analysable,
    class_tokens,
    dependency,
    embedding_method,
    matrix_numbers,
    most_confused,
    separation,
)
from vss_hf.analysis_features import PlaceSampler, Subject, first_of_each, place_over, sample_features
from vss_hf.analysis_run import distinct_names, open_subjects
from vss_hf.cli import main
from vss_hf.cli_analyze import lines_about
from vss_hf.data import make_sample_dataset
from vss_hf.data.splits import open_split
from vss_hf.inference import VideoSegmenter
from vss_hf.modeling.car import labels_of_places
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.layers import PixelClassifier
from vss_hf.scoring.evaluation import evaluate_model


NAMES = [
    "ceiling",
    "grass",
    "road",
    "building",
    "sky",
    "mountain",
    "water",
    "car",
    "person",
    "tree",
]  # one is not seen
RESNET = {
    "model_type": "vss_resnet",
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 12, 16, 20],
    "stem_channels": 8,
    "block": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
HFGD = dict(backbone_config=RESNET, channels=8, encoding_channels=8, wide_channels=12, key_channels=4, axial_heads=2)
FCN = dict(backbone_config=RESNET, channels=8, auxiliary_channels=8, concat_input=False)
VIDEO = dict(backbone_config=RESNET, in_index=3, auxiliary_in_index=2, channels=8, auxiliary_channels=8)
VIDEO["frame_offsets"] = [-2, -1]


def build(model_type, seed=0, **fields):
    """A small model whose classifier tells pixels apart."""
    torch.manual_seed(seed)
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    config = AutoConfig.for_model(model_type, **names, **fields)
    model = AutoModel.from_config(config).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Three videos of three frames to look at, of ten classes."""
    folder = tmp_path_factory.mktemp("analysis") / "videos"
    sizes = {"train_videos": 1, "val_videos": 3, "frames_per_video": 2, "val_frames_per_video": 3}
    make_sample_dataset(folder, height=96, width=160, progress=False, **sizes)
    values = {name: VSPW.disk_ids[VSPW.names.index(name)] for name in NAMES}
    (folder / "label_num_dic_final.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def split(root):
    return open_split(root, "val")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved HFGD."""
    place = tmp_path_factory.mktemp("models") / "hfgd" / "model"
    build("vss_hfgd", **HFGD).save_pretrained(place)
    VSSImageProcessor().save_pretrained(place)
    return place


def samples_of(sampled):
    """Class, video, frame, row, column and features of each sample, of the first model."""
    for k, (places, features) in enumerate(zip(sampled.sampler.places, sampled.sampler.features, strict=True)):
        if len(places):
            yield from ((k, *place, read) for place, read in zip(places.tolist(), features[0], strict=True))


def subject(model, branch="output", name="model"):
    return Subject(name, VideoSegmenter(model, VSSImageProcessor()), branch)


# --- class dependencies


def test_one_class_depends_on_no_other():
    (line,) = lines_about({"class_tokens": matrix_numbers(torch.randn(1, 4), ["sky"])})
    assert line.endswith("most dependent: none, there is one class")


def test_dependency_written_down():
    vectors = torch.randn(5, 7, dtype=torch.float64)
    expected = np.empty((5, 5))
    for i in range(5):
        scores = [np.exp(sum(float(vectors[i, c] * vectors[j, c]) for c in range(7)) / 7**0.5) for j in range(5)]
        expected[i] = np.array(scores) / sum(scores)
    np.testing.assert_allclose(dependency(vectors.float()), expected, rtol=1e-6)
    numbers = matrix_numbers(vectors, list("abcde"))
    off = expected[~np.eye(5, dtype=bool)]
    assert numbers["mean_diagonal"] == pytest.approx(np.diag(expected).mean())
    assert numbers["mean_off_diagonal"] == pytest.approx(off.mean()) and numbers["chance"] == 0.2
    cosines = [F.cosine_similarity(vectors[i], vectors[j], dim=0).item() for i, j in permutations(range(5), 2)]
    assert numbers["mean_cosine"] == pytest.approx(np.mean(cosines))
    first = numbers["most_dependent"][0]
    assert expected["abcde".index(first["class"]), "abcde".index(first["on"])] == pytest.approx(first["score"])
    assert [pair["score"] for pair in numbers["most_dependent"]] == pytest.approx(sorted(off)[:-11:-1])
    alone = matrix_numbers(vectors[:1], ["a"])
    assert alone["mean_off_diagonal"] is None and alone["most_dependent"] == [] and alone["matrix"] == [[1.0]]


@pytest.mark.parametrize("cosine_scale", [None, 12.0])
def test_order_of_classes_does_not_matter(cosine_scale):
    vectors, order = torch.randn(6, 4), torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        dependency(vectors[order], cosine_scale), dependency(vectors, cosine_scale)[order][:, order]
    )


def test_a_cosine_classifier_says_it_itself():
    """The softmax of its logits for its own tokens; the lengths of tokens do not count."""
    classifier = PixelClassifier(4, 6, cosine_scale=9.0)
    with torch.no_grad():
        classifier.weight *= torch.arange(1, 7).view(6, 1, 1, 1)
        tokens = classifier.weight[:, :, 0, 0]
        logits = classifier(tokens[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(dependency(tokens, 9.0), logits.softmax(dim=1).double(), rtol=1e-5, atol=1e-7)


def test_orthogonal_long_tokens_depend_on_nothing():
    numbers = matrix_numbers(100 * torch.eye(4), list("abcd"))
    assert numbers["mean_diagonal"] == pytest.approx(1) and numbers["mean_cosine"] == 0
    assert matrix_numbers(torch.zeros(4, 3), list("abcd"))["mean_diagonal"] == 0.25


# --- which classes


def test_most_confused_classes():
    """0 and 3 take most of each other; then 1, of which much becomes 3; 2 and 4 are left to themselves."""
    counts = torch.tensor(
        [[50, 0, 0, 50, 0], [0, 700, 0, 300, 0], [0, 9, 991, 0, 0], [40, 0, 0, 60, 0], [0, 0, 0, 0, 0]]
    )
    assert sorted(most_confused(counts, range(5), 2)) == [0, 3]
    assert most_confused(counts, range(5), 4)[2:] == [1, 2]
    assert sorted(most_confused(counts, [1, 2, 4], 2)) == [1, 2]
    assert len(most_confused(counts, range(5))) == 5 and most_confused(counts, [4, 2]) == [4, 2]
    assert sorted(most_confused(torch.eye(5), range(5), 2)) == [0, 1]  # nothing is confused
    # A class that is rare counts as much as a frequent one with the same shares.
    counts[0] *= 1000
    assert sorted(most_confused(counts, range(5), 2)) == [0, 3]


# --- numbers of features


def test_separation_written_down():
    random = np.random.default_rng(0)
    features, classes = random.normal(size=(30, 5)), np.repeat([0, 1, 2], 10)
    features[classes == 1] += 2
    numbers = separation(features.astype(np.float32), classes, ["a", "b", "c"])
    features = features.astype(np.float32).astype(np.float64)
    distances = np.array([[np.sqrt(((x - y) ** 2).sum()) for y in features] for x in features])
    silhouettes = []
    for i in range(30):
        own = distances[i][(classes == classes[i]) & (np.arange(30) != i)].mean()
        other = min(distances[i][classes == k].mean() for k in {0, 1, 2} - {classes[i]})
        silhouettes.append((other - own) / max(own, other))
    assert numbers["silhouette"] == pytest.approx(np.mean(silhouettes))
    centers = [features[classes == k].mean(0) for k in range(3)]
    intra = np.mean([np.linalg.norm(x - centers[1]) for x in features[classes == 1]])
    inter = min(np.linalg.norm(centers[1] - centers[k]) for k in (0, 2))
    of_b = numbers["per_class"]["b"]
    assert (of_b["intra"], of_b["inter"]) == pytest.approx((intra, inter)) and of_b["samples"] == 10
    assert numbers["inter_to_intra"] == pytest.approx(
        np.mean([of_class["inter"] / of_class["intra"] for of_class in numbers["per_class"].values()])
    )


def test_classes_apart_have_better_numbers():
    random = np.random.default_rng(0)
    noise, classes = random.normal(size=(60, 6)), np.repeat(np.arange(3), 20)
    apart = noise + 8 * np.eye(6)[classes]
    mixed, better = separation(noise, classes, list("abc")), separation(apart, classes, list("abc"))
    assert mixed["silhouette"] < 0.05 and better["silhouette"] > 0.6
    assert better["inter_to_intra"] > 4 * mixed["inter_to_intra"]
    turned = separation(3 * apart @ np.linalg.qr(random.normal(size=(6, 6)))[0] + 5, classes, list("abc"))
    assert turned["silhouette"] == pytest.approx(better["silhouette"])
    assert turned["inter_to_intra"] == pytest.approx(better["inter_to_intra"])


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)])
def test_layout_keeps_neighbours_and_its_seed(method):
    random, classes = np.random.default_rng(0), np.repeat(np.arange(3), 15)
    features = (random.normal(size=(45, 6)) + 12 * np.eye(6)[classes]).astype(np.float32)
    points = embedding_method(method, 3)(features)
    assert points.shape == (45, 2)
    assert separation(points, classes, list("abc"))["silhouette"] > 0.6
    np.testing.assert_array_equal(embedding_method(method, 3)(features), points)


@pytest.mark.parametrize(
    ("method", "module", "package"), [("tsne", "sklearn.manifold", "scikit-learn"), ("umap", "umap", "umap-learn")]
)
def test_a_missing_package_is_named(method, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"--method {method} needs {package} .*pip install .*\[analysis\]"):
        embedding_method(method, 0)


# --- samples


def test_first_of_each_by_hand():
    groups = np.array([7, 7, 7, 7, 2, 2, 5])
    priorities = np.array([0.4, 0.1, 0.3, 0.2, 0.9, 0.8, 0.95])
    assert first_of_each(groups, priorities, 3).tolist() == [1, 5, 6]
    assert first_of_each(groups, priorities, 4).tolist() == [1, 3, 5, 6]
    assert first_of_each(groups, priorities, 6).tolist() == [1, 2, 3, 4, 5, 6]
    assert first_of_each(groups, priorities, 2).tolist() == [1, 5]  # fewer than groups: by priority
    assert first_of_each(groups, priorities, 99).tolist() == list(range(7))


@pytest.mark.parametrize("aligned", [False, True])
def test_place_over_a_pixel(aligned):
    """The place whose middle is nearest; where places are nearest to pixels, it is the same one both ways."""
    for pixels, places in ((40, 7), (33, 9), (8, 8), (5, 1)):
        steps = np.arange(places)
        middles = steps * (pixels - 1) / max(1, places - 1) if aligned else (steps + 0.5) * pixels / places - 0.5
        found = place_over(np.arange(pixels), pixels, places, aligned)
        away = np.abs(np.arange(pixels)[:, None] - middles)
        np.testing.assert_allclose(away[np.arange(pixels), found], away.min(axis=1), atol=1e-9)
        numbers = torch.arange(pixels).view(1, 1, pixels)
        of_places = labels_of_places(numbers, (1, places), aligned)[0, 0].numpy()
        assert (place_over(of_places, pixels, places, aligned) == steps).all()


def frames_of_labels(count, random):
    """Labels and features (2, h, w) that tell where they were taken: of each place its row and column."""
    for frame in range(count):
        labels = random.choice([0, 1, 2, 255], size=(16, 24), p=[0.6, 0.25, 0.05, 0.1]).astype(np.uint8)
        rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
        yield frame, labels, torch.stack([rows, columns])


def test_samples_are_even_over_classes_and_videos_and_keep_their_seed():
    random = np.random.default_rng(0)
    videos = {video: list(frames_of_labels(count, random)) for video, count in ((4, 1), (9, 6), (2, 3))}
    frames = [(video, *frame) for video, of_video in videos.items() for frame in of_video]

    def drawn(frames, seed=0, per_class=30):
        sampler = PlaceSampler(3, per_class, seed, [False])
        for video, frame, labels, features in frames:
            sampler.add(video, frame, labels, [features])
        return sampler

    sampler = drawn(frames)
    for k in (0, 1):
        assert np.unique(sampler.places[k][:, 0], return_counts=True)[1].tolist() == [10, 10, 10]
    assert len(sampler.places[2]) == 30 or np.bincount(sampler.places[2][:, 0])[4] < 10
    labels_of = {(video, frame): labels for video, frame, labels, _ in frames}
    for k in range(3):
        assert len(np.unique(sampler.places[k], axis=0)) == len(sampler.places[k]) == len(sampler.features[k][0])
        for (video, frame, row, column), read in zip(sampler.places[k], sampler.features[k][0], strict=True):
            assert labels_of[video, frame][row, column] == k and read.tolist() == [row // 2, column // 2]

    other_order = drawn(frames[::-1])
    everything = drawn(frames, per_class=10**6)
    for k in range(3):
        as_sets = [set(map(tuple, places[k])) for places in (sampler.places, other_order.places)]
        assert as_sets[0] == as_sets[1]
        kept = first_of_each(everything.places[k][:, 0], everything.priorities[k], 30)
        assert set(map(tuple, everything.places[k][kept])) == as_sets[0]
        assert set(map(tuple, drawn(frames, seed=1).places[k])) != as_sets[0]


def features_of(model, branch, images):
    """What the classifier reads for frames: the parts of a model in float64, one after the other, without a hook."""
    maps = list(model.backbone(VSSImageProcessor()(images, return_tensors="pt")["pixel_values"].double()).feature_maps)
    if branch == "fcn":
        return model.decode_head.convs(maps[-1])
    high_level = model.decode_head.encoding(maps[-1])[0]
    return high_level if branch == "high-level" else model.decode_head.upsample(maps[:-1], high_level)


@torch.no_grad()
@pytest.mark.parametrize("branch", ["output", "high-level", "fcn"])
def test_samples_are_what_the_classifier_reads(branch, split):
    """At places nearest to the pixel, which has the class's label; the head is called here step by step."""
    model = build("vss_fcn", **FCN).double() if branch == "fcn" else build("vss_hfgd", **HFGD).double()
    own = subject(model, "output" if branch == "fcn" else branch)
    sampled = sample_features([own], split, per_class=20, batch_size=2)
    seen = 0
    for video, record in enumerate(split.videos):
        images = [np.array(Image.open(frame.image_path)) for frame in record.frames]
        features = features_of(model, branch, images)
        aligned = model.config.align_corners
        assert aligned == (branch != "fcn")  # both ways occur
        labels = torch.stack([torch.from_numpy(split.reader.labels(frame.mask_path)) for frame in record.frames])
        numbers = torch.arange(labels[0].numel()).view(1, *labels.shape[1:])
        pixels = labels_of_places(numbers, features.shape[2:], aligned).flatten().tolist()
        for k, _, frame, row, column, read in [sample for sample in samples_of(sampled) if sample[1] == video]:
            place = pixels.index(row * labels.shape[2] + column)
            torch.testing.assert_close(read, features[frame].flatten(1)[:, place], rtol=1e-9, atol=1e-9)
            assert labels[frame, row, column] == k
            seen += 1
    assert seen > 50


@torch.no_grad()
def test_centers_and_confusion_of_the_same_pass(split, root):
    model = build("vss_fcn", **FCN)
    sampled = sample_features([subject(model)], split, per_class=10**6, batch_size=2)
    present = sampled.occurs.nonzero().flatten().tolist()
    assert {split.classes.names[k] for k in present} == set(NAMES) - {"ceiling"}
    for k in present:  # so many samples that none is left out
        torch.testing.assert_close(
            sampled.centers[0][k].float(), sampled.sampler.features[k][0].mean(dim=0), rtol=1e-4, atol=1e-5
        )
    results = evaluate_model(VideoSegmenter(model, VSSImageProcessor()), root, "val", with_confusion=True)
    counts = torch.tensor(results["confusion"])
    assert (counts - sampled.confusions[0].counts).abs().sum() <= 5  # batches may round a tie differently
    assert counts.sum() == sampled.confusions[0].counts.sum()


@torch.no_grad()
def test_a_video_model_reads_its_frames_in_order(split):
    model = build("vss_st_ppm", **VIDEO)
    sampled = sample_features([subject(model)], split, per_class=10**6, batch_size=2)
    record = split.videos[0]
    images = [np.array(Image.open(frame.image_path)) for frame in record.frames]
    state = model.init_state()
    for number, image in enumerate(images):
        pixels = VSSImageProcessor()(image, return_tensors="pt")["pixel_values"]
        outputs, state = model.step(pixels, state)
        logits = outputs.logits[0]
        for _, video, frame, row, column, read in samples_of(sampled):
            if (video, frame) == (0, number):
                row = place_over(np.array([row]), image.shape[0], logits.shape[1], False)[0]
                column = place_over(np.array([column]), image.shape[1], logits.shape[2], False)[0]
                made = model.decode_head.classifier(read[:, None, None])[:, 0, 0]
                torch.testing.assert_close(made, logits[:, row, column], rtol=1e-4, atol=1e-4)


def test_two_models_are_read_at_the_same_pixels(split):
    """The coarser map's places, also for the finer one, in either order; frames beside each other change nothing."""
    fine, coarse = subject(build("vss_hfgd", **HFGD)), subject(build("vss_fcn", **FCN))
    both = sample_features([fine, coarse], split, per_class=8, batch_size=3)
    other = sample_features([coarse, fine], split, per_class=8, batch_size=1)
    alone = sample_features([coarse], split, per_class=8)
    for k in range(len(both.sampler.places)):
        np.testing.assert_array_equal(both.sampler.places[k], other.sampler.places[k])
        np.testing.assert_array_equal(both.sampler.places[k], alone.sampler.places[k])
        for a, b in zip(both.sampler.features[k], other.sampler.features[k][::-1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# --- what cannot be analysed


def test_models_without_class_tokens():
    config = AutoConfig.for_model("vss_mask2former")
    with torch.device("meta"):
        masks = AutoModel.from_config(config)
    with pytest.raises(ValueError, match="place: Mask2Former.* has no class tokens: it classifies queries"):
        check_analysable(masks, "place")
    with pytest.raises(ValueError, match="expected a per-pixel model, whose last layer"):
        check_analysable(torch.nn.Identity(), "place")
    model = build("vss_fcn", **FCN)
    check_analysable(model, "place")
    with pytest.raises(ValueError, match="'high-level' is that of HFGD .* has the branch 'output' alone"):
        check_analysable(model, "place", "high-level")
    with pytest.raises(ValueError, match="guidance=False"):
        check_analysable(build("vss_hfgd", **HFGD, guidance=False), "place", "high-level")


def test_names_of_models():
    given = [("runs/a/model", "output"), ("runs/b/model", "output")]
    assert distinct_names(given) == ["a", "b"]
    assert distinct_names([("a/model", "output"), ("a/model", "high-level")]) == ["a", "a (high-level)"]
    assert distinct_names([("x/a", "output"), ("owner/a", "output")]) == ["1: a", "2: a"]


# --- the command


def run(capsys, *words):
    """A command's exit code, what it printed, and its error."""
    with pytest.raises(SystemExit) as end:
        main(["analyze", *map(str, words)])
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    return end.value.code, captured.out, errors[0] if errors else ""


def check_picture(path: Path) -> None:
    """It opens, and shows more than a few colours."""
    with Image.open(path) as picture:
        picture.load()
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 200 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert (pixels < 250).any(axis=2).mean() > 0.01


def test_tokens_alone(folder, tmp_path, capsys):
    code, printed, _ = run(capsys, folder, "--out", tmp_path / "out")
    assert code == 0 and "hfgd: class tokens: mean of the diagonal" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["analysis.json", "class_tokens.png"]
    check_picture(tmp_path / "out" / "class_tokens.png")
    numbers = json.loads((tmp_path / "out" / "analysis.json").read_text())["models"]["hfgd"]["class_tokens"]
    tokens = class_tokens(AutoModel.from_pretrained(folder))
    np.testing.assert_allclose(numbers["matrix"], dependency(tokens), atol=1e-12)
    assert numbers["classes"] == NAMES


def test_both_branches_side_by_side(folder, root, tmp_path, capsys):
    words = [folder, "--data", root, "--compare", folder, "--compare_branch", "high-level", "--samples", "20"]
    out = tmp_path / "out"
    code, _, error = run(capsys, *words, "--num-workers", "0", "--out", out)
    assert code == 0, error
    names = ["analysis.json", "class_centers.png", "class_tokens.png", "features_tsne.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names[1:]:
        check_picture(out / name)
    results = json.loads((out / "analysis.json").read_text())
    output, high = results["models"]["hfgd"], results["models"]["hfgd (high-level)"]
    assert output["class_tokens"] == high["class_tokens"] and output["class_centers"] != high["class_centers"]
    places, shown = results["features"]["places"], results["features"]["classes"]
    assert len(shown) >= 3 and len(places) == len(output["features"]["points"]) == len(high["features"]["points"])
    for model in (output, high):
        assert list(model["features"]["per_class"]) == shown and -1 <= model["features"]["silhouette"] <= 1
    for position, name in enumerate(shown):
        of_class = [place for place in places if place[0] == position]
        assert 10 <= len(of_class) <= 20 and len(of_class) == output["features"]["per_class"][name]["samples"]


def test_commands_of_the_page(folder, root, tmp_path, capsys, monkeypatch):
    """What docs/analysis.md tells people to paste, on other videos and another model in the demo's places."""
    page = (Path(__file__).parents[1] / "docs" / "analysis.md").read_text(encoding="utf-8")
    lines = [line.split("  #")[0].strip() for line in page.splitlines() if line.startswith("vss-hf analyze")]
    commands = [shlex.split(line)[2:] for line in lines]
    assert len(commands) >= 5
    (tmp_path / "demo" / "demo-ocrnet").mkdir(parents=True)
    (tmp_path / "demo" / "demo-ocrnet" / "model").symlink_to(folder)
    (tmp_path / "demo" / "sample_videos").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    for name in ("plot_dependencies", "plot_features"):  # pictures are looked at above, and take most of the time
        monkeypatch.setattr(f"vss_hf.analysis_run.{name}", lambda *arguments: None)
    there = {"path/to/hfgd": str(folder), "path/to/VSPW_480p": str(root)}
    for words in commands:
        words = [there.get(word, word) for word in words]
        code, _, error = run(capsys, *words, "--num-workers", "0", "--samples", "10")  # what comes last counts
        assert code == 0, (words, error)


def test_classes_by_name_and_what_is_refused(folder, root, tmp_path, capsys):
    data = ["--data", root, "--num-workers", "0", "--out", tmp_path / "out", "--samples", "10"]
    code, printed, error = run(capsys, folder, *data, "--classes", "sky, tree", "--max-frames", "2")
    assert code == 0 and "features of sky, tree: silhouette" in printed, error
    results = json.loads((tmp_path / "out" / "analysis.json").read_text())
    first = {(v.name, frame.stem) for v in open_split(root, "val").videos for frame in v.frames[:2]}
    assert {(place[1], place[2]) for place in results["features"]["places"]} <= first
    assert results["features"]["classes"] == ["sky", "tree"] and results["features"]["dataset"] == "videos"

    for words, message in [
        (["--classes", "sky,tre", *data], "--classes: there is no class 'tre'; did you mean 'tree'"),
        (["--classes", "sky,sky", *data], "--classes sky,sky: expected two or more names, each once"),
        (["--classes", "sky,ceiling", *data], "--classes ceiling: split 'val' of .* has 0 places of it"),
        (["--classes", "sky,tree"], "--classes sky,tree: there is no --data"),
        (["--compare-branch", "high-level"], "--compare-branch high-level: there is no --compare"),
        (["--data", root, "--split", "test"], "split 'test' of .* has no masks"),
        (["--data", root / "nowhere"], "nowhere"),
    ]:
        code, _, error = run(capsys, folder, *words)
        assert code == 2 and re.search(message, error), (words, error)


def test_models_of_other_classes_are_not_compared(folder, tmp_path):
    other = build("vss_fcn", **FCN)
    other.config.id2label = {**other.config.id2label, 0: "something"}
    other.save_pretrained(tmp_path / "other")
    VSSImageProcessor().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="other has other classes than .*: there is nothing to compare"):
        open_subjects([(str(folder), "output"), (str(tmp_path / "other"), "output")])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "broken: some of its features are infinite or no numbers"),
        (None, "broken: its features are the same at all places"),  # of these scikit-learn dies
    ],
)
def test_features_that_cannot_be_laid_out(value, words, root, tmp_path, capsys):
    model = build("vss_hfgd", **HFGD)
    with torch.no_grad():
        for parameter in model.decode_head.attention.parameters() if value else model.decode_head.parameters():
            parameter.fill_(value or 0.0)
    model.save_pretrained(tmp_path / "broken")
    VSSImageProcessor().save_pretrained(tmp_path / "broken")
    words_of_run = [tmp_path / "broken", "--data", root, "--num-workers", "0", "--out", tmp_path / "out"]
    code, _, error = run(capsys, *words_of_run, "--samples", "10", "--max-frames", "1")
    assert code == 2 and words in error
    assert not (tmp_path / "out" / "analysis.json").exists()


def test_tokens_that_are_no_numbers():
    model = build("vss_hfgd", **HFGD)
    model.decode_head.classifier.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match="place: its class tokens are infinite or no numbers in 1 of 10 classes"):
        check_analysable(model, "place")
