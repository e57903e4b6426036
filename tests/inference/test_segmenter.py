"""VideoSegmenter against processor, model and post-processing called by hand."""

import threading
import time
import warnings
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from vss_hf import VideoSegmenter
from vss_hf.inference.segmenter import SegmentedFrame
from vss_hf.modeling.architectures import VIDEO_MODELS
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation
from vss_hf.modeling.modeling_st_ppm import STPPMForVideoSemanticSegmentation
from vss_hf.video_io import Frame, FrameSource, read_frames
from vss_hf.video_writer import VideoWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_ocrnet_config):
    folder = tmp_path_factory.mktemp("image_model")
    torch.manual_seed(0)
    model = OCRNetForSemanticSegmentation(tiny_ocrnet_config("swin"))
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    model.save_pretrained(folder)
    VSSImageProcessor(do_resize=True, size={"shortest_edge": 48}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segformer_folder(tmp_path_factory):
    """A model of transformers, whose processor resizes to a square."""
    folder = tmp_path_factory.mktemp("segformer")
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16
    )
    config.id2label = {i: f"class {i}" for i in range(5)}
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}, do_reduce_labels=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory):
    """An ST-PPM with clips of frames 4 and 1 before; a classifier by which random weights tell pixels apart."""
    folder = tmp_path_factory.mktemp("video_model")
    torch.manual_seed(0)
    backbone = {"model_type": "vss_resnet", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 20]}
    backbone |= {"stem_channels": 8, "block": "basic", "out_features": ["stage3", "stage4"]}
    config = AutoConfig.for_model(
        "vss_st_ppm",
        backbone_config=backbone,
        frame_offsets=[-4, -1],
        in_index=1,
        auxiliary_in_index=0,
        channels=8,
        auxiliary_channels=8,
        id2label={i: f"class {i}" for i in range(5)},
    )
    model = STPPMForVideoSemanticSegmentation(config)
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    model.save_pretrained(folder)
    VSSImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """An mp4 of 11 frames at uneven times."""
    path = tmp_path_factory.mktemp("video") / "street.mp4"
    with VideoWriter(path, fps=15, size=(60, 106)) as writer:
        for number, frame in enumerate(frames(11, 60, 106)):
            writer.write(frame, number / 15 + (number > 5))
    return path


def frames(count=3, height=60, width=107):
    """Colour ramps that move, with noise: something of everything for a model, and an encoder can take it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    ramps = [
        np.stack([255 * x / width, 255 * y / height, 127 + 100 * np.sin((x + 9 * n) / 9)], -1) for n in range(count)
    ]
    return [(0.7 * ramp + rng.integers(0, 76, ramp.shape)).astype(np.uint8) for ramp in ramps]


def labels_by_hand(folder, frame):
    """What a user of transformers would write."""
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = model(**processor(images=frame, return_tensors="pt"))
    return processor.post_process_semantic_segmentation(outputs, target_sizes=[frame.shape[:2]])[0].numpy()


def labels_of_clips(segmenter, video):
    """Each frame's clip assembled and run as a whole."""
    pixels = [segmenter.pixel_values([frame]) for frame in video]
    maps = []
    for index, frame in enumerate(video):
        clip = torch.stack([pixels[i] for i in segmenter.model.config.clip_indices(index)], dim=1)  # (1, T, 3, H, W)
        with torch.no_grad():
            logits = segmenter.model(pixel_values_videos=clip).logits
        maps.append(F.interpolate(logits, size=frame.shape[:2], mode="bilinear").argmax(1)[0].numpy())
    return maps


def equal(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def nearly_equal(ours, theirs):
    return all((a == b).mean() > 0.999 for a, b in zip(ours, theirs, strict=True))  # ties of rounding at most


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "read_ahead"]


# --- image models


@pytest.mark.parametrize("which", ["folder", "segformer_folder"])
def test_segment_gives_the_label_maps_of_transformers(which, video, request):
    folder = request.getfixturevalue(which)
    segmenter = VideoSegmenter.from_pretrained(folder, device="cpu")
    assert not segmenter.is_video_model
    segmented = list(segmenter.segment(video))
    assert len(segmented) == 11
    values = set()
    for number, ((name, image), found) in enumerate(zip(read_frames(video), segmented, strict=True)):
        assert isinstance(found, SegmentedFrame) and found.name == name == f"{number:08d}" and found.scores is None
        assert found.time == pytest.approx(number / 15 + (number > 5), abs=1e-3)
        assert np.array_equal(found.image, image)
        assert found.labels.dtype == np.uint8
        assert np.array_equal(found.labels, labels_by_hand(folder, image))
        values |= set(found.labels.ravel().tolist())
    assert len(values) > 1


