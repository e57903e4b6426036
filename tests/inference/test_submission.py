"""Submissions: what is packed, and that the check finds every fault which a server would reject."""

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from colour_model import write_data
from PIL import Image
from tiny_models import moving_frames, save_model

from vss_hf.cli import main
from vss_hf.cli_submission import DEFAULT_ROOT
from vss_hf.data.labels import VSPW
from vss_hf.inference.submission import ZIP_ROOT, pack_folder, unsafe_name, write_submission
from vss_hf.inference.submission_check import check_submission


VIDEOS = {"0_a": [(12, 20)] * 3, "1_b": [(10, 16), (16, 10)]}  # frame sizes (H, W); frames are called 00000004, ...
FIRST = "result_submission/0_a/00000004.png"


def frame_name(number: int) -> str:
    return f"{4 + 3 * number:08d}"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data set without masks and class list, as the test split of VSPW is."""
    root = tmp_path_factory.mktemp("VSPW")
    for video, sizes in VIDEOS.items():
        (root / "data" / video / "origin").mkdir(parents=True)
        for number, size in enumerate(sizes):
            picture = root / "data" / video / "origin" / f"{frame_name(number)}.jpg"
            Image.fromarray(np.zeros((*size, 3), np.uint8)).save(picture)
    (root / "test.txt").write_text("1_b\n0_a\n")
    return root


@pytest.fixture
def maps(tmp_path) -> dict[str, np.ndarray]:
    """A label map of each frame, among them the values 0 and 123; also as files in `tmp_path`/maps."""
    rng, found = np.random.default_rng(0), {}
    for video, sizes in VIDEOS.items():
        (tmp_path / "maps" / video).mkdir(parents=True)
        for number, size in enumerate(sizes):
            labels = rng.integers(0, 124, size, np.uint8)
            labels[0, :2] = 0, 123
            found[f"{video}/{frame_name(number)}.png"] = labels
            Image.fromarray(labels).save(tmp_path / "maps" / video / f"{frame_name(number)}.png")
    return found


def png(array: np.ndarray, **settings) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG", **settings)
    return data.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes, *between: bytes) -> bytes:
    """A PNG put together by hand."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(between) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def run(capsys, *words) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


# --- packing


def test_what_is_packed(root, maps, tmp_path):
    """Grey files become palette ones in VSPW's colours; nothing but label maps gets in; always the same bytes."""
    folder, archive = tmp_path / "maps", tmp_path / "s.zip"
    (folder / "0_a_overlay.mp4").write_bytes(b"video")
    (folder / "0_a" / "notes.txt").write_text("notes")
    (folder / "0_a" / "deeper").mkdir()
    (folder / "0_a" / "deeper" / "x.png").write_bytes(b"x")
    (folder / ".prediction").mkdir()
    (folder / ".prediction" / "run.json").write_text("{}")
    (folder / "0_a" / "._00000004.png").write_bytes(b"of a Mac")
    packed = pack_folder(folder, archive)
    left_out = ["0_a/deeper/x.png", "0_a/notes.txt", "0_a_overlay.mp4"]
    assert packed == {"label_maps": 5, "videos": 2, "left_out": left_out}
    with zipfile.ZipFile(archive) as zipped:
        assert zipped.namelist() == sorted(f"result_submission/{name}" for name in maps)
        for name, labels in maps.items():
            with Image.open(io.BytesIO(zipped.read(f"result_submission/{name}"))) as image:
                assert image.mode == "P" and np.array_equal(np.array(image), labels)
                assert tuple(image.getpalette()[:372]) == tuple(np.ravel(VSPW.palette))
        assert {info.date_time for info in zipped.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert check_submission(archive, root).to_dict()["counts"] == {}
    first = archive.read_bytes()
    shuffled = sorted(((name, folder / name) for name in maps), key=lambda pair: pair[0][::-1])
    assert write_submission(shuffled, archive) == 5 and archive.read_bytes() == first


def test_values_of_masks_become_labels(root, maps, tmp_path):
    for name, labels in maps.items():
        Image.fromarray(labels + 1).save(tmp_path / "maps" / name)
    with pytest.raises(ValueError, match=r"\.png: \d+ pixels have the value 124 .*labels 0\.\.123"):
        pack_folder(tmp_path / "maps", tmp_path / "s.zip")
    pack_folder(tmp_path / "maps", tmp_path / "s.zip", values="disk")
    with zipfile.ZipFile(tmp_path / "s.zip") as zipped:
        for name, labels in maps.items():
            stored = np.array(Image.open(io.BytesIO(zipped.read(f"result_submission/{name}"))))
            assert np.array_equal(stored, labels)
    Image.fromarray(np.zeros((12, 20), np.uint8)).save(tmp_path / "maps" / "0_a" / "00000004.png")
    before = (tmp_path / "s.zip").read_bytes()
    with pytest.raises(ValueError, match="00000004.png: 240 pixels have the value 0 .*mask values 1..124"):
        pack_folder(tmp_path / "maps", tmp_path / "s.zip", values="disk")
    assert (tmp_path / "s.zip").read_bytes() == before and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("colour", lambda: png(np.zeros((12, 20, 3), np.uint8))),
        ("text", lambda: b"no picture"),
        ("16-bit", lambda: png(np.zeros((12, 20), np.uint16))),
        ("cut", lambda: png(np.random.default_rng(0).integers(0, 99, (12, 20), np.uint8))[:-40]),
    ],
)
def test_what_is_no_label_map_is_not_packed(maps, tmp_path, name, wrong):
    (tmp_path / "maps" / "0_a" / "00000007.png").write_bytes(wrong())
    with pytest.raises(ValueError, match="0_a/00000007.png: "):
        pack_folder(tmp_path / "maps", tmp_path / "s.zip")
    assert not (tmp_path / "s.zip").exists()


