"""Writes a Space that shows one model, or compares two: app.py, README.md, and this package's source."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from vss_hf.files import new_folder, write_text

from .card_text import render
from .space_source import licence_text, package_files, requirements_text


TEMPLATE = Path(__file__).with_name("space_card.md")
GRADIO = "6.31.0"  # the page is tested with it
GPU_SECONDS = 120  # that one visitor's video may take on shared hardware

APP = '''"""A page to try {names}. Written by `vss-hf demo --export`."""

try:
    import spaces  # hardware that Spaces share (ZeroGPU); it has to come before torch
except ImportError:
    spaces = None

from vss_hf.demo.serving import create_page, serve
from vss_hf.demo.uploads import Limits


page = create_page(
    {models},
    limits=Limits(frames={max_frames}),
    gpu=None if spaces is None else spaces.GPU(duration={gpu_seconds}),
)

if __name__ == "__main__":
    serve(page, host="0.0.0.0")
'''


def write_space(out: str | Path, models: Sequence[str], max_frames: int) -> list[Path]:
    """Write the files of a Space.

    Args:
        out: folder to make; empty if it is there.
        models: Hub ids of one or two models, "owner/name".
        max_frames: of one video.

    Returns:
        The files, and the folder of this package's source.

    Raises:
        ValueError: a model is a folder of this machine, or no id of the Hub; or this package is not installed.
        FileExistsError: `out` is not empty.
    """
    out = Path(out)
    for model in models:
        check_hub_id(model)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"--export {out}: is already there and not empty; give another folder, or remove it")
    app = APP.format(
        names=" and ".join(models), models=json.dumps(list(models)), max_frames=max_frames, gpu_seconds=GPU_SECONDS
    )
    texts = {
        "app.py": app,
        "requirements.txt": requirements_text(),
        "README.md": render_space_card(models, max_frames),
        "LICENSE": licence_text(),
    }
    texts = {name: text for name, text in texts.items() if text is not None}
    with new_folder(out) as partial:
        for name, text in texts.items():
            write_text(partial / name, text)
        for name, file in package_files().items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, partial / name)
    return [out / name for name in (*texts, "vss_hf")]


def render_space_card(models: Sequence[str], max_frames: int) -> str:
    """The text of a Space's README.md, with the head that the Hub reads; arguments as `write_space`."""
    title = " and ".join(model.split("/")[-1] for model in models)
    metadata = {
        "title": title,
        "emoji": "🎞️",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "app_file": "app.py",
        "pinned": False,
        "license": "apache-2.0",
        "short_description": "A class for every pixel of a video",
        "models": list(models),
        "tags": ["vss_hf", "video-semantic-segmentation", "semantic-segmentation"],
    }
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip()
    return render(TEMPLATE, metadata=head, title=title, models=list(models), max_frames=max_frames) + "\n"


def check_hub_id(model: str) -> None:
    """Raise a ValueError unless a model is "owner/name" on the Hub."""
    if Path(model).exists():
        raise ValueError(
            f"{model} is a folder of this machine, which a Space does not see; expected a Hub id. Push it first: "
            f"vss-hf push {model} OWNER/NAME, then: vss-hf demo OWNER/NAME --export ..."
        )
    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise ValueError(f"{model}: no id of the Hub, expected owner/name ({error})") from error
    if model.count("/") != 1:
        raise ValueError(f"{model}: no such folder, and no id of the Hub, which is owner/name")
