"""Every command and block of docs/hub.md, in order, against a Hub on this machine.

The package is at hand here, so its own classes are loaded; test_pull.py loads a repository where it is missing.
"""

import re
import shlex
import shutil
from pathlib import Path

import make_tree
import pytest
from packaging.requirements import InvalidRequirement, Requirement

from vss_hf.cli import main


PAGE = Path(__file__).parents[2] / "docs/hub.md"
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)
ON_AN_INDEX = {"torch", "torchvision", "transformers", "timm", "datasets"}


def test_the_page(hub, folder, tmp_path, monkeypatch, capsys):
    shutil.move(folder, tmp_path / "demo/demo-ocrnet/model")
    names = {"others": 0, "road": 1, "tree": 2, "sky": 5}
    monkeypatch.setattr(make_tree, "HEIGHT", 48)
    monkeypatch.setattr(make_tree, "WIDTH", 64)
    splits = {"train": {"a": [1, 2]}, "val": {"b": [1, 2, 3]}}
    make_tree.make_tree(tmp_path / "demo/sample_videos", splits, names)
    monkeypatch.chdir(tmp_path)
    done = []
    for language, code in BLOCK.findall(PAGE.read_text(encoding="utf-8").replace("your-name", "alice")):
        if language == "bash":
            for command in filter(None, (line.split("  #")[0].strip() for line in code.splitlines())):
                with pytest.raises(SystemExit) as end:
                    main(shlex.split(command)[1:])
                assert end.value.code == 0, (command, capsys.readouterr().err)
                done.append(command.split()[1])
                if "--recipe" in command:
                    written = (tmp_path / "demo/demo-ocrnet/model/README.md").read_text(encoding="utf-8")
                    assert "# Demo: small OCRNet on drawn videos" in written
        else:
            exec(compile(code, str(PAGE), "exec"), {})  # noqa: S102
            done.append("python")
    assert sorted(set(done)) == ["card", "data", "demo", "evaluate", "push", "python"]
    assert len(done) >= 15

    card = hub.files("alice/my-model")["README.md"].decode()  # of the push with code
    assert "trust_remote_code=True" in card and "auto_classes.py" in hub.files("alice/my-model")
    assert "trust_remote_code" not in hub.files("alice/open-model")["README.md"].decode()
    assert hub.repo("alice/my-model").private and not hub.repo("alice/open-model").private
    assert (tmp_path / "my_space/app.py").is_file()
    assert "](confusion.png)" in (tmp_path / "demo/demo-ocrnet/model/README.md").read_text(encoding="utf-8")
    assert hub.seen("POST /api/datasets/alice/sample-videos/commit/")

    cards = [hub.files(name, kind=kind)["README.md"].decode() for kind, name in hub.repos]
    cards.append((tmp_path / "my_space/README.md").read_text())
    assert len(cards) == 5 and all(map(installed, cards))


def installed(card):
    """The distributions that a card's `pip install` lines name, all of which must be had by anybody."""
    lines = re.findall(r"pip install ([^\n`]+)", card)
    for word in (word for line in lines for word in shlex.split(line, comments=True)):
        try:
            requirement = Requirement(word)
        except InvalidRequirement:
            assert word.startswith(".") or word == "-r", word  # a copy of the source, or of a Space (test_space.py)
        else:
            assert requirement.url or requirement.name in {*ON_AN_INDEX, "requirements.txt"}, word
    return lines
