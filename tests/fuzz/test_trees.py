"""Data sets with random damage: verification never stops, and it and the reader agree on what can be used.

Both directions: what `verify_dataset` passes can be read, trained on and evaluated, every sample of it; what cannot be
read is reported as an error.
"""

import io
import json
import os
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fuzzing import outcome, png_pictures, run_cli
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from vss_hf.data import load_vspw, repair_dataset, verify_dataset
from vss_hf.data.labels import LABEL_FILE, ClassList
from vss_hf.data.transforms import AugmentationConfig, TrainTransform
from vss_hf.data.vspw import scan_split
from vss_hf.scoring import evaluate_model


SPLITS = {"train": {"1_a": 2, "2_b-_": 2}, "val": {"3_v": 2}, "test": {"4_t": 2}}
NAMES = {"others": 0, "road": 1, "sky": 2, "tree": 5}
HEIGHT, WIDTH = 9, 12
TRANSFORM = TrainTransform(AugmentationConfig(crop_size=(8, 10)))


@pytest.fixture(scope="session")
def sound_tree(tmp_path_factory):
    """A sound data set of 8 frames; frames are JPEG and PNG in turn."""
    root = tmp_path_factory.mktemp("sound")
    rng = np.random.default_rng(0)
    for split, videos in SPLITS.items():
        for video, frames in videos.items():
            folder = root / "data" / video
            (folder / "origin").mkdir(parents=True)
            for number in range(frames):
                picture = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
                picture.save(folder / f"origin/{number:08d}.{'jpg' if number % 2 else 'png'}")
                if split != "test":
                    (folder / "mask").mkdir(exist_ok=True)
                    values = rng.choice(np.array([0, 1, 2, 5, 255], np.uint8), (HEIGHT, WIDTH))
                    Image.fromarray(values).save(folder / f"mask/{number:08d}.png")
        (root / f"{split}.txt").write_text("".join(f"{video}\n" for video in videos))
    (root / LABEL_FILE).write_text(json.dumps(NAMES))
    return root


# --- what "can be used" means


class Blind:
    """Stands for a model: always answers class 0."""

    def __init__(self, names):
        self.names = list(names)
        self.model = SimpleNamespace(device=torch.device("cpu"), config=SimpleNamespace(name_or_path="blind"))

    def reset(self):
        pass

    def settings(self):
        return {}

    def label_batch(self, frames):
        return [np.zeros(frame.shape[:2], np.uint8) for frame in frames]


def use_all(root, split):
    """Reads every sample of a split, makes a training example of it where it is labelled, and evaluates."""
    labelled = scan_split(root, split)[0].has_masks
    for sample in load_vspw(root, split):
        if labelled:
            TRANSFORM(sample, 7)
    if labelled:
        evaluate_model(Blind(ClassList.from_root(root).names), root, split, batch_size=2)


