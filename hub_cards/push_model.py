"""Pushes a model folder to the Hub: in one commit, private unless told otherwise, and only what changed.

The local folder is never written before the push has succeeded.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

from vss_hf.files import write_text
from vss_hf.modeling.remote_code import CONFIG, ENTRY, PROCESSOR, check_code, code_files, code_in, listed_files

from .card import card_for_repo
from .checks import INDEX, WEIGHTS, check_folder
from .private_paths import without_paths
from .push import Push
from .push_result import PushResult


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

    The card gets the repository's name, as long as vss_hf wrote it; one that was edited by hand goes up as it is. In
    what a run wrote about itself (recipe, results) folders of this machine are reduced to their last name.

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
    shortened = without_paths(files)
    contents: dict[str, Path | bytes] = {**files, **(also or {}), **shortened}
    if with_code:
        outdated = set(code_in(folder))
        contents = {name: content for name, content in contents.items() if name not in outdated}
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
        message = commit_message or f"Upload {push.repo_id.split('/')[-1]}"
        result = push.send(contents, message, lambda there: outdated_files(push, there, contents))
    # Only now, so that a failed push changes nothing here; and not over what somebody wrote meanwhile.
    if card is not None and card.encode() != before and before == (readme.read_bytes() if readme.is_file() else None):
        write_text(readme, card)
    result.left_out, result.shortened = left_out, list(shortened)
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


def outdated_files(push: Push, there: Mapping[str, RepoFile], contents: Mapping[str, Path | bytes]) -> list[str]:
    """Files of the repository that are none of the model any more.

    These are weights that from_pretrained could take for the model's, or for a part of them; and of code that was
    pushed along, what no configuration leads to any more.
    """
    old = [name for name in there if is_weights(name)]
    entry = f"{ENTRY}.py"
    if entry in there and (entry in contents or not leads_to_code(contents)):
        old += listed_files(push.read(entry))
    return old


def leads_to_code(contents: Mapping[str, Path | bytes]) -> bool:
    """Whether a configuration says where its class is; that may be this very repository."""
    found = [contents[name] for name in (CONFIG, PROCESSOR) if name in contents]
    return any("auto_map" in json.loads(one if isinstance(one, bytes) else one.read_bytes()) for one in found)


def is_weights(name: str) -> bool:
    """Whether a file of the repository may be the model's weights, or a part of them."""
    shard = name.startswith("model-") and name.endswith(".safetensors")
    return "/" not in name and (shard or name in (WEIGHTS, INDEX))
