"""The table of docs/hub.md: the model repositories that are planned, one for each released recipe.

    python benchmarks/collection_table.py                          # print it
    python benchmarks/collection_table.py --markdown docs/hub.md   # rewrite it there

All of it comes from the card sources (hub_cards/card_sources.py). The figures are the papers'.
"""

import sys
from itertools import groupby
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.markdown_tables import print_or_write  # noqa: E402
from vss_hf.hub_cards.card_origin import percent  # noqa: E402
from vss_hf.hub_cards.card_sources import CardSource, card_source, released_recipes  # noqa: E402
from vss_hf.hub_cards.card_text import cell  # noqa: E402


PAGE = ROOT / "docs/hub.md"
MARKS = ("<!-- collection: begin (benchmarks/collection_table.py --markdown) -->", "<!-- collection: end -->")
COLUMNS = ["repository", "model", "recipe", "labels of", "paper's val", "paper's test", "weights at most under"]


def table() -> list[str]:
    """The lines of the page between its marks: a heading, the paper and a table for each group."""
    sources = [card_source(name) for name in released_recipes()]
    lines = []
    for name, group in groupby(sources, key=lambda source: source.title.split(": ")[0]):
        members = list(group)
        lines += ["", f"### {name}", "", paper_of(members[0]), ""]
        lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *map(line_of, members)]
    return lines[1:]


def paper_of(source: CardSource) -> str:
    """Where a group comes from."""
    if not source.citation:
        return "Ours; no paper."
    return f"{source.citation}. {source.link}".strip()


def line_of(source: CardSource) -> str:
    """One line of a table; of several rows of the paper the first one's figures, as in `docs/recipes.md`."""
    first = source.rows[0] if source.rows else {}
    licence = source.licence()
    cells = [
        f"`{source.repository}`", cell(source.title.split(": ", 1)[1]), f"`{source.recipe}`", ", ".join(source.data),
        percent(first.get("val")), percent(first.get("test")), licence.get("license_name", licence["license"]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print_or_write(__doc__, MARKS, table())
