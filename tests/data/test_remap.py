"""Remap tables: against the official class lists, against a recomputation from the files, and what users do wrong."""

import csv
import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from make_tree import CAMVID, make_tree

from vss_hf.cli import main as command_line
from vss_hf.data import VSPW, ClassList, load_table, open_split, reverse_map
from vss_hf.data.remap import SAME_CLASSES, SOURCES_WITH_TABLE, TABLES, additions, source_names


# lookups that were made apart from this package; tests that want them skip where they are absent
FACTS = Path(os.environ.get("VSS_HF_REMAP_FACTS") or Path(__file__).resolve().parents[2] / "../shared/facts/remap")
FILES = ("coco_stuff", "ade20k", "cityscapes", "pascal_context", "camvid")
COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
CITYSCAPES = (
    "unlabeled,ego vehicle,rectification border,out of roi,static,dynamic,ground,road,sidewalk,parking,rail track,"
    "building,wall,fence,guard rail,bridge,tunnel,pole,polegroup,traffic light,traffic sign,vegetation,terrain,sky,"
    "person,rider,car,truck,bus,caravan,trailer,train,motorcycle,bicycle"
).split(",")
PASCAL = (
    "background aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling "
    "chair cloth computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light "
    "motorbike mountain mouse person plate platform pottedplant road rock sheep shelves sidewalk sign sky snow sofa "
    "table track train tree truck tvmonitor wall water window wood"
).split()
CAMVID32 = (
    "Animal Archway Bicyclist Bridge Building Car CartLuggagePram Child Column_Pole Fence LaneMkgsDriv "
    "LaneMkgsNonDriv Misc_Text MotorcycleScooter OtherMoving ParkingBlock Pedestrian Road RoadShoulder Sidewalk "
    "SignSymbol Sky SUVPickupTruck TrafficCone TrafficLight Train Tree Truck_Bus Tunnel VegetationMisc Void Wall"
).split()
CAMVID11 = "sky building pole road pavement tree sign_symbol fence car pedestrian bicyclist".split()
# rows with ids, mapped, ignored, VSPW classes covered; by default and with the candidates
COUNTS = {
    "coco_stuff": ((172, 131, 41, 81), (172, 157, 15, 89)),
    "ade20k": ((150, 131, 19, 82), (150, 142, 8, 85)),
    "cityscapes": ((35, 23, 12, 20), (35, 28, 7, 23)),
    "pascal_context": ((60, 57, 3, 54), (60, 58, 2, 55)),
    "camvid": ((32, 23, 9, 18), (32, 30, 2, 21)),
}


