"""`vss-hf doctor`: versions against what the package requires, extras, devices, folders."""

import json
import os
from importlib import metadata

import pytest
import torch
from typer.testing import CliRunner

from vss_hf import doctor
from vss_hf.cli import app
from vss_hf.install import install_advice


REQUIRED = [
    "torch>=2.11",
    "numpy<1",  # there is a newer one
    "no-such-package-xyz>=3",
    "tomli>=2; python_version < '3.0'",  # not wanted here
    "gradio-of-nobody>=5; extra == 'demo'",
    "pillow>=1; extra == 'export'",
]


@pytest.fixture
def required(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRED)


def test_versions_are_compared(required):
    found = {finding.subject: finding for finding in doctor.packages()}
    assert found["torch"].state == "ok" and found["torch"].found == metadata.version("torch")
    assert found["numpy"].state == "wrong" and found["numpy"].advice == "pip install 'numpy<1'"
    assert found["no-such-package-xyz"].found == "not installed"
    assert "tomli" not in found and "pillow" not in found


def test_extras_say_what_they_are_for(required):
    found = {finding.subject: finding for finding in doctor.extras()}
    assert found["demo"].state == "missing" and found["demo"].found == "without gradio-of-nobody"
    assert found["demo"].advice == f"for vss-hf demo: {install_advice('demo')}"
    assert found["export"].state == "ok"
    assert "dev" not in found  # nothing is required for it here


def test_exit_code_and_json(required, tmp_path):
    result = CliRunner().invoke(app, ["doctor", "--json", str(tmp_path / "found.json")])
    assert result.exit_code == 1 and "Something is wrong" in result.output
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["ok"] is False and set(written["parts"]) == {"Packages", "Optional", "Devices", "Folders"}


def test_this_machine_has_what_it_needs():
    examination = doctor.examine()
    assert examination.ok, [f for part in examination.parts.values() for f in part if f.state == "wrong"]
    found = {finding.subject: finding for finding in examination.parts["Devices"]}
    assert ("cuda:0" in found) == torch.cuda.is_available()


def test_size_of_a_folder_does_not_follow_links(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        file.truncate(300_000_000)  # takes no place on the disk
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert doctor.size_of(tmp_path) == "0.3 GB"
    assert doctor.nearest(tmp_path / "not" / "there") == tmp_path


def test_size_of_a_folder_that_somebody_clears(tmp_path, monkeypatch):
    """Files that are gone between the listing and the look at them count nothing."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x" * 200_000_000)
    links = os.path.islink
    monkeypatch.setattr(os.path, "islink", lambda path: links(path) or (tmp_path / "a").unlink(missing_ok=True))
    assert doctor.size_of(tmp_path) in ("0.0 GB", "0.2 GB")
