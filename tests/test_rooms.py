"""The rooms keep apart: who may import what, how the package is put together, what no file may contain."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest


try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None


ROOT = Path(__file__).resolve().parents[1]
LINKS = ("modeling", "training", "hub_cards")

# Where files lie -> what they may import beside the standard library; "vss_hf.x" allows vss_hf.x and everything below,
# "=vss_hf" the package alone (it registers our models). The first row that fits a file counts. A file's own room is
# reached with single-dot imports only.
CLI = [
    *["cli", "cli_data", "cli_ensemble", "cli_evaluate", "cli_pseudo_label", "cli_common", "cli_inference"],
    *["cli_submission", "cli_doctor", "cli_analyze", "cli_demo", "cli_export"],
]
LAW = [
    ("modeling/dcnv3_triton.py", ["torch", "triton"]),
    (
        "modeling/",
        ["torch", "torchvision", "transformers", "timm", "huggingface_hub", "numpy", "scipy", "safetensors"],
    ),
    (
        "hub_cards/",
        [
            *["huggingface_hub", "yaml", "jinja2", "safetensors"],
            *["vss_hf.metrics", "vss_hf.files", "vss_hf.install", "vss_hf.modeling.remote_code"],
        ],
    ),
    (
        "training/",
        [
            *["torch", "torchdata", "transformers", "timm", "accelerate", "datasets", "safetensors"],
            *["huggingface_hub", "numpy", "yaml", "rich", "tqdm"],
            *["vss_hf.modeling", "vss_hf.data", "vss_hf.metrics", "vss_hf.inference", "vss_hf.scoring"],
            *["vss_hf.hub_cards", "vss_hf.visualize", "vss_hf.confusion_plot", "vss_hf.fields", "vss_hf.files"],
            "vss_hf.interruption",
        ],
    ),
    *((f"vss_hf/{name}.py", ["third party", "vss_hf"]) for name in CLI),
    ("vss_hf/quickstart.py", ["third party", "vss_hf"]),
    ("vss_hf/metrics/", ["third party", "vss_hf.metrics"]),  # hub_cards may import it, so it imports nothing of ours
    ("vss_hf/data/", ["third party", "vss_hf.data", "vss_hf.metrics", "vss_hf.modeling", "vss_hf.files"]),
    ("vss_hf/convert/", ["torch", "transformers", "numpy", "safetensors", "vss_hf.modeling", "vss_hf.files"]),
    # inference <- refinement <- scoring <- ensembles, pseudo_labels: each may use those before it, none after it.
    (
        "vss_hf/inference/",
        [
            *["torch", "torchvision", "transformers", "numpy", "PIL", "rich"],
            *["=vss_hf", "vss_hf.modeling", "vss_hf.data", "vss_hf.metrics", "vss_hf.visualize", "vss_hf.video_io"],
            *["vss_hf.overlay_video", "vss_hf.fields", "vss_hf.files", "vss_hf.interruption"],
        ],
    ),
    (
        "vss_hf/refinement/",
        [
            *["torch", "torchvision", "transformers", "numpy", "scipy"],
            *["vss_hf.modeling", "vss_hf.data", "vss_hf.metrics", "vss_hf.convert", "vss_hf.fields"],
            "vss_hf.inference",
        ],
    ),
    (
        "vss_hf/scoring/",
        [
            *["torch", "numpy", "PIL", "jinja2", "rich"],
            *["vss_hf.data", "vss_hf.metrics", "vss_hf.visualize", "vss_hf.fields", "vss_hf.files"],
            *["vss_hf.inference", "vss_hf.refinement.flow"],  # the flow that TC is measured along
        ],
    ),
    (
        "vss_hf/ensembles/",
        [
            *["torch", "transformers", "huggingface_hub", "numpy"],
            *["vss_hf.modeling", "vss_hf.data", "vss_hf.metrics", "vss_hf.files"],
            *["vss_hf.inference", "vss_hf.scoring"],
        ],
    ),
    (
        "vss_hf/pseudo_labels/",
        [
            *["numpy", "PIL"],
            *["vss_hf.data", "vss_hf.visualize", "vss_hf.video_io", "vss_hf.files", "vss_hf.interruption"],
            *["vss_hf.inference", "vss_hf.scoring.ground_truth"],  # how a data set is named
        ],
    ),
    ("vss_hf/", ["third party", "vss_hf", "!vss_hf.training", "!vss_hf.hub_cards"]),
    ("train.py", ["vss_hf.cli"]),
]


def sources():
    """Every Python file of the library once, by its real place."""
    for room in ("modeling", "training", "hub_cards", "vss_hf"):
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.resolve().relative_to(ROOT).parts[0] == room:
                yield path.relative_to(ROOT)
    yield Path("train.py")


def imports(path):
    """(dots, module) of every import in a file, also inside functions."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module == "vss_hf":
                yield from ((0, f"vss_hf.{alias.name}") for alias in node.names)
            else:
                yield node.level, node.module or ""


