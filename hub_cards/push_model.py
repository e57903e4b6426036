"""Pushes a model folder to the Hub: in one commit, private unless told otherwise, and only what changed.

The local folder is never written before the push has succeeded.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

from vss_hf.files import write_text
from vss_hf.modeling.remote_code import check_code, code_files

from .card import card_for_repo
from .checks import INDEX, WEIGHTS, check_folder
from .push import Push, PushResult


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    also: Mapping[str, Path] | None = None,
    with_code: bool = False,
) -> PushResult:
    """Push everything a model folder holds: weights, configuration, processor, recipe, results, pictures, card.

    The card gets the repository's name, as long as vss_hf wrote it; one that was edited by hand goes up as it is.

    Args:
        folder: the model folder.
        repo_id: "owner/name", or a name in your own account.
        private: whether a new repository is private. True refuses to push to one that is public.
        revision: branch to push to, made from the main one if it does not exist; default: the main one.
        create_pr: open a pull request against the main branch instead of pushing to it.
        commit_message: default: "Upload <name of the repository>".
        token: with write access; default: the one of `hf auth login` or HF_TOKEN.
        also: files from elsewhere by their path in the repository, which are not looked into: a run's checkpoint.
        with_code: also push the code that the model needs, so that `trust_remote_code=True` loads it where this
            package is missing; see `vss_hf.modeling.remote_code`. The folder here stays as it is.

    Returns:
        Where it is now, and what was sent.

    Raises:
        FileNotFoundError: the folder is not a whole model folder.
        ValueError: a file must not go up, or the options are wrong.
        PushError: the Hub, or the way to it, did not let the push through.
    """
    folder = Path(folder)
    files, left_out = check_folder(folder)
    readme = folder / "README.md"
    before = readme.read_bytes() if readme.is_file() else None
    contents: dict[str, Path | bytes] = {**files, **(also or {})}
    if with_code:
        contents.update(code_files(folder))
    else:
        check_code(folder)
    with Push(repo_id, revision, create_pr, token, folder) as push:
        push.find_name()
        card = card_for_repo(folder, push.repo_id, with_code)
        if card is None:
            warnings.warn(
                f"{readme} was edited by hand: it is pushed as it is and may not name {push.repo_id}", stacklevel=2
            )
        else:
            contents["README.md"] = card.encode()
        push.message = commit_message
        push.prepare(private)
        result = push.send(contents, commit_message or f"Upload {push.repo_id.split('/')[-1]}", is_weights)
    # Only now, so that a failed push changes nothing here; and not over what somebody wrote meanwhile.
    if card is not None and card.encode() != before and before == (readme.read_bytes() if readme.is_file() else None):
        write_text(readme, card)
    result.left_out = left_out
    return result


def prepare_repo(repo_id: str, *, private: bool = True, revision: str | None = None, token: str | None = None) -> str:
    """Make sure, before hours of work, that a repository and branch are there and may be written to.

    Args:
        repo_id, private, revision, token: as in `push_folder`.

    Returns:
        The repository's full name, "owner/name".

    Raises:
        PushError: as `push_folder`.
    """
    with Push(repo_id, revision, False, token) as push:
        push.find_name()
        push.prepare(private)
    return push.repo_id


def is_weights(name: str) -> bool:
    """Whether from_pretrained could take a file of the repository for the model's weights, or a part of them."""
    shard = name.startswith("model-") and name.endswith(".safetensors")
    return "/" not in name and (shard or name in (WEIGHTS, INDEX))
