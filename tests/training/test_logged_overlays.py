"""Pictures of predictions at each evaluation: in the output folder, in TensorBoard, without touching the training."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import arguments, losses, make_default_data, make_trainer, tiny_clip_model, tiny_model, training_clips
from transformers.integrations import TrackioCallback, WandbCallback

from vss_hf.data.splits import open_split
from vss_hf.data.vspw import read_image
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.training.eval_reports import log_picture
from vss_hf.visualize import overlay_sheet


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


def evaluated_run(root, output_dir, **changes):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, **changes}
    trainer = make_trainer(root, output_dir, **settings)
    trainer.train()
    return trainer


def own_sheet(root, model, positions, path):
    """The sheet of frames of the video v, drawn from predictions for single frames."""
    split = open_split(root, "val")
    frames = [split.videos[0].frames[i] for i in positions]
    images = [read_image(frame.image_path) for frame in frames]
    segmenter = VideoSegmenter(model, VSSImageProcessor())
    predictions = [segmenter.label_batch([image])[0] for image in images]
    labels = [split.reader.labels(frame.mask_path) for frame in frames]
    return read_image(overlay_sheet(images, labels, predictions, split.classes, path))


def test_picture_in_tensorboard_and_in_the_output_folder(root, tmp_path):
    changes = {"max_steps": 10, "eval_steps": 5, "learning_rate": 0.05, "ema_decay": 0.2}
    trainer = evaluated_run(root, tmp_path / "run", report_to="tensorboard", logged_overlays=4, **changes)
    events = EventAccumulator(str(next((tmp_path / "run" / "runs").iterdir())), {"images": 0}).Reload()
    logged = events.Images("eval/overlays")
    assert [image.step for image in logged] == [5, 10]
    with trainer.averaged_weights() as model:
        expected = own_sheet(root, model, [0, 3, 6, 9], tmp_path / "own.jpg")
    for image in logged:
        picture = np.array(Image.open(io.BytesIO(image.encoded_image_string)))
        written = read_image(tmp_path / "run" / "overlays" / f"step-{image.step}.jpg")
        assert np.array_equal(picture, written) and picture.shape == expected.shape
        assert np.array_equal(picture, expected) == (image.step == 10)  # the weights have changed since
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert scalars["eval/mean_iou_head"][0].value == scalars["eval/mean_iou"][0].value


@pytest.mark.parametrize("clips", [False, True], ids=["frames", "clips"])
def test_drawing_does_not_change_the_training(root, tmp_path, clips):
    def run(name, **changes):
        model = tiny_clip_model(root) if clips else tiny_model(root, classifier_dropout=0.5)
        data = training_clips(root) if clips else None
        return losses(evaluated_run(root, tmp_path / name, model=model, data=data, **changes))

    without = run("without", eval_strategy="no")
    assert run("none", logged_overlays=0) == without and not (tmp_path / "none" / "overlays").exists()
    assert run("drawn") == without and len(list((tmp_path / "drawn" / "overlays").iterdir())) == 2


@pytest.mark.parametrize("kind, name", [(WandbCallback, "wandb"), (TrackioCallback, "trackio")])
def test_picture_for_other_reports(tmp_path, monkeypatch, kind, name):
    logged = []
    module = SimpleNamespace(Image=lambda path: ("image", path), log=logged.append)
    monkeypatch.setitem(sys.modules, name, module)
    log_picture(tmp_path / "p.jpg", 7, [object.__new__(kind)])
    assert logged == [{"eval/overlays": ("image", str(tmp_path / "p.jpg")), "train/global_step": 7}]


def test_number_of_pictures_is_checked(tmp_path):
    with pytest.raises(ValueError, match="--logged_overlays -1: expected at least 0"):
        arguments(tmp_path, logged_overlays=-1)
