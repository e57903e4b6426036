"""A Space as it is exported: it runs where nothing but its own files and what it requires is on Python's path."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path

import httpx
import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from vss_hf.hub_cards import push_folder
from vss_hf.hub_cards.space_card import write_space
from vss_hf.hub_cards.space_source import package_files


ROOT = Path(__file__).parents[2]
# What a Space finds: its own folder first, then what was installed; no link to a checkout (-S reads no .pth files).
START = """
import runpy, sys
sys.path[:0] = sys.argv[1:]
import vss_hf.modeling, vss_hf.training, vss_hf.hub_cards
rooms = (vss_hf, vss_hf.modeling, vss_hf.training, vss_hf.hub_cards)
assert all(room.__file__.startswith(sys.argv[1]) for room in rooms), [room.__file__ for room in rooms]
runpy.run_path(sys.argv[1] + "/app.py", run_name="__main__")
"""


def test_the_source_is_that_of_a_wheel():
    """As pyproject.toml says what a wheel holds."""
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name: ROOT / settings["package-dir"].get(name, name.replace(".", "/")) for name in settings["packages"]}
    expected = {}
    for name, folder in folders.items():
        for pattern in ["*.py", *settings["package-data"].get(name, [])]:
            for path in folder.glob(pattern):
                expected[f"{name.replace('.', '/')}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    assert {name: path.read_bytes() for name, path in package_files().items()} == expected


def test_what_it_requires(tmp_path, monkeypatch):
    lines = ["torch>=2.11", "numpy<3,>=2.0", 'gradio>=6; extra == "demo"', 'pytest>=8; extra == "dev"']
    lines.append('uvicorn[standard]>=0.30; python_version > "3.0" and extra == "demo"')
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    egg_info = tmp_path / "checkout/vss_hf.egg-info"  # what an editable installation leaves in the checkout
    egg_info.mkdir(parents=True)
    (egg_info / "PKG-INFO").write_text("Name: vss-hf\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(tmp_path / "checkout")
    write_space(tmp_path / "space", ["owner/a"], 600)
    found = (tmp_path / "space/requirements.txt").read_text().splitlines()
    assert found == ["torch>=2.11", "numpy<3,>=2.0", "gradio>=6", "uvicorn[standard]>=0.30"]
    assert (tmp_path / "space/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    monkeypatch.setattr(metadata, "requires", lambda name: None)
    with pytest.raises(ValueError, match="what it requires is not known: pip install"):
        write_space(tmp_path / "other", ["owner/a"], 600)
    assert not (tmp_path / "other").exists()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(space, port):
    """The address of the Space's page, once it answers."""
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    settings |= {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "0",
        "GRADIO_TEMP_DIR": str(space.parent),
    }
    command = [sys.executable, "-S", "-c", START, str(space), sysconfig.get_path("purelib")]
    log = space.parent / "log"
    with open(log, "wb") as file:
        process = subprocess.Popen(command, cwd=space, env=settings, stdout=file, stderr=subprocess.STDOUT)
        try:
            address, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
            while time.monotonic() < end and process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(address, trust_env=False).status_code == 200:
                        yield address
                        return
                time.sleep(0.2)
            raise AssertionError(log.read_text()[-3000:])
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.slow
def test_it_runs_from_its_own_files(hub, folder, tmp_path):
    gradio_client = pytest.importorskip("gradio_client", reason="the extra demo is not installed")
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    push_folder(folder, "alice/street")
    write_space(tmp_path / "space", ["alice/street"], 600)
    assert not [path for path in (tmp_path / "space").rglob("*") if path.is_symlink() or path.suffix == ".pyc"]
    Image.fromarray(np.full((48, 64, 3), 127, np.uint8)).save(tmp_path / "grey.png")
    with running(tmp_path / "space", free_port()) as address:
        client = gradio_client.Client(address, verbose=False)
        *_, last = client.submit(gradio_client.handle_file(str(tmp_path / "grey.png")), 0.5, api_name="/label_picture")
    assert any("1 frame, " in value for value in last if isinstance(value, str)), last
    assert hub.seen(r"GET /alice/street/resolve/.*/config.json")
    for line in (tmp_path / "space/requirements.txt").read_text().splitlines():
        assert not re.match("vss[-_]hf", Requirement(line).name)
