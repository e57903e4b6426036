"""What was pushed to a Hub on this machine comes back: bit for bit, by branch, after a broken download."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders import contents
from hub_server import TOKEN
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file
from tiny import make_default_data
from transformers import AutoModelForSemanticSegmentation

from vss_hf.hub_cards import push_folder


NAME = "alice/street"


def test_from_pretrained(hub, folder):
    push_folder(folder, NAME)
    path = folder / "model.safetensors"
    first = path.read_bytes()
    for step, target in ((1, {"revision": "wide"}), (2, {"create_pr": True})):
        path.write_bytes(first)
        tensors = {name: tensor + step for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
        push_folder(folder, NAME, **target)
    path.write_bytes(first)
    script = Path(__file__).with_name("pulling.py")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["main"] == [0, 0]
    assert found["branch"] == pytest.approx([1, 1]) and found["pull request"] == pytest.approx([2, 2])
    assert found["same labels"] and found["same processor"]
    assert found["video model"] == "STPPMForVideoSemanticSegmentation"
    assert "nowhere is not a valid git identifier" in found["no such branch"]
    assert "make sure to pass a token" in found["no token"]
    assert all(r.authorization is None for r in hub.seen("GET /storage/"))  # another host
    # transformers' own way sends the model and nothing else.
    assert set(hub.files("alice/model-only")) == {"config.json", "model.safetensors", "README.md"}


def test_without_the_package(hub, folder, tmp_path):
    """A repository pushed with its code, in a process that cannot import this package."""
    before = contents(folder)
    push_folder(folder, NAME, with_code=True)
    # The card gets the repository's name; the code stays out of the folder.
    assert {name for name, data in contents(folder).items() if before.get(name) != data} <= {"README.md"}
    assert "auto_classes.py" in hub.files(NAME)
    inputs = {"pixel_values": torch.rand(1, 3, 64, 96)}
    here = tmp_path / NAME
    here.parent.mkdir()
    save_file(inputs, f"{here}.safetensors")
    script = Path(__file__).parents[1] / "modeling" / "load_remote_code.py"
    done = subprocess.run([sys.executable, script, NAME], capture_output=True, text=True, env=os.environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**inputs).logits
    for written in ("out", "again.out"):
        assert torch.allclose(load_file(f"{here}.{written}.safetensors")["logits"], logits, rtol=1e-4, atol=1e-6)
    push_folder(folder, NAME)  # without code again: the configuration leads nowhere then
    assert "auto_map" not in json.loads(hub.files(NAME)["config.json"])


def test_snapshot(hub, folder):
    push_folder(folder, NAME)
    there = Path(snapshot_download(NAME, endpoint=hub.url))
    pulled = contents(there)
    pulled.pop(".gitattributes")
    assert pulled == contents(folder)


def test_a_download_that_breaks_goes_on_where_it_stopped(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)  # what it keeps in one piece
    push_folder(folder, NAME)
    hub.forget()
    hub.fail("GET /storage/", "cut", at=5 * 4096 + 100, times=2)
    path = Path(hf_hub_download(NAME, "model.safetensors", endpoint=hub.url))
    assert path.read_bytes() == (folder / "model.safetensors").read_bytes()
    ranges = [request.range for request in hub.seen("GET /storage/")]
    assert ranges == [None, f"bytes={5 * 4096}-", f"bytes={10 * 4096}-"]
    # One that never gets through leaves nothing that could be taken for the file.
    hub.fail("GET /alice/street/resolve/main/config.json", "cut", at=9, times=float("inf"))
    with pytest.raises(HTTPError, match="peer closed connection"):
        hf_hub_download(NAME, "config.json", endpoint=hub.url)
    assert not [p for p in Path(path).parents[2].rglob("*") if p.name in ("config.json",) or "incomplete" in p.name]


def test_other_bytes_than_were_pushed(hub, folder):
    """huggingface_hub compares sizes when it downloads, and checksums only when asked to."""
    push_folder(folder, NAME)
    hub.fail("GET /storage/", "tamper", times=float("inf"))
    path = Path(hf_hub_download(NAME, "model.safetensors", endpoint=hub.url))
    assert path.read_bytes() != (folder / "model.safetensors").read_bytes()
    api = HfApi(endpoint=hub.url, token=TOKEN)
    found = api.verify_repo_checksums(NAME)  # `hf cache verify alice/street`
    assert [bad["path"] for bad in found.mismatches] == ["model.safetensors"]
    hub.faults.clear()
    hf_hub_download(NAME, "model.safetensors", endpoint=hub.url, force_download=True)
    assert api.verify_repo_checksums(NAME).mismatches == []


@pytest.mark.slow
def test_evaluate_from_the_hub(command, hub, server, folder, tmp_path):
    """The command gives the same numbers for the repository as for the folder it came from."""
    data = make_default_data(tmp_path / "videos")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "road", "1": "sky", "2": "tree"},
                                                    "label2id": {"road": 0, "sky": 1, "tree": 2}}))  # fmt: skip
    push_folder(folder, NAME)
    results = []
    for source in (folder, NAME):
        options = ("--data", data, "--json", tmp_path / "out.json", "--num-workers", 0, "--device", "cpu")
        done = command("evaluate", source, *options)
        assert done.code == 0, done.err
        results.append(json.loads((tmp_path / "out.json").read_text()))
    for key in ("mean_iou", "pixel_accuracy", "per_class_iou", "vc8", "frames"):
        assert results[0][key] == results[1][key]
    server.fail("GET /storage/", "cut", at=99, times=float("inf"))
    for source, changes, message in (
        (NAME, {"HF_HOME": str(tmp_path / "new")}, "Can't load the model for 'alice/street'"),  # its own words
        ("alice/nothing", {}, "alice/nothing"),
        (NAME, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "empty")}, "couldn't connect"),
    ):
        done = command("evaluate", source, "--data", data, "--device", "cpu", **changes)
        assert done.code == 2 and done.error and message in done.error, done.err
        assert "Traceback" not in done.err
