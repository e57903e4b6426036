"""What a Space needs that has no index to install this package from: its source, its licence, what it requires."""

import os
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from vss_hf.install import NAME, install_advice, requirements


ROOMS = ("vss_hf", "vss_hf.modeling", "vss_hf.training", "vss_hf.hub_cards")
KINDS = (".py", ".typed", ".yaml", ".md", ".csv", ".jinja", ".css", ".js")  # as in pyproject.toml


def package_files() -> dict[str, Path]:
    """The package's files by their path in a folder that stands on Python's path.

    The rooms are looked up one by one: in a checkout they lie elsewhere, behind links.
    """
    found = {}
    for room in ROOMS:
        spec = find_spec(room)
        assert spec is not None and spec.submodule_search_locations
        top = Path(spec.submodule_search_locations[0])
        for folder, below, names in os.walk(top):
            below[:] = [name for name in below if name != "__pycache__" and not name.startswith(".")]
            place = Path(room.replace(".", "/"), Path(folder).relative_to(top))
            kept = [name for name in names if name.endswith(KINDS) and not name.startswith(".")]
            found |= {(place / name).as_posix(): Path(folder, name) for name in kept}
    return dict(sorted(found.items()))


def requirements_text() -> str:
    """The lines of requirements.txt: what the package requires by itself and with its extra `demo`.

    Raises:
        ValueError: the package is not installed, only its files are at hand.
    """
    found = [*requirements(None), *requirements("demo")]
    if not found:
        raise ValueError(
            f"{NAME} runs from a folder, so what it requires is not known: {install_advice('demo')} first"
        )
    for requirement in found:
        requirement.marker = None  # `extra == "demo"` means nothing in a requirements.txt
    return "".join(f"{requirement}\n" for requirement in found)


def licence_text() -> str | None:
    """The package's licence, which goes with its source; None: it was installed without.

    A checkout may hold an egg-info, which setuptools writes without the licence and Python finds first.
    """
    texts = (found.read_text("licenses/LICENSE") for found in metadata.distributions(name=NAME))
    return next(filter(None, texts), None)
