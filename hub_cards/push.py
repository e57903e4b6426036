"""A push to the Hub on its way: what differs is sent, in one commit, and what goes wrong is said in one line.

The commit is the last step, so a push that fails leaves the repository as it was; large files that had arrived by then
are kept by the Hub and not sent again.
"""

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of httpx or httpx2, whichever the client is built on
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, parse_ratelimit_headers, validate_repo_id

from .checks import ACCESS_TOKEN
from .push_result import PushError, PushResult, Refused, size


TRIES = 6  # of every request; the client does as many of those that it repeats by itself
LONGEST_WAIT = 300  # seconds; when a server asks for more, we give up and say so
MAY_PASS = (408, 429, 500, 502, 503, 504)
Result = TypeVar("Result")


class Push:
    """One push on its way. As a context it turns what goes wrong into a `PushError` that says how far it got.

    Args:
        repo_id, revision, create_pr, token: as in `push_folder`.
        folder: for the message; None: nothing is to be sent.
        repo_type: "model" or "dataset".
        command: the words that start such a push on the command line, for the message.
    """

    def __init__(
        self,
        repo_id: str,
        revision: str | None,
        create_pr: bool,
        token: str | None,
        folder: Path | None = None,
        *,
        repo_type: str = "model",
        command: Sequence[str] = ("vss-hf", "push"),
    ):
        if create_pr and revision not in (None, "main"):
            raise ValueError(f"--create-pr with --revision {revision}: a pull request is made against main; give one")
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(f"repo id {repo_id!r}: expected owner/name on the Hub ({error})") from error
        self.repo_id, self.revision, self.create_pr, self.folder = repo_id, revision, create_pr, folder
        self.repo_type, self.command = repo_type, list(command)
        self.private, self.message = True, cast("str | None", None)  # for the command to go on with
        self.token = token or get_token()
        self.api = HfApi(token=self.token)
        self.step = "looking for the repository"
        self.tries = 0
        self.reached = False  # whether the Hub has answered at all
        self.missing: dict[str, int] = {}  # files that the repository does not hold yet, with their bytes
        self.arrived: list[str] = []  # of these, the weights that the Hub has received
        self.digests: dict[tuple[str, bool], str] = {}

    def __enter__(self) -> "Push":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        # RuntimeError: how the client reports a large file that could not be sent.
        if isinstance(error, (HTTPError, OSError, RuntimeError, ValueError)):
            what = self.clean(f"{self.step}: {self.reason(error)}")
            raise PushError(self.clean(self.explain(what)), what) from error

    # --- steps

    def find_name(self) -> None:
        """Complete a name without its owner."""
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled
        if self.token is None:
            raise Refused("there is no token; log in with `hf auth login`, or set HF_TOKEN")
        if "/" not in self.repo_id:
            self.repo_id = f"{self.patiently(lambda: self.api.whoami())['name']}/{self.repo_id}"

    def prepare(self, private: bool) -> None:
        """Make the repository and the branch if they do not exist."""
        self.private = private
        info = self.patiently(self.look_up)
        if info is None and self.create_pr:
            raise Refused("it does not exist, or the token may not see it; a pull request needs a repository")
        if info is None:
            self.step = "making the repository"
            settings = {"repo_type": self.repo_type, "private": private, "exist_ok": True}
            self.patiently(lambda: self.api.create_repo(self.repo_id, **settings))
        elif private and info.private is False:
            training = " (in training: --hub_private_repo false)" if self.repo_type == "model" else ""
            raise Refused(
                f"it is public, and the push was to be private; allow it with --public{training}, or make the "
                "repository private in its settings"
            )
        branch = self.revision
        if branch is not None and branch != "main" and not branch.startswith("refs/"):
            self.step = f"making branch {branch}"
            kind = self.repo_type
            self.patiently(lambda: self.api.create_branch(self.repo_id, branch=branch, repo_type=kind, exist_ok=True))

    def info(self, revision: str | None = None) -> Any:
        """What the Hub says of the repository."""
        return self.api.repo_info(self.repo_id, repo_type=self.repo_type, revision=revision)

    def look_up(self) -> Any:
        """What the Hub knows of the repository; None: nothing."""
        try:
            return self.info()
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:
                raise
            return None

    def send(
        self,
        contents: Mapping[str, Path | bytes],
        message: str,
        outdated: Callable[[Mapping[str, RepoFile]], Iterable[str]],
    ) -> PushResult:
        """Send what differs, commit it, and see whether all of it is there.

        Args:
            contents: a file, or its bytes, by path in the repository.
            message: of the commit.
            outdated: given the files of the repository, those of them that are to be removed, unless they are among
                the contents.
        """
        self.step = "listing the files there"
        there = self.all_files()
        changed = self.differing(contents, there)
        old = sorted({*outdated(there)} & there.keys() - contents.keys())
        result = PushResult(self.page(), sent=changed, removed=old)
        result.unchanged = len(contents) - len(changed)
        if not changed and not old:
            info = self.patiently(lambda: self.info(self.revision or "main"))
            result.commit_url = self.commit_url(info.sha)
            return result
        self.missing = {name: length(contents[name]) for name in changed}
        result.sent_bytes = sum(self.missing.values())
        operations = {name: CommitOperationAdd(path_in_repo=name, path_or_fileobj=contents[name]) for name in changed}
        self.upload(operations)
        self.step = "committing"
        deletions = [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in old]
        oid = self.commit([*deletions, *operations.values()], contents, message, result)
        self.step = "looking whether all arrived"
        absent = self.patiently(lambda: self.differing(contents, self.files_there(contents, oid)))
        self.missing = {name: length(contents[name]) for name in absent}
        if absent:
            raise Refused("the commit does not hold all files: a .gitignore there, or a file that changed meanwhile")
        return result

    def upload(self, operations: Mapping[str, CommitOperationAdd]) -> None:
        """Send the large files; weights and data one by one, so that it is known which of them have arrived."""
        large = [name for name in operations if name.endswith((".safetensors", ".parquet"))]
        others = [name for name in operations if name not in large]
        for names in ([others] if others else []) + [[name] for name in large]:
            self.step = f"sending {names[0]}" if len(names) == 1 else f"sending {len(names)} smaller files"
            self.tries = TRIES  # the client repeats these requests by itself
            self.api.preupload_lfs_files(
                self.repo_id,
                repo_type=self.repo_type,
                additions=[operations[name] for name in names],
                revision=self.revision,
                create_pr=self.create_pr,
                free_memory=False,
            )
            self.arrived += [name for name in names if name in large]

    def commit(self, operations: list, contents: Mapping[str, Path | bytes], message: str, result: PushResult) -> str:
        """Make the commit and return its id. If only the answer was lost, it is found and not made twice."""

        def make() -> str:
            info = self.api.create_commit(
                self.repo_id,
                repo_type=self.repo_type,
                operations=operations,
                commit_message=message,
                revision=self.revision,
                create_pr=self.create_pr,
            )
            result.commit_url, result.pr_url = info.commit_url, info.pr_url
            return info.oid

        def find() -> str | None:
            head = self.info(self.revision or "main").sha
            if head is None or self.differing(contents, self.files_there(contents, head)):
                return None
            result.commit_url = self.commit_url(head)
            return head

        return self.patiently(make, None if self.create_pr else find)

    # --- what is there

    def all_files(self) -> dict[str, RepoFile]:
        """All files of the branch by path."""
        self.tries = TRIES  # the client repeats these requests by itself
        where = {"repo_type": self.repo_type, "revision": self.revision}
        entries = self.api.list_repo_tree(self.repo_id, recursive=True, **where)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def files_there(self, names: Iterable[str], revision: str) -> dict[str, RepoFile]:
        """Those of the named files that there are, by path."""
        entries = self.api.get_paths_info(self.repo_id, list(names), revision=revision, repo_type=self.repo_type)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def read(self, name: str) -> str:
        """A text of the branch."""
        self.step = f"reading {name} there"
        where = {"repo_type": self.repo_type, "revision": self.revision, "endpoint": self.api.endpoint}
        url = hf_hub_url(self.repo_id, name, **where)

        def get() -> str:
            response = get_session().get(url, headers=build_hf_headers(token=self.token))
            hf_raise_for_status(response)
            return response.text

        return self.patiently(get)

    def differing(self, contents: Mapping[str, Path | bytes], there: Mapping[str, RepoFile]) -> list[str]:
        """Paths that the repository does not hold, or holds with another content."""
        return [name for name in contents if name not in there or not self.same(name, contents[name], there[name])]

    def same(self, name: str, content: Path | bytes, remote: RepoFile) -> bool:
        """Whether a file of the repository has this content, by its checksum."""
        if remote.size != length(content):
            return False
        large = remote.lfs is not None
        if (name, large) not in self.digests:
            self.digests[name, large] = digest(content, large)
        return self.digests[name, large] == (remote.lfs.sha256 if remote.lfs is not None else remote.blob_id)

    def page(self) -> str:
        """Where the repository can be looked at."""
        return f"{self.api.endpoint}/{'' if self.repo_type == 'model' else f'{self.repo_type}s/'}{self.repo_id}"

    def commit_url(self, oid: str | None) -> str:
        """Where a commit can be looked at."""
        return f"{self.page()}/commit/{oid}"

    # --- when it does not work

    def patiently(self, request: Callable[[], Result], find: Callable[[], Result | None] | None = None) -> Result:
        """Repeat a request while the trouble may pass.

        Args:
            request: what to do.
            find: looks whether a request without an answer was carried out all the same, and gives its result. None:
                that cannot be seen, so a commit is only repeated if the Hub refused it.
        """
        repeatable = find is not None or self.step != "committing"
        unanswered = False
        self.tries = 0
        while True:
            self.tries += 1
            try:
                result = find() if find is not None and unanswered else None
                result = request() if result is None else result
            except (HTTPError, json.JSONDecodeError) as error:  # the second: an answer that is not the Hub's
                wait = self.wait_after(error, repeatable)
                if wait is None or self.tries == TRIES:
                    raise
            else:
                self.reached = True
                return result
            unanswered = True
            time.sleep(wait)

    def wait_after(self, error: Exception, repeatable: bool) -> float | None:
        """Seconds to wait before the next try; None: trying again is no use."""
        backoff = min(8.0, 2.0 ** (self.tries - 1))
        if not isinstance(error, HfHubHTTPError):
            # Nobody is there at all: better to say so at once.
            nobody = not self.reached and type(error).__name__ == "ConnectError"
            return None if nobody or not repeatable else backoff
        status = error.response.status_code
        if status not in MAY_PASS or (status != 429 and not repeatable):
            return None
        wait = max(backoff, asked_to_wait(error))
        return wait if wait <= LONGEST_WAIT else None

    def explain(self, what: str) -> str:
        """What happened, what is missing there, how to go on."""
        where = self.repo_id + (f" ({self.revision})" if self.revision else "")
        if self.folder is None:
            return f"{where} is not ready for pushing, {what}"
        if self.missing:
            names = sorted(self.missing, key=lambda name: -self.missing[name])
            listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            there = f"Not in the repository yet: {listed} ({size(sum(self.missing.values()))})"
        else:
            there = "Nothing was sent"
        arrived = [name for name in self.arrived if name in self.missing]
        there += f"; received and not to be sent again: {', '.join(arrived)}" if arrived else ""
        if self.create_pr and self.step == "committing":
            there += f"; see {self.page()}/discussions first, the pull request may be there"
        command = [*self.command, str(self.folder), self.repo_id]
        command += ["--revision", self.revision] if self.revision else []
        command += ["--create-pr"] if self.create_pr else []
        command += [] if self.private else ["--public"]
        command += ["--message", self.message] if self.message else []
        return (
            f"{self.folder} was not pushed to {where}, {what}. {there}. The folder is as it was; to go on: "
            f"{shlex.join(command)}"
        )

    def clean(self, text: str) -> str:
        """On one line, and without the token, even if the server repeated it."""
        text = text.replace(self.token, "(left out)") if self.token else text
        return " ".join(ACCESS_TOKEN.sub("(left out)", text).split())

    def reason(self, error: BaseException) -> str:
        """What went wrong, in words for people."""
        while not isinstance(error, (HTTPError, OfflineModeIsEnabled, Refused)) and error.__cause__ is not None:
            error = error.__cause__
        after = f" after {self.tries} tries" if self.tries > 1 else ""
        if isinstance(error, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it to push"
        if isinstance(error, HfHubHTTPError):
            return self.answer(error, after)
        if type(error).__name__ == "ConnectError":
            return f"{self.api.endpoint} cannot be reached{after}; is the network up, and HF_ENDPOINT right? ({error})"
        if isinstance(error, HTTPError):
            return f"the connection broke{after} ({error or type(error).__name__})"
        if isinstance(error, json.JSONDecodeError):
            return f"{self.api.endpoint} gave an answer{after} that is not the Hub's ({error})"
        return str(error) or type(error).__name__

    def answer(self, error: HfHubHTTPError, after: str) -> str:
        """An HTTP status in words."""
        status = error.response.status_code
        after = after if status in MAY_PASS else ""
        said = f" ({error.server_message})" if error.server_message else ""
        if status == 401:
            return f"the Hub does not accept the token (401); log in with `hf auth login`, or set HF_TOKEN{said}"
        if status == 403:
            alone = self.create_pr or self.step == "making the repository"
            instead = "" if alone else ", or propose the change with --create-pr"
            owner = self.repo_id.split("/")[0]
            return f"no right to do that (403){said}; the token needs write access to {owner}{instead}"
        if status == 429:
            wait = asked_to_wait(error)
            return f"too many requests (429){after}{f'; the Hub asks to wait {wait:.0f} s' if wait else ''}"
        if status >= 500:
            return f"the Hub answered {status}{after}{said}"
        return f"the Hub refused it ({status}){said}"


def asked_to_wait(error: HfHubHTTPError) -> float:
    """Seconds that the answer asks to wait; 0 if it does not say."""
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0


def digest(content: Path | bytes, large: bool) -> str:
    """The checksum by which the Hub knows a file: SHA-256 of a large one, git's SHA-1 of a small one."""
    sha = hashlib.sha256() if large else hashlib.sha1(f"blob {length(content)}\0".encode())
    if isinstance(content, bytes):
        sha.update(content)
    else:
        with open(content, "rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def length(content: Path | bytes) -> int:
    """Bytes of a file or a text."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size
