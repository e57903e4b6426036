"""ConfusionMatrix against slow double loops, and its promises: additivity, dtypes, errors, distributed sums."""

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from vss_hf.metrics import ConfusionMatrix


ROOT = Path(__file__).resolve().parents[2]
IGNORE = 255


def random_maps(seed, shape=(3, 17, 23), num_labels=7, ignore=0.2):
    rng = np.random.default_rng(seed)
    references = rng.integers(0, num_labels - 2, shape).astype(np.uint8)  # the last two classes have no ground truth
    predictions = np.where(rng.random(shape) < 0.5, references, rng.integers(0, num_labels - 1, shape)).astype(
        np.uint8
    )
    references[rng.random(shape) < ignore] = IGNORE
    predictions[rng.random(shape) < 0.05] = IGNORE
    return predictions, references


def slow_scores(predictions, references, num_labels, protocol):
    """The definition, one pixel at a time."""
    hits, truth, predicted = [0] * num_labels, [0] * num_labels, [0] * num_labels
    for p, r in zip(predictions.ravel().tolist(), references.ravel().tolist(), strict=True):
        if r == IGNORE:
            continue
        truth[r] += 1
        if p != IGNORE:
            predicted[p] += 1
        hits[r] += p == r
    iou, accuracy, weighted = [], [], 0.0
    for c in range(num_labels):
        union = truth[c] + predicted[c] - hits[c]
        scored = truth[c] > 0 if protocol == "vspw" else union > 0
        iou.append(hits[c] / union if scored else None)
        accuracy.append(hits[c] / truth[c] if truth[c] else None)
        weighted += truth[c] / sum(truth) * hits[c] / union if truth[c] else 0.0
    known = [value for value in iou if value is not None]
    right = [value for value in accuracy if value is not None]
    return {
        "mean_iou": sum(known) / len(known),
        "frequency_weighted_iou": weighted,
        "pixel_accuracy": sum(hits) / sum(truth),
        "mean_accuracy": sum(right) / len(right),
        "per_class_iou": iou,
        "per_class_accuracy": accuracy,
        "num_classes_scored": len(known),
        "protocol": protocol,
    }


@pytest.mark.parametrize("protocol", ["vspw", "evaluate"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_definition(seed, protocol):
    predictions, references = random_maps(seed)
    matrix = ConfusionMatrix(7)
    matrix.update(predictions, references)
    scores, expected = matrix.compute(protocol), slow_scores(predictions, references, 7, protocol)
    assert scores.keys() == expected.keys()
    for key, value in expected.items():
        assert scores[key] == pytest.approx(value, abs=1e-12), key
    assert expected["num_classes_scored"] == (5 if protocol == "vspw" else 6)


def test_rows_are_ground_truth():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[2, 2, 1]]), np.array([[0, 0, 1]]))
    assert matrix.counts.tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]
    assert matrix.counts.dtype == torch.int64


def test_long_runs_and_noise_count_alike():
    """The histogram counts runs on smooth maps and pixels on noisy ones."""
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(0, 9, (4, 5)), 20, 0), 30, 1)
    for references in (smooth, rng.permuted(smooth.ravel()).reshape(smooth.shape)):
        predictions = np.roll(references, 7, axis=1)
        expected = np.zeros((9, 9), dtype=np.int64)
        np.add.at(expected, (references.ravel(), predictions.ravel()), 1)
        matrix = ConfusionMatrix(9)
        matrix.update(predictions, references)
        assert matrix.counts.tolist() == expected.tolist()


def test_parts_add_up_in_any_order():
    predictions, references = random_maps(5, shape=(6, 9, 11))
    whole, merged = ConfusionMatrix(7), ConfusionMatrix(7)
    whole.update(predictions, references)
    for part in ([4, 0], [5], [1, 3, 2]):
        other = ConfusionMatrix(7)
        other.update(predictions[part], references[part])
        merged.merge(other)
    assert torch.equal(whole.counts, merged.counts) and torch.equal(whole.missed, merged.missed)
    assert whole.compute() == merged.compute()
    whole.reset()
    assert whole.counts.sum() == 0 and whole.missed.sum() == 0


