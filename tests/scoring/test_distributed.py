"""Evaluation and prediction by several processes are those of one, to the last bit, and no process waits for ever."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import evaluate_together
import numpy as np
import pytest
import torch
from colour_model import files_of
from PIL import Image
from test_evaluate_video_models import write_video_model

from vss_hf.inference import processes
from vss_hf.inference.prediction import predict
from vss_hf.inference.processes import (
    OtherProcessFailed,
    failing_together,
    gather_texts,
    joined_processes,
    one_line,
    own_share,
    share_out,
)
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.metrics import VideoConsistency
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation
from vss_hf.scoring.evaluation import evaluate_model, score_predictions


NAMES = {"others": 0, "road": 1, "sky": 2, "tree": 5}
# Lengths that cannot be shared evenly; one video too short for any window, one of another size.
VIDEOS = {"c_first": 15, "a": 16, "b_large": 4, "z": 11, "d": 19, "m": 18, "k": 15}
TIMING = {"frames_per_second", "hardware"}


def write_video(root: Path, name: str, length: int) -> None:
    """Noise whose classes stay where they are but for a patch that wanders: windows have constant pixels, not all."""
    rng = np.random.default_rng([*name.encode()])
    height, width = (36, 52) if "large" in name else (32, 40)
    regions = np.kron(rng.choice([0, 1, 2, 5, 255], (4, 4)), np.ones((9, 13)))[:height, :width].astype(np.uint8)
    for folder in ("origin", "mask"):
        (root / "data" / name / folder).mkdir(parents=True)
    for number in range(length):
        mask = regions.copy()
        mask[number % 20 : number % 20 + 8, 5:21] = rng.choice([1, 2, 5])
        colours = np.array([40, 20, 9]) * (mask % 6)[..., None]
        frame = (colours + rng.integers(0, 56, (height, width, 3))).astype(np.uint8)
        Image.fromarray(frame).save(root / "data" / name / "origin" / f"{number:08d}.png")
        Image.fromarray(mask).save(root / "data" / name / "mask" / f"{number:08d}.png")


def write_data(root: Path, videos: dict[str, int]) -> Path:
    for name, length in videos.items():
        write_video(root, name, length)
    (root / "val.txt").write_text("".join(f"{name}\n" for name in videos))
    (root / "label_num_dic_final.json").write_text(json.dumps(NAMES))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data sets of seven, one, two and three videos, the last with a truncated frame, and a picture."""
    folder = tmp_path_factory.mktemp("processes")
    write_data(folder / "root", VIDEOS)
    write_data(folder / "few", {"x": 19})
    write_data(folder / "short", {"u": 4, "v": 4})
    write_data(folder / "damaged", {"u": 4, "v": 4, "w": 4})
    bad = folder / "damaged" / "data" / "v" / "origin" / "00000002.png"
    bad.write_bytes(bad.read_bytes()[:200])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (33, 47, 3), np.uint8)).save(folder / "picture.png")
    return folder


@torch.no_grad()
def make_lively(model: OCRNetForSemanticSegmentation) -> None:
    """Statistics of BatchNorm and a classifier by which random weights tell pixels apart."""
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    frames = torch.randn(8, 3, 32, 40) - 0.8  # about what the processor gives
    model.train()
    for _ in range(30):
        model(frames)
    logits = model.eval()(frames).logits
    model.decode_head.classifier.bias -= logits.mean(dim=(0, 2, 3))


@pytest.fixture(scope="module")
def model(folder):
    """A small model whose random classifier uses several classes."""
    from vss_hf.modeling.configuration_ocrnet import OCRNetConfig

    backbone = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    backbone |= {"layer_type": "basic", "out_features": ["stage1", "stage2"]}
    names = dict(enumerate(["road", "sky", "tree"]))
    heads = {"in_indices": [0, 1], "channels": 16, "ocr_channels": 8, "coarse_channels": 16}
    torch.manual_seed(0)
    model = OCRNetForSemanticSegmentation(OCRNetConfig(backbone_config=backbone, **heads, id2label=names))
    make_lively(model)
    model.save_pretrained(folder / "model")
    VSSImageProcessor().save_pretrained(folder / "model")
    return folder / "model"


