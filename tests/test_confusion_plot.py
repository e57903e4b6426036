"""The picture of a confusion matrix, read back from the pixels that it has."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


sys.path.append(str(Path(__file__).parent / "data"))  # for `make_tree`, when only these tests are collected

from make_tree import make_tree, mask_values, write_mask  # noqa: E402

from vss_hf.cli import main
from vss_hf.confusion_plot import RIGHT, WRONG, plot_confusion


COUNTS = np.array([[90, 10, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [40, 0, 10, 50]])  # class 1 is only predicted, so is 2
NAMES = ["road", "tree", "sky", "car"]


def shades_in(path) -> set[tuple[int, ...]]:
    """Colours that fill at least some hundred pixels."""
    return {color for count, color in Image.open(path).convert("RGB").getcolors(1 << 16) if count > 300}


def shade(colors, share) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in colors(np.sqrt(share))[:3])


def near(color, found) -> bool:
    return any(max(abs(a - b) for a, b in zip(color, other, strict=True)) <= 1 for other in found)


def test_rows_are_shares_of_the_true_class(tmp_path):
    path = plot_confusion(COUNTS, NAMES, tmp_path / "a.png", "some model")
    found = shades_in(path)
    for colors, share in ((RIGHT, 0.9), (RIGHT, 0.5), (WRONG, 0.1), (WRONG, 0.4)):
        assert near(shade(colors, share), found), (share, found)
    # Pixels a hundred times as many of one class change nothing: each row is its own whole.
    scaled = plot_confusion(COUNTS * [[100], [1], [1], [1]], NAMES, tmp_path / "b.png", "some model")
    assert scaled.read_bytes() == path.read_bytes()
    # Rows are the truth: transposed counts have other shares.
    other = shades_in(plot_confusion(COUNTS.T, NAMES, tmp_path / "c.png"))
    assert not near(shade(RIGHT, 0.9), other) and near(shade(RIGHT, 90 / 130), other)


def text_of(path) -> str:
    """The words of an SVG: matplotlib draws letters as shapes and notes the text beside them."""
    return path.read_text(encoding="utf-8")


def test_absent_and_only_predicted_classes(tmp_path):
    names = [*NAMES, "boat"]
    counts = np.pad(COUNTS, (0, 1))
    text = text_of(plot_confusion(counts, names, tmp_path / "a.svg"))
    assert "<!-- tree * -->" in text and "<!-- sky * -->" in text and "<!-- tree -->" not in text
    assert text.count("<!-- road -->") == text.count("<!-- car -->") == 2  # a row and a column
    assert "boat" not in text and "1 of 5 classes do not occur" in text
    assert "<!-- 90 -->" in text and "<!-- 40 -->" in text


def test_many_classes_have_a_list_of_the_largest_confusions(tmp_path):
    counts = np.eye(40, dtype=int) * 100
    counts[7, 3], counts[8, 2] = 300, 100  # 75 % and 50 %
    text = text_of(plot_confusion(counts, [f"class {i}" for i in range(40)], tmp_path / "a.svg"))
    first, second = "75%  class 7 → class 3", "50%  class 8 → class 2"
    assert first in text and second in text and text.index(first) < text.index(second)
    assert text.count("→") == text.count(first) + text.count(second) + text.count("(true → predicted)")


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match=r"counts are \(4, 4\): expected a row and a column for each of 3 classes"):
        plot_confusion(COUNTS, NAMES[:3], tmp_path / "a.png")
    with pytest.raises(ValueError, match="no pixel is labelled"):
        plot_confusion(COUNTS * 0, NAMES, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_score_draws_it(tmp_path, capsys):
    """Predictions that are right wherever there is a class: each of the three is 100 % right."""
    root = make_tree(tmp_path / "videos", {"val": {"a": [1, 2]}})
    for number in (1, 2):
        values = mask_values("a", number)
        write_mask(tmp_path / f"predictions/a/{number:08d}.png", np.where(np.isin(values, (1, 2, 5)), values, 1))
    words = ["score", "--predictions", str(tmp_path / "predictions"), "--data", str(root), "--values", "disk"]
    for picture, code in (("confusion.jpg", 2), ("confusion.svg", 0)):
        with pytest.raises(SystemExit) as end:
            main([*words, "--confusion_png", str(tmp_path / picture)])
        assert end.value.code == code
    assert "confusion.jpg: a drawing is a .png, .svg or .pdf file" in capsys.readouterr().err
    text = text_of(tmp_path / "confusion.svg")
    assert text.count("<!-- 100 -->") == 3 and "1.0000" in text
    assert all(text.count(f"<!-- {name} -->") == 2 for name in ("road", "sky", "tree"))
