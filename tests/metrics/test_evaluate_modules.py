"""The two evaluate modules: what they score, and that no map is kept or written."""

import json
import socket
import subprocess
import sys
import weakref
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from vss_hf.metrics import MEAN_IOU, VIDEO_CONSISTENCY, ConfusionMatrix, VideoConsistency


FIXTURE = Path(__file__).resolve().parents[2] / "../shared/parity/12_metrics"
needs_fixture = pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"reference numbers {FIXTURE.name} are not here")


@pytest.fixture(scope="module", autouse=True)
def modules_folder(tmp_path_factory):
    """Where evaluate copies metric scripts to, instead of the user's cache. It is imported as `evaluate_modules`."""

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
            del sys.modules[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", [*sys.path])  # evaluate adds the folder to it
        forget()
        yield
        forget()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder for the data that evaluate writes, and no network."""

    def refuse(*arguments):
        raise OSError("this test runs without network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


@pytest.fixture
def mean_iou(cache):
    return evaluate.load(str(MEAN_IOU), cache_dir=str(cache))


def load_consistency(cache, **options):
    return evaluate.load(str(VIDEO_CONSISTENCY), cache_dir=str(cache), **options)


def random_maps(seed, count=4, shape=(6, 9)):
    rng = np.random.default_rng(seed)
    references = rng.integers(0, 5, (count, *shape)).astype(np.uint8)
    predictions = np.where(rng.random(references.shape) < 0.6, references, 6).astype(np.uint8)
    references[rng.random(references.shape) < 0.1] = 255
    return predictions, references


def files_under(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_example_of_evaluates_own_documentation(mean_iou):
    """Inputs and numbers of the mean_iou page of the evaluate library."""
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    references = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    result = mean_iou.compute(
        predictions=[np.array(maps) for maps in predictions],
        references=[np.array(maps) for maps in references],
        num_labels=10,
        ignore_index=255,
        reduce_labels=False,
        protocol="evaluate",
    )
    assert result["mean_iou"] == pytest.approx(0.4775, abs=1e-12)
    assert result["mean_accuracy"] == pytest.approx(0.5916666666666666, abs=1e-12)
    assert result["overall_accuracy"] == pytest.approx(0.5263157894736842, abs=1e-12)
    assert result["per_category_iou"].tolist() == pytest.approx([0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])
    assert result["per_category_accuracy"].tolist() == pytest.approx([0, 0, 0.75, 2 / 3, 1, 0, 0.5, 1, 1, 1])


@needs_fixture
@pytest.mark.parametrize("space", ["transformed", "raw_reduce_labels", "transformed_nan_to_num0"])
def test_numbers_of_evaluate_itself(mean_iou, space):
    expected = json.loads((FIXTURE / "values.json").read_text())[f"hf_evaluate_{space}"]
    stored = np.load(FIXTURE / "labels.npz")
    options = {"reduce_labels": True} if space == "raw_reduce_labels" else {}
    if space == "transformed_nan_to_num0":
        options["nan_to_num"] = 0
    for name in (key.removeprefix("pred/") for key in stored if key.startswith("pred/")):
        references = stored[f"gt_raw/{name}"]
        if space != "raw_reduce_labels":
            references = np.where(references == 0, 255, references - 1)
            references[stored[f"gt_raw/{name}"] == 255] = 255
        mean_iou.add_batch(predictions=stored[f"pred/{name}"], references=references)
    assert len(mean_iou) == 106
    result = mean_iou.compute(num_labels=124, ignore_index=255, protocol="evaluate", **options)
    for key, value in expected.items():
        value = [float("nan") if entry is None else entry for entry in value] if isinstance(value, list) else value
        assert result[key] == pytest.approx(value, abs=1e-9, nan_ok=True), key


def test_all_ways_of_adding_agree(mean_iou):
    predictions, references = random_maps(0)
    matrix = ConfusionMatrix(7)
    matrix.update(predictions, references)
    expected = matrix.compute()

    def check(result):
        assert result["mean_iou"] == expected["mean_iou"]
        assert result["frequency_weighted_iou"] == expected["frequency_weighted_iou"]
        assert result["num_classes_scored"] == 5
        assert result["protocol"] == "vspw"
        assert np.isnan(result["per_category_iou"][5:]).all()

    mean_iou.add(prediction=predictions[0], reference=references[0])
    mean_iou.add_batch(predictions=torch.from_numpy(predictions[1:3]).long(), references=list(references[1:3]))
    # scoring other maps meanwhile, as tutorials do, leaves what was added alone
    alone = mean_iou._compute(predictions=predictions[:1], references=references[:1], num_labels=7, ignore_index=255)
    assert alone["mean_iou"] != expected["mean_iou"]
    check(mean_iou.compute(predictions=predictions[3:], references=references[3:], num_labels=7))
    check(mean_iou.compute(predictions=predictions, references=references, num_labels=7))  # it had started anew


def test_combine(cache):
    predictions, references = random_maps(1)
    both = evaluate.combine([evaluate.load(str(MEAN_IOU), cache_dir=str(cache)) for _ in range(2)])
    both.add(prediction=predictions[0], reference=references[0])
    both.add_batch(predictions=predictions[1:], references=references[1:])
    result = both.compute(num_labels=7)
    assert result["mean_io_u_0_mean_iou"] == result["mean_io_u_1_mean_iou"] > 0


def test_mean_iou_keeps_and_writes_no_map(mean_iou, cache):
    alive = []
    for seed in range(20):
        predictions, references = random_maps(seed, count=1)
        mean_iou.add_batch(predictions=[predictions[0]], references=[references[0]])
        alive += [weakref.ref(predictions), weakref.ref(references)]
    del predictions, references
    assert not any(reference() is not None for reference in alive)
    arrays = [value for value in vars(mean_iou).values() if isinstance(value, (np.ndarray, torch.Tensor, list))]
    assert [array.nbytes for array in arrays] == [256 * 256 * 8]
    assert mean_iou.writer is mean_iou.data is mean_iou.buf_writer is None
    mean_iou.compute(num_labels=7)
    assert files_under(cache) == []


def test_mean_iou_errors(mean_iou, cache):
    with pytest.raises(ValueError, match="no maps to score"):
        mean_iou.compute(num_labels=3)
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        mean_iou.add_batch(predictions=[[[0]], [[0]]], references=[[[0]]])
    with pytest.raises(ValueError, match="both needed"):
        mean_iou.add_batch(predictions=[[[0]]])
    with pytest.raises(ValueError, match=r"unknown inputs \['weights'\]"):
        mean_iou.add(prediction=[[0]], reference=[[0]], weights=[[1]])
    with pytest.raises(ValueError, match="references hold values from -100 to -100; only 0..255"):
        mean_iou.add(prediction=[[0]], reference=[[-100]])
    mean_iou.add(prediction=[[1]], reference=[[5]])
    with pytest.raises(ValueError, match=r"references hold the value 5 \(1 pixels\); labels are 0\.\.2"):
        mean_iou.compute(num_labels=3)
    assert mean_iou.compute(num_labels=6)["overall_accuracy"] == 0  # the mistake cost nothing
    with pytest.raises(ValueError, match="num_process is 2"):
        evaluate.load(str(MEAN_IOU), cache_dir=str(cache), num_process=2)


@pytest.mark.parametrize("protocol", ["vspw-official", "paper", "dvis-legacy"])
def test_video_consistency_module(cache, protocol):
    predictions, references = random_maps(2, count=14)
    references[:, :3] = references[:1, :3]
    predictions[:, 2:5] = predictions[:1, 2:5]
    videos = ["a"] * 6 + ["b"] * 8
    direct = VideoConsistency((2, 4), protocol)
    for t, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        direct.add_frame(prediction, reference)
        if t in (5, 13):
            direct.end_video()
    assert direct.compute()["vc4"] > 0

    metric = load_consistency(cache, protocol=protocol, num_frames=(2, 4))
    metric.add(prediction=predictions[0], reference=references[0], video="a")
    metric.add_batch(predictions=predictions[1:9], references=references[1:9], videos=videos[1:9])
    assert len(metric) == 9
    assert (
        metric.compute(predictions=predictions[9:], references=references[9:], videos=videos[9:]) == direct.compute()
    )
    assert metric.compute(predictions=predictions, references=references, videos=videos) == direct.compute()
    assert metric.writer is metric.data is None
    assert files_under(cache) == []


def test_video_consistency_module_errors(cache):
    metric = load_consistency(cache)
    frame = np.zeros((2, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="no frames to score"):
        metric.compute()
    with pytest.raises(ValueError, match=r"unknown arguments \['protocol'\]; .* given to evaluate.load"):
        metric.compute(protocol="paper")
    with pytest.raises(ValueError, match="videos are all needed"):
        metric.add_batch(predictions=[frame], references=[frame])
    with pytest.raises(ValueError, match="the name of the video"):
        metric.add(prediction=frame, reference=frame)
    with pytest.raises(ValueError, match="1 predictions, 1 references and 2 videos"):
        metric.add_batch(predictions=[frame], references=[frame], videos=["a", "b"])
    with pytest.raises(ValueError, match="video 'a' comes back"):
        metric.add_batch(predictions=[frame] * 3, references=[frame] * 3, videos=["a", "b", "a"])
    with pytest.raises(ValueError, match="protocol is 'official'"):
        load_consistency(cache, protocol="official")


def test_importing_the_metrics_leaves_evaluate_alone():
    code = "import sys, vss_hf.metrics; assert 'evaluate' not in sys.modules and 'datasets' not in sys.modules"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