def torchrun(world: int, *words: str | Path) -> subprocess.CompletedProcess:
    """Start a script, or with -m a module, in `world` processes on this machine, one thread each."""
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={world}"]
    launch += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launch, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def found(request, folder, model):
    """What each of several processes found."""
    write_video_model(folder / "video_model")
    done = torchrun(request.param, evaluate_together.__file__, folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.fixture(scope="module")
def segmenter(model):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes have
    yield VideoSegmenter.from_pretrained(model, "cpu")
    torch.set_num_threads(threads)


def numbers(results: dict) -> dict:
    """Without what depends on the moment. As JSON gives it back: floats keep all their bits there."""
    return json.loads(json.dumps({key: value for key, value in results.items() if key not in TIMING}))


# --- sharing


def test_shares_hold_every_video_once_and_are_even():
    """5,000 random data sets: nothing twice, nothing left out, loads apart by no more than one video."""
    rng = np.random.default_rng(0)
    for _ in range(5000):
        lengths = rng.integers(1, 200, rng.integers(1, 40)).tolist()
        world = int(rng.integers(1, 12))
        owners = share_out(lengths, world)
        assert len(owners) == len(lengths) and set(owners) <= set(range(world))
        loads = [sum(n for n, owner in zip(lengths, owners, strict=True) if owner == rank) for rank in range(world)]
        assert sum(loads) == sum(lengths) and max(loads) - min(loads) <= max(lengths)
        assert owners == share_out(lengths, world)


def test_one_process_takes_everything():
    assert own_share([3, 9, 1]) == [0, 1, 2]
    assert gather_texts("häuser") == ["häuser"]


def test_consistency_of_videos_added_in_order_is_exact():
    """Counted video by video elsewhere, in any order, and added in the data's order: the same bits."""
    rng = np.random.default_rng(1)
    videos = [rng.integers(0, 3, (n, 6, 7), dtype=np.uint8) // 2 for n in (9, 30, 12, 21, 10, 17)]
    predictions = [np.where(rng.random(video.shape) < 0.9, video, 1).astype(np.uint8) for video in videos]

    def totals(video, prediction):
        one = VideoConsistency((2, 3))
        for frame, guess in zip(video, prediction, strict=True):
            one.add_frame(guess, frame)
        one.end_video()
        return one.totals

    parts = [totals(*pair) for pair in zip(videos, predictions, strict=True)]
    results = []
    for order in (range(6), (5, 1, 3, 0, 2, 4)):
        table = torch.zeros(6, *parts[0].shape, dtype=torch.float64)
        for video in order:
            table[video] = parts[video]
        together = VideoConsistency((2, 3))
        for row in table:
            together.add_totals(row)
        results.append(together.compute())
    assert results[0] == results[1] and results[0]["videos"] == 6 and 0 < results[0]["vc2"] < 1
    straight = VideoConsistency((2, 3))
    for video, prediction in zip(videos, predictions, strict=True):
        for frame, guess in zip(video, prediction, strict=True):
            straight.add_frame(guess, frame)
        straight.end_video()
    assert results[0]["clips"] == straight.compute()["clips"]
    assert results[0]["vc3"] == pytest.approx(straight.compute()["vc3"], abs=1e-14)


# --- several processes against one


@pytest.mark.parametrize("protocols", ["vspw/vspw-official", "evaluate/paper", "vspw/dvis-legacy"])
def test_evaluation(found, folder, segmenter, protocols):
    """Seven videos of two sizes: every number of every process is that of one process, bit for bit."""
    protocol, vc_protocol = protocols.split("/")
    alone = evaluate_model(segmenter, folder / "root", batch_size=4, protocol=protocol, vc_protocol=vc_protocol)
    assert alone["frames"] == sum(VIDEOS.values()) and 0 < alone["mean_iou"] < 1 and 0 < alone["vc16"] < 1
    for one in found:
        assert numbers(one[protocols]) == numbers(alone)
        assert one[protocols]["hardware"].startswith(f"{len(found)} x ") and one[protocols]["frames_per_second"] > 0
    assert not alone["hardware"].startswith("1 x")


def test_more_processes_than_videos(found, folder, segmenter):
    alone = numbers(evaluate_model(segmenter, folder / "few"))
    assert all(numbers(one["few"]) == alone for one in found) and alone["videos"] == 1


def test_evaluation_of_a_video_model(found, folder, segmenter):
    """Its memory goes through whole videos, whoever takes them. `segmenter` sees to the number of threads."""
    alone = numbers(evaluate_model(VideoSegmenter.from_pretrained(folder / "video_model", "cpu"), folder / "root"))
    assert all(numbers(one["video model"]) == alone for one in found) and alone["mean_iou"] > 0


def test_batches_do_not_depend_on_the_sharing(folder, segmenter, monkeypatch):
    """Frames of two videos never run together: on another process they could not, and the last bits would change."""
    sizes = []
    label_batch = VideoSegmenter.label_batch
    monkeypatch.setattr(VideoSegmenter, "label_batch", lambda self, x: (sizes.append(len(x)), label_batch(self, x))[1])
    evaluate_model(segmenter, folder / "short", batch_size=3)
    assert sizes == [3, 1, 3, 1]


def test_prediction(found, folder, segmenter, tmp_path):
    """The same PNGs, overlays and archive, and the same answer from every process."""
    archive = tmp_path / "submission.zip"
    alone = predict(
        segmenter, folder / "root", tmp_path / "labels", split="val", overlay_video=True, submission=archive
    )
    ours, theirs = files_of(tmp_path / "labels"), files_of(folder / "labels")
    assert ours.keys() == theirs.keys() and len(ours) == sum(VIDEOS.values()) + 2 * len(VIDEOS) + 1  # with records
    assert not [name for name in ours if ours[name] != theirs[name]]
    assert archive.read_bytes() == (folder / "submission.zip").read_bytes()
    with zipfile.ZipFile(archive) as one:
        assert len(one.namelist()) == sum(VIDEOS.values())
    wanted = [str(folder / Path(path).relative_to(tmp_path)) for path in alone["files"]]
    assert [Path(path).name for path in wanted] == [*(f"{name}_overlay.mp4" for name in VIDEOS), "submission.zip"]
    for one in found:
        assert numbers(one["predict"]) == {**numbers(alone), "files": wanted}
        assert one["predict"] == found[0]["predict"] and one["predict"]["frames_per_second"] > 0
        assert one["one image"]["frames"] == 1 and one["one image"] == found[0]["one image"]
    shown = [one["progress"] for one in found]
    assert not any(shown[1:]) and 0 < len(shown[0]) < len(VIDEOS)  # bars on the first process only


def test_scores_of_files(found, folder):
    alone = numbers(score_predictions(folder / "labels", folder / "root"))
    assert all(numbers(one["score"]) == alone for one in found)
    for missing in ("skip", "wrong"):
        some = score_predictions(folder / "some_labels", folder / "root", missing=missing, with_timeline=True)
        assert some["coverage"]["frames_missing"] == 8 and len(some["timeline"]) == len(some["per_video"])
        assert all(numbers(one[f"score, {missing}"]) == numbers(some) for one in found)
    assert all("does not hold the same files for all processes" in one["other files"] for one in found)


# --- errors reach everybody


@pytest.mark.parametrize("what", ["damaged", "damaged, workers", "predict damaged"])
def test_a_damaged_frame_ends_all_processes(found, what):
    """One process has the file; the others say what happened to it."""
    errors = [one[what] for one in found]
    assert all("v/origin/00000002.png" in error and "cannot be read as an image" in error for error in errors)
    first_hand = [error for error in errors if not error.startswith("OtherProcessFailed")]
    assert len(first_hand) == 1 and first_hand[0].startswith("ValueError")
    heard = f"OtherProcessFailed: process {errors.index(first_hand[0])} of {len(errors)} failed: ValueError: "
    assert sum(error.startswith(heard) for error in errors) == len(errors) - 1
    assert not any("\n" in error for error in errors if error.startswith("OtherProcessFailed"))


def test_different_data_is_refused(found):
    for one in found:
        assert one["different data"].startswith("ValueError: split 'val' of")
        assert "not the same for all processes: process 0 sees 1 videos and process 1 sees 7" in one["different data"]
        assert "nowhere" in one["missing on one"]
    assert found[1]["missing on one"].startswith("FileNotFoundError")
    heard = f"OtherProcessFailed: process 1 of {len(found)} failed: FileNotFoundError"
    assert found[0]["missing on one"].startswith(heard)


def test_all_fail_alike(found):
    assert len({one["bad protocol"] for one in found}) == 1 and "protocol is 'none'" in found[0]["bad protocol"]


def test_after_errors_the_next_evaluation_is_right(found):
    assert all(numbers(one["again"]) == numbers(found[0]["few"]) for one in found)
    assert not any(one["alone again"] for one in found)


def test_failing_together_alone():
    with pytest.raises(KeyError, match="mine"), failing_together():
        raise KeyError("mine")


def test_an_error_in_one_line():
    assert one_line(OSError("two\nlines")) == "OSError: two lines"
    assert one_line(ValueError("Caught ValueError in worker 0.\nTraceback:\n  x\nValueError: a.jpg: bad")) == (
        "ValueError: a.jpg: bad"
    )
    assert issubclass(OtherProcessFailed, OSError)  # the command line prints it in one line


# --- the commands


def test_the_first_process_alone_prints_and_writes(found, folder):
    for rank, one in enumerate(found):
        for command, word in (("evaluate command", "mean_iou"), ("predict command", "19 label maps of 1 videos")):
            out, _, code = one[command]
            assert code == 0 and (word in out) == (rank == 0), (rank, command, out)
        assert rank == 0 or one["evaluate command"][0] == one["predict command"][0] == ""
    assert numbers(json.loads((folder / "few.json").read_text())) == numbers(found[0]["few"])


def test_a_failing_command_says_so_in_one_line(found):
    for one in found:
        _, err, code = one["failing command"]
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(lines) == 1 and "00000002.png" in lines[0] and "Traceback" not in err


def test_devices(monkeypatch):
    """Each process one GPU; before anything is set up, what cannot work is refused."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="--device cuda:1 with 2 processes: each takes a device of its own"):
        with joined_processes("cuda:1"):
            pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="this machine has 1 GPUs; start at most that many"):
        with joined_processes("cuda"):
            pass
    joined = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: joined.append(device))
    monkeypatch.setattr(processes.dist, "init_process_group", lambda backend, timeout: joined.append(backend))
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: joined.append("left"))
    with joined_processes("cuda") as device:
        assert device == "cuda:1"
    assert joined == [1, "nccl", "left"]
    monkeypatch.delenv("WORLD_SIZE")
    with joined_processes("cuda:1") as device:
        assert device == "cuda:1" and len(joined) == 3


def test_devices_here(found):
    assert [(one["device"], one["backend"]) for one in found] == [("cpu", "gloo")] * len(found)


@pytest.mark.slow
def test_commands_under_torchrun(folder, model, segmenter, tmp_path):
    """As users start them, in processes of their own."""
    results = tmp_path / "results.json"
    done = torchrun(2, "-m", "vss_hf", "evaluate", model, "--data", folder / "root", "--json", results)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("pixel_accuracy") == 1
    assert numbers(json.loads(results.read_text())) == numbers(evaluate_model(segmenter, folder / "root"))
    words = ["predict", model, folder / "root", "--out", tmp_path / "labels", "--split", "val"]
    done = torchrun(2, "-m", "vss_hf", *words, "--submission", tmp_path / "submission.zip")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(f"{sum(VIDEOS.values())} label maps of 7 videos") == 1
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert len(archive.namelist()) == sum(VIDEOS.values())
    done = torchrun(2, "-m", "vss_hf", "evaluate", model, "--data", folder / "damaged")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors and all("00000002.png" in line for line in errors)  # torchrun may end the other one before it prints
    assert "Traceback" not in done.stderr.split("error: ")[0]
