"""What the README tells people to paste is pasted here, in a folder that looks as it does after `make demo`."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from vss_hf import VSPW, OCRNetConfig, OCRNetForSemanticSegmentation
from vss_hf.data import make_sample_dataset
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.training.recipe import build_recipe
from vss_hf.video_io import VideoWriter, read_frames


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture(scope="module")
def after_demo(tmp_path_factory) -> Path:
    """A folder with demo/sample_videos, demo/demo-ocrnet/model (untrained) and video.mp4."""
    folder = tmp_path_factory.mktemp("readme")
    sizes = {"train_videos": 5, "val_videos": 5, "test_videos": 1, "frames_per_video": 2, "val_frames_per_video": 3}
    make_sample_dataset(folder / "demo" / "sample_videos", height=48, width=64, progress=False, **sizes)
    backbone = AutoConfig.for_model(
        "resnet", embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = OCRNetConfig(
        backbone_config=backbone, channels=8, ocr_channels=8, id2label=VSPW.id2label, label2id=VSPW.label2id
    )
    model_folder = folder / "demo" / "demo-ocrnet" / "model"
    OCRNetForSemanticSegmentation(config).save_pretrained(model_folder)
    VSSImageProcessor().save_pretrained(model_folder)
    frames = [frame for _, frame in read_frames(next(folder.glob("demo/sample_videos/data/*/origin")))]
    with VideoWriter(folder / "video.mp4", 15, frames[0].shape[:2]) as writer:
        for frame in frames:
            writer.write(frame)
    return folder


def test_python_blocks(after_demo):
    """All blocks in one process, one after the other, as a reader would paste them; pushing needs the Hub."""
    offline = [block for block in PYTHON if "push_to_hub" not in block]
    assert len(offline) == 3
    names = [path.name for path in (after_demo / "demo/sample_videos/data").iterdir()]
    code = re.sub(r"data/[^/\"]+/origin", f"data/{names[0]}/origin", "\n".join(offline))
    result = subprocess.run([sys.executable, "-c", code], cwd=after_demo, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert 0.5 < float(result.stdout.split()[-1]) < 1  # mIoU of labels of which a tenth was overwritten


def test_pushing_compiles():
    for block in PYTHON:
        compile(block, "README", "exec")


@pytest.mark.parametrize("command", [c for c in SHELL if c.startswith("vss-hf") and "demo/" in c])
def test_commands_on_the_demo(command, after_demo):
    words = [sys.executable, "-m", "vss_hf", *shlex.split(command)[1:]]
    result = subprocess.run(words, cwd=after_demo, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_recipe_is_valid(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    recipe = build_recipe({"model": {}, "data": {}, "augmentation": {}, "training": {}, **yaml.safe_load(block)})
    assert recipe.training.max_steps == 160000 and recipe.augmentation.crop_size == (480, 853)
