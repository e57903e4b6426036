"""A Hub on this machine, a model folder to push, and the client turned to them."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import close_session, constants, file_download
from huggingface_hub.utils import _http
from PIL import Image


for room in ("training", "data"):  # for `tiny` and `make_tree`, when only these tests are collected
    sys.path.append(str(Path(__file__).parents[1] / room))

from hub_server import TOKEN, HubServer  # noqa: E402
from make_tree import make_tree  # noqa: E402

from vss_hf import OCRNetConfig, OCRNetForSemanticSegmentation  # noqa: E402
from vss_hf.data.parquet_writer import write_parquet  # noqa: E402
from vss_hf.hub_cards import push as push_module  # noqa: E402
from vss_hf.hub_cards import write_card, write_eval_results  # noqa: E402
from vss_hf.modeling.image_processing_vss import VSSImageProcessor  # noqa: E402


NAMES = ["road", "tree", "sky"]
RESULTS = {
    "protocol": "vspw", "vc_protocol": "vspw-official", "split": "val", "dataset": "some_videos", "videos": 2,
    "frames": 6, "mean_iou": 0.5, "frequency_weighted_iou": 0.6, "pixel_accuracy": 0.7, "mean_accuracy": 0.4,
    "per_class_iou": dict.fromkeys(NAMES, 0.5), "vc8": None, "vc16": None, "vc_clips": {}, "frames_per_second": 3.0,
    "hardware": "2 x CPU", "versions": {"vss_hf": "0.1.0"}, "model": "tiny",
}  # fmt: skip


@pytest.fixture
def server():
    with HubServer() as server:
        yield server


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """The server, with the client of this process turned to it; its waits are noted (`hub.waits`) and not waited."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name, value in environment(server, tmp_path).items():
        monkeypatch.setenv(name, value)
    server.waits = []
    clock = SimpleNamespace(**{**vars(time), "sleep": server.waits.append})
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr(file_download, "time", clock)
    monkeypatch.setattr(push_module, "time", clock)
    close_session()
    yield server
    close_session()


def environment(server, tmp_path) -> dict[str, str]:
    """What a process needs that shall talk to the server alone."""
    return {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
        "no_proxy": "*",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def command(server, tmp_path):
    """Runs the command line in a process of its own; also `command.start` without waiting."""

    def start(*words, **changes) -> subprocess.Popen:
        own = {**os.environ, **environment(server, tmp_path), **changes}
        own = {name: value for name, value in own.items() if value is not None}
        words = [sys.executable, "-m", "vss_hf", *map(str, words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(words, env=own, text=True, cwd=tmp_path, **pipes)

    def run(*words, **changes) -> SimpleNamespace:
        process = start(*words, **changes)
        out, err = process.communicate(timeout=120)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        error = errors[0] if len(errors) == 1 else None
        return SimpleNamespace(code=process.returncode, out=out, err=err, error=error)

    run.start = start
    return run


@pytest.fixture(scope="session")
def whole_model(tmp_path_factory) -> Path:
    """A model folder with everything in it, made once."""
    folder = tmp_path_factory.mktemp("whole") / "tiny-ocrnet"
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    backbone = {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1],
        "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
    }  # fmt: skip
    model = OCRNetForSemanticSegmentation(
        OCRNetConfig(backbone_config=backbone, channels=16, ocr_channels=16, coarse_channels=16, **labels)
    )
    model.save_pretrained(folder)
    VSSImageProcessor().save_pretrained(folder)
    (folder / "training_recipe.yaml").write_text("model: {preset: null}\ntraining: {max_steps: 3}\n")
    (folder / "eval_results.json").write_text(json.dumps(RESULTS))
    Image.new("RGB", (64, 48), (9, 99, 199)).save(folder / "overlay.jpg")
    write_eval_results(folder, RESULTS)
    write_card(folder, license="apache-2.0")
    return folder


@pytest.fixture
def folder(whole_model, tmp_path) -> Path:
    """A copy of the model folder that a test may change."""
    copy = tmp_path / "tiny-ocrnet"
    for path in whole_model.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(whole_model)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return copy


@pytest.fixture(scope="session")
def whole_export(tmp_path_factory) -> Path:
    """A packed data set of three splits, in several shards, made once; what it was packed from lies beside it."""
    place = tmp_path_factory.mktemp("packed")
    numbers = {"train": (3, 5, 1, 4, 2), "val": (2, 3), "test": (2,)}
    splits = {split: {f"{split}{i}": [*range(n)] for i, n in enumerate(counts)} for split, counts in numbers.items()}
    write_parquet(make_tree(place / "streets", splits), place / "export", shard_bytes=8000, progress=False)
    return place / "export"


@pytest.fixture
def export(whole_export, tmp_path) -> Path:
    """A copy of the packed data set that a test may change."""
    return Path(shutil.copytree(whole_export, tmp_path / "export"))


@pytest.fixture
def sharded(folder) -> Path:
    """The folder with its weights in several files."""
    model = OCRNetForSemanticSegmentation.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="25KB")
    assert len(list(folder.glob("model-*.safetensors"))) >= 3
    return folder

