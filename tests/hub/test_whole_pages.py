"""All blocks of every page, from top to bottom, in a folder that has what the pages leave to the reader.

tests/test_docs.py runs, in seconds, what needs nothing of the reader's. Here is the rest, too: placeholders,
launchers, recipes, benchmarks, the page in the browser, a camera, and pushes to a Hub on this machine, beside whose
tests these stand. docs/hub.md and docs/add_architecture.md have tests of their own.
"""

import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, STDOUT
from urllib.request import urlopen

import av
import pytest


sys.path.append(str(Path(__file__).parents[1]))  # when only these tests are collected

from page_blocks import PAGES, page_blocks  # noqa: E402
from readers_folder import fill, free_port, made_small, write_recipe  # noqa: E402

from vss_hf.cli import main  # noqa: E402


OTHERS = ("docs/hub.md", "docs/add_architecture.md")
WHOLE = [page for page in PAGES if page not in OTHERS and any(b.language and not b.needs for b in page_blocks(page))]
# Options whose value is a file or folder that the command leaves.
RESULTS = ("--out", "--json", "--markdown", "--html", "--plot", "--submission", "--repair")
# A camera: FFmpeg's test pattern.
WITH_CAMERA = (
    "import vss_hf.video_io as v; v.camera_address = lambda number: ('lavfi', 'testsrc=size=64x48:rate=30', {}); "
    "from vss_hf.cli import main; main()"
)


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory) -> Path:
    return fill(tmp_path_factory.mktemp("reader"))


@pytest.mark.slow
@pytest.mark.parametrize("page", WHOLE)
def test_whole_page(page, readers_folder, hub, tmp_path, monkeypatch):
    here = shutil.copytree(readers_folder, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    for name, value in {"HOME": str(here), "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}.items():
        monkeypatch.setenv(name, value)
    names = {"__name__": "__main__"}
    for block in page_blocks(page):
        place = f"{page}:{block.line}"
        if block.needs is not None:
            continue
        if block.language == "python":
            code = block.text.replace("your-name/", "alice/").replace("user/", "alice/")
            exec(compile(code, place, "exec"), names)
        elif block.language == "yaml":
            carry_out(f"vss-hf train {write_recipe(here, block.text).name}", place)
        elif block.language == "bash":
            for command in block.commands:
                carry_out(command, place)


def carry_out(command: str, place: str) -> None:
    """Run a command of a page, small, and look for the files that it names."""
    if command == "make test":
        return  # is what runs this
    words = made_small(command)
    if words[0] != "vss-hf":
        start(words, place)
    elif words[1] == "demo":
        visit(words[1:], place)
    elif "--camera" in words:
        film(words[1:], place)
    else:
        with pytest.raises(SystemExit) as end:
            main(words[1:])
        assert end.value.code == 0, f"{place}: {command}"
    for option, value in zip(words, words[1:], strict=False):
        assert option not in RESULTS or Path(value).exists(), f"{place}: {command}: no {value}"


# --- what is no single call


def start(words: list[str], place: str) -> None:
    """A program in processes of its own. Two machines are two launchers here."""
    launchers = [words]
    if "--machine_rank" in words:
        rank = words.index("--machine_rank") + 1
        launchers.append([*words[:rank], "1", *words[rank + 1 :]])
    started = [subprocess.Popen(each, stdout=PIPE, stderr=STDOUT, text=True) for each in launchers]
    for process in started:
        said, _ = process.communicate(timeout=500)
        assert process.returncode == 0, f"{place}: {shlex.join(words)}\n{said[-4000:]}"


def visit(words: list[str], place: str) -> None:
    """`vss-hf demo` serves a page until Ctrl-C."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"

    def page_is_there() -> bool:
        try:
            with urlopen(address, timeout=5) as answer:
                return "gradio" in answer.read().decode()
        except OSError:
            return False

    until_ctrl_c(["-m", "vss_hf", *words, "--port", str(port)], page_is_there, place)


def film(words: list[str], place: str) -> None:
    """A camera is labelled until Ctrl-C, and what was labelled stays."""
    if "lavfi" not in av.formats_available:
        return
    out = Path(words[words.index("--out") + 1])
    before = len([*out.rglob("*.png")])  # of the page's other commands
    until_ctrl_c(["-c", WITH_CAMERA, *words], lambda: len([*out.rglob("*.png")]) > before + 2, place)
    assert [*out.rglob("camera0_overlay.mp4")]


def until_ctrl_c(words: list[str], is_ready: Callable[[], bool], place: str) -> None:
    """A program that ends when it is told to."""
    process = subprocess.Popen([sys.executable, *words], stdout=PIPE, stderr=STDOUT, text=True)
    try:
        end = time.monotonic() + 120
        while not is_ready():
            assert process.poll() is None and time.monotonic() < end, f"{place}: {process.communicate()[0][-2000:]}"
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode in (0, 130), f"{place}: {said[-2000:]}"  # 130: before it was all set up
    finally:
        process.kill()
