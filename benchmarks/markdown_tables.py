"""Tables that a benchmark writes into a page of docs/, between two marks."""

import argparse
import re
from pathlib import Path


def write_between(marks: tuple[str, str], lines: list[str], path: Path) -> None:
    """Replace what is between the marks of a file by these lines.

    Raises:
        ValueError: the file lacks a mark.
    """
    text = path.read_text(encoding="utf-8")
    begin, end = marks
    if begin not in text or end not in text:
        raise ValueError(f"{path}: the marks {begin} and {end} are not in it")
    table = "\n".join([begin, *lines, end])
    path.write_text(re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: table, text, flags=re.DOTALL), "utf-8")


def print_or_write(description: str | None, marks: tuple[str, str], lines: list[str]) -> None:
    """The command line of a benchmark that does nothing but a table: print it, or with --markdown rewrite it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="rewrite the table in this file")
    options = parser.parse_args()
    if options.markdown:
        write_between(marks, lines, options.markdown)
    else:
        print("\n".join(lines))