def test_add_counts():
    predictions, references = random_maps(6)
    predictions[predictions == IGNORE] = 0
    matrix, copy = ConfusionMatrix(7), ConfusionMatrix(7)
    matrix.update(predictions, references)
    copy.add_counts(matrix.counts)
    assert copy.compute() == matrix.compute()
    with pytest.raises(ValueError, match=r"\(7, 8\).*\(7, 7\)"):
        copy.add_counts(torch.zeros(7, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="counts has dtype torch.float32"):
        copy.add_counts(torch.zeros(7, 7))


NUMPY_TYPES = ["uint8", "int8", "uint16", "int16", ">u2", "int32", "uint32", "int64", "uint64", "ulonglong"]


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
def test_every_integer_dtype(dtype):
    predictions, references = random_maps(7, ignore=0.0)
    predictions[predictions == IGNORE] = 0  # int8 has no 255
    expected = ConfusionMatrix(7)
    expected.update(predictions, references)
    matrix = ConfusionMatrix(7)
    matrix.update(predictions, references.astype(dtype))
    matrix.update(predictions.astype(dtype), references)
    if dtype not in (">u2", "ulonglong"):  # torch takes neither
        matrix.update(torch.from_numpy(predictions.astype(dtype)), torch.from_numpy(references.astype(dtype)))
        assert torch.equal(matrix.counts, 3 * expected.counts)
    else:
        assert torch.equal(matrix.counts, 2 * expected.counts)


def test_every_shape_and_container():
    predictions, references = random_maps(8, shape=(2, 3, 5, 4))
    expected = ConfusionMatrix(7)
    expected.update(predictions, references)
    flipped = (predictions[..., ::-1], references[..., ::-1])  # negative strides
    readonly = (predictions.copy(), references.copy())
    for array in readonly:
        array.flags.writeable = False
    transposed = (torch.from_numpy(predictions).permute(3, 2, 0, 1), torch.from_numpy(references).permute(3, 2, 0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for maps in (
            flipped,
            readonly,
            transposed,
            (predictions.tolist(), references.tolist()),
            (torch.from_numpy(predictions).long(), references),
        ):
            matrix = ConfusionMatrix(7)
            matrix.update(*maps)
            assert torch.equal(matrix.counts, expected.counts)
            assert torch.equal(matrix.missed, expected.missed)


def test_bool_and_zero_pixels_and_scalars():
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([True, False, True]), np.array([True, True, False]))
    matrix.update(np.zeros((0, 4), dtype=np.uint8), np.zeros((0, 4), dtype=np.uint8))
    matrix.update(np.uint8(1), np.uint8(1))
    assert matrix.counts.tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize("ignore_index", [-100, -1, 255, 65535])
def test_ignore_index_of_any_value(ignore_index):
    predictions, references = random_maps(9)
    expected = ConfusionMatrix(7)
    expected.update(predictions, references)
    wide = [np.where(maps == IGNORE, ignore_index, maps.astype(np.int64)) for maps in (predictions, references)]
    matrix = ConfusionMatrix(7, ignore_index=ignore_index)
    matrix.update(*wide)
    matrix.update(np.zeros((2, 3), int), np.full((2, 3), ignore_index))  # nothing to score
    assert torch.equal(matrix.counts, expected.counts)
    assert torch.equal(matrix.missed, expected.missed)


def test_ignore_index_that_is_a_class():
    """Its pixels are left out; predicting it elsewhere is an ordinary mistake (bytes and wide values alike)."""
    references, predictions = np.array([[0, 1, 1, 2]]), np.array([[1, 0, 1, 2]])
    for shift in (0, 300):  # 300 more classes do not fit in bytes
        matrix = ConfusionMatrix(3 + shift, ignore_index=shift)
        matrix.update(predictions + shift, references + shift)
        assert matrix.counts[shift:, shift:].tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 1]]
        assert matrix.missed.sum() == 0


def test_more_classes_than_a_byte_holds():
    rng = np.random.default_rng(10)
    references, predictions = rng.integers(0, 300, (2, 40, 50))
    expected = np.zeros((300, 300), dtype=np.int64)
    np.add.at(expected, (references.ravel(), predictions.ravel()), 1)
    matrix = ConfusionMatrix(300, ignore_index=-1)
    matrix.update(predictions, references)
    assert matrix.counts.tolist() == expected.tolist()
    matrix.update(np.array([3], dtype=np.uint8), np.array([255], dtype=np.uint8))  # here 255 is an ordinary class
    assert matrix.counts[255, 3] == expected[255, 3] + 1


def test_void_predictions_are_missed_pixels():
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([[0, 255, 255, 1]]), np.array([[0, 0, 255, 1]]))
    scores = matrix.compute()
    assert scores["pixel_accuracy"] == pytest.approx(2 / 3)
    assert scores["per_class_iou"] == [0.5, 1.0]
    assert matrix.missed.tolist() == [1, 0]


def test_void_pixels_may_hold_any_prediction():
    for value in (200, 100_000):
        matrix = ConfusionMatrix(2)
        matrix.update(np.array([[0, value]]), np.array([[0, 255]]))
        assert matrix.counts.tolist() == [[1, 0], [0, 0]]


def test_empty_matrix_has_no_mean():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = ConfusionMatrix(3)
        matrix.update(np.full((2, 2), 255), np.full((2, 2), 255))
        scores = matrix.compute()
    assert math.isnan(scores["mean_iou"]) and math.isnan(scores["pixel_accuracy"])
    assert math.isnan(scores["mean_accuracy"]) and math.isnan(scores["frequency_weighted_iou"])
    assert scores["per_class_iou"] == scores["per_class_accuracy"] == [None, None, None]
    assert scores["num_classes_scored"] == 0