def test_step_is_processor_model_argmax(folder):
    segmenter = VideoSegmenter.from_pretrained(folder, device="cpu")
    video = frames()
    labels = [segmenter.step(frame) for frame in video]
    for frame, label in zip(video, labels, strict=True):
        assert label.shape == (60, 107) and label.dtype == np.uint8
        assert np.array_equal(label, labels_by_hand(folder, frame))
    assert len(np.unique(labels)) > 1
    assert equal(segmenter.label_video(iter(video)), labels)
    assert nearly_equal(segmenter.label_batch(video), labels)
    tensor = torch.from_numpy(video[0]).permute(2, 0, 1)
    assert np.array_equal(segmenter.step(tensor), labels[0])
    opencv = np.ascontiguousarray(video[0][..., ::-1])  # blue first
    assert np.array_equal(segmenter.step(opencv[..., ::-1]), labels[0])


def test_every_source_gives_the_same_labels(folder, tmp_path):
    segmenter = VideoSegmenter.from_pretrained(folder, device="cpu")
    images = frames(3)
    expected = [segmenter.step(image) for image in images]
    for place in (tmp_path / "frames", tmp_path / "video" / "origin"):
        place.mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(place / f"{number:08d}.png")
    sources = [tmp_path / "frames", tmp_path / "video", images, iter(images), np.stack(images)]
    sources.append(
        FrameSource("mine", 3, None, lambda: (Frame(str(i), image, None) for i, image in enumerate(images)))
    )
    for source in sources:
        assert equal((frame.labels for frame in segmenter.segment(source)), expected)
    [single] = segmenter.segment(tmp_path / "frames" / "00000001.png")
    assert np.array_equal(single.labels, expected[1])


def test_batches_hold_neighbours_of_one_size(folder):
    segmenter = VideoSegmenter.from_pretrained(folder, device="cpu")
    video = [*frames(5), *frames(3, 64, 80), *frames(1)]
    shapes = []
    segmenter.model.register_forward_pre_hook(
        lambda model, args, kwargs: shapes.append(tuple(kwargs["pixel_values"].shape)), with_kwargs=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an image model remembers nothing that a new size could spoil
        labels = list(segmenter.label_video(video, batch_size=4))
    assert [shape[0] for shape in shapes] == [4, 1, 3, 1]
    assert [label.shape for label in labels] == [frame.shape[:2] for frame in video]
    assert nearly_equal(labels, [labels_by_hand(folder, frame) for frame in video])
    with pytest.raises(ValueError, match="batch_size=0: expected a number of frames, from 1"):
        segmenter.segment(video, batch_size=0)


@pytest.mark.parametrize("which", ["folder", "video_folder"])
def test_scores_are_the_probabilities_behind_the_labels(which, request):
    segmenter = VideoSegmenter.from_pretrained(request.getfixturevalue(which), device="cpu")
    plain = segmenter.label_video(frames(5), batch_size=2)
    for found, label in zip(segmenter.segment(frames(5), batch_size=2, with_scores=True), plain, strict=True):
        assert found.scores is not None and found.scores.shape == (5, 60, 107) and found.scores.dtype == np.float32
        np.testing.assert_allclose(found.scores.sum(0), 1, atol=1e-5)
        assert (found.scores.argmax(0) == found.labels).mean() > 0.999
        assert np.array_equal(found.labels, label)
        assert found.scores.max() > 0.3


def test_odd_small_frames(folder):
    segmenter = VideoSegmenter.from_pretrained(str(folder), device="cpu")
    for size in ((33, 47), (3, 64), (64, 3)):
        assert segmenter.step(frames(1, *size)[0]).shape == size


def test_names_are_in_label_order(folder):
    assert VideoSegmenter.from_pretrained(folder, device="cpu").names == [f"class {i}" for i in range(5)]


def test_the_model_is_put_into_eval_mode(tiny_ocrnet_config):
    model = OCRNetForSemanticSegmentation(tiny_ocrnet_config(classifier_dropout=0.5)).train()
    assert not VideoSegmenter(model, VSSImageProcessor()).model.training


def test_bf16_model(folder):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.bfloat16)
    label = VideoSegmenter(model, AutoImageProcessor.from_pretrained(folder)).step(frames(1)[0])
    assert (label == labels_by_hand(folder, frames(1)[0])).mean() > 0.9


