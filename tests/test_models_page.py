"""The code of docs/models.md runs, its commands convert, and its table is the one that the benchmark writes."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import SwinConfig, SwinModel

from benchmarks.model_cost import MARKS, differences, markdown_row, model_cost
from vss_hf.convert.state_dict import BACKBONE_TABLES, HEAD_TABLES
from vss_hf.hub_cards.architectures import ARCHITECTURES, BACKBONE_PAPERS, PUBLISHED
from vss_hf.modeling.architectures import BACKBONES, MODELS, VIDEO_MODELS, presets
from vss_hf.modeling.backbone_presets import known_backbones


PAGE = (Path(__file__).parents[1] / "docs/models.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


def test_python_blocks(tmp_path):
    """All blocks one after the other in a new process; the Hub's Swin-T is a folder here."""
    hub_id = re.search(r'"(microsoft/[^"]+)"', PAGE)[1]
    sizes = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
    SwinModel(SwinConfig(**sizes)).save_pretrained(tmp_path / "swin")
    code = "\n".join(PYTHON).replace(hub_id, str(tmp_path / "swin"))
    code += "\nprint(sum(deeper.config.backbone_config.depths))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "20"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("vss-hf convert")])
def test_commands_name_what_exists(command):
    """The files themselves cannot be here; the source and the architecture are looked up."""
    words = shlex.split(command)
    source, arch = words[words.index("--source") + 1], words[words.index("--arch") + 1]
    assert arch in presets() or arch in known_backbones()
    assert source in {known for known, _ in [*HEAD_TABLES, *BACKBONE_TABLES]}


def test_every_source_is_on_the_page():
    for source in {known for known, _ in [*HEAD_TABLES, *BACKBONE_TABLES]}:
        assert f"`{source}`" in PAGE, source


def test_every_preset_is_in_the_table():
    table = PAGE.split(MARKS[0])[1].split(MARKS[1])[0]
    assert re.findall(r"^\| `([^`]+)` \| `(vss_\w+)`", table, re.MULTILINE) == list(presets().items())
    assert set(PUBLISHED) <= set(presets())
    for preset in ("upernet-convnext-tiny", "ocrnet-hrnet-w18", "segformer-b0"):
        assert markdown_row(preset, presets()[preset], model_cost(preset), differences(PAGE)) in table


def test_every_architecture_has_its_paper():
    assert set(MODELS) | set(VIDEO_MODELS) <= set(ARCHITECTURES)
    assert set(BACKBONES) - {"vss_mit"} <= set(BACKBONE_PAPERS)  # MiT is SegFormer's own
