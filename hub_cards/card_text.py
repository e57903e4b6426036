"""What the cards of models and of data sets share: text that means itself, the text that is kept, the fingerprint."""

import hashlib
import json
import math
import re
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub.utils import validate_repo_id

from vss_hf.files import write_text
from vss_hf.install import git_address, install_command


KEEP_OPEN, KEEP_CLOSE = "<!-- vss_hf: keep -->", "<!-- /vss_hf: keep -->"
KEPT = re.compile(rf"{re.escape(KEEP_OPEN)}\n?(.*?)\n?{re.escape(KEEP_CLOSE)}", re.DOTALL)
# The end of a card: its fingerprint, and the options that it was written with.
STAMP = re.compile(r"\n*<!-- vss_hf: card ([0-9a-f]{16})(?: (\{.*\}))? -->\n*\Z")
SECRET_NAME = re.compile(r"(^|_)(token|password|passwd|secret|credentials?|(api|access|private)_?key)$", re.IGNORECASE)
SECRET_VALUE = re.compile(r"\b(hf|sk|ghp|github_pat)_[A-Za-z0-9_]{16,}")
# An absolute path, or one that climbs out with "..", but not the slashes of a URL or of "a/b".
PRIVATE_PATH = re.compile(r"(?<![\w/.~-])(?:~?/(?!/)|\.\.[/\\]|[A-Za-z]:\\|\\\\|file://)[^\s'\",;:|<>]*[\w)]/?")


def cell(value: Any) -> str:
    """Text that means itself in a Markdown table or line, on one line."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    # Inside a word an underscore is only an underscore.
    return re.sub(r"(?<!\w)_+|_+(?!\w)", lambda run: run.group().replace("_", r"\_"), text)


def scrub(value: Any) -> Any:
    """The same value without secrets, and with absolute paths reduced to their last part. Keys of mappings stay.

    Args:
        value: anything that JSON or YAML can hold.
    """
    if isinstance(value, Mapping):
        return {key: "(left out)" if _is_secret(str(key), item) else scrub(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrub(item) for item in value]
    if not isinstance(value, str):
        return value
    whole = re.fullmatch(r"(?:~|/(?!/)|\.\.[/\\]|[A-Za-z]:\\|\\\\|file://).*", value)  # it may hold spaces
    text = last_part(value) if whole else PRIVATE_PATH.sub(lambda match: last_part(match.group()), value)
    return SECRET_VALUE.sub("(left out)", text)


def _is_secret(key: str, item: Any) -> bool:
    # A float is the score of a class that happens to be called "token".
    return bool(SECRET_NAME.search(key)) and item is not None and not isinstance(item, (bool, float))


def last_part(path: str) -> str:
    """What a reader understands of a folder's path; a run's result is its folder `model`, which says nothing."""
    parts = [part for part in re.split(r"[/\\]", path) if part] or [path]
    return parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]


def number(value: Any) -> float | None:
    """A finite number, or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def check_names(repo_id: str | None, license: str | None, license_name: str | None, license_link: str | None) -> None:
    """Raise for a repository's name or a licence that the Hub would refuse."""
    if repo_id is not None:
        validate_repo_id(repo_id)
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise ValueError(f"license={license!r}: expected an identifier of the Hub's list, such as 'apache-2.0'")
    if license == "other" and not (license_name and license_link):
        raise ValueError("license='other' needs license_name and license_link")


# --- the card as a file


def render(template: Path, **values: Any) -> str:
    """A Jinja template with its values filled in, and the markers around the text that is kept."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.globals.update(install_command=install_command, needs_source=git_address() is None)
    environment.filters["cell"] = cell
    environment.filters["quoted"] = json.dumps  # a JSON string is a Python string
    environment.filters["shell"] = shlex.quote
    environment.filters["squeeze"] = lambda text: re.sub(r"\n{3,}", "\n\n", text)
    text = environment.from_string(template.read_text(encoding="utf-8"))
    return text.render(keep_open=KEEP_OPEN, keep_close=KEEP_CLOSE, **values)


def read_card(path: Path) -> str | None:
    """The card that is there; None if there is none."""
    try:
        return path.read_text(encoding="utf-8").replace("\r\n", "\n") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}); remove it, or save it as UTF-8") from error


def replace_card(path: Path, text: str) -> None:
    """Write a card; one that was edited elsewhere, or that something else wrote, is first copied, with a warning."""
    old = read_card(path)
    if old is not None and old != text and not is_ours(old):
        backup = _free_name(path)
        write_text(backup, old)
        warnings.warn(f"{path} was not as vss_hf wrote it: the old text is kept in {backup.name}", stacklevel=3)
    write_text(path, text)


def kept_text(card: str | None) -> str:
    """The text between the "keep" markers."""
    return "\n\n".join(KEPT.findall(card or "")).strip()


def with_stamp(card: str, options: Mapping[str, Any]) -> str:
    """A card with its last line: its fingerprint, and the options that were given, for `options_of`."""
    given = {key: value for key, value in options.items() if value is not None}
    text = json.dumps(given, sort_keys=True).replace(">", "\\u003e") if given else ""  # ">" could end the comment
    return f"{card.rstrip()}\n\n<!-- vss_hf: card {_digest(card, text)}{text and ' ' + text} -->\n"


def is_ours(card: str) -> bool:
    """Whether nothing but the kept text was changed since vss_hf wrote the card."""
    stamp = STAMP.search(card)
    return stamp is not None and stamp.group(1) == _digest(card, stamp.group(2) or "")


def options_of(card: str | None) -> dict[str, Any]:
    """The options that a card was written with."""
    stamp = STAMP.search(card or "")
    return json.loads(stamp.group(2) or "{}") if stamp else {}


def _digest(card: str, options: str = "") -> str:
    """Fingerprint of a card without its stamp and its kept text."""
    generated = KEPT.sub(KEEP_OPEN + KEEP_CLOSE, STAMP.sub("", card)).rstrip()
    return hashlib.sha256((generated + options).encode()).hexdigest()[:16]


def _free_name(path: Path) -> Path:
    backup, number = path.with_name("README.previous.md"), 2
    while backup.exists():
        backup, number = path.with_name(f"README.previous-{number}.md"), number + 1
    return backup
