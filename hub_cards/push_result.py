"""What a push comes to: its result, or why there is none."""

from dataclasses import dataclass, field


class PushError(OSError):
    """A push that did not succeed.

    Args:
        message: what happened, what is missing in the repository, and how to go on.
        what: what happened, alone.
    """

    def __init__(self, message: str, what: str):
        super().__init__(message)
        self.what = what


class Refused(ValueError):
    """A push that must not be done as asked; the message is the reason."""


@dataclass
class PushResult:
    """What a push came to.

    Args:
        repo_url: the repository.
        commit_url: the commit with the folder's files; an older one if nothing had changed.
        pr_url: the pull request, if one was asked for and there was something to propose.
        sent: paths of the files that were new or changed.
        sent_bytes: their size.
        removed: what the commit took away: older weights, because a reader would load them instead of the new ones,
            and code of this package that nothing leads to any more.
        unchanged: how many files were in the repository already.
        left_out: paths in the folder that are of no use to others and stayed there.
        shortened: files in which folders of this machine were reduced to their last name on the way.
    """

    repo_url: str
    commit_url: str = ""
    pr_url: str | None = None
    sent: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    removed: list[str] = field(default_factory=list)
    unchanged: int = 0
    left_out: list[str] = field(default_factory=list)
    shortened: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The result for people."""
        lines = [self.repo_url]
        if self.sent or self.removed:
            files = "1 file" if len(self.sent) == 1 else f"{len(self.sent)} files"
            same = f", {self.unchanged} unchanged" if self.unchanged else ""
            lines.append(f"{self.commit_url}: {files} sent ({size(self.sent_bytes)}){same}")
        else:
            lines.append(f"{self.commit_url}: nothing changed, nothing sent")
        lines += [f"removed: {', '.join(self.removed)}"] if self.removed else []
        lines += [f"pull request: {self.pr_url}"] if self.pr_url else []
        told = "folders of this machine are reduced to their last name in"
        lines += [f"{told}: {', '.join(self.shortened)}"] if self.shortened else []
        return lines + ([f"left out: {', '.join(self.left_out)}"] if self.left_out else [])


def size(number: int) -> str:
    """Bytes for people."""
    if number < 1000:
        return f"{number} bytes"
    amount, unit = number / 1000, "kB"
    for larger in ("MB", "GB"):
        if amount >= 1000:
            amount, unit = amount / 1000, larger
    return f"{amount:.1f} {unit}"
