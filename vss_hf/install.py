"""How to install this package, said the same way wherever it is said.

It is on no package index: `pip install` with its bare name would fetch whatever somebody else registers there.
"""

import json
import shlex
from importlib import metadata
from urllib.parse import urlsplit

from packaging.requirements import Requirement


NAME = "vss-hf"


def install_command(extra: str | None = None) -> str:
    """The line that installs this package.

    Args:
        extra: of pyproject.toml, which is installed along.

    Returns:
        With the address and the commit that the package was installed from, where that is a Git repository that
        others can reach by https; otherwise a line that is meant for a copy of the source.
    """
    options = f"[{extra}]" if extra else ""
    address = git_address()
    return f"pip install {shlex.quote(f'{NAME}{options} @ {address}' if address else f'.{options}')}"


def install_advice(extra: str | None = None) -> str:
    """The line, and where it is to be run, for the end of a message; argument as `install_command`."""
    command = install_command(extra)
    return command if git_address() else f"{command} in a copy of vss_hf's source"


def git_address() -> str | None:
    """Where the installed package came from, as pip writes it down (PEP 610); None: not from a repository for all."""
    try:
        text = metadata.distribution(NAME).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    origin = json.loads(text or "{}")
    source = origin.get("vcs_info", {})
    url = urlsplit(origin.get("url", ""))
    # A part of a repository needs more words, and what stands before an "@" are a name and a password.
    if source.get("vcs") != "git" or url.scheme != "https" or "@" in url.netloc or "subdirectory" in origin:
        return None
    return f"git+{origin['url']}@{source['commit_id']}"


def requirements(extra: str | None) -> list[Requirement]:
    """What the package requires by itself (None), or for one of its extras, on this machine.

    Returns:
        Nothing where it is not installed and only its files are at hand.
    """
    try:
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return []
    parsed = [Requirement(line) for line in lines]
    wanted = {"extra": extra or ""}
    return [
        requirement
        for requirement in parsed
        if (requirement.marker is None and extra is None)
        or (requirement.marker is not None and requirement.marker.evaluate(wanted))
        and ("extra" in str(requirement.marker)) == (extra is not None)
    ]


__all__ = ["git_address", "install_advice", "install_command", "requirements"]
