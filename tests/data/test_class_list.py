"""Class lists against the published VSPW table and hand-made label files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vss_hf.data.labels import VSPW, ClassList


REPOSITORY = Path(__file__).resolve().parents[2]
FACTS = REPOSITORY / "../shared/facts/remap/vspw_classes.json"


def write(root: Path, text: str) -> Path:
    (root / "label_num_dic_final.json").write_text(text)
    return root


@pytest.mark.skipif(not FACTS.is_file(), reason="the cross-checked class table lies outside the repository")
def test_vspw_is_the_published_list():
    table = json.loads(FACTS.read_text())
    assert VSPW.num_labels == len(table) == 124
    for i, row in enumerate(table):
        found = (VSPW.names[i], VSPW.disk_ids[i], list(VSPW.palette[i]), VSPW.things[i])
        assert found == (row["name"], row["disk_id"], row["color"], bool(row["isthing"])), i


def test_vspw_lookup_is_disk_minus_one_and_void_elsewhere():
    expected = [value - 1 if 1 <= value <= 124 else 255 for value in range(256)]
    assert VSPW.lookup.tolist() == expected and VSPW.lookup.dtype == np.uint8


def test_lookup_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        VSPW.lookup[0] = 3


def test_from_root_recognises_vspw_in_any_order(tmp_path):
    ids = {"others": 0, **{name: VSPW.disk_ids[i] for i, name in reversed(list(enumerate(VSPW.names)))}}
    assert ClassList.from_root(write(tmp_path, json.dumps(ids))) is VSPW


def test_from_root_with_gaps(tmp_path):
    classes = ClassList.from_root(write(tmp_path, '{"sky": 254, "others": 0, "void": 255, "road": 3, "tree": 200}'))
    assert classes.names == ("road", "tree", "sky") and classes.disk_ids == (3, 200, 254)
    assert classes.id2label == {0: "road", 1: "tree", 2: "sky"} and classes.label2id["sky"] == 2
    assert {i: int(classes.lookup[i]) for i in range(256) if classes.lookup[i] != 255} == {3: 0, 200: 1, 254: 2}


def test_palette_of_many_classes_is_distinct_and_reproducible(tmp_path):
    root = write(tmp_path, json.dumps({f"class {i}": i for i in range(1, 255)}))
    palette = ClassList.from_root(root).palette
    assert len(set(palette)) == 254 and palette == ClassList.from_root(root).palette
    assert (0, 0, 0) not in palette  # black is void in pictures


def test_a_class_with_id_zero_is_void_and_said_so(tmp_path):
    with pytest.warns(UserWarning, match="'sky' has id 0"):
        assert ClassList.from_root(write(tmp_path, '{"sky": 0, "road": 1}')).names == ("road",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1, 2]", "one JSON object"),
        ("3", "one JSON object"),
        ("{}", "no class"),
        ('{"others": 0}', "no class"),
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"a": 1, "b": 1}', r"disk_ids holds \[1\] more than once"),
        ('{"a": 255}', r"\[255\].*1\.\.254"),
        ('{"a": -1}', r"\[-1\].*1\.\.254"),
        ('{"a": 1.0}', "whole numbers"),
        ('{"a": true}', "whole numbers"),
        ('{"a": "1"}', "whole numbers"),
        ('{"a": {"b": 1}}', "whole numbers"),
    ],
)
def test_wrong_label_files_name_the_file_and_the_fault(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        ClassList.from_root(write(tmp_path, text))
    assert "label_num_dic_final.json" in str(caught.value)


def test_missing_label_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="label_num_dic_final.json not found"):
        ClassList.from_root(tmp_path)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="palette has 1 entries for 2"):
        ClassList(("a", "b"), ((0, 0, 0),), (1, 2))


def test_import_is_cheap():
    code = (
        "import sys, vss_hf; before = set(sys.modules); import vss_hf.data.labels;"
        "sys.exit(' '.join({'torch', 'datasets', 'PIL'} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stderr.strip() == ""
