"""Prediction files of other toolboxes: where they may lie, what they may hold, and what is said about the rest."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from vss_hf.cli import main as command_line
from vss_hf.data.vspw import scan_split
from vss_hf.refinement import flow
from vss_hf.scoring import score_predictions
from vss_hf.scoring.dumps import open_dump


SHAPE, NAMES = (6, 8), {"road": 1, "sky": 2, "car": 3}
FRAMES = [("u", "00"), ("u", "01"), ("v", "00")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("dumps")
    for number, (video, frame) in enumerate(FRAMES):
        folder = root / "data" / video
        for kind in ("origin", "mask"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(folder / "origin" / f"{frame}.png")
        Image.fromarray(labels(number) + np.uint8(1)).save(folder / "mask" / f"{frame}.png")
    (root / "val.txt").write_text("u\nv\n")
    (root / "label_num_dic_final.json").write_text(json.dumps(NAMES))
    return root


def labels(number):
    return np.random.default_rng(number).integers(0, 3, SHAPE).astype(np.uint8)


def encoded(image, kind="PNG"):
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()


def files(place="{video}/{frame}.png"):
    """A right file of every frame, by its name in the dump."""
    return {
        place.format(video=video, frame=frame): encoded(Image.fromarray(labels(number)))
        for number, (video, frame) in enumerate(FRAMES)
    }


def write_folder(path, contents):
    for name, data in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(path, contents):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


PLACES = [
    *["{video}/{frame}.png", "{video}/mask/{frame}.PNG"],
    *["result_submission/{video}/{frame}.png", "a/b/{video}/mask/{frame}.png"],
]


@pytest.mark.parametrize("place", PLACES)
def test_layouts(root, tmp_path, place):
    noise = {"readme.txt": b"x", "__MACOSX/u/._00.png": b"x", "u/clip.mp4": b"x"}
    folder = write_folder(tmp_path / "folder", files(place) | noise)
    archive = write_zip(tmp_path / "dump.zip", files(place) | noise)
    for path in (folder, archive):
        results = score_predictions(path, root)
        assert (results["mean_iou"], results["frames"], results["warnings"]) == (1, 3, [])
        assert results["model"] == path.name and results["predictions"]["resized_frames"] == 0
        with open_dump(path, scan_split(root, "val")) as dump:
            assert np.array_equal(dump.read("v", "00"), labels(2)) and dump.extra == []


def test_two_files_for_one_frame(root):
    """In the folder of a data set every frame has a picture and a mask, and only one of them can be meant."""
    with pytest.raises(ValueError, match=r"data/u/mask/00.png and data/u/origin/00.png are both predictions of frame"):
        score_predictions(root, root, values="disk")


def test_the_file_nearest_to_the_top_is_meant(root, tmp_path):
    wrong = encoded(Image.fromarray(np.zeros(SHAPE, np.uint8)))
    more = {"u/confidence/00.png": wrong, "old/u/00.png": wrong, "w/00.png": wrong, "u/02.png": wrong}
    path = write_folder(tmp_path, files() | more)
    results = score_predictions(path, root)
    assert results["mean_iou"] == 1
    coverage = results["coverage"]
    assert (coverage["frames_extra"], coverage["videos_extra"], coverage["frames_missing"]) == (4, 1, 0)
    assert set(coverage["first_extra"]) == {"u/confidence/00", "old/u/00", "w/00", "u/02"}
    assert results["warnings"][0].startswith("4 PNG files belong to no frame of the split; the first is ")


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_hidden_folders_are_not_looked_at(root, tmp_path, write):
    """A killed `predict` leaves the videos it was at in .prediction/partial; like hidden files they are no dump."""
    left = {".prediction/partial/v/00.png": files()["v/00.png"], "u/.ipynb_checkpoints/00.png": b"x"}
    videos = {name: data for name, data in files().items() if name.startswith("u/")}
    results = score_predictions(write(tmp_path / "dump", videos | left), root, missing="skip")
    assert results["coverage"]["frames_missing"] == 1 and results["coverage"]["frames_extra"] == 0


def test_links_do_not_lead_in_circles(root, tmp_path):
    write_folder(tmp_path / "real", files())
    (tmp_path / "dump").mkdir()
    for video in ("u", "v"):
        (tmp_path / "dump" / video).symlink_to(tmp_path / "real" / video)
    (tmp_path / "real/u/again").symlink_to(tmp_path / "dump")
    results = score_predictions(tmp_path / "dump", root)
    assert results["mean_iou"] == 1 and results["warnings"] == []


def test_palette_and_grey_are_read_as_stored(root, tmp_path):
    contents = files()
    for number, (video, frame) in enumerate(FRAMES):
        picture = Image.fromarray(labels(number), mode="P")
        picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])  # written with two bits per pixel
        contents[f"{video}/{frame}.png"] = encoded(picture)
    assert score_predictions(write_folder(tmp_path, contents), root)["mean_iou"] == 1


def bad_files():
    rgb = Image.fromarray(np.stack([labels(1)] * 3, axis=-1))
    too_high, other_size = np.full(SHAPE, 9, np.uint8), np.zeros((3, 4), np.uint8)
    good, deep = encoded(Image.fromarray(labels(1))), encoded(Image.fromarray(labels(1).astype(np.uint16)))
    return {
        "RGB": (encoded(rgb), "PNG image of mode RGB .* get the index masks"),
        "16 bits": (deep, "mode I;16 .* must hold 8-bit class indices"),
        "value": (encoded(Image.fromarray(too_high)), r"predictions hold the value 9 \(48 pixels\); labels are 0..2"),
        "size": (encoded(Image.fromarray(other_size)), r"found \(3, 4\), expected \(6, 8\) .* --resize"),
        "truncated": (good[:-30], "cannot be read as an image"),
        "empty": (b"", "empty|cannot be read"),
        "JPEG": (encoded(Image.fromarray(labels(1)), "JPEG"), "lossy formats change the indices"),
    }


@pytest.mark.parametrize("fault", list(bad_files()))
def test_faulty_files_are_named(root, tmp_path, fault):
    data, message = bad_files()[fault]
    contents = files() | {"u/01.png": data}
    for path in (write_folder(tmp_path / "folder", contents), write_zip(tmp_path / "dump.zip", contents)):
        with pytest.raises(ValueError, match=f"{path.name}.u/01.png: .*({message})"):
            score_predictions(path, root)


def test_resized(root, tmp_path):
    large = np.zeros(SHAPE, np.uint8)
    large[:3], large[:, 4:] = 1, 2
    contents = files() | {"u/01.png": encoded(Image.fromarray(large[1::2, 1::2]))}  # every block of four is constant
    results = score_predictions(write_folder(tmp_path / "small", contents), root, resize=True)
    whole = np.kron(large[1::2, 1::2], np.ones((2, 2), np.uint8))
    expected = score_predictions(
        write_folder(tmp_path / "large", files() | {"u/01.png": encoded(Image.fromarray(whole))}), root
    )
    assert results["per_video"] == expected["per_video"] and results["mean_iou"] == expected["mean_iou"] < 1
    assert (results["predictions"]["resized_frames"], expected["predictions"]["resized_frames"]) == (1, 0)


@pytest.mark.parametrize("name", ["../u/00.png", "/u/00.png", "u/../../00.png", "u\\00.png", "C:/u/00.png"])
def test_unsafe_names_in_a_zip_file(root, tmp_path, name):
    path = write_zip(tmp_path / "dump.zip", files() | {name: b"x"})
    with pytest.raises(ValueError, match=r"dump.zip: unsafe name .*pack it anew"):
        score_predictions(path, root)
    assert [path.name for path in tmp_path.iterdir()] == ["dump.zip"]


def test_zip_files_that_cannot_be_read(root, tmp_path):
    data = write_zip(tmp_path / "dump.zip", files()).read_bytes()
    (tmp_path / "cut.zip").write_bytes(data[:-40])
    with pytest.raises(ValueError, match="cut.zip: neither a folder nor a zip file that can be read"):
        score_predictions(tmp_path / "cut.zip", root)
    start = 30 + len("u/00.png")  # of what is packed first
    (tmp_path / "bad.zip").write_bytes(data[:start] + bytes(8) + data[start + 8 :])
    with pytest.raises(ValueError, match=r"bad.zip:u/00.png: cannot be unpacked"):
        score_predictions(tmp_path / "bad.zip", root)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or zip file"):
        score_predictions(tmp_path / "nowhere", root)
    twice = tmp_path / "twice.zip"
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(twice, "w") as archive:
        for name, content in [*files().items(), *files().items()]:
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="u/00.png and u/00.png are both predictions of frame 00 of video u"):
        score_predictions(twice, root)


def test_names_of_other_frames_are_told(root, tmp_path):
    path = write_folder(tmp_path, files("{video}/{frame}_pred.png"))
    with pytest.raises(
        FileNotFoundError, match=r"3 of 3 predictions are missing, .*u/00.png; there are .*00_pred.png"
    ):
        score_predictions(path, root)


# --- the command


def run(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        command_line([str(word) for word in words])
    out, err = capsys.readouterr()
    return stopped.value.code, " ".join(out.split()), err


def test_command(root, tmp_path, capsys):
    contents = {name.replace("v/", "w/"): data for name, data in files().items()}
    path, written = write_zip(tmp_path / "dump.zip", contents), tmp_path / "results.md"
    words = ["score", "--predictions", path, "--data", root, "--json", tmp_path / "r.json", "--markdown", written]
    code, _, err = run(capsys, *words)
    assert code == 2 and "1 of 3 predictions are missing" in err and not written.exists()
    code, out, _ = run(capsys, *words, "--missing", "skip", "--timeline")
    results = json.loads((tmp_path / "r.json").read_text())
    assert code == 0 and "1 of 3 frames (1 whole videos) have no prediction and are NOT scored" in out
    assert "VC16 dvis-legacy" in out and "mIoU evaluate 1.0000" in out
    assert results["timeline"] == {"u": [None, results["per_video"][0]["flicker_rate"]]}

    text = written.read_text()
    assert text.startswith("# dump.zip on ") and "> **Note:** 1 of 3 frames" in text
    assert "| frames | 3 | 1 | 1 |" in text and "Missing, not scored: v/00" in text and "Beside: w/00" in text
    assert "| mean\\_iou" not in text and "| mean_iou | 1.0000 | vspw, 3 classes |" in text
    assert "| VC8 | paper | – | 0 clips |" in text and "| u | 2 | 3 | 1.0000 |" in text
    assert all(f"| {name} | 1.0000 |" in text for name in NAMES) and "| torch | " in text
    for table in text.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") - line.count("\\|") for line in table.strip().splitlines()}) == 1
    code, _, err = run(capsys, *words[:5], "--values", "lables")
    assert code == 2 and "did you mean 'labels'" in err


def test_temporal_consistency_by_command(root, tmp_path, capsys, monkeypatch):
    def load(path, device):
        assert path.is_file() and str(device) == "cpu"
        return lambda first, second: torch.zeros(2, *SHAPE)  # nothing moves

    dump = write_folder(tmp_path / "dump", files())
    words = ["score", "--predictions", dump, "--data", root, "--device", "cpu", "--json", tmp_path / "r.json"]
    code, _, err = run(capsys, *words, "--flow_weights", tmp_path / "raft.pth")
    assert code == 2 and "raft.pth" in err
    monkeypatch.setattr(flow, "load_raft", load)
    (tmp_path / "raft.pth").touch()
    code, out, _ = run(capsys, *words, "--flow_weights", tmp_path / "raft.pth", "--tc_protocol", "paper")
    ious = [
        ((labels(0) == c) & (labels(1) == c)).sum() / ((labels(0) == c) | (labels(1) == c)).sum() for c in range(3)
    ]
    assert code == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["tc"] == pytest.approx(np.mean(ious)) and results["tc_videos"] == 1
    assert f"tc │ {np.mean(ious):.4f} │ paper, 1 videos" in out
    assert [video["tc"] is None for video in results["per_video"]] == [False, True]  # of one frame
    assert "skipped: no optical flow was given" in run(capsys, *words)[1]
