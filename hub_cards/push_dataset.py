"""Pushes a Parquet export to a data set repository of the Hub: private by default, checked before anything is sent."""

import warnings
from fnmatch import fnmatch
from pathlib import Path

from vss_hf.files import write_text

from .checks import check_text, walk
from .dataset_card import CARD, dataset_card_for_repo
from .dataset_export import INDEX_FILE, LABEL_FILE, Export, read_export
from .push import Push
from .push_result import PushResult


# Beside the shards, what explains them; everything else in the folder stays here.
ALONG = ("LICENSE*", "LICENCE*", "NOTICE*", "CITATION*")


def push_dataset(
    out: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    rights: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> PushResult:
    """Push a folder that `vss-hf data parquet` made, in one commit; shards that the Hub has are not sent again.

    Every shard is compared with its checksum first. Shards of an earlier export that this one does not have are
    removed in the same commit. The card gets the repository's name, as long as vss_hf wrote it; one that was edited by
    hand goes up as it is.

    Args:
        out: the export.
        repo_id: "owner/name", or a name in your own account.
        private: whether a new repository is private. True refuses to push to one that is public.
        rights: on what ground frames that may not be re-hosted publicly may be public all the same, such as "own
            recordings"; stands in the card. Needed for `private=False` where the terms of the data set forbid it.
        revision: branch to push to, made from the main one if it does not exist; default: the main one.
        commit_message: default: "Upload <name of the repository>".
        token: with write access; default: the one of `hf auth login` or HF_TOKEN.

    Returns:
        Where it is now, and what was sent.

    Raises:
        FileNotFoundError: the folder is no export, or a shard is missing.
        ValueError: a shard is not as it was written, a text looks like it holds a secret, or it would make frames
            public that may not be.
        PushError: the Hub, or the way to it, did not let the push through.
    """
    export = read_export(out)
    check_rights(export, private, rights)
    files, left_out = files_to_push(export)
    digests = export.check_shards()
    readme = export.folder / CARD
    before = readme.read_bytes() if readme.is_file() else None
    contents: dict[str, Path | bytes] = {**files}
    command = ["vss-hf", "data", "push", *(["--rights", rights] if rights else [])]
    with Push(repo_id, revision, False, token, export.folder, repo_type="dataset", command=command) as push:
        push.digests = {(name, True): sha256 for name, sha256 in digests.items()}  # not to be read a second time
        push.find_name()
        card = dataset_card_for_repo(export.folder, push.repo_id, rights)
        if card is None:
            warnings.warn(
                f"{readme} was edited by hand: it is pushed as it is and may not name {push.repo_id}", stacklevel=2
            )
        else:
            contents[CARD] = card.encode()
        push.message = commit_message
        push.prepare(private)
        message = commit_message or f"Upload {push.repo_id.split('/')[-1]}"
        result = push.send(contents, message, lambda there: filter(is_shard, there))
    # Only now, so that a failed push changes nothing here; and not over what somebody wrote meanwhile.
    if card is not None and card.encode() != before and before == (readme.read_bytes() if readme.is_file() else None):
        write_text(readme, card)
    result.left_out = left_out
    return result


def check_rights(export: Export, private: bool, rights: str | None) -> None:
    """Warn of the terms before frames go where others see them; raise where they forbid what was asked for."""
    terms = export.terms
    if terms is None or (terms.may_be_public and private):
        return
    if terms.may_be_public:
        warnings.warn(
            f"{terms.notice} See {terms.link}; whether you may publish them is for you to know", stacklevel=3
        )
        return
    if not private and not (rights or "").strip():
        raise ValueError(
            f"{export.folder} holds {terms.name} and is not pushed with --public. {terms.notice} Leave --public out "
            f"for a private repository; if these are no {terms.name} frames, or you may publish them, say so: "
            "--public --rights 'own recordings'"
        )
    what_then = "keep the repository private" if private else f"you publish them on the ground of: {rights}"
    warnings.warn(f"{terms.notice} See {terms.link}; {what_then}", stacklevel=3)


def files_to_push(export: Export) -> tuple[dict[str, Path], list[str]]:
    """The files of an export by path in the repository, and those that stay here."""
    own = {INDEX_FILE, LABEL_FILE, CARD, *(shard.file for shard in export.shards)}
    files: dict[str, Path] = {}
    left_out: list[str] = []
    for name, path in walk(export.folder):
        if name in own or any(fnmatch(name, pattern) for pattern in ALONG):
            files[name] = path
        else:
            left_out.append(name)
    for path in files.values():
        if path.suffix != ".parquet":
            check_text(path)
    return files, left_out


def is_shard(name: str) -> bool:
    """Whether a file of the repository may be a shard, which a reader would take for a part of the data set."""
    return name.startswith("data/") and name.endswith(".parquet")
