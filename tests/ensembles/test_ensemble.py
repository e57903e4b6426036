"""Ensembles: the weighted sum in float64 at full size, one state for each video model, folders that move."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_ensemble import save_members, write_labelled
from tiny_models import NAMES, moving_frames
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline

from vss_hf import EnsembleConfig, VideoSegmenter
from vss_hf.cli import main as command_line
from vss_hf.ensembles.ensemble import create_ensemble
from vss_hf.inference import predict
from vss_hf.inference.views import TTA
from vss_hf.modeling import dense


def run_command(*words):
    with pytest.raises(SystemExit) as ended:
        command_line([str(word) for word in words])
    assert ended.value.code in (0, None)


TASK = "video-semantic-segmentation"
MIXED = [
    {"name": "image", "weight": 0.5, "tta": "flip"},
    {"name": "video", "weight": 1.4},
    {"name": "masks", "weight": 1},
    {"name": "other", "weight": 0.7, "tta": {"scales": [0.75, 1.0]}},
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A few rows in each block, so that there are several."""
    monkeypatch.setattr(dense, "_BLOCK_BYTES_CPU", 20_000)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_members(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def mixed(models):
    """An ensemble of all kinds beside its members."""
    create_ensemble(models / "mixed", [{**member, "name": str(models / member["name"])} for member in MIXED])
    return models / "mixed"


# --- the sum


class Naive:
    """The ensemble MIXED by its members' models and processors alone, one view at a time, in float64 at full size."""

    def __init__(self, models):
        self.parts = []
        for member in MIXED:
            kind = AutoModel if member["name"] == "video" else AutoModelForSemanticSegmentation
            model = kind.from_pretrained(models / member["name"]).eval()
            self.parts.append((member, model, AutoImageProcessor.from_pretrained(models / member["name"])))
        self.state = self.parts[1][1].init_state()

    @torch.no_grad()
    def scores(self, frame):
        """(K, H, W) of the next frame."""
        total = sum(member["weight"] for member in MIXED)
        return sum(
            member["weight"] / total * self.of_member(member["name"], model, processor, frame)
            for member, model, processor in self.parts
        )

    def of_member(self, name, model, processor, frame):
        pixels = processor(images=frame, return_tensors="pt")["pixel_values"]
        size = frame.shape[:2]
        if name == "video":
            outputs, self.state = model.step(pixels, self.state)
            return probabilities(outputs.logits, size)
        if name == "image":
            mirrored = probabilities(model(pixel_values=pixels.flip(-1)).logits, size).flip(-1)
            return (probabilities(model(pixel_values=pixels).logits, size) + mirrored) / 2
        if name == "other":
            height, width = (int(side * 0.75 + 0.5) for side in pixels.shape[-2:])
            smaller = resize(torch.from_numpy(frame).permute(2, 0, 1)[None], [height, width])
            scales = (processor(images=smaller, do_resize=False, return_tensors="pt")["pixel_values"], pixels)
            of_scales = [resized(model(pixel_values=one).logits, one.shape[-2:])[None] for one in scales]
            return sum(probabilities(logits, size) for logits in of_scales) / 2  # as test_views has it
        outputs = model(pixel_values=pixels)
        classes = outputs.class_queries_logits[0].double().softmax(-1)[:, :-1]
        scores = torch.einsum("qk,qhw->khw", classes, resized(outputs.masks_queries_logits, size).sigmoid())
        return scores / scores.sum(0).clamp(min=1e-12)


def resized(logits, size):
    return F.interpolate(logits.double(), size, mode="bilinear")[0]


def probabilities(logits, size):
    return resized(logits, size).softmax(0)


def assert_labels(labels, wanted):
    first, second = wanted.topk(2, dim=0).values
    sure = (first - second > 1e-4).numpy()
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(labels[sure], wanted.argmax(0).numpy()[sure])


@pytest.mark.parametrize("size", [(48, 64), (45, 71)])
def test_equal_to_full_size_sum(models, mixed, size):
    naive, segmenter = Naive(models), VideoSegmenter.from_pretrained(mixed, "cpu")
    again = VideoSegmenter.from_pretrained(mixed, "cpu")
    assert segmenter.is_video_model and segmenter.names == NAMES
    frames = moving_frames(4, *size, seed=3)
    wanted = [naive.scores(frame) for frame in frames]
    for frame, scores in zip(frames, wanted, strict=True):  # several frames: the video member remembers
        (map_,) = segmenter.score_maps([frame])
        torch.testing.assert_close(map_.dense().double(), scores, atol=2e-5, rtol=0)
        assert_labels(again.step(frame), scores)
    segmented = list(again.segment(frames, with_scores=True, with_confidence=True))
    for frame, scores in zip(segmented, wanted, strict=True):
        np.testing.assert_allclose(frame.scores, (scores / scores.sum(0)).numpy(), atol=2e-5)
        assert_labels(frame.labels, scores)
    assert len(np.unique([frame.labels for frame in segmented])) > 1


def test_videos_have_memories_of_their_own(mixed):
    segmenter = VideoSegmenter.from_pretrained(mixed, "cpu")
    videos = [moving_frames(3, 45, 71, seed=seed) for seed in (0, 1)]
    alone = [[frame.labels for frame in segmenter.segment(video)] for video in videos]
    together = list(zip(*(segmenter.segment(video) for video in videos), strict=True))
    for i in range(2):
        np.testing.assert_array_equal([pair[i].labels for pair in together], alone[i])
    with pytest.warns(RuntimeWarning, match="begins anew"):
        changed = [segmenter.step(frame) for frame in [*videos[0], *moving_frames(3, 40, 48)]]
    fresh = [frame.labels for frame in segmenter.segment(moving_frames(3, 40, 48))]
    np.testing.assert_array_equal(changed[3:], fresh)


def test_image_members_take_batches(models, tmp_path):
    create_ensemble(tmp_path / "e", [{"name": str(models / "image")}, {"name": str(models / "masks"), "weight": 2}])
    segmenter = VideoSegmenter.from_pretrained(tmp_path / "e", "cpu")
    frames = moving_frames(5, 45, 71)
    assert not segmenter.is_video_model
    one = [frame.labels for frame in segmenter.segment(frames)]
    three = [frame.labels for frame in segmenter.segment(frames, batch_size=3)]
    assert np.mean(np.array(one) == np.array(three)) > 0.999


def test_a_member_alone_is_that_model(models, tmp_path):
    for name in ("image", "video", "masks", "other"):
        rest = {"name": str(models / "image"), "weight": 0}  # not loaded
        create_ensemble(tmp_path / name, [{"name": str(models / name), "weight": 3}, rest])
        frames = moving_frames(3, 45, 71)
        alone = VideoSegmenter.from_pretrained(models / name, "cpu").label_video(frames)
        ensemble = VideoSegmenter.from_pretrained(tmp_path / name, "cpu")
        assert len(ensemble.parts) == 1
        for mine, its in zip(ensemble.label_video(frames), alone, strict=True):
            assert np.mean(mine == its) > 0.999


def test_published_forms():
    def weights(members, groups=None):
        return EnsembleConfig(members=members, groups=groups).weights

    members = [
        {"name": f"{group}{i}", "group": group} for group, n in (("S", 3), ("W", 8), ("A", 6)) for i in range(n)
    ]
    flat = weights(members, {"S": 1.0, "W": 1.4, "A": 1.0})
    rng = np.random.default_rng(0)
    scores = rng.random((17, 5))
    final = scores[:3].mean(0) + 1.4 * scores[3:11].mean(0) + 1.0 * scores[11:].mean(0)  # equation 1 of the paper
    np.testing.assert_allclose(np.array(flat) @ scores, final / 3.4)
    assert sum(flat) == pytest.approx(1)
    inside = [{"name": "a", "group": "S", "weight": 3}, {"name": "b", "group": "S"}, {"name": "c", "group": "W"}]
    assert weights(inside, {"S": 1, "W": 1}) == [0.375, 0.125, 0.5]


# --- folders


def test_save_and_load(models, mixed, tmp_path):
    copied = tmp_path / "models"
    shutil.copytree(models, copied)
    place = copied / "e"
    words = ("--member", f"{copied / 'image'}:0.25", "--member", member_json(copied))
    run_command("ensemble", "create", place, *words)
    frames = moving_frames(3, 45, 71)
    before = list(VideoSegmenter.from_pretrained(place, "cpu").label_video(frames))
    model = AutoModelForSemanticSegmentation.from_pretrained(place)
    model.save_pretrained(copied / "sub" / "e")
    AutoImageProcessor.from_pretrained(place).save_pretrained(copied / "sub" / "e")
    assert sorted(path.name for path in place.iterdir()) == ["config.json", "preprocessor_config.json"]
    assert sorted(path.name for path in (copied / "sub/e").iterdir()) == ["config.json", "preprocessor_config.json"]
    after = list(VideoSegmenter.from_pretrained(copied / "sub" / "e", "cpu").label_video(frames))
    np.testing.assert_array_equal(before, after)


def member_json(folder):
    return json.dumps({"name": str(folder / "video"), "weight": 0.75, "tta": "flip"})


def test_relative_folders_move_along(models, tmp_path, monkeypatch):
    shutil.copytree(models, tmp_path / "here" / "models")
    monkeypatch.chdir(tmp_path / "here")
    create_ensemble("mine", [{"name": "models/image"}, {"name": "models/video"}])
    frames = moving_frames(3, 45, 71)
    before = list(VideoSegmenter.from_pretrained("mine", "cpu").label_video(frames))
    AutoModel.from_pretrained("mine").save_pretrained("a/b")
    shutil.copy("mine/preprocessor_config.json", "a/b")
    names = [member["name"] for member in json.loads((tmp_path / "here/a/b/config.json").read_text())["members"]]
    assert names == ["../../models/image", "../../models/video"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").rename(tmp_path / "there")
    for folder in ("there/mine", "there/a/b"):
        np.testing.assert_array_equal(list(VideoSegmenter.from_pretrained(folder, "cpu").label_video(frames)), before)


def test_transformers_loads_it(models, mixed):
    """Logits are log-probabilities at the frames' size; each image is a video's first frame."""
    frames = moving_frames(2, 45, 71, seed=3)
    processor = AutoImageProcessor.from_pretrained(mixed)
    inputs = processor(images=frames, return_tensors="pt")
    np.testing.assert_allclose(inputs["pixel_values"][1].permute(1, 2, 0).numpy(), frames[1] / 255, atol=1e-6)
    for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
        outputs = auto_class.from_pretrained(mixed)(**inputs)
        assert outputs.logits.shape == (2, len(NAMES), 45, 71)
    for frame, logits in zip(frames, outputs.logits, strict=True):
        torch.testing.assert_close(logits.double().exp(), Naive(models).scores(frame), atol=2e-5, rtol=0)
    labels = processor.post_process_semantic_segmentation(outputs)[1]
    assert_labels(labels.numpy(), Naive(models).scores(frames[1]))


def test_pipeline(mixed, models):
    frames = moving_frames(3, 45, 71)
    expected = list(VideoSegmenter.from_pretrained(mixed, "cpu").label_video(frames))
    results = pipeline(TASK, model=str(mixed), device="cpu")(frames, output_scores=True)
    np.testing.assert_array_equal([frame["labels"] for frame in results], expected)
    with pytest.raises(ValueError, match="views of its own"):
        pipeline(TASK, model=str(mixed), device="cpu", tta="flip")


@pytest.mark.parametrize("name", ["image", "video", "masks"])
def test_views_in_the_pipeline(models, name):
    frames = moving_frames(3, 45, 71, seed=5)
    expected = list(VideoSegmenter.from_pretrained(models / name, "cpu", tta=TTA(flip=True)).label_video(frames))
    segment = pipeline(TASK, model=str(models / name), device="cpu")
    np.testing.assert_array_equal([frame["labels"] for frame in segment(frames, tta="flip")], expected)
    plain = [frame["labels"] for frame in segment(frames)]
    assert not np.array_equal(plain, expected)  # a call's views are for that call
    always = pipeline(TASK, model=str(models / name), device="cpu", tta={"flip": True})
    np.testing.assert_array_equal([frame["labels"] for frame in always(frames)], expected)
    with pytest.raises(ValueError, match="did you mean 'flip'"):
        segment(frames, tta="flap")
    with pytest.raises(ValueError, match="did you mean 'scales'"):
        pipeline(TASK, model=str(models / name), device="cpu", tta={"scale": [1]})


def test_views_given_on_top(models, mixed, tmp_path):
    """They are for all members, if none has its own."""
    members = [{"name": str(models / name), "weight": weight} for name, weight in (("image", 1), ("video", 3))]
    create_ensemble(tmp_path / "plain", members)
    create_ensemble(tmp_path / "flipped", [{**member, "tta": "flip"} for member in members])
    frames = moving_frames(3, 45, 71)
    on_top = VideoSegmenter.from_pretrained(tmp_path / "plain", "cpu", tta=TTA(flip=True)).label_video(frames)
    own = VideoSegmenter.from_pretrained(tmp_path / "flipped", "cpu").label_video(frames)
    np.testing.assert_array_equal(list(on_top), list(own))
    with pytest.raises(ValueError, match=r"member '.*image' of the ensemble has views of its own"):
        VideoSegmenter.from_pretrained(mixed, "cpu", tta=TTA(flip=True))


def test_evaluate_and_predict(mixed, tmp_path):
    """Files that `predict` writes score as `evaluate` says, which names the members."""
    rng = np.random.default_rng(0)
    labels = {name: [rng.integers(0, 5, (45, 71), np.uint8) for _ in range(3)] for name in ("a", "b")}
    root = write_labelled(tmp_path / "data", labels)
    run_command("evaluate", mixed, "--data", root, "--device", "cpu", "--json", tmp_path / "e.json")
    results = json.loads((tmp_path / "e.json").read_text())
    assert [member["weight"] for member in results["members"]] == pytest.approx(
        [0.5 / 3.6, 1.4 / 3.6, 1 / 3.6, 0.7 / 3.6]
    )
    assert results["members"][0]["tta"]["flip"]
    out = tmp_path / "out"
    run_command("predict", mixed, root, "--split", "val", "--out", out, "--device", "cpu")
    hits = [
        np.mean(np.array(Image.open(out / name / f"{i:08d}.png")) == maps[i])
        for name, maps in labels.items()
        for i in range(3)
    ]
    assert np.mean(hits) == pytest.approx(results["pixel_accuracy"])


def test_a_prediction_does_not_go_on_with_other_members(models, tmp_path):
    """The weights of the models are not all that decides the labels of an ensemble."""
    shutil.copytree(models / "other", tmp_path / "other")
    members = [{"name": str(models / "image")}, {"name": str(tmp_path / "other")}]
    create_ensemble(tmp_path / "both", members)
    root = write_labelled(tmp_path / "data", {"a": [np.zeros((45, 71), np.uint8)]})

    def predict_again():
        segmenter = VideoSegmenter.from_pretrained(tmp_path / "both", "cpu")
        return predict(segmenter, root, tmp_path / "out", split="val")["videos_before"]

    assert (predict_again(), predict_again()) == (0, 1)
    (tmp_path / "other" / "preprocessor_config.json").write_text(
        (models / "image/preprocessor_config.json").read_text()
    )
    with pytest.raises(ValueError, match=r"begun with model\.processor"):
        predict_again()
    shutil.copy(models / "other" / "preprocessor_config.json", tmp_path / "other")
    create_ensemble(tmp_path / "both", [members[0], {**members[1], "weight": 2}])
    with pytest.raises(ValueError, match=r"begun with settings\.members"):
        predict_again()


# --- what is refused


def test_fields():
    def error(**fields):
        with pytest.raises(Exception) as caught:
            EnsembleConfig(**fields)
        return str(caught.value)

    one = {"name": "a"}
    assert "did you mean 'weight'" in error(members=[{**one, "wieght": 1}])
    assert "did you mean 'members'" in error(memebers=[one])
    assert "members[1].weight: expected a number from 0 up; found -1" in error(members=[one, {**one, "weight": -1}])
    for weight in (float("nan"), float("inf"), True, "2"):
        assert "expected a number from 0 up" in error(members=[{**one, "weight": weight}])
    assert "all weights are 0" in error(members=[{**one, "weight": 0}])
    assert "all weights are 0" in error(members=[{**one, "group": "S"}], groups={"S": 0})
    assert "there are no groups" in error(members=[{**one, "group": "S"}])
    assert "did you mean 'strong'" in error(members=[{**one, "group": "storng"}], groups={"strong": 1})
    assert "has no group" in error(members=[one], groups={"S": 1})
    assert "group 'W' has no member" in error(members=[{**one, "group": "S"}], groups={"S": 1, "W": 1})
    assert "expected fields" in error(members=["a"])
    assert "no name" in error(members=[{"weight": 1}])


def test_members_that_do_not_fit(models, mixed, tmp_path):
    image = {"name": str(models / "image")}
    config = AutoConfig.from_pretrained(models / "image")
    renamed = shutil.copytree(models / "image", tmp_path / "renamed")
    config.id2label = {**config.id2label, 3: "lake"}
    config.save_pretrained(renamed)
    with pytest.raises(ValueError, match=r"class 3 is 'lake' in member '.*renamed' and 'sea' in '.*image'"):
        create_ensemble(tmp_path / "e", [image, {"name": str(renamed)}])
    with pytest.raises(ValueError, match="mixed is an ensemble itself"):
        create_ensemble(tmp_path / "e", [image, {"name": str(mixed)}])
    with pytest.raises(FileNotFoundError, match="member 'nowhere': no folder"):
        create_ensemble(tmp_path / "e", [image, {"name": "nowhere"}])
    with pytest.raises(ValueError, match="did you mean 'flip'"):
        create_ensemble(tmp_path / "e", [{**image, "tta": "filp"}])
    with pytest.raises(FileExistsError, match="holds no ensemble"):
        create_ensemble(models / "image", [image])
    assert not (tmp_path / "e").exists()
    shutil.copytree(models / "image", tmp_path / "changing")
    create_ensemble(tmp_path / "e", [image, {"name": str(tmp_path / "changing")}])
    shutil.copy(renamed / "config.json", tmp_path / "changing")  # later, under the same name
    with pytest.raises(ValueError, match=r"class 3 is 'lake' in member '.*changing'"):
        VideoSegmenter.from_pretrained(tmp_path / "e", "cpu")
    shutil.rmtree(tmp_path / "changing")
    with pytest.raises(FileNotFoundError, match=r"member '.*changing'"):
        VideoSegmenter.from_pretrained(tmp_path / "e", "cpu")


def test_command_line(models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(models)

    def weights(*words):
        run_command("ensemble", "create", tmp_path / "e", *words)
        return EnsembleConfig.from_pretrained(tmp_path / "e").weights

    assert weights("--member", "image", "--member", "video", "--gamma", "0.56") == pytest.approx([0.56, 0.44])
    assert weights("--member", "image:1", "--member", "other:3") == [0.25, 0.75]
    groups = ("--group", "S=image", "--group", "W:1.4=video,masks", "--group", "A:1.0=other")
    assert weights(*groups) == pytest.approx([1 / 3.4, 0.7 / 3.4, 0.7 / 3.4, 1 / 3.4])
    VideoSegmenter.from_pretrained(tmp_path / "e", "cpu")
    for words, message in {
        ("--member", "image:1", "--member", "other", "--gamma", "0.5"): "two --member without weights",
        ("--member", "image:-1"): "expected a number from 0 up",
        ("--member", "{nmae: image}"): "did you mean 'name'",
        ("--group", "S"): "expected NAME[:WEIGHT]=MODEL,MODEL",
        (): "name the models",
    }.items():
        with pytest.raises(SystemExit):
            command_line(["ensemble", "create", str(tmp_path / "x"), *words])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_ensemble_of_the_hub_reads_no_folder(models):
    from vss_hf.ensembles.ensemble import member_source

    assert member_source("user/name", None) == "user/name"
    for name in ("/models/image", "../image", "image", "./user/name", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="names Hub ids"):
            member_source(name, None)


def test_weights_are_not_needed_but_members_are_loaded_strictly(models, tmp_path):
    broken = shutil.copytree(models / "image", tmp_path / "broken")
    create_ensemble(tmp_path / "e", [{"name": str(broken)}])
    (broken / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="expected the weights"):
        VideoSegmenter.from_pretrained(tmp_path / "e", "cpu")
    with pytest.raises(ValueError, match="from_pretrained"):
        AutoModelForSemanticSegmentation.from_config(AutoConfig.from_pretrained(tmp_path / "e"))


def test_half_precision(models, tmp_path):
    create_ensemble(tmp_path / "e", [{"name": str(models / "image")}, {"name": str(models / "video")}])
    frames = moving_frames(2, 45, 71)
    wanted = VideoSegmenter.from_pretrained(tmp_path / "e", "cpu").score_maps(frames)
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "e", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    half = VideoSegmenter(model, AutoImageProcessor.from_pretrained(tmp_path / "e")).score_maps(frames)
    for mine, full in zip(half, wanted, strict=True):
        assert (mine.dense() - full.dense()).abs().mean() < 0.02
