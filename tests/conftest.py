"""Small models that several test files build, and disks that are full."""

import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest
import torch

from vss_hf.modeling.configuration_ocrnet import OCRNetConfig


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell hands this down to what it starts in the background; tests of Ctrl-C, and what they start, must hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Maps at strides 4, 8, 16 except for the dilated network (8 and 8). All weights are random.
BACKBONES = {
    "swin": {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [2, 2, 2],
        "num_heads": [1, 2, 2],
        "window_size": 4,
        "drop_path_rate": 0.0,
        "out_features": ["stage1", "stage2", "stage3"],
    },
    "resnet": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 12, 16],
        "depths": [1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage1", "stage2", "stage3"],
    },
    "timm": {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [1, 2, 3]},
    "timm_dilated": {
        "model_type": "timm_backbone",
        "backbone": "test_resnet",
        "out_indices": [3, 4],
        "output_stride": 8,
    },
}


@pytest.fixture(autouse=True)
def _forget_compiled_code(request):
    """torch compiles a function for at most eight models, and all of ours share one forward."""
    if "compile" in request.node.name:
        torch.compiler.reset()


@pytest.fixture(scope="session")
def tiny_ocrnet_config():
    """Call it for a small configuration: `tiny_ocrnet_config("swin", num_labels=5, channels=24)`."""

    def make(backbone: str = "swin", num_labels: int = 5, **fields) -> OCRNetConfig:
        fields = {
            "backbone_config": dict(BACKBONES[backbone]),
            "in_indices": [0, 1] if backbone == "timm_dilated" else [0, 1, 2],
            "channels": 16,
            "ocr_channels": 8,
            "coarse_channels": 12,
            "id2label": {i: f"class {i}" for i in range(num_labels)},
            **fields,
        }
        return OCRNetConfig(**fields)

    return make


@pytest.fixture
def fill_up():
    """Call it with a path: whatever is written to `<path>.part` then meets a full disk.

    That is a device on which every write fails for want of space; for root a private one, because a library that
    replaces files by renaming would otherwise replace the device of the system.
    """

    def fill(path: Path) -> None:
        partial = Path(f"{path}.part")
        if os.geteuid() != 0 and Path("/dev/full").exists():
            partial.symlink_to("/dev/full")
            return
        try:
            os.mknod(partial, stat.S_IFCHR | 0o666, os.makedev(1, 7))
            with pytest.raises(OSError, match="No space left"), open(partial, "wb", buffering=0) as file:
                file.write(b"x")
        except OSError:
            pytest.skip("no device that is full")

    return fill


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    yield folder
    # Lazily: FFmpeg keeps a file open that it could not finish, until its container is garbage.
    subprocess.run(["umount", "-l", str(folder)], check=True)