def test_names_that_are_not_packed(maps, tmp_path):
    path = tmp_path / "maps" / "0_a" / "00000004.png"
    for name in ("../x.png", "/x/y.png", "a\\b/y.png", "C:/y.png", "a//y.png", "a/./y.png", "a:b/y.png", "a/y\n.png"):
        with pytest.raises(ValueError, match="cannot be the name of a label map in a zip"):
            write_submission([(name, path)], tmp_path / "s.zip")
        assert unsafe_name(name)
    for name in ("a./x.png", "a /x.png", "a/x.png\0", "\\\\host/x.png", ""):
        assert unsafe_name(name), name
    assert unsafe_name("1002_gHJ-a_b (1)/ü 1.png") is None
    for zip_root in ("..", ".", "/tmp", "a/b", "a\\b", "c:", " a"):
        with pytest.raises(ValueError, match="--zip_root"):
            write_submission([("a/x.png", path)], tmp_path / "s.zip", zip_root)
    with pytest.raises(ValueError, match="no label maps to pack"):
        write_submission([], tmp_path / "s.zip")


@pytest.mark.parametrize("zip_root", ["", "predictions"])
def test_zip_root(root, maps, tmp_path, zip_root):
    pack_folder(tmp_path / "maps", tmp_path / "s.zip", zip_root=zip_root)
    with zipfile.ZipFile(tmp_path / "s.zip") as zipped:
        assert sorted(zipped.namelist()) == sorted(f"{zip_root}/{name}".lstrip("/") for name in maps)
    assert check_submission(tmp_path / "s.zip", root, zip_root=zip_root).ok
    for other in ("result_submission", "", "predictions"):
        if other != zip_root:  # one error, and the rest is checked all the same
            report = check_submission(tmp_path / "s.zip", root, zip_root=other)
            assert [error.kind for error in report.errors] == ["root"] and report.label_maps == 5
    assert ZIP_ROOT == DEFAULT_ROOT


# --- the check


def kinds(report) -> dict[str, int]:
    return report.to_dict()["counts"]


@pytest.fixture
def check(root, maps, tmp_path):
    """The report on an archive with other, further or without some members; bytes replace what is in the file."""

    def build(changes: dict[str, bytes | None] | None = None, edit=None):
        members = {f"result_submission/{name}": png(labels) for name, labels in maps.items()} | (changes or {})
        archive = tmp_path / "s.zip"
        with zipfile.ZipFile(archive, "w") as zipped:
            for name, data in members.items():
                if data is not None:
                    zipped.writestr(name, data)
            if edit is not None:
                edit(zipped)
        return check_submission(archive, root)

    return build


