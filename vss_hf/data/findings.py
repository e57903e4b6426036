"""What a check of files has to say: single findings, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape


_SHOWN_PER_KIND = 10


@dataclass(frozen=True)
class Finding:
    """One thing found: its kind (a fixed word for programs), the file or folder, and a sentence."""

    kind: str
    path: str
    detail: str

    @classmethod
    def of(cls, kind: str, path: Path, detail: str | Exception) -> Finding:
        """A finding whose words any terminal and JSON file takes."""
        return cls(kind, shown(path), shown(str(detail) or type(detail).__name__))


def print_findings(console: Console, title: str, colour: str, findings: Sequence[Finding]) -> None:
    """Writes the first few findings of each kind, and how many more there are."""
    seen: Counter[str] = Counter()
    totals = Counter(finding.kind for finding in findings)
    for finding in findings:
        seen[finding.kind] += 1
        if seen[finding.kind] <= _SHOWN_PER_KIND:
            line = f"[{colour}]{title}[/] {finding.kind}: {escape(finding.path)}: {escape(finding.detail)}"
            console.print(line, soft_wrap=True, highlight=False)
        elif seen[finding.kind] == totals[finding.kind]:
            console.print(f"[{colour}]{title}[/] {finding.kind}: and {totals[finding.kind] - _SHOWN_PER_KIND} more")


def shown(text: str | Path) -> str:
    """Text that any terminal and JSON file takes: undecodable bytes and control characters become escapes."""
    text = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