def check_tree(root):
    """The property; returns whether the tree was found sound."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decompression bombs, class names with id 0
        report = verify_dataset(root, progress=False, max_workers=1)
        json.dumps(report.to_dict(), ensure_ascii=False).encode("utf-8")
        shown = io.StringIO()
        report.print(Console(file=shown, width=120))
        text = shown.getvalue()
        text.encode("utf-8")
        assert "\x1b" not in text and ("no errors" in text) == report.ok
        for split in SPLITS:
            if not os.path.lexists(root / f"{split}.txt"):
                assert split not in report.splits
                continue
            _, error = outcome(use_all, root, split)
            assert error is None or not report.ok, f"passed, but {split}: {error}"
            if report.ok:
                assert split in report.splits
                masks = report.splits[split].masks
                unlabelled = not scan_split(root, split)[0].has_masks
                kinds = {(warning.kind, warning.path) for warning in report.warnings}
                assert not unlabelled or masks == 0
                assert not unlabelled or split == "test" or ("split_without_masks", split) in kinds
    return report.ok


# --- damage: each kind is a function (root, draw) that may find nothing left to damage


def pick(draw, paths):
    paths = sorted(paths)
    return draw(st.sampled_from(paths)) if paths else None


def images(root, pattern="*/*/*"):
    return [path for path in root.glob(f"data/{pattern}") if path.is_file() and not path.is_symlink()]


def delete(root, draw):
    if path := pick(draw, [p for p in root.rglob("*") if not p.is_symlink()]):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def truncate(root, draw):
    if path := pick(draw, [p for p in root.rglob("*") if p.is_file()]):
        data = path.read_bytes()
        path.write_bytes(data[: draw(st.integers(0, len(data)))])


def flip_bits(root, draw):
    if path := pick(draw, [p for p in root.rglob("*") if p.is_file() and p.stat().st_size]):
        data = bytearray(path.read_bytes())
        for _ in range(draw(st.sampled_from([1, 1, 3, 20]))):
            data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        path.write_bytes(data)


def empty(root, draw):
    if path := pick(draw, [p for p in root.rglob("*") if p.is_file()]):
        path.write_bytes(b"")


def swap(root, draw):
    paths = [p for p in root.rglob("*") if p.is_file()]
    one, two = pick(draw, paths), pick(draw, paths)
    if one and two:
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)


def other_picture(root, draw):
    if path := pick(draw, images(root)):
        path.write_bytes(
            draw(png_pictures(*draw(st.sampled_from([(HEIGHT, WIDTH), (HEIGHT, WIDTH), (5, 7), (1, 40)]))))[0]
        )


def other_mode_or_format(root, draw):
    if path := pick(draw, images(root)):
        mode = draw(st.sampled_from(["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I", "F", "I;16"]))
        kind = draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
        try:
            Image.new("L", (WIDTH, HEIGHT), 1).convert(mode).save(path, kind)
        except (OSError, ValueError):  # not every format holds every mode
            path.write_bytes(b"GIF89a")


def other_size_of_a_pair(root, draw):
    """A frame and its mask of another size than the rest of the video: fine as a picture, not in a video."""
    if path := pick(draw, images(root, "*/mask/*.png")):
        for frame in (path.parent.parent / "origin").glob(f"{path.stem}.*"):
            if frame.is_file():
                Image.new("RGB", (7, 5)).save(frame, "PNG")
        Image.new("L", (7, 5), 1).save(path, "PNG")


def value_out_of_table(root, draw):
    if path := pick(draw, images(root, "*/mask/*.png")):
        Image.new("L", (WIDTH, HEIGHT), draw(st.integers(0, 255))).save(path, "PNG")


FILE_NAMES = st.sampled_from([
    ".DS_Store", "._00000000.png", "Thumbs.db", "00000000.jpeg", "00000000.PNG", "00000001.png", "00000099.png",
    "x.png", "7.jpg",
    "00000000 (1).png", "00000000.png.part", "note.txt", "\udcff.png", "caf\udce9.jpg", "new\nline.png", "日本.png",
    "²3.png", "１.png",
    ".png", "00000000", "-1.png", "1e5.jpg", "\x1b[31m.png", "[red].png", "4" * 200 + ".png",
])  # fmt: skip


def extra_file(root, draw):
    folder = pick(draw, [root, *(p for p in root.rglob("*") if p.is_dir())])
    path = folder / draw(FILE_NAMES)
    if not os.path.lexists(path):
        data = draw(st.sampled_from([b"", b"x", None]))
        if data is None:
            Image.new("L", (WIDTH, HEIGHT), 1).save(path, "PNG")
        else:
            path.write_bytes(data)


def extra_folder(root, draw):
    folder = pick(draw, [root, *(p for p in root.rglob("*") if p.is_dir())])
    path = folder / draw(FILE_NAMES | st.sampled_from(["origin", "mask", "val.txt", "9_u", "1_a"]))
    if not os.path.lexists(path):
        path.mkdir()


def link(root, draw):
    path = pick(draw, [p for p in root.rglob("*") if not p.is_symlink()])
    target = draw(st.sampled_from(["nowhere", ".", "..", "itself", "another", "/dev/null", "/dev/zero"]))
    other = pick(draw, [p for p in root.rglob("*") if p != path])
    if path and other:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to({"itself": path, "another": other}.get(target, target))


def case(root, draw):
    if path := pick(draw, [p for p in root.rglob("*") if p.name.upper() != p.name.lower()]):
        new = path.with_name(draw(st.sampled_from([path.name.upper(), path.name.lower(), path.name.title()])))
        if not os.path.lexists(new):
            path.rename(new)


def rename(root, draw):
    if path := pick(draw, list(root.rglob("*"))):
        new = path.with_name(draw(FILE_NAMES))
        if not os.path.lexists(new):
            path.rename(new)


LIST_LINES = st.sampled_from([
    "1_a", "2_b-_", "3_v", "4_t", "1_a ", " 3_v", "1_A", "", " ", "../x", "../data/1_a", "/", "/etc", "..", ".",
    "1_a/", "1_a/origin",
    "1_a\\", "1_a\x00", "nowhere", "x" * 300, "日本", "1_a\u2028", "\ufeff1_a", "#1_a", "1_a 3_v", "1_a\t", "~", "*",
    "CON", "\x1b[31m",
])  # fmt: skip


def list_file(root, draw):
    name = draw(st.sampled_from(["train.txt", "val.txt", "test.txt"]))
    if os.path.isdir(root / name) or os.path.islink(root / name):
        return
    kind = draw(st.sampled_from(["lines", "same", "same", "bytes"]))
    if kind == "bytes":
        (root / name).write_bytes(draw(st.binary(max_size=12)))
        return
    lines = draw(st.lists(LIST_LINES, max_size=4)) if kind == "lines" else list(SPLITS[name[:-4]])
    end = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\n \n"]))
    last = draw(st.sampled_from(["", end, end * 3]))
    mark = draw(st.sampled_from(["", "", "\ufeff"]))
    (root / name).write_bytes(
        (mark + end.join(lines) + last).encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-16"])))
    )


LABEL_TEXTS = st.one_of(
    st.sampled_from([
        b"", b"{}", b"[]", b"null", b"3", b'"road"', b"{", b'{"road": 1}', b'{"road": 1, "road": 2}',
        b'{"road": 1, "sky": 1}',
        b'{"road": 1.0}', b'{"road": "1"}', b'{"road": true}', b'{"road": null}', b'{"road": [1]}',
        b'{"road": {"id": 1}}',
        b'{"road": -1}', b'{"road": 256}', b'{"road": 255}', b'{"void": 255, "road": 1}', b'{"road": 0}',
        b'{"road": 1e1}',
        b'{"road": NaN}', b'{"road": Infinity}', b'{"": 1}', b'{" ": 1}', b'{"\\ud800": 1}', b'{"\\u001b[31m": 1}',
        b'{"[red]": 1}',
        b'{"a\\nb": 1, "sky": 2}', b'{"\\u0000": 1}', b'\xff', '{"road": 1}'.encode("utf-16"),
        b"\xef\xbb\xbf" + b'{"road": 1}',
        b'[["road", 1]]', b'[{"road": 1}]', b'{"road": 1}{"sky": 2}', b'{"road": 1} trailing', b"[" * 100_000,
        b'{"a":' * 100_000, b'{"road": ' + b"9" * 5000 + b"}", b'{"road": 9' + b"9" * 30 + b"}", b'{"road": 01}',
        b"{'road': 1}",
        json.dumps({f"c{i}": i for i in range(1, 255)}).encode(), json.dumps({f"c{i}": i for i in range(1,
        300)}).encode(),
        json.dumps({"x" * 5000: 1}).encode(),
    ]),
    st.dictionaries(st.text(max_size=4), st.integers(-2, 260) | st.floats() | st.none() | st.booleans(),
    max_size=5).map(
        lambda value: json.dumps(value).encode()
    ),
    st.binary(max_size=10),
)  # fmt: skip


def label_file(root, draw):
    path = root / LABEL_FILE
    if not os.path.isdir(path) and not os.path.islink(path):
        path.write_bytes(draw(LABEL_TEXTS))


DAMAGE = (
    delete, truncate, flip_bits, flip_bits, empty, swap, other_picture, other_picture, other_mode_or_format,
    other_mode_or_format, other_size_of_a_pair, value_out_of_table, extra_file, extra_file, extra_folder, link, case,
    rename, list_file, list_file, label_file, label_file,
)  # fmt: skip


@pytest.fixture
def fresh(sound_tree, tmp_path):
    """Call it for a copy of the sound data set; the one before is removed."""

    def copy():
        shutil.rmtree(tmp_path / "tree", ignore_errors=True)
        return shutil.copytree(sound_tree, tmp_path / "tree")

    copy.folder = tmp_path
    return copy


def test_the_sound_tree(fresh):
    assert check_tree(fresh())


def test_one_fault(fuzz, fresh):
    counts = {True: 0, False: 0}

    def check(data, damage):
        root = fresh()
        damage(root, data.draw)
        counts[check_tree(root)] += 1

    fuzz(check, st.data(), st.sampled_from(DAMAGE), quick=50, slow=3000)
    assert min(counts.values()) >= 5, counts


def test_several_faults(fuzz, fresh):
    def check(data, damages):
        root = fresh()
        for damage in damages:
            damage(root, data.draw)
        check_tree(root)

    fuzz(check, st.data(), st.lists(st.sampled_from(DAMAGE), min_size=2, max_size=5), quick=15, slow=2000)


@pytest.mark.parametrize(
    "damage", [label_file, list_file, other_picture, other_mode_or_format], ids=lambda d: d.__name__
)
def test_one_kind_of_fault(fuzz, fresh, damage):
    def check(data):
        root = fresh()
        damage(root, data.draw)
        check_tree(root)

    fuzz(check, st.data(), quick=12, slow=700)


def test_the_command_line(fuzz, fresh):
    def check(data, damage):
        root = fresh()
        damage(root, data.draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ok = verify_dataset(root, progress=False, max_workers=1).ok
            code, out, err = run_cli(["data", "verify", root, "--json", root.parent / "report.json"])
        assert code == (0 if ok else 1), err
        assert "Traceback" not in err and "error:" not in err
        assert json.loads((root.parent / "report.json").read_text(encoding="utf-8"))["ok"] is ok

    fuzz(check, st.data(), st.sampled_from(DAMAGE), quick=8, slow=300)


# --- repair: whatever the damage, the originals stay, the result is clean, and a second run changes nothing


def everything(root):
    """Names, times and contents below a folder."""
    files = {}
    for folder, names, others in os.walk(root):
        for name in [*names, *others]:
            path = os.path.join(folder, name)
            regular = os.path.isfile(path) and not os.path.islink(path)
            with open(path if regular else os.devnull, "rb") as file:
                files[path] = (os.lstat(path).st_mtime_ns, file.read())
    return files


def check_repair(root, out):
    """The property; returns whether `out` was repaired. What is refused leaves everything as it was."""
    before = everything(root), everything(out)
    options = {"height": 6, "max_workers": 1, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report, error = outcome(repair_dataset, root, out, **options)
        assert everything(root) == before[0], "the originals were changed"
        if error is not None:
            assert everything(out) == before[1], error
            return False
        # every byte that was there is still there
        assert {data for _, data in before[1].values()} <= {data for _, data in everything(out).values()}
        json.dumps(report.to_dict(), ensure_ascii=False).encode("utf-8")
        report.print(Console(file=io.StringIO(), width=120))
        # only what nobody can know is left to the user: the classes, and videos where none is left
        assert {finding.kind for finding in report.result.errors} <= {"class_list", "split_file"}
        if report.ok:
            for split in report.result.splits:
                use_all(out, split)
        after = everything(out)
        assert repair_dataset(root, out, **options).ok == report.ok
        assert everything(out) == after, "a second run changed something"
    return True


def test_repair_into_a_new_folder(fuzz, fresh):
    def check(data, damages):
        root, out = fresh(), fresh.folder / "out"
        for damage in damages:
            damage(root, data.draw)
        shutil.rmtree(out, ignore_errors=True)
        check_repair(root, out)

    fuzz(check, st.data(), st.lists(st.sampled_from(DAMAGE), min_size=1, max_size=4), quick=15, slow=700)


def test_repair_of_a_damaged_folder(fuzz, fresh):
    def check(data, damages, more):
        root, out = fresh(), fresh.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            repair_dataset(root, out, height=6, max_workers=1, progress=False)
        for place, all_of_it in ((out, damages), (root, more)):
            for damage in all_of_it:
                damage(place, data.draw)
        check_repair(root, out)

    some = st.sampled_from(DAMAGE)
    fuzz(check, st.data(), st.lists(some, min_size=1, max_size=4), st.lists(some, max_size=2), quick=15, slow=700)


# --- falsifying examples of the past, one by one


def errors_of(root):
    return {(finding.kind, os.path.basename(finding.path)) for finding in verify_dataset(root, progress=False).errors}


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b'{"road": ' + b"9" * 5000 + b"}"])
def test_label_file_that_python_cannot_parse(fresh, text):
    root = fresh()
    (root / LABEL_FILE).write_bytes(text)
    assert errors_of(root) == {("class_list", LABEL_FILE)}
    with pytest.raises(ValueError, match=LABEL_FILE):
        ClassList.from_root(root)
    assert not check_tree(root)


@pytest.mark.parametrize("name", ["\\ud800", "", " ", "\\u001b[31m", "a\\nb", "\\u0000"])
def test_class_names_that_are_no_text(fresh, name):
    root = fresh()
    (root / LABEL_FILE).write_text(f'{{"road": 1, "{name}": 2}}')
    with pytest.raises(ValueError, match=f"{LABEL_FILE}.*name"):
        ClassList.from_root(root)
    assert not check_tree(root)


def test_names_that_are_not_utf8(fresh):
    root = fresh()
    try:
        (root / "data/1_a/origin/00000000.png").rename(root / "data/1_a/origin/caf\udce9.png")
        (root / "data/1_a/mask/00000000.png").rename(root / "data/1_a/mask/caf\udce9.png")
    except OSError:
        pytest.skip("the file system refuses such names")
    assert ("unreadable_folder", "1_a") in errors_of(root)
    with pytest.raises(ValueError, match="UTF-8"):
        load_vspw(root, "train")


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_frames_of_more_than_8_bits(fresh, mode):
    root = fresh()
    kind = "PNG" if mode == "I;16" else "TIFF"
    Image.new("L", (WIDTH, HEIGHT), 9).convert(mode).save(root / "data/3_v/origin/00000000.png", kind)
    assert ("unreadable_file", "00000000.png") in errors_of(root)
    with pytest.raises(ValueError, match="00000000.png.*8 bits"):
        list(load_vspw(root, "val"))


def test_a_labelled_video_whose_frames_change_size(fresh):
    """Frames load one by one, but there is no video consistency across the change: evaluation would stop there."""
    root = fresh()
    Image.new("RGB", (7, 5)).save(root / "data/3_v/origin/00000001.jpg")
    Image.new("L", (7, 5), 1).save(root / "data/3_v/mask/00000001.png")
    assert errors_of(root) == {("frame_size_changes", "00000001.jpg")} or errors_of(root) == {
        ("frame_size_changes", "00000000.png")
    }
    with pytest.raises(ValueError, match="shape"):
        evaluate_model(Blind(["road", "sky", "tree"]), root, "val")
    assert not check_tree(root)


def test_a_list_that_is_a_folder_or_a_broken_link(fresh):
    for make in (
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to(path),
    ):
        root = fresh()
        (root / "val.txt").unlink()
        make(root / "val.txt")
        assert ("split_file", "val.txt") in errors_of(root)
        with pytest.raises(ValueError, match="val"):
            load_vspw(root, "val")
