"""How the package says it is installed: it is on no index, so its bare name must never stand behind `pip install`."""

import json
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from vss_hf import install


COMMIT = "0123456789abcdef0123456789abcdef01234567"
GIT = {"url": "https://example.org/them/vss_hf.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}


def installed_from(monkeypatch, origin):
    text = None if origin is None else json.dumps(origin)
    found = SimpleNamespace(read_text=lambda name: text if name == "direct_url.json" else None)
    monkeypatch.setattr(install.metadata, "distribution", lambda name: found)


@pytest.mark.parametrize(
    "origin",
    [
        None,  # pip of an index
        {"url": "file:///home/alice/vss_hf", "dir_info": {"editable": True}},
        {"url": "https://example.org/vss_hf.whl", "archive_info": {}},
        {**GIT, "url": "https://alice:hf_secret@example.org/them/vss_hf.git"},
        {**GIT, "url": "ssh://git@example.org/them/vss_hf.git"},
        {**GIT, "url": "file:///home/alice/vss_hf"},
        {**GIT, "subdirectory": "python"},
    ],
)
def test_a_copy_of_the_source(monkeypatch, origin):
    installed_from(monkeypatch, origin)
    assert install.install_command() == "pip install ."
    assert install.install_command("demo") == "pip install '.[demo]'"
    assert install.install_advice("demo") == "pip install '.[demo]' in a copy of vss_hf's source"


def test_the_address_that_it_came_from(monkeypatch):
    installed_from(monkeypatch, GIT)
    command = install.install_command("demo")
    assert command == f"pip install 'vss-hf[demo] @ git+https://example.org/them/vss_hf.git@{COMMIT}'"
    assert install.install_advice("demo") == command
    requirement = Requirement(install.install_command().removeprefix("pip install ").strip("'"))
    assert requirement.url == f"git+{GIT['url']}@{COMMIT}" and not requirement.extras


def test_not_installed_at_all(monkeypatch):
    def nothing(name):
        raise install.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(install.metadata, "distribution", nothing)
    assert install.install_command("export") == "pip install '.[export]'"