NOISE = np.random.default_rng(1).integers(0, 124, (12, 20), np.uint8)
ROWS = b"".join(b"\0" + bytes(10) for _ in range(12))
PALETTE = chunk(b"PLTE", bytes(range(48)))
FAULTS = {  # name: what replaces the first label map, the kind of error, words of its detail
    "size": (png(NOISE.T.copy()), "size", "is 12x20, its frame 20x12 (width x height)"),
    "colour": (png(np.zeros((12, 20, 3), np.uint8)), "mode", "8-bit RGB; expected 8-bit palette or grey"),
    "alpha": (png(np.zeros((12, 20, 4), np.uint8)), "mode", "8-bit RGB with alpha"),
    "16 bits": (png(np.zeros((12, 20), np.uint16)), "mode", "16-bit grey"),
    "4 bits": (raw_png(20, 12, 4, 0, ROWS), "mode", "4-bit grey"),
    "1 bit": (png(np.zeros((12, 20), bool)), "mode", "1-bit grey"),
    "void": (png(np.where(NOISE < 9, 255, NOISE).astype(np.uint8)), "values", "255 is void"),
    "124": (png(np.full((12, 20), 124, np.uint8)), "values", "value 124 in 240 pixels; expected 0..123"),
    "cut": (png(NOISE)[:-30], "damaged", ""),
    "empty": (b"", "damaged", ""),
    "checksum": (png(NOISE).replace(b"IDAT", b"IDAT\x01", 1)[:-1], "damaged", ""),
    "text": (b"no picture", "damaged", ""),
    "too large": (bytes(2**21), "too-large", "declares 2,097,152 bytes for 20x12 pixels; not read"),
    "huge header": (raw_png(60000, 60000, 8, 0, b""), "damaged", "decompression bomb"),
    "large header": (raw_png(12000, 12000, 8, 0, b""), "size", "is 12000x12000"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_label_map(check, name):
    data, kind, words = FAULTS[name]
    report = check({FIRST: data})
    assert kinds(report) == {kind: 1} and not report.ok
    assert report.errors[0].path == FIRST and words in report.errors[0].detail and report.warnings == []


def test_a_jpeg_with_a_png_name(check):
    data = io.BytesIO()
    Image.fromarray(NOISE).save(data, "JPEG")
    assert [(error.kind, error.detail) for error in check({FIRST: data.getvalue()}).errors] == [
        ("not-png", "is a JPEG file")
    ]


def test_a_palette_of_4_bits_is_only_doubtful(check):
    report = check({FIRST: raw_png(20, 12, 4, 3, ROWS, PALETTE)})
    assert report.ok and [(warning.kind, warning.path) for warning in report.warnings] == [("depth", FIRST)]


def test_coverage(check, maps):
    """A missing and a foreign frame, a missing and a foreign video, other files."""
    gone = [f"result_submission/{name}" for name in maps if name.startswith("1_b/")]
    extra = {
        "result_submission/0_a/00000007.png": None,
        "result_submission/0_a/00000008.png": png(NOISE),
        "result_submission/9_z/00000004.png": png(NOISE),
        "result_submission/9_z/00000005.png": png(NOISE),
        "result_submission/readme.txt": b"x",
        "result_submission/0_a/.DS_Store": b"x",
        "__MACOSX/result_submission/0_a/x.png": b"x",
    }
    report = check(dict.fromkeys(gone) | extra, lambda zipped: zipped.mkdir("result_submission/0_a"))
    found = {(error.kind, error.path, error.detail) for error in report.errors}
    assert found == {
        ("missing-video", "1_b", "its 2 frames have no label maps"),
        ("missing-frame", "0_a/00000007.png", "has no label map"),
        ("extra-file", "0_a/00000008.png", "is no label map of a frame of the split"),
        ("extra-video", "9_z", "is not in the split (2 files)"),
        ("extra-file", "readme.txt", "is no label map of a frame of the split"),
        ("extra-file", "0_a/.DS_Store", "is no label map of a frame of the split"),
        ("outside", "__MACOSX/result_submission/0_a/x.png", "is not below result_submission/"),
    }
    assert (report.videos, report.frames, report.label_maps) == (2, 5, 2)


def test_members_that_nobody_should_unpack(check):
    def edit(zipped):
        for name in ("../evil.png", "/etc/evil.png", "result_submission/a\\b.png", "C:/x.png", "result_submission//x"):
            zipped.writestr(name, b"x")
        link = zipfile.ZipInfo("result_submission/0_a/link.png")
        link.external_attr = 0o120777 << 16
        zipped.writestr(link, "/etc/passwd")
        with pytest.warns(UserWarning, match="Duplicate name"):
            zipped.writestr(FIRST, png(NOISE))

    report = check(edit=edit)
    assert kinds(report) == {"unsafe-name": 5, "link": 1, "duplicate": 1}
    reasons = {error.path: error.detail for error in report.errors}
    assert "leads out" in reasons["../evil.png"] and reasons["/etc/evil.png"] == "an absolute path"


def test_an_encrypted_member(check, root, tmp_path):
    """The flag in the directory is what counts; there is nothing to read without a password."""
    check()
    data = bytearray((tmp_path / "s.zip").read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 1
    (tmp_path / "s.zip").write_bytes(data)
    report = check_submission(tmp_path / "s.zip", root)
    assert kinds(report) == {"encrypted": 1, "missing-frame": 1}


def test_a_bomb_is_not_unfolded(root, maps, tmp_path, monkeypatch):
    """Megabytes of zeros where label maps should be, in a zip of a few kilobytes; and one that lies about it."""
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, labels in maps.items():
            zipped.writestr(f"result_submission/{name}", png(labels) if "1_b" in name else bytes(2**23))
        zipped.writestr("result_submission/bomb.bin", bytes(2**23))
    read = zipfile.ZipFile.read
    sizes = []
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, info: (sizes.append(info.file_size), read(self, info))[1]
    )
    report = check_submission(tmp_path / "s.zip", root)
    assert kinds(report) == {"extra-file": 1, "too-large": 3} and len(sizes) == 2 and max(sizes) < 2000
    data = (tmp_path / "s.zip").read_bytes()
    (tmp_path / "s.zip").write_bytes(data.replace(struct.pack("<I", 2**23), struct.pack("<I", 1000)))
    assert kinds(check_submission(tmp_path / "s.zip", root)) == {"extra-file": 1, "damaged": 3}


def test_values_of_masks_are_noticed(check, maps):
    """All labels too high by one: only the missing 0 tells, if the last class does not occur."""
    shifted = {f"result_submission/{name}": png(np.minimum(labels, 122) + 1) for name, labels in maps.items()}
    report = check(shifted)
    assert report.ok and [warning.kind for warning in report.warnings] == ["no-zero"]
    assert "--values disk" in report.warnings[0].detail


def test_what_is_no_zip(root, maps, tmp_path):
    """Cut off or with a few wrong bytes: findings, never a traceback."""
    pack_folder(tmp_path / "maps", tmp_path / "s.zip")
    whole = (tmp_path / "s.zip").read_bytes()
    bad = tmp_path / "bad.zip"
    for data in (b"", b"text" * 10, whole[:-30], whole[: len(whole) // 2]):
        bad.write_bytes(data)
        assert kinds(check_submission(bad, root)) == {"not-a-zip": 1}
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(150):
        data = bytearray(whole)
        start = rng.integers(0, len(data), 3) if rng.random() < 0.5 else rng.integers(len(data) - 500, len(data), 3)
        for position in start:
            data[position] = rng.integers(0, 256)
        bad.write_bytes(data)
        found += not check_submission(bad, root).ok
    assert found > 100  # the others hit dates, palettes and the like


def test_a_data_set_of_other_classes(root, maps, tmp_path):
    (tmp_path / "maps" / "0_a").rename(tmp_path / "maps" / "0_b")
    pack_folder(tmp_path / "maps", tmp_path / "s.zip")
    other = tmp_path / "other"
    (other / "data").mkdir(parents=True)
    for video in ("0_b", "1_b"):
        source = root / "data" / ("0_a" if video == "0_b" else video)
        (other / "data" / video).symlink_to(source)
    (other / "val.txt").write_text("0_b\n1_b\n")
    (other / "label_num_dic_final.json").write_text(json.dumps({"road": 1, "sky": 2}))
    report = check_submission(tmp_path / "s.zip", other, "val")
    assert kinds(report) == {"values": 5} and "expected 0..1" in report.errors[0].detail


# --- the commands


def test_the_commands(root, maps, tmp_path, capsys):
    archive = tmp_path / "s.zip"
    (tmp_path / "maps" / "r.json").write_text("{}")
    code, out, _ = run(capsys, "submission", "pack", tmp_path / "maps", archive, "--zip-root", "")
    assert code == 0 and f"{archive}: 5 label maps of 2 videos" in out and "left out" in out and "r.json" in out
    words = ["submission", "check", archive, "--data", root]
    code, out, _ = run(capsys, *words, "--zip_root", "", "--json", tmp_path / "r.json")
    assert code == 0 and "5 label maps for 5 frames of 2 videos" in out and "no errors" in out
    assert json.loads((tmp_path / "r.json").read_text())["ok"] is True
    code, out, _ = run(capsys, *words, "--json", tmp_path / "r.json")
    assert code == 1 and "1 errors (1 root)" in out
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["counts"] == {"root": 1} and written["errors"][0]["kind"] == "root"


def test_many_errors_are_counted(root, maps, tmp_path, capsys):
    """The first ten of a kind are shown."""
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as zipped:
        for number in range(25):
            zipped.writestr(f"result_submission/0_a/x{number:02d}.png", b"")
    code, out, _ = run(capsys, "submission", "check", tmp_path / "s.zip", "--data", root)
    assert code == 1 and "extra-file: and 15 more" in out and "missing-video: 1_b: its 2 frames" in out
    assert "29 errors (1 missing-video, 3 missing-frame, 25 extra-file)" in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "no.zip", "--data", "ROOT"], "no.zip: no such file"),
        (["check", "MAPS", "--data", "ROOT"], ": a folder; `vss-hf submission pack` makes the zip"),
        (["check", "S.zip", "--data", "ROOT", "--split", "tset"], "unknown split 'tset'"),
        (["check", "S.zip", "--data", "nowhere"], "nowhere: no such folder"),
        (
            ["check", "S.zip", "--data", "ROOT", "--zip_root", "a/b"],
            "--zip_root 'a/b': expected the name of one folder",
        ),
        (["pack", "nowhere", "S.zip"], "nowhere: no such folder"),
        (["pack", "MAPS", "nowhere/S.zip"], "folder nowhere does not exist"),
    ],
)
def test_wrong_words(root, maps, tmp_path, capsys, words, message):
    (tmp_path / "S.zip").write_bytes(b"")
    places = {"ROOT": root, "S.zip": tmp_path / "S.zip", "MAPS": tmp_path / "maps"}
    code, _, err = run(capsys, "submission", *(places.get(word, word) for word in words))
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0]


