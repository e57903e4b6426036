"""Links of all Markdown files lead somewhere, and the site has every page and every public name."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

import vss_hf
from vss_hf.modeling.architectures import ALL


ROOT = Path(__file__).parents[1]
FILES = [
    path.relative_to(ROOT).as_posix()
    for folder, pattern in ((ROOT, "*.md"), (ROOT / "docs", "**/*.md"), (ROOT / "benchmarks", "**/*.md"))
    for path in sorted(folder.glob(pattern))
]
ROOMS = ("data", "metrics", "inference", "refinement", "scoring", "ensembles", "pseudo_labels", "convert", "hub_cards")


def without_code(text):
    """Markdown without fenced blocks and inline code, where brackets are no links."""
    return re.sub(r"`[^`\n]*`", "code", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(path):
    """The names that GitHub gives the headings of a page."""
    found = {}
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = found[slug] = found.get(slug, -1) + 1
        if number:
            found[f"{slug}-{number}"] = 0
    return set(found)


def broken_links(name):
    """What the relative links of a file promise and is not there."""
    path = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue  # the web: not looked at, tests have no network
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        if not other.exists():
            yield target
        elif anchor and other.suffix == ".md" and anchor not in anchors(other):
            yield target
        elif name.startswith("docs/") and ROOT / "docs" not in other.parents:
            yield f"{target}: outside of docs/, the site does not have it"


@pytest.mark.parametrize("name", FILES)
def test_links(name):
    assert list(broken_links(name)) == []


def test_a_broken_link_would_be_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "a.md").write_text("# One, two\n[x](#one-two) [y](b.md) [z](#two) `[no](link)`\n[w](https://a.b/c)\n")
    assert list(broken_links("a.md")) == ["b.md", "#two"]


def navigation(entries):
    for entry in entries:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else navigation(value)


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = list(navigation(yaml.safe_load(re.sub(r"!!python\S+", "", text))["nav"]))
    assert sorted(pages) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md"))


def described(page):
    return re.findall(r"^::: (\S+)$", (ROOT / "docs/api" / page).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_has_every_public_name(room):
    module = importlib.import_module(f"vss_hf.{room}")
    assert sorted(described(f"{room}.md")) == sorted(f"vss_hf.{room}.{name}" for name in module.__all__)


def test_the_reference_has_what_the_package_itself_gives():
    """`from vss_hf import ...`: each name is described where it comes from."""
    pages = [path.name for path in (ROOT / "docs/api").glob("*.md")]
    names = {name.rpartition(".")[2] for page in pages for name in described(page)}
    assert set(vss_hf.__all__) <= names


def test_the_reference_has_every_model():
    names = described("models.md")
    for file, configuration, model in ALL.values():
        assert f"vss_hf.modeling.configuration_{file}.{configuration}" in names
        assert f"vss_hf.modeling.modeling_{file}.{model}" in names


@pytest.mark.parametrize("page", ["models.md", "modeling.md", "training.md"])
def test_what_is_described_exists(page):
    for name in described(page):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    """`mkdocs build --strict`, where the extra "docs" is installed."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    page = (tmp_path / "site/api/inference.html").read_text(encoding="utf-8")
    assert "label_batch" in page and "Labels frames as they come" in page
