"""The files of a Space: the Hub can read the card's head, and app.py calls what is there."""

import inspect
import runpy
import sys
from types import ModuleType

import pytest
from huggingface_hub import RepoCard

from vss_hf.cli import main
from vss_hf.demo import serving


def export(out, *words):
    with pytest.raises(SystemExit) as stop:
        main(["demo", *words, "--export", str(out)])
    return int(stop.value.code or 0)


@pytest.mark.parametrize("words", [["owner/a"], ["owner/a", "--compare", "owner/b-2", "--max_frames", "50"]])
@pytest.mark.parametrize("shared_gpu", [False, True])
def test_a_space(tmp_path, monkeypatch, words, shared_gpu):
    assert export(tmp_path / "space", *words) == 0
    written = sorted(path.name for path in (tmp_path / "space").iterdir())
    assert written == ["LICENSE", "README.md", "app.py", "requirements.txt", "vss_hf"]
    head = RepoCard.load(tmp_path / "space" / "README.md", ignore_metadata_errors=False).data.to_dict()
    models = [word for word in words if "/" in word]
    assert (head["sdk"], head["app_file"], head["models"]) == ("gradio", "app.py", models)
    assert int(head["sdk_version"].split(".")[0]) >= serving.OLDEST_GRADIO and len(head["short_description"]) <= 60

    calls = []
    for name in ("create_page", "serve"):
        real = inspect.signature(getattr(serving, name))
        monkeypatch.setattr(serving, name, lambda *a, real=real, **k: calls.append(real.bind(*a, **k).arguments))
    monkeypatch.setitem(sys.modules, "spaces", None)
    if shared_gpu:
        spaces = ModuleType("spaces")
        spaces.GPU = lambda duration: f"GPU for {duration} s"
        monkeypatch.setitem(sys.modules, "spaces", spaces)
    runpy.run_path(str(tmp_path / "space" / "app.py"), run_name="__main__")
    page, served = calls
    assert page["sources"] == models and page["limits"].frames == (50 if len(models) == 2 else 600)
    assert page["gpu"] == ("GPU for 120 s" if shared_gpu else None)
    assert served["host"] == "0.0.0.0" and not served.get("share")


def test_a_folder_of_this_machine_is_not_for_a_space(folders, tmp_path, capsys):
    assert export(tmp_path / "space", str(folders[0])) == 2
    assert f"vss-hf push {folders[0]} OWNER/NAME" in capsys.readouterr().err
    assert not (tmp_path / "space").exists()


def test_what_is_no_id_and_what_is_there(tmp_path, capsys):
    for model in ["no-owner", "a/b/c", "owner/na me"]:
        assert export(tmp_path / "space", model) == 2
        assert f"{model}: no" in capsys.readouterr().err
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.txt").write_text("kept")
    assert export(tmp_path / "space", "owner/a") == 2
    assert "not empty" in capsys.readouterr().err and (tmp_path / "space" / "mine.txt").read_text() == "kept"