def test_predictions_that_cannot_be_submitted(root, tmp_path, capsys):
    """A model of other classes, something that is no split, a part of the frames: told before the work."""
    model = save_model(tmp_path / "model")
    words = ["predict", model, root, "--out", tmp_path / "o", "--submission", tmp_path / "s.zip"]
    code, _, err = run(capsys, *words)
    assert code == 2 and "(124), the model has others (5; class 0 is 'road', not 'wall')" in err
    names = {name: i + 1 for i, name in enumerate(["road", "tree", "sky", "sea", "sand"])}
    own = write_data(tmp_path / "own", {"1_b": moving_frames(3), "0_a": moving_frames(2, 37, 53)})
    (own / "label_num_dic_final.json").write_text(json.dumps(names))
    code, _, err = run(capsys, *words[:2], own, *words[3:], "--max-frames", 2)
    assert code == 2 and "a submission has every frame" in err
    code, _, err = run(capsys, *words[:2], own / "data" / "0_a", *words[3:])
    assert code == 2 and "a submission is of a split" in err
    assert not (tmp_path / "o").exists()
    code, out, err = run(capsys, *words[:2], own, *words[3:], "--zip_root", "")
    assert code == 0 and str(tmp_path / "s.zip") in out, err
    assert run(capsys, "submission", "check", tmp_path / "s.zip", "--data", own, "--zip_root", "")[0] == 0
    first = (tmp_path / "s.zip").read_bytes()
    assert run(capsys, *words[:2], own, *words[3:], "--zip_root", "")[0] == 0  # nothing left to label
    assert (tmp_path / "s.zip").read_bytes() == first