# --- video models


def test_a_video_model_is_stepped_through_the_video(video_folder, video):
    segmenter = VideoSegmenter.from_pretrained(video_folder, device="cpu")
    assert segmenter.is_video_model
    images = [image for _, image in read_frames(video)]
    expected = labels_of_clips(segmenter, images)
    single = [segmenter.step(image) for image in images if not segmenter.reset()]
    assert not nearly_equal(expected, single)  # the other frames do matter
    assert nearly_equal((frame.labels for frame in segmenter.segment(video, batch_size=4)), expected)
    segmenter.reset()
    labels = list(segmenter.label_video(images))
    assert equal([segmenter.step(image) for image in images], labels)
    segmenter.reset()
    assert equal([*segmenter.label_batch(images[:4]), *segmenter.label_batch(images[4:])], labels)


def test_videos_side_by_side_do_not_disturb_each_other(video_folder):
    segmenter = VideoSegmenter.from_pretrained(video_folder, device="cpu")
    forward, backward = frames(9), frames(9)[::-1]
    apart = list(segmenter.label_video(forward)), list(segmenter.label_video(backward))
    both = zip(
        segmenter.label_video(forward), segmenter.label_video(backward), map(segmenter.step, forward), strict=True
    )
    first, second, third = zip(*both, strict=True)
    assert equal(first, apart[0]) and equal(second, apart[1]) and equal(third, apart[0])


def test_a_new_size_begins_a_new_memory(video_folder):
    segmenter = VideoSegmenter.from_pretrained(video_folder, device="cpu")
    video = [*frames(6), *frames(5, 64, 96)]
    message = r"frame 00000006 is 96x64 after frames of 107x60 .*STPPMForVideoSemanticSegmentation forgets those"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        labels = list(segmenter.label_video(video))
    assert len(caught) == 1
    assert equal(labels, [*segmenter.label_video(video[:6]), *segmenter.label_video(video[6:])])
    with pytest.warns(RuntimeWarning, match="frame 6 is 96x64 after frames of 107x60") as caught:
        assert equal([segmenter.step(frame) for frame in video], labels)
    assert len(caught) == 1


def test_a_video_model_is_known_by_its_folder(video_folder, tmp_path):
    """Also without a word in the processor's file about its class."""
    VSSImageProcessor(do_resize=True, size={"height": 40, "width": 48}).save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((video_folder / name).read_bytes())
    path = tmp_path / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"image_processor_type"', '"nobody_reads_this"'))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is VSSImageProcessor
    assert processor(images=frames(1), return_tensors="pt")["pixel_values"].shape == (1, 3, 40, 48)
    segmenter = VideoSegmenter.from_pretrained(tmp_path, "cpu")
    assert type(segmenter.model) is STPPMForVideoSemanticSegmentation
    assert segmenter.names == [f"class {i}" for i in range(5)] and segmenter.step(frames(1)[0]).shape == (60, 107)


@pytest.mark.parametrize("model_type", VIDEO_MODELS)
def test_every_video_model_has_a_processor(model_type):
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    from vss_hf.modeling.architectures import configuration_class

    assert IMAGE_PROCESSOR_MAPPING[configuration_class(model_type)]["torchvision"] is VSSImageProcessor


# --- reading in a thread


@pytest.mark.parametrize("batch_size", [1, 4])
def test_nothing_is_lost_before_an_error(folder, batch_size):
    segmenter = VideoSegmenter.from_pretrained(folder, device="cpu")
    images = frames(6)

    def breaking():
        yield from images
        raise OSError("the cable was pulled out")

    labels = []
    with pytest.raises(OSError, match="the cable was pulled out"):
        for label in segmenter.label_video(breaking(), batch_size=batch_size):
            labels.append(label)
            time.sleep(0.005)  # slower than the source
    assert nearly_equal(labels, [segmenter.step(image) for image in images])
    assert not readers()


