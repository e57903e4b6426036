"""The pipeline task gives what VideoSegmenter gives, for every kind of input, and takes the usual arguments."""

import types

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import NAMES, moving_frames, save_model, write_video
from transformers import (
    AutoImageProcessor,
    AutoModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    ResNetModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    pipeline,
)

from vss_hf.inference import VideoSegmenter
from vss_hf.inference.pipeline import VideoSemanticSegmentationPipeline
from vss_hf.modeling.image_processing_vss import VSSImageProcessor


TASK = "video-semantic-segmentation"
TIMES = [0, 0.1, 0.15, 0.5, 0.9, 1.0]


@pytest.fixture(scope="module", params=["image", "video"])
def model(request, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp(request.param), video=request.param == "video")


@pytest.fixture(scope="module")
def segment(model):
    return pipeline(TASK, model=str(model), device="cpu")


@pytest.fixture(scope="module")
def frames():
    return moving_frames(len(TIMES))


@pytest.fixture(scope="module")
def video(tmp_path_factory, frames):
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mp4", frames, times=TIMES)


@pytest.fixture(scope="module")
def expected(model, video):
    """What the segmenter gives for the file."""
    segmenter = VideoSegmenter.from_pretrained(model, "cpu")
    return list(segmenter.segment(video, with_scores=True))


def equal(results, labels) -> bool:
    return all(np.array_equal(a["labels"], b) for a, b in zip(results, labels, strict=True))


def test_a_video_file(segment, video, expected):
    results = segment(str(video))
    assert type(segment) is VideoSemanticSegmentationPipeline and isinstance(results, list)
    assert equal(results, [frame.labels for frame in expected])
    assert [r["frame"] for r in results] == list(range(len(TIMES))) and results[3]["name"] == "00000003"
    np.testing.assert_allclose([r["time"] for r in results], TIMES, atol=2e-5)
    for result in results:
        counts = np.bincount(result["labels"].ravel(), minlength=len(NAMES))
        assert {s["label"]: s["area"] for s in result["segments"]} == {
            n: c for n, c in zip(NAMES, counts, strict=True) if c
        }
        areas = [s["area"] for s in result["segments"]]
        assert areas == sorted(areas, reverse=True)
        assert all(NAMES[s["label_id"]] == s["label"] and len(s) == 3 for s in result["segments"])


def test_masks_and_scores(segment, video, expected):
    results = segment(video, output_masks=True, output_scores=True)
    for result, frame in zip(results, expected, strict=True):
        covered = np.zeros(frame.labels.shape, int)
        for part in result["segments"]:
            mask = np.asarray(part["mask"])
            assert part["mask"].mode == "L" and set(np.unique(mask)) <= {0, 255}
            np.testing.assert_array_equal(mask == 255, frame.labels == part["label_id"])
            covered += mask == 255
            probability = frame.scores[part["label_id"]][mask == 255]
            assert (
                part["score"] == pytest.approx(probability.mean(), rel=1e-5) and 1 / len(NAMES) <= part["score"] <= 1
            )
        assert (covered == 1).all()


def test_frames_in_memory(segment, frames, model):
    labels = list(VideoSegmenter.from_pretrained(model, "cpu").label_video(frames))
    inputs = {
        "arrays": frames,
        "pictures": [Image.fromarray(frame) for frame in frames],
        "one array": np.stack(frames),
        "one tensor": torch.from_numpy(np.stack(frames)).movedim(-1, 1),
        "generator": (frame for frame in frames),
    }
    for name, value in inputs.items():
        results = segment(value)
        assert equal(results, labels) and results[0]["time"] is None, name
    assert equal(segment(Image.fromarray(frames[0])), labels[:1])  # a picture is a video of one frame
    assert equal(segment(frames[0]), labels[:1])


def test_several_videos_begin_anew(segment, video, frames, tmp_path):
    for number, frame in enumerate(frames[:3]):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    alone = [segment(str(video)), segment(tmp_path)]
    for inputs in ([str(video), tmp_path], iter([video, tmp_path])):
        together = segment(inputs)
        assert [len(results) for results in together] == [len(TIMES), 3]
        for one, other in zip(together, alone, strict=True):
            assert equal(one, [frame["labels"] for frame in other])
    assert equal(segment([frames, frames[:2]])[1], [r["labels"] for r in segment(frames[:2])])
    assert segment([]) == []


def test_streaming_reads_as_it_goes(segment, frames):
    """An endless video gives its first frames at once."""
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield frames[len(read) % len(frames)]

    results = segment(endless(), stream=True)
    assert isinstance(results, types.GeneratorType)
    first = [next(results)["frame"] for _ in range(4)]
    results.close()
    assert first == [0, 1, 2, 3] and len(read) < 20
    videos = segment([frames, frames[:2]], stream=True)
    assert [len(list(results)) for results in videos] == [len(frames), 2]


def test_arguments_of_every_pipeline(model, video, expected, tmp_path):
    """model and processor as objects, dtype, batch_size; saved and loaded again."""
    loaded = pipeline(
        TASK, model=AutoModel.from_pretrained(model), image_processor=AutoImageProcessor.from_pretrained(model)
    )
    for results in (loaded(video), pipeline(TASK, model=str(model), batch_size=4)(video), loaded(video, batch_size=4)):
        same = [np.mean(a["labels"] == b.labels) for a, b in zip(results, expected, strict=True)]
        assert min(same) > 0.999  # batches may round a tie differently
    assert equal(loaded(video, num_workers=2), [frame.labels for frame in expected])
    with pytest.raises(ValueError, match="batch_size=0: expected a number of frames"):
        loaded(video, batch_size=0)
    for device in ("cpu", torch.device("cpu"), -1):  # -1 is the CPU in every pipeline
        assert equal(pipeline(TASK, model=str(model), device=device)(video), [frame.labels for frame in expected])
    assert pipeline(TASK, model=str(model), dtype="auto").dtype == torch.float32
    assert pipeline(TASK, model=str(model), dtype="bfloat16").dtype == torch.bfloat16
    half = pipeline(TASK, model=str(model), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and np.mean(half(video)[0]["labels"] == expected[0].labels) > 0.8
    loaded.save_pretrained(tmp_path)
    assert equal(pipeline(TASK, model=str(tmp_path))(video), [frame.labels for frame in expected])


def test_models_of_transformers(frames, tmp_path):
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    heads = dict(feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, dim_feedforward=16)
    mask_config = Mask2FormerConfig(
        backbone_config=backbone, **heads, num_queries=5, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        num_labels=4,
    )  # fmt: skip
    segformer = SegformerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, decoder_hidden_size=8, num_labels=4)
    models = [Mask2FormerForUniversalSegmentation(mask_config), SegformerForSemanticSegmentation(segformer)]
    for model in models:
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        VSSImageProcessor().save_pretrained(folder)
        segment = pipeline(TASK, model=str(folder))
        assert type(segment.model) is type(model)
        assert equal(segment(frames), VideoSegmenter.from_pretrained(folder).label_video(frames))


def test_errors(segment, tmp_path, video):
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*nowhere.mp4"):
        segment(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match="a float is no video"):
        segment(1.5)
    with pytest.raises(TypeError, match="threshold"):
        segment(video, threshold=0.5)
    with pytest.raises(ValueError, match="ResNetModel has no segmentation head"):
        pipeline(
            TASK, model=ResNetModel(ResNetConfig(depths=[1], hidden_sizes=[8])), image_processor=VSSImageProcessor()
        )
