"""Pushes of the code beside the weights: what a push without it, or of another version, leaves in the repository."""

import json

import pytest
from folders import contents
from huggingface_hub import HfApi
from transformers import AutoModelForSemanticSegmentation

from vss_hf.hub_cards import push_folder
from vss_hf.modeling.remote_code import add_code, code_files


NAME = "alice/street"


def code_there(hub):
    return {name for name in hub.files(NAME) if name.endswith(".py")}


def test_without_code_that_of_before_goes(hub, folder):
    code = {name for name in code_files(folder) if name.endswith(".py")}
    push_folder(folder, NAME, with_code=True)
    for name in ("own.py", "sub/layers.py"):
        HfApi().upload_file(path_or_fileobj=b"# a user's", path_in_repo=name, repo_id=NAME)
    assert code_there(hub) == code | {"own.py", "sub/layers.py"}
    assert push_folder(folder, NAME, with_code=True).removed == []
    hub.fail("GET /.*/resolve/.*auto_classes.py", status=503)  # which passes
    result = push_folder(folder, NAME)
    assert set(result.removed) == code and f"removed: {', '.join(sorted(code))}" in result.lines()
    assert code_there(hub) == {"own.py", "sub/layers.py"}
    assert "auto_map" not in json.loads(hub.files(NAME)["config.json"])
    assert push_folder(folder, NAME).removed == []


def test_files_of_an_earlier_version_go(hub, folder):
    """In the repository and among what is sent; the folder stays as it is."""
    add_code(folder)
    entry = folder / "auto_classes.py"
    now = entry.read_bytes()
    entry.write_bytes(now.replace(b"    layers.py\n", b"    gone.py\n    layers.py\n"))
    (folder / "gone.py").write_text("# needed by an earlier version\n")
    with pytest.warns(UserWarning, match=r"code of another version of vss_hf, .*: auto_classes\.py, gone\.py\. It is"):
        push_folder(folder, NAME)
    assert "gone.py" in code_there(hub)
    before = contents(folder)
    result = push_folder(folder, NAME, with_code=True)
    assert result.removed == ["gone.py"] and result.sent == ["auto_classes.py"]
    assert hub.files(NAME)["auto_classes.py"] == now and contents(folder) == before


def test_code_of_others_stays(hub, folder):
    """A repository's own `auto_classes.py`, and one that a configuration leads to by its name on the Hub."""
    push_folder(folder, NAME)
    HfApi().upload_file(path_or_fileobj=b"from .layers import x\n", path_in_repo="auto_classes.py", repo_id=NAME)
    HfApi().upload_file(path_or_fileobj=b"x = 1\n", path_in_repo="layers.py", repo_id=NAME)
    assert push_folder(folder, NAME).removed == [] and code_there(hub) == {"auto_classes.py", "layers.py"}
    push_folder(folder, NAME, with_code=True)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": f"{NAME}--auto_classes.OCRNetConfig"}
    (folder / "config.json").write_text(json.dumps(config))
    assert push_folder(folder, NAME).removed == []
    assert type(AutoModelForSemanticSegmentation.from_pretrained(NAME)).__name__ == "OCRNetForSemanticSegmentation"
