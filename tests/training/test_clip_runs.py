"""Training on clips: whole runs of every video model, from recipe to scored model folder, and what stops them."""

import copy
import json
import math
import shutil

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny import make_data, make_default_data, make_trainer, training_clips, write_recipe
from tiny_video_models import TINY, build
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation

from vss_hf.data.labels import ClassList
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.modeling.architectures import VIDEO_MODELS
from vss_hf.scoring.evaluation import evaluate_model
from vss_hf.training.recipe import ModelRecipe, load_recipe
from vss_hf.training.run import build_model, main
from vss_hf.training.sources import open_sources, training_data


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Videos of 4 and 3 frames to train on, and 10 frames to evaluate on."""
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


def clip_recipe(folder, root, model_type="vss_st_ppm", model=None, **sections):
    """The tiny recipe with a tiny video model whose clips have three frames."""
    path = write_recipe(folder / "recipe.yaml", root, folder / "out", **sections)
    recipe = yaml.safe_load(path.read_text())
    config = {"model_type": model_type, **json.loads(json.dumps(TINY[model_type])), "frame_offsets": [-2, -1]}
    recipe["model"] = model or {"config": config}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


# --- every video model


@pytest.mark.parametrize("model_type", VIDEO_MODELS)
def test_a_run_leaves_a_scored_model_folder(root, tmp_path, model_type):
    """With one clip per batch, where a globally pooled map has one value per channel."""
    path = clip_recipe(tmp_path, root, model_type, training={"per_device_train_batch_size": 1})
    folder = main([str(path), "--gradient_accumulation_steps=2", "--ema_decay=0.5", "--learning_rate=1e-3"])
    results = json.loads((folder / "eval_results.json").read_text())
    assert math.isfinite(results["mean_iou"]) and (results["frames"], results["vc_clips"]["vc8"]) == (10, 2)
    log = json.loads((folder / "training_log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 4 and all(0 < loss < 100 for loss in losses)
    best = json.loads((folder / "train_results.json").read_text())["best_step"]
    assert results["mean_iou"] in [entry["eval_mean_iou"] for entry in log if entry.get("step") == best and
                                   "eval_mean_iou" in entry]  # fmt: skip
    assert model_type in (folder / "README.md").read_text()
    with Image.open(folder / "overlay.jpg") as picture:
        assert min(picture.size) > 32

    segmenter = VideoSegmenter.from_pretrained(folder, "cpu")
    assert segmenter.is_video_model and segmenter.model.config.frame_offsets == [-2, -1]
    again = evaluate_model(segmenter, root, "val")
    for key in ("mean_iou", "per_class_iou", "pixel_accuracy", "vc8"):
        assert again[key] == results[key], key

    # Fine-tuning starts from these weights; only a class list of another length gets new classifiers.
    other = make_data(tmp_path / "other", {"train": {"a": 4}, "val": {"v": 1}}, {"others": 0, "sky": 2, "tree": 5})
    source = AutoModel.from_pretrained(folder).state_dict()
    for data, num_labels in ((root, 3), (other, 2)):
        model = build_model(ModelRecipe(init_from=str(folder)), ClassList.from_root(data))
        assert model.config.num_labels == num_labels and model.config.frame_offsets == [-2, -1]
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, source[name])}
        assert all("classifier" in name for name in changed) and bool(changed) == (num_labels == 2)


def test_a_preset(root, tmp_path):
    """Its configuration; a run would take its time."""
    path = clip_recipe(tmp_path, root, model={"preset": "st-ppm-resnet101", "config": {"frame_offsets": [-2]}})
    config = load_recipe(path).model.build_config()
    assert config.model_type == "vss_st_ppm" and config.frame_offsets == [-2]


# --- starting from another model

IMAGE_MODELS = {"vss_tbn_vit": "vss_bisenet", "vss_st_ppm": "vss_pspnet", "vss_tcb_ocr": "vss_ocrnet"}
NEW_TENSORS = {"vss_tbn_vit": {"decode_head.context_conv.weight"}, "vss_st_ppm": {"frame_score.weight"}}


@pytest.mark.parametrize("model_type", IMAGE_MODELS)
def test_an_image_model_is_continued_with_time(root, tmp_path, model_type):
    fields = {key: value for key, value in TINY[model_type].items() if key != "frame_weights"}
    image_config = AutoConfig.for_model(IMAGE_MODELS[model_type], **copy.deepcopy(fields), num_labels=3)
    image_model = AutoModelForSemanticSegmentation.from_config(image_config)
    image_model.save_pretrained(tmp_path / "image")
    config = {"model_type": model_type, "frame_offsets": [-2], "detach_references": True}
    if "frame_weights" in TINY[model_type]:
        config["frame_weights"] = "learned"
    path = clip_recipe(tmp_path, root, model={"init_from": str(tmp_path / "image"), "config": config})
    recipe = load_recipe(path)
    assert recipe.to_dict()["model"]["config"] == config
    model = build_model(recipe.model, ClassList.from_root(root))
    assert model.config.model_type == model_type and model.config.frame_offsets == [-2]
    assert model.config.detach_references and model.config.label2id == {"road": 0, "sky": 1, "tree": 2}
    ours, theirs = model.state_dict(), image_model.state_dict()
    assert ours.keys() - theirs.keys() == NEW_TENSORS.get(model_type, set())
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())

    # And a video model with other frames, for what its config.json says else.
    model.save_pretrained(tmp_path / "video")
    changed = {"frame_offsets": [-4, -1], "detach_references": False}
    again = build_model(ModelRecipe(init_from=str(tmp_path / "video"), config=changed), ClassList.from_root(root))
    assert type(again) is type(model) and again.config.frame_offsets == [-4, -1]
    assert not again.config.detach_references and again.config.to_dict().keys() == model.config.to_dict().keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"frame_ofsets": [-1]}, "model.config has no field 'frame_ofsets'; did you mean 'frame_offsets'"),
        ({"frame_offsets": [1]}, "model.config: .*frame_offsets=.1.: expected different numbers from -1000 to -1"),
        ({"num_labels": 3}, "model.config.num_labels comes from the data set"),
        ({"model_type": "vss_tbn"}, "model.config.model_type 'vss_tbn' is not known; did you mean 'vss_tbn_vit'"),
        ({"model_type": "vss_tcb_ocr"}, "model.config: .* is a vss_st_ppm: TCBOCRConfig has no field 'in_index'"),
        ({"channels": 12}, r"do not fit STPPM.*other shape: .*\(8,.* for \(12,"),
        ({"frame_weights": None}, "do not fit STPPM.*unexpected: frame_score.weight"),
    ],
)
def test_what_does_not_fit_the_model_to_start_from(root, tmp_path, config, message):
    build("vss_st_ppm").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        build_model(ModelRecipe(init_from=str(tmp_path), config=config), ClassList.from_root(root))
    with pytest.raises(FileNotFoundError, match="nowhere: no such model folder"):
        build_model(ModelRecipe(init_from=str(tmp_path / "nowhere"), config=config), ClassList.from_root(root))


# --- what the model asks for is what it gets


def training_sample(path, *words):
    recipe = load_recipe(path, list(words))
    model = build_model(recipe.model, ClassList.from_root(recipe.data.root))
    data = training_data(recipe, model.config, open_sources(recipe.data))
    return model.config, data, data[0]


def test_clips_come_as_the_configuration_says(root, tmp_path):
    path = clip_recipe(tmp_path, root)
    config, data, sample = training_sample(path)
    assert config.wants_reference_labels and sample["pixel_values_videos"].shape == (3, 3, 32, 48)
    assert sample["reference_labels"].shape == (2, 32, 48) and data.num_samples == 7
    _, _, sample = training_sample(path, "--model.config.detach_references=true")
    assert sample.keys() == {"pixel_values_videos", "labels"}
    _, _, sample = training_sample(path, "--model.config.supervise_references=false", "--time_reversal_prob=0.5")
    assert sample.keys() == {"pixel_values_videos", "labels"}
    _, _, sample = training_sample(path, "--model.config.frame_offsets=[]")  # the model without time
    assert sample.keys() == {"pixel_values_videos", "labels"} and len(sample["pixel_values_videos"]) == 1
    _, data, _ = training_sample(path, "--model.config.clip_start=existing")
    assert data.num_samples == 3  # frames 2 and 3 of one video, 2 of the other: whole clips only


def test_length_in_passes_counts_clips(root, tmp_path):
    """2 passes over 3 whole clips in batches of 2."""
    words = ["--model.config.clip_start=existing", "--max_steps=-1", "--num_train_epochs=2", "--save_strategy=no"]
    folder = main([str(clip_recipe(tmp_path, root)), *words, "--eval_strategy=no", "--load_best_model_at_end=false"])
    results = json.loads((folder / "train_results.json").read_text())
    assert (results["steps"], results["samples"], results["train_frames"]) == (3, 6, 3)


# --- exact


def test_the_same_model_however_the_frames_are_read(root, tmp_path):
    """Cached, as a stream, and from a checkpoint in the middle on: clips, reversal and dropout, bit for bit.

    The backbone is transformers' Swin, whose tensors have other names in a file.
    """
    weighted = "--losses=[{name: cross_entropy, class_weights: inverse_sqrt}]"
    words = [weighted, "--ema_decay=0.5", "--gradient_accumulation_steps=2"]
    reversing = {"augmentation": {"time_reversal_prob": 0.5}}
    for name, data in (("stream", {"streaming": True}), ("cached", {"cache": True})):
        (tmp_path / name).mkdir()
        main([str(clip_recipe(tmp_path / name, root, data=data, **reversing)), *words])
    (tmp_path / "resumed").mkdir()
    shutil.copytree(tmp_path / "stream" / "out" / "checkpoint-2", tmp_path / "resumed" / "out" / "checkpoint-2")
    main([str(clip_recipe(tmp_path / "resumed", root, **reversing)), *words, "--resume_from_checkpoint"])
    for file in ("model/model", "checkpoint-4/model", "checkpoint-4/ema"):
        one, *others = (
            load_file(tmp_path / name / "out" / f"{file}.safetensors") for name in ("stream", "cached", "resumed")
        )
        assert all(torch.equal(tensor, other[name]) for other in others for name, tensor in one.items()), file


def test_the_best_checkpoint_is_the_result(root, tmp_path):
    """Of a model whose tensors have other names in a file; no average, which has a file of its own."""
    folder = main([str(clip_recipe(tmp_path, root)), "--learning_rate=0.1"])
    best = json.loads((folder / "train_results.json").read_text())["best_step"]
    weights = load_file(tmp_path / "out" / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(folder / "model.safetensors").items())


# --- damage


def test_a_damaged_frame_spoils_the_clips_that_hold_it(tmp_path):
    """`raise` names it; `skip` counts the clips and trains without them, and the labelled frame is named once."""
    root = make_data(tmp_path / "videos", {"train": {"a": 6}, "val": {"v": 1}})
    bad = root / "data" / "a" / "origin" / "00000002.png"
    bad.write_bytes(bad.read_bytes()[:100])
    path = clip_recipe(tmp_path, root)
    with pytest.raises(ValueError, match=r"video a, frame 0000000[234]: .*00000002.png: cannot be read"):
        main([str(path)])
    with pytest.warns(RuntimeWarning, match="skipped: video a") as warned:
        folder = main([str(path), "--data.on_bad_sample=skip", "--per_device_train_batch_size=3"])
    named = sorted(str(w.message).split(": ")[1] for w in warned if "skipped: video" in str(w.message))
    assert named == [f"video a, frame 0000000{i}" for i in (2, 3, 4)]  # the three clips that hold frame 2
    assert json.loads((folder / "train_results.json").read_text())["skipped_samples"] == 6  # 2 passes over 6 clips


@pytest.mark.parametrize(("model_type", "helps"), [("vss_tcb_ocr", True), ("vss_video_swin", False)])
def test_out_of_memory_names_what_the_model_has(root, tmp_path, monkeypatch, model_type, helps):
    """A Video Swin refuses detach_references. The device is replaced: there is none here that is full."""

    def full(**inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = build(model_type, frame_offsets=[-2, -1], names=["road", "sky", "tree"])
    monkeypatch.setattr(model, "forward", full)
    trainer = make_trainer(root, tmp_path, model=model, data=training_clips(root))
    with pytest.raises(MemoryError, match=r"\(batch, frames, channels,.*--gradient_checkpointing") as caught:
        trainer.train()
    assert ("or --model.config.detach_references" in str(caught.value)) == helps


# --- what stops a run before it begins


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.config.frame_offsets=[-4]"],
         r"frame_offsets=\[-4\]: no video of split 'train' of .* is that long; the "
         "longest has 4 frames, so offsets from -3 up would find a frame"),
        (["--model.config.frame_offsets=[-3,-1]", "--time_reversal_prob=0.5"],
         r"time_reversal_prob=0.5: model.config.frame_offsets=\[-3, -1\] are other distances .*space them evenly"),
        (["--model.config.frame_offsets=[]", "--time_reversal_prob=0.5"],
         "time_reversal_prob=0.5: vss_st_ppm is trained on single frames, which have no order"),
        (["--model.config.frame_offset=[-1]"], "model.config has no field 'frame_offset'; did you mean"),
        (["--model.config.clip_start=wrap"], "clip_start='wrap': expected one of"),
        (["--model.config.frame_offsets=[1]"], "expected different numbers from -1000 to -1"),
        (["--model.config.model_type=vss_stppm"], "did you mean 'vss_st_ppm'"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained(root, tmp_path, words, message):
    path = clip_recipe(tmp_path, root)
    with pytest.raises(ValueError, match=message):
        main([str(path), *words])
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_images_are_not_reversed(root, tmp_path):
    path = write_recipe(tmp_path / "recipe.yaml", root, tmp_path / "out")
    with pytest.raises(ValueError, match="time_reversal_prob=0.5: vss_ocrnet is trained on single frames"):
        main([str(path), "--time_reversal_prob=0.5"])