def test_a_damaged_file_ends_with_its_name(folder, video, tmp_path):
    data = bytearray(video.read_bytes())
    start = data.index(b"mdat") + len(data) // 2
    data[start : start + 5000] = bytes(5000)
    (tmp_path / "bad.mp4").write_bytes(data)
    with pytest.raises(ValueError, match="bad.mp4 breaks off: after"):
        list(VideoSegmenter.from_pretrained(folder, device="cpu").segment(tmp_path / "bad.mp4"))
    assert not readers()


def test_a_wrong_source_is_an_error_at_the_call(folder, tmp_path):
    segmenter = VideoSegmenter.from_pretrained(folder, device="cpu")
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*nowhere.mp4"):
        segmenter.segment(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match="no pictures in the folder"):
        segmenter.label_video(tmp_path)


def test_breaking_off_ends_the_reading(folder):
    segmenter = VideoSegmenter.from_pretrained(folder, device="cpu")
    read = []

    def endless():
        image = frames(1)[0]
        while True:
            read.append(len(read))
            yield image

    source = endless()
    for number, _ in enumerate(segmenter.segment(source)):
        if number == 3:
            break
    assert not readers()
    count = len(read)
    assert 4 <= count <= 8
    time.sleep(0.05)
    assert len(read) == count
    next(source)  # the caller's iterator stays open


@pytest.mark.parametrize("which", ["folder", "video_folder"])
def test_few_frames_are_in_memory_at_a_time(which, request):
    segmenter = VideoSegmenter.from_pretrained(request.getfixturevalue(which), device="cpu")
    alive = []

    def counted():
        for _ in range(24):
            yield noted(alive)

    most = 0
    for _ in segmenter.segment(counted()):
        most = max(most, sum(one() is not None for one in alive))
    assert most <= 6 and len(alive) == 24


def noted(alive):
    """A frame that only its user holds; `alive` gets a weak reference."""
    image = np.zeros((60, 107, 3), np.uint8)
    alive.append(weakref.ref(image))
    return image


def test_a_camera_is_shown_as_it_is_now(folder):
    """A slow user of a fast live source gets what is new, in order; a video is complete however slow the user."""
    segmenter = VideoSegmenter.from_pretrained(folder, device="cpu")
    image = frames(1)[0]

    def pictures():
        for number in range(150):
            time.sleep(0.004)
            yield Frame(f"{number:08d}", image, number / 250)

    names = []
    for found in segmenter.segment(FrameSource("camera", None, None, pictures, live=True)):
        names.append(found.name)
        time.sleep(0.05)
    assert names == sorted(set(names)) and 2 <= len(names) < 50
    assert int(names[-1]) > 120


def test_memory_that_runs_out_while_frames_are_prepared(folder):
    """The thread's error says the same as that of the model; a small disk of memory is hard to come by here."""
    segmenter = VideoSegmenter.from_pretrained(folder, device="cpu")

    class Greedy(VSSImageProcessor):
        def preprocess(self, *args, **kwargs):
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes")

    segmenter.processor = Greedy()
    with pytest.raises(MemoryError, match=r"out of memory with 2 frames of 60x107 .* on cpu: label fewer frames"):
        next(segmenter.segment(frames(2), batch_size=2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("which", ["folder", "video_folder"])
def test_on_a_gpu_copies_beside_the_model_change_nothing(which, request):
    """Frames are copied and prepared on another stream; a copy that came too late would show in the labels."""
    on_gpu = VideoSegmenter.from_pretrained(request.getfixturevalue(which), device="cuda")
    on_cpu = VideoSegmenter.from_pretrained(request.getfixturevalue(which), device="cpu")
    video = frames(40, 480, 854)
    stepped = [on_gpu.step(frame) for frame in video]
    assert equal(on_gpu.label_video(video), stepped)
    assert nearly_equal(on_gpu.label_video(video, batch_size=4), stepped)
    assert all((a == b).mean() > 0.99 for a, b in zip(stepped[:5], on_cpu.label_video(video[:5]), strict=True))


# --- loading


def test_a_damaged_file_is_named(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        VideoSegmenter.from_pretrained(tmp_path)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*no such model folder"):
        VideoSegmenter.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="./nowhere.*no such model folder"):
        VideoSegmenter.from_pretrained("./nowhere")
    with pytest.raises(FileNotFoundError, match="config.json.*save_pretrained"):
        VideoSegmenter.from_pretrained(tmp_path)