def test_perfect_prediction_scores_one():
    references = random_maps(11)[1]
    matrix = ConfusionMatrix(7)
    matrix.update(references, references)
    scores = matrix.compute()
    assert [scores[key] for key in ("mean_iou", "frequency_weighted_iou", "pixel_accuracy", "mean_accuracy")] == [
        1.0
    ] * 4


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[0, 0]], [[0, 3]], r"references hold the value 3 \(1 pixels\); labels are 0\.\.2 or ignore_index=255"),
        ([[0, 0, 0]], [[252, 252, 255]], r"references hold the value 252 \(2 pixels\)"),
        ([[0, 7]], [[0, 1]], r"predictions hold the value 7 \(1 pixels\); labels are 0\.\.2 or ignore_index=255"),
        ([[0, 0]], [[0, -1]], r"references hold the value -1 \(1 pixels\)"),
        ([[0, 1000]], [[0, 1]], r"predictions hold the value 1000"),
        ([[0, 0]], [[0], [0]], r"predictions have shape \(1, 2\) and references \(2, 1\)"),
        ([[0.0, 1.0]], [[0, 1]], r"predictions has dtype float64; label maps hold integers"),
        (torch.zeros(1, 2), [[0, 1]], r"predictions has dtype torch.float32"),
    ],
)
def test_errors_name_the_thing(predictions, references, message):
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        matrix.update(predictions, references)
    assert matrix.counts.sum() == 0  # nothing was counted


def test_errors_do_not_blame_pixels_that_are_not_scored():
    for ignore_index in (0, 255):
        matrix = ConfusionMatrix(3, ignore_index=ignore_index)
        with pytest.raises(ValueError, match=r"predictions hold the value 9 \(1 pixels\)"):
            matrix.update([[5, 9, 5]], [[ignore_index, 1, ignore_index]])


def test_other_errors():
    with pytest.raises(ValueError, match="num_labels is 0"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match="protocol is 'mmseg'; known are 'vspw', 'evaluate'"):
        ConfusionMatrix(2).compute("mmseg")
    with pytest.raises(ValueError, match="3 classes into a matrix of 2"):
        ConfusionMatrix(2).merge(ConfusionMatrix(3))


def test_reduce_without_processes_changes_nothing():
    predictions, references = random_maps(12)
    matrix = ConfusionMatrix(7)
    matrix.update(predictions, references)
    before = matrix.compute()
    matrix.reduce()
    assert matrix.compute() == before


WORKER = """
import json, sys
import torch, torch.distributed as dist
from vss_hf.metrics import ConfusionMatrix, VideoConsistency

dist.init_process_group("gloo")
rank = dist.get_rank()
maps = torch.load(sys.argv[1], weights_only=True)
matrix, consistency = ConfusionMatrix(7), VideoConsistency((2, 3))
for video in range(rank, len(maps["references"]), 2):
    matrix.update(maps["predictions"][video], maps["references"][video])
    for prediction, reference in zip(maps["predictions"][video], maps["references"][video]):
        consistency.add_frame(prediction, reference)
    consistency.end_video()
matrix.reduce()
consistency.reduce()
with open(f"{sys.argv[1]}.{rank}", "w") as file:
    json.dump({"matrix": matrix.compute(), "missed": matrix.missed.tolist(), "vc": consistency.compute()}, file)
dist.destroy_process_group()
"""


def test_reduce_over_two_processes(tmp_path):
    """Three videos on two processes give what one process gives, in both."""
    import json

    from vss_hf.metrics import VideoConsistency

    predictions, references = random_maps(13, shape=(3, 5, 8, 9))
    references[:, 1:] = references[:, :1]  # something constant in time
    predictions[:, 3:] = predictions[:, 2:3]
    matrix, consistency = ConfusionMatrix(7), VideoConsistency((2, 3))
    for video in range(3):
        matrix.update(predictions[video], references[video])
        for prediction, reference in zip(predictions[video], references[video], strict=True):
            consistency.add_frame(prediction, reference)
        consistency.end_video()

    maps = {"predictions": torch.from_numpy(predictions), "references": torch.from_numpy(references)}
    torch.save(maps, tmp_path / "maps")
    (tmp_path / "worker.py").write_text(WORKER)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_addr=127.0.0.1",
        "--master_port=0",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=127.0.0.1:0",
        str(tmp_path / "worker.py"),
        str(tmp_path / "maps"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(2):
        result = json.loads((tmp_path / f"maps.{rank}").read_text())
        assert result["matrix"] == matrix.compute()
        assert result["missed"] == matrix.missed.tolist()
        expected = consistency.compute()
        for key in ("vc2", "vc3"):
            assert result["vc"].pop(key) == pytest.approx(expected.pop(key), abs=1e-12)
        assert result["vc"] == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_maps_on_the_gpu(device):
    predictions, references = random_maps(14)
    expected, matrix = ConfusionMatrix(7), ConfusionMatrix(7, device=device)
    expected.update(predictions, references)
    matrix.update(torch.from_numpy(predictions).cuda(), torch.from_numpy(references).cuda())
    assert torch.equal(matrix.counts.cpu(), expected.counts)
    assert torch.equal(matrix.missed.cpu(), expected.missed)
