"""The code blocks of README.md and docs/, by page, and what tests do with each of their commands."""

import re
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig

from vss_hf import VSPW, OCRNetConfig, OCRNetForSemanticSegmentation
from vss_hf.data import make_sample_dataset
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.video_io import VideoWriter, read_frames


ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
# A line like this before a block tells reader and tests why it is parsed only.
NOT_RUN = re.compile(r"\*Not run in the tests: needs (?P<needs>.+)\.\*\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: file, relative to the repository.
        line: number of its first line.
        language: what stands behind the fence; "" for drawings and trees.
        text: what is inside.
        needs: what it needs that no test can have; None for blocks that are run.
    """

    page: str
    line: int
    language: str
    text: str
    needs: str | None

    @property
    def commands(self) -> list[str]:
        """The commands of a bash block, without comments and with continued lines made one."""
        lines = [line.split("  #")[0].strip() for line in self.text.replace("\\\n", " ").splitlines()]
        return [part for line in lines if line and not line.startswith("#") for part in line.split(" && ")]


def page_blocks(page: str) -> list[Block]:
    """All fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        marked = NOT_RUN.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(page, line, match[1], match[2], marked and marked["needs"]))
    return found


def make_demo(folder: Path) -> Path:
    """What `make demo` leaves, small and untrained: demo/sample_videos, demo/demo-ocrnet/model; and a video.mp4."""
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