def rows_of(source):
    """The rows of a table by the csv module alone."""
    with open(TABLES / f"{source}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def classes_named(names):
    return ClassList(tuple(names), tuple((i, 0, 9) for i in range(len(names))), tuple(range(1, len(names) + 1)))


def sha256(lines):
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# --- the tables themselves


def test_coco_names_and_ids_are_the_official_ones():
    """The digest is of labels.txt of COCO-Stuff's authors without the eleven ids that are never used."""
    names = source_names("coco_stuff")
    assert [i for i, _ in names] == [i for i in range(183) if i not in COCO_GAPS]
    assert sha256(f"{i}: {name}" for i, name in names) == (
        "c205304bb6584a2b44bad96308c380743cf05493a5fa44eff516878379a18c6f"
    )


def test_ade20k_names_and_ids_are_the_official_ones():
    """The digest is of the ids and first names in objectInfo150.txt of SceneParse150's authors."""
    first = {90: "television"}  # of "television, television receiver, ..."; everybody uses the second
    assert sha256(f"{i}: {first.get(i, name)}" for i, name in source_names("ade20k")) == (
        "deb20629a9cf4b4e3e9b3ea8d60989caad089e43f4c55efc78ba961b4a2d2b84"
    )


def test_other_names_and_ids_are_the_official_ones():
    assert source_names("cityscapes") == [*enumerate(CITYSCAPES), (-1, "license plate")]
    assert source_names("pascal_context") == list(enumerate(PASCAL))
    assert source_names("camvid") == list(enumerate(CAMVID32))
    assert [row.name for row in load_table("camvid").rows if row.id is None] == CAMVID11
    for same in SAME_CLASSES:
        assert source_names(same) == list(zip(VSPW.disk_ids, VSPW.names, strict=True))


@pytest.mark.parametrize("source", FILES)
def test_rows_are_consistent(source):
    for row in rows_of(source):
        assert row["confidence"] in ("high", "medium", "low", "none"), row
        assert {row["vspw"], row["candidate"]} <= {"", *VSPW.names}, row
        assert row["vspw"] in ("", row["candidate"]), row
        assert (row["confidence"] == "none") == (not row["candidate"]), row
        if row["vspw"]:
            assert row["confidence"] in ("high", "medium"), row
        assert row["confidence"] != "high" or row["vspw"], row


def test_doubtful_coco_classes_that_the_number_of_mapped_ones_leaves_out():
    """Of the ignored ones only these have a candidate of medium confidence."""
    swing = {row["name"] for row in rows_of("coco_stuff") if not row["vspw"] and row["confidence"] == "medium"}
    assert swing == {"branch", "leaves", "cardboard", "counter", "napkin", "roof", "scissors", "window-blind"}


@pytest.mark.parametrize("source", FILES)
@pytest.mark.parametrize("table", ("default", "liberal"))
def test_counts(source, table):
    loaded = [row for row in load_table(source, table).rows if row.id is not None]
    column = {"default": "vspw", "liberal": "candidate"}[table]
    expected = [row[column] or None for row in rows_of(source) if row["id"]]
    assert [row.vspw for row in loaded] == expected
    found = (len(expected), len(expected) - expected.count(None), expected.count(None), len({*expected} - {None}))
    assert found == COUNTS[source][table == "liberal"]


@pytest.mark.parametrize("source", FILES)
def test_the_liberal_table_extends_the_default(source):
    default, liberal = load_table(source).rows, load_table(source, "liberal").rows
    assert all(more.vspw == row.vspw for row, more in zip(default, liberal, strict=True) if row.vspw)
    assert len([row for row in liberal if row.vspw]) > len([row for row in default if row.vspw])


def test_layouts_of_one_data_set_share_a_table():
    for source, other in (
        ("coco_stuff10k", "coco_stuff"),
        ("cityscapes19", "cityscapes"),
        ("pascal_context59", "pascal_context"),
    ):
        assert load_table(source).rows == load_table(other).rows and additions(source) == additions(other)
    assert {source for source in FILES} <= set(SOURCES_WITH_TABLE)


@pytest.mark.skipif(not FACTS.is_dir(), reason="no lookups made elsewhere")
def test_tables_equal_lookups_made_elsewhere():
    """Value in a mask -> VSPW label, for all 256 values of five kinds of mask."""
    lookups = json.loads((FACTS / "luts.json").read_text())
    label_of = {name: i for i, name in enumerate(VSPW.names)}
    cityscapes19 = [CITYSCAPES[i] for i in (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, *range(24, 29), 31, 32, 33)]
    value_of = {
        "coco_stuffthingmaps_png": ("coco_stuff", {name: i - 1 for i, name in source_names("coco_stuff") if i}),
        "ade20k_disk": ("ade20k", {name: i for i, name in source_names("ade20k")}),
        "cityscapes_labelids": ("cityscapes", {name: i for i, name in enumerate(CITYSCAPES)}),
        "cityscapes_trainids": ("cityscapes", {name: i for i, name in enumerate(cityscapes19)}),
        "pascal_context60_disk": ("pascal_context", {name: i for i, name in enumerate(PASCAL)}),
    }
    for kind, (source, values) in value_of.items():
        expected = [255] * 256
        for row in load_table(source).rows:
            if row.vspw and row.name in values:
                expected[values[row.name]] = label_of[row.vspw]
        assert lookups[kind] == expected, kind
    for source in FILES[:4]:
        liberal = json.loads((FACTS / f"{source}_liberal.json").read_text())
        ours = {row.name: row.vspw for row in load_table(source, "liberal").rows}
        assert {name: ours[name] for name in liberal} == liberal


# --- using them


def test_labels_by_name_in_any_order():
    table = load_table("cityscapes")
    names = ["rider", "traffic sign", "sky", "person", "license plate"]
    expected = [VSPW.names.index("person"), 255, VSPW.names.index("sky"), VSPW.names.index("person"), 255]
    new = table.labels(classes_named(names))
    assert new.dtype == np.uint8 and new.tolist() == expected
    assert table.labels(classes_named(names[::-1])).tolist() == expected[::-1]
    with pytest.raises(
        ValueError, match="class 'trafic light' is not in .*'default' of cityscapes; .*'traffic light'"
    ):
        table.labels(classes_named(["sky", "trafic light"]))


@pytest.fixture
def camvid_tree(tmp_path):
    """CamVid's 11 classes in VSPW's layout, ids with a gap, masks with values that are no class."""
    ids = {name: i for i, name in enumerate(CAMVID11, start=1)} | {"bicyclist": 77}
    return make_tree(tmp_path / "root", {"val": {"v": [1, 2, 3]}}, ids)


@pytest.mark.parametrize("table", ("default", "liberal"))
def test_apply_changes_what_masks_mean(camvid_tree, table):
    split = open_split(camvid_tree, "val", source="camvid", table=table)
    plain = open_split(camvid_tree, "val")
    assert split.classes is VSPW and split.table == table and split.videos == plain.videos
    column = {"default": "vspw", "liberal": "candidate"}[table]
    vspw_of = {row["name"]: row[column] for row in rows_of("camvid")}
    name_of = {i: name for name, i in json.loads((camvid_tree / "label_num_dic_final.json").read_text()).items()}
    seen = set()
    for frame in split.videos[0].frames:
        values, labels = split.reader.values(frame.mask_path), split.reader.labels(frame.mask_path)
        for value, label in zip(values.ravel().tolist(), labels.ravel().tolist(), strict=True):
            vspw = vspw_of.get(name_of.get(value, ""), "")
            assert label == (VSPW.names.index(vspw) if vspw else 255)
            seen.add(vspw)
    assert len(seen) > 3


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_a_table_of_the_users_own(tmp_path):
    file = write(tmp_path / "mine.csv", '\ufeffname,vspw\r\n\r\n sky , sky\r\n"a, b",\r\nbicyclist,person\r\n')
    table = load_table("camvid", file)
    assert (table.source, table.name) == ("camvid", "mine.csv")
    assert [(row.id, row.name, row.vspw, row.candidate) for row in table.rows] == [
        *[(None, "sky", "sky", "sky"), (None, "a, b", None, None), (None, "bicyclist", "person", "person")]
    ]
    assert table.labels(classes_named(["bicyclist", "a, b"])).tolist() == [VSPW.names.index("person"), 255]
    assert load_table("of my own", str(file)).rows == table.rows  # other data sets than the known ones, too


def test_a_table_applies_to_a_folder_of_the_users_own(camvid_tree, tmp_path):
    """Also where it lists more classes than the data set has."""
    lines = ["name,vspw,note", *(f"{name},road," for name in CAMVID11), "moon,sky,never seen"]
    split = open_split(camvid_tree, "val", table=write(tmp_path / "roads.csv", "\n".join(lines)))
    labels = split.reader.labels(split.videos[0].frames[0].mask_path)
    assert split.table == "roads.csv" and set(np.unique(labels).tolist()) == {VSPW.names.index("road"), 255}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file; expected .* name, vspw"),
        ("\n \n", "empty file"),
        ("name,vspw\n", "no rows"),
        ("name,class\nsky,sky\n", "no column 'vspw'; found: name, class"),
        ("name;vspw\nsky;sky\n", "no column 'name'; found: name;vspw"),
        ("name,vspw,candidat\nsky,sky,\n", "unknown column 'candidat'; known: .*candidate"),
        ("name,vspw,name\nsky,sky,a\n", "column 'name' is there twice"),
        ("name,vspw\nsky,sky\n\nsky,tree\n", "line 4: 'sky' is on line 2 already"),
        ("id,name,vspw\n7,sky,sky\n7,tree,tree\n", "line 3: 7 is on line 2 already"),
        ("id,name,vspw\n7.5,sky,sky\n", "line 2: id '7.5' is not a whole number"),
        ("name,vspw\n,sky\n", "line 2: no class name"),
        ("name,vspw\ncow,catle\n", "line 2: vspw 'catle' is no class of VSPW; nearest: 'cattle'"),
        ("name,vspw,candidate\ncow,,Cat\n", "line 2: candidate 'Cat' is no class of VSPW; nearest: 'cat'"),
        ("name,vspw\na, b,sky\n", 'line 2: 3 cells for 2 columns .*"quotes"'),
        ("name,vspw\nsky\n", "line 2: 1 cells for 2 columns"),
        ('name,vspw\n"sky,sky\n', "line 2: not CSV"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, message):
    file = write(tmp_path / "mine.csv", text)
    with pytest.raises(ValueError, match=message) as error:
        load_table("camvid", file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_unknown_tables_and_sources(tmp_path):
    with pytest.raises(ValueError, match="mine.csv: not UTF-8 text"):
        load_table("camvid", write(tmp_path / "mine.csv", "name,vspw\ncafé,sky\n", "latin-1"))
    with pytest.raises(FileNotFoundError, match="nowhere.csv: no such file; .* name and vspw"):
        load_table("camvid", tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match="unknown remap table 'libral'; expected 'default', 'liberal'"):
        load_table("camvid", "libral")
    with pytest.raises(ValueError, match="unknown source 'citiscapes' .*; nearest: 'cityscapes'"):
        load_table("citiscapes")
    with pytest.raises(ValueError, match="'folder' has no remap table of its own; give .* CSV"):
        load_table("folder")


# --- the way back


CITYSCAPES19 = [CITYSCAPES[i] for i in (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)]
VERSIONS = [
    ("coco_stuff", [name for i, name in source_names("coco_stuff") if i]),
    ("ade20k", [name for _, name in source_names("ade20k")]),
    ("cityscapes", CITYSCAPES[6:]),
    ("cityscapes", CITYSCAPES19),
    ("pascal_context", PASCAL),
    ("pascal_context", PASCAL[1:]),
    ("camvid", CAMVID32),
    ("camvid", CAMVID11),
]


@pytest.mark.parametrize("table", ("default", "liberal"))
@pytest.mark.parametrize(
    ("source", "names"), VERSIONS, ids=lambda value: f"{len(value)}" if len(value) > 15 else value
)
def test_reverse_map_recomputed(source, names, table):
    back = reverse_map(source, classes_named(names), table)
    column = {"default": "vspw", "liberal": "candidate"}[table]
    forward = {row["name"]: row[column] for row in rows_of(source) if row["name"] in names and row[column]}
    groups = {vspw: [name for name in names if forward.get(name) == vspw] for vspw in forward.values()}
    with open(TABLES / "reverse.csv", newline="", encoding="utf-8") as file:
        added = {
            row["vspw"]: row["name"]
            for row in csv.DictReader(file)
            if row["source"] == source and row["name"] in names
        }

    assert sorted(back.classes.names) == sorted("|".join(members) for members in groups.values())
    assert back.labels.shape == (len(names),) and back.predictions.shape == (124,)
    for label, name in enumerate(names):
        group = back.labels[label]
        assert (group == 255) == (name not in forward)
        if group != 255:
            assert back.classes.names[group] == "|".join(groups[forward[name]])
    for label, vspw in enumerate(VSPW.names):
        members = groups.get(vspw) or groups.get(forward.get(added.get(vspw, ""), ""))
        assert back.predictions[label] == (back.classes.names.index("|".join(members)) if members else 255)
    first = [min(names.index(name) for name in group.split("|")) for group in back.classes.names]
    assert first == sorted(first) and [colour[0] for colour in back.classes.palette] == first


@pytest.mark.parametrize(
    ("source", "names"), VERSIONS, ids=lambda value: f"{len(value)}" if len(value) > 15 else value
)
def test_additions_of_the_way_back_are_needed_and_known(source, names):
    """Each names a VSPW class that no class of the version becomes, and a class that is mapped."""
    forward = {row["name"]: row["vspw"] for row in rows_of(source) if row["name"] in names}
    rows = [row for row in additions(source) if row.name in names]
    assert len({row.vspw for row in rows}) == len(rows) > 0
    for row in rows:
        assert row.vspw in VSPW.names and row.vspw not in forward.values() and forward[row.name], row
        assert row.confidence in ("high", "medium"), row


def test_every_addition_belongs_to_a_version():
    with open(TABLES / "reverse.csv", newline="", encoding="utf-8") as file:
        rows = [(row["source"], row["name"]) for row in csv.DictReader(file)]
    known = {(source, name) for source, names in VERSIONS for name in names}
    assert set(rows) <= known


def test_what_users_expect_of_the_way_back():
    def counts_as(source, names, vspw):
        back = reverse_map(source, classes_named(names))
        group = back.predictions[VSPW.names.index(vspw)]
        return None if group == 255 else back.classes.names[group]

    assert counts_as("cityscapes", CITYSCAPES19, "person") == "person|rider"
    assert counts_as("cityscapes", CITYSCAPES19, "house") == "building"
    assert counts_as("cityscapes", CITYSCAPES19, "bridge") is None  # no class of the benchmark
    assert counts_as("cityscapes", CITYSCAPES[6:], "bridge") == "bridge"
    assert counts_as("cityscapes", CITYSCAPES19, "gun") is None
    for water in ("sea", "river", "lake", "water"):
        assert counts_as("pascal_context", PASCAL, water) == "water"
    assert counts_as("camvid", CAMVID32, "wall") == "Wall" and counts_as("camvid", CAMVID11, "wall") == "building"
    traffic_sign = reverse_map("cityscapes", classes_named(CITYSCAPES19)).labels[CITYSCAPES19.index("traffic sign")]
    assert traffic_sign == 255  # VSPW has no such class: not scored


def test_a_way_back_to_nothing(tmp_path):
    file = write(tmp_path / "none.csv", "name,vspw\nsky,\n")
    told = "no class of the list has a counterpart in the remap table 'none.csv' of camvid"
    with pytest.raises(ValueError, match=told):
        reverse_map("camvid", classes_named(["sky"]), file)


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no CamVid here")
def test_camvid_in_vspws_layout_has_the_names_of_the_table():
    assert ClassList.from_root(CAMVID).names == tuple(CAMVID11)
    assert open_split(CAMVID, "val", source="camvid", table="default").classes is VSPW


# --- the command


def run(*words):
    """The exit code of `vss-hf data remap ...`."""
    with pytest.raises(SystemExit) as stopped:
        command_line(["data", "remap", *map(str, words)])
    return stopped.value.code


@pytest.mark.parametrize("source", (*FILES, "coco_stuff10k", "cityscapes19"))
def test_command_prints_the_table(source, capsys, tmp_path):
    assert run("--source", source, "--json", tmp_path / "table.json") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "│" not in out and "…" not in out  # plain when it goes into a file
    file = {"coco_stuff10k": "coco_stuff", "cityscapes19": "cityscapes"}.get(source, source)
    lines = out.splitlines()
    for row in rows_of(file):
        shown = row["vspw"] or (f"ignored (candidate {row['candidate']})" if row["candidate"] else "ignored")
        parts = [part for part in (row["id"], row["name"], shown, row["confidence"], row["note"]) if part]
        assert any(
            re.split(r"  +", line.strip()) == parts or line.split() == " ".join(parts).split() for line in lines
        )
    total, mapped, ignored, covered = COUNTS[file][0]
    assert f"{total} classes: {mapped} mapped, {ignored} ignored; {covered} of 124 VSPW classes covered" in lines

    report = json.loads((tmp_path / "table.json").read_text())
    version = report["versions"][0]
    assert (report["source"], report["table"], len(report["versions"])) == (source, "default", 1 + (file == "camvid"))
    assert (len(version["classes"]), version["mapped"], version["ignored"]) == (total, mapped, ignored)
    assert version["vspw_covered"] == covered == 124 - len(version["vspw_not_covered"])
    assert {row["vspw"] for row in version["classes"] if row["vspw"]} == {*VSPW.names} - {*version["vspw_not_covered"]}


def test_command_prints_the_way_back(capsys, tmp_path):
    assert run("--source", "camvid", "--reverse", "--json", tmp_path / "back.json") == 0
    lines = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert ["house", "Archway|Building", "high", "part of it"] in lines and ["gun", "none"] in lines
    assert ["wall", "building", "high", "the class includes walls"] in lines  # the 11 classes, below
    for version, names in zip(
        json.loads((tmp_path / "back.json").read_text())["versions"], (CAMVID32, CAMVID11), strict=True
    ):
        back = reverse_map("camvid", classes_named(names))
        assert version["reverse"]["groups"] == list(back.classes.names)
        for label, name in enumerate(VSPW.names):
            group = back.predictions[label]
            assert version["reverse"]["vspw"][name]["group"] == (None if group == 255 else back.classes.names[group])


def test_command_writes_a_copy_to_edit(capsys, tmp_path):
    copy = tmp_path / "mine.csv"
    assert run("--source", "cityscapes", "--table", "liberal", "--out", copy) == 0
    assert f"--table {copy}" in capsys.readouterr().out
    assert load_table("cityscapes", copy).rows == load_table("cityscapes", "liberal").rows
    copy.write_text(copy.read_text().replace("caravan,car,", "caravan,bus,"))
    assert run("--source", "cityscapes", "--table", copy) == 0
    assert "caravan" in capsys.readouterr().out
    edited = copy.read_bytes()
    assert run("--source", "cityscapes", "--out", copy) == 2 and copy.read_bytes() == edited
    assert "exists already" in capsys.readouterr().err


def test_command_says_when_there_is_nothing_to_remap(capsys):
    assert run("--source", "vipseg") == 0
    assert capsys.readouterr().out == "vipseg has VSPW's own 124 classes: nothing to remap\n"
    assert run("--source", "vispeg") == 2 and "nearest: 'vipseg'" in capsys.readouterr().err
