"""The table of docs/recipes.md: every row of the papers' tables of results, and the recipe that trains it.

    python benchmarks/recipe_table.py                              # print it
    python benchmarks/recipe_table.py --markdown docs/recipes.md   # rewrite it there

Rows with a recipe are what the recipes' sections `paper` say. All figures are the papers'; nothing is measured here.
"""

import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.markdown_tables import print_or_write  # noqa: E402
from vss_hf.training.papers import PAPERS, TableRow  # noqa: E402
from vss_hf.training.recipe_files import paper_of, shipped_recipes  # noqa: E402


PAGE = ROOT / "docs/recipes.md"
MARKS = ("<!-- recipes: begin (benchmarks/recipe_table.py --markdown) -->", "<!-- recipes: end -->")
# Rows that differ from another row at inference only -> the options or the ensemble that they are, and whose results.
SWIN_AND_VOLO = "`swin-large-480`, `volo-d5-unet-480-average`"
THE_BEST_TWO = "`swin-large-480-coco`, `volo-d5-unet-480-ade20k-cityscapes`"
INFERENCE = {
    "betterthing": [
        (TableRow(1, 6, "Swin-L, 480*853, COCO, +flip", 57.26), "`--tta flip`", "of `swin-large-480-coco`"),
        (
            TableRow(1, 7, "Swin-L, 480*853, COCO, +flip, +multi scale", 57.89),
            "`--tta betterthing-swin`",
            "of `swin-large-480-coco`",
        ),
        (
            TableRow(3, 1, "Swin-L (table 1, row 4) + Volo (table 2, row 5)", test=55.10),
            "ensemble, `--gamma 0.5`",
            f"of {SWIN_AND_VOLO}",
        ),
        (
            TableRow(3, 2, "+ test time augmentation", test=56.78),
            "ensemble, `--gamma 0.5`, tta `betterthing-swin` and `betterthing-volo`",
            f"of {SWIN_AND_VOLO}",
        ),
        (
            TableRow(3, 3, "Swin-L (COCO finetune) + Volo (ADE20k+Cityscapes finetune) + TTA", test=57.83),
            "the same",
            f"of {THE_BEST_TWO}",
        ),
        (TableRow(3, 4, "+ gamma set to 0.56", test=58.06), "the same, `--gamma 0.56`", f"of {THE_BEST_TWO}"),
    ],
    "ustc": [
        (
            TableRow(3, 1, "Best Single Model", 57.26, 53.99),
            "`--tta`",
            "which MaskFormer, and which scales, is not told",
        ),
        (TableRow(3, 2, "P_S", 58.01, 55.10), "ensemble, `--group S=a,b,c`", "of three MaskFormers, not told which"),
        (
            TableRow(3, 3, "P_S + P_W * 1.4", 58.50, 55.16),
            "the same and `--group W:1.4=...`",
            "and of eight others, not told which",
        ),
        (
            TableRow(3, 4, "P_S + P_W * 1.4 + P_A * 1.0", 61.10, 55.48),
            "the same and `--group A:1.0=...`",
            "and of six Swins, not told which",
        ),
    ],
    "pvuw2023": [
        (
            TableRow(3, 1, "Swin-L + ConvNeXt-XL + InternImage-XL, multi-scale & flip & ensemble", test=52.56),
            "ensemble, `--tta dut`",
            "of `swin-large`, `convnext-xlarge`, `internimage-xl`",
        ),
        (
            TableRow(3, 2, "InternImage-H + InternImage-H*, ensemble", test=60.12),
            "ensemble",
            "of `internimage-h`, `mask2former-internimage-h`",
        ),
        (
            TableRow(3, 3, "InternImage-H*# + InternImage-H, ensemble", test=58.53),
            "ensemble",
            "of `mask2former-internimage-h-coco`, `internimage-h`",
        ),
        (
            TableRow(3, 4, "InternImage-H*#, multi-scale & flip", test=62.60),
            "`--tta dut`",
            "of `mask2former-internimage-h-coco`",
        ),
        (
            TableRow(3, 5, "InternImage-H*#, (0.5,0.75,1.0) & flip", test=62.62),
            "`--tta dut-small`",
            "of `mask2former-internimage-h-coco`",
        ),
        (TableRow(4, 1, "none", test=63.37), "as it is", "`mask2former-internimage-h-coco` on the final test set"),
        (
            TableRow(4, 2, "CascadePSP", test=63.65),
            "`--refine cascade-psp:FOLDER`",
            "of the same; its options are not told",
        ),
        (TableRow(4, 3, "none", test=64.09), "`--tta dut-small`", "of `mask2former-internimage-h-coco`"),
        (TableRow(4, 4, "SSA", test=64.11), "`--tta dut-small --refine ssa:FOLDER`", "of the same"),
    ],
}


def table() -> list[str]:
    """The lines of the page between its marks: a heading and a table for each paper."""
    columns = ["table, row", "setting", "mIoU on", "paper's val", "paper's test", "recipe", "uncertain"]
    lines = []
    for key, paper in PAPERS.items():
        title = f"[{paper.title}]({paper.link})" if paper.link else paper.title
        lines += ["", f"### `{key}/`", "", f"{title}. {paper.place}.", ""]
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows_of(key)]
    return lines[1:]


def rows_of(key: str) -> list[str]:
    """The lines of a paper's rows in its order, and after them what is only on the way to one of them."""
    rows = [(row, f"inference: {options}", models) for row, options, models in INFERENCE.get(key, [])]
    others = []
    for name in shipped_recipes():
        paper = paper_of(name)
        if paper is None or paper.name != key:
            continue
        uncertain = "; ".join(paper.uncertain)
        rows += [(row, f"`{name}`", uncertain) for row in paper.rows]
        if not paper.rows:
            others.append(markdown_row("–", "a step towards other rows", "–", "–", "–", f"`{name}`", uncertain))
    rows.sort(key=lambda entry: (entry[0].table, entry[0].row))
    lines = []
    for row, recipe, note in rows:
        place, figures = f"{row.table}, {row.row}", (shown(row.val), shown(row.test))
        lines.append(markdown_row(place, row.setting, row.data, *figures, recipe, note))
    return [*lines, *others]


def markdown_row(*cells: str) -> str:
    """One line of a table."""
    return f"| {' | '.join(cell.replace('|', '/').replace('*', chr(92) + '*') for cell in cells)} |"


def shown(value: float | None) -> str:
    """A percentage, or a dash."""
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    print_or_write(__doc__, MARKS, table())