def offences(path, allowed):
    forbidden = tuple(entry[1:] for entry in allowed if entry.startswith("!"))
    for dots, module in imports(path):
        top = module.split(".")[0]
        if dots == 1 or f"={module}" in allowed or (dots == 0 and top in sys.stdlib_module_names):
            continue
        if dots > 1:
            yield f"{'.' * dots}{module}: relative imports stay inside their room"
        elif top in LINKS:
            yield f"{module}: the rooms are imported as vss_hf.{top}"
        elif below(module, forbidden):
            yield f"{module}: not allowed here"
        elif not below(module, allowed) and not (top != "vss_hf" and "third party" in allowed):
            yield f"{module}: not allowed here"


def below(module, names):
    return any(module == name or module.startswith(f"{name}.") for name in names)


@pytest.mark.parametrize("path", list(sources()), ids=str)
def test_import_law(path):
    allowed = next(allowed for place, allowed in LAW if path.as_posix().startswith(place))
    assert list(offences(path, allowed)) == []


def test_the_law_would_notice(tmp_path, monkeypatch):
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import pandas\nimport modeling\nfrom ..training import trainer\nfrom vss_hf import training\n"
        "def f():\n    import vss_hf.training.run\n    import vss_hf\n    from vss_hf.scoring.dumps import Dump\n"
    )
    assert len(list(offences(bad, dict(LAW)["modeling/"]))) == 7
    assert len(list(offences(bad, dict(LAW)["vss_hf/inference/"]))) == 6
    assert len(list(offences(bad, dict(LAW)["vss_hf/ensembles/"]))) == 6


def test_no_arrows_go_in_circles():
    """Rooms, and the files beside them, can be put in an order in which each imports only what stands before it."""
    arrows = {}
    for path in sources():
        own = path.with_suffix("").parts[path.parts[0] == "vss_hf"]
        found = {module.split(".")[1] for dots, module in imports(path) if not dots and module.startswith("vss_hf.")}
        if path.parent == Path("vss_hf"):
            found |= {module.split(".")[0] for dots, module in imports(path) if dots == 1 and module}
        arrows.setdefault(own, set()).update(found - {own})
    assert {"pseudo_labels", "ensembles", "scoring", "refinement", "inference", "data", "cli"} <= set(arrows)
    list(TopologicalSorter(arrows).static_order())  # raises CycleError, which names the circle


def test_modeling_travels_to_the_hub():
    """transformers' code shipper follows `from .x import y` only, and loses types under deferred annotations."""
    for path in sources():
        if path.parts[0] == "modeling":
            text = (ROOT / path).read_text(encoding="utf-8")
            assert "from __future__ import annotations" not in text, path
            assert not re.search(r"^\s*from \. import", text, re.MULTILINE), path
            assert not (path.parent / path.stem / "__init__.py").exists()
    assert not [p for p in (ROOT / "modeling").iterdir() if p.is_dir() and p.name != "__pycache__"]


def test_the_packages_of_the_wheel_are_the_folders():
    if tomllib is None:
        pytest.skip("tomllib needs Python 3.11")
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent for path in ROOT.glob("vss_hf/**/*.py")}
    folders |= {path.parent for link in LINKS for path in (ROOT / "vss_hf" / link).glob("**/*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(setuptools["packages"]) == names
    for package, place in setuptools["package-dir"].items():
        assert (ROOT / place).resolve() == (ROOT / Path(*package.split("."))).resolve()


@pytest.mark.parametrize("name", LINKS)
def test_links_are_relative(name):
    link = ROOT / "vss_hf" / name
    assert link.is_symlink() and link.readlink() == Path("..") / name
    assert link.resolve() == ROOT / name


def repository_files():
    """Everything that is, or would be, committed."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_file_tells_where_it_was_made():
    places = [ROOT, (ROOT / "../shared").resolve(), Path.home()]
    pattern = "|".join(rf"(?<![\w.:-]){re.escape(str(place))}(?![\w-])" for place in places)
    found = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and other binary files
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in re.finditer(pattern, text)]
    assert found == []
