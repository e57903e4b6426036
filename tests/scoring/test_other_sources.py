"""Scores on data sets with other classes than VSPW's: in their own classes, remapped, and the way back.

The frames are painted with their own labels, so that a stand-in for a model can know what it sees and say anything.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vss_hf.cli import main as command_line
from vss_hf.data import VSPW
from vss_hf.data.parquet_writer import write_parquet
from vss_hf.data.remap import source_names
from vss_hf.metrics import VideoConsistency
from vss_hf.scoring import evaluate_model, score_predictions


HEIGHT, WIDTH = 20, 30
# the benchmark's classes: id in the masks -> name
CITYSCAPES = dict(
    zip(
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
        (
            "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,"
            "car,truck,bus,train,motorcycle,bicycle"
        ).split(","),
        strict=True,
    )
)
# what a model of VSPW's classes says there, and the class or group of Cityscapes that this is (None: of none)
SAID = {
    7: ("crosswalk", "road"),
    8: ("path", "sidewalk"),
    11: ("house", "building"),
    12: ("building", "building"),  # a mistake: this is a wall
    19: ("gun", None),  # a mistake, and no class of Cityscapes
    20: ("billboard_or_Bulletin_Board", None),  # traffic signs are not scored
    24: ("person", "person|rider"),
    25: ("person", "person|rider"),
    26: ("car", "car"),
}
# the same ids by the default table; those that are not here are ignored
REMAPPED = {
    7: "road",
    8: "path",
    11: "building",
    12: "wall",
    19: "traffic_light",
    24: "person",
    25: "person",
    26: "car",
}
SCORED = {7: "road", 8: "sidewalk", 11: "building", 12: "wall", 19: "traffic light", 26: "car"}
SCORED |= {24: "person|rider", 25: "person|rider"}
VALUES = (*SAID, 0, 3, 5)  # with ids that are no class


class Painted:
    """Stands for a model: reads the mask's value off a frame's red and says what `says` makes of it."""

    def __init__(self, names, says):
        self.names = list(names)
        self.answers = np.zeros(256, np.uint8)
        for value, name in says.items():
            self.answers[value] = self.names.index(name)
        self.model = SimpleNamespace(device=torch.device("cpu"), config=SimpleNamespace(name_or_path="painted"))

    def reset(self):
        pass

    def settings(self):
        return {}

    def label_batch(self, frames):
        return [self.answers[frame[..., 0]] for frame in frames]


def of_vspw():
    return Painted(VSPW.names, {value: name for value, (name, _) in SAID.items()})


def of_cityscapes():
    return Painted(CITYSCAPES.values(), CITYSCAPES)


def painted(mask):
    return Image.fromarray(np.stack([mask, mask * 3, 255 - mask], axis=-1).astype(np.uint8))


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    """Three images of two cities, and the masks in them."""
    root = tmp_path_factory.mktemp("cityscapes")
    masks = {}
    for number, name in enumerate(("aachen_000000_000019", "aachen_000001_000019", "ulm_000007_000019")):
        city = name.partition("_")[0]
        mask = np.random.default_rng(number).choice(np.array(VALUES, np.uint8), (HEIGHT, WIDTH))
        for folder in ("leftImg8bit", "gtFine"):
            (root / folder / "val" / city).mkdir(parents=True, exist_ok=True)
        painted(mask).save(root / f"leftImg8bit/val/{city}/{name}_leftImg8bit.png")
        Image.fromarray(mask).save(root / f"gtFine/val/{city}/{name}_gtFine_labelIds.png")
        masks[name] = mask
    return root, masks


def ious(pairs):
    """IoU per name from (true name or None, predicted name or None) of every pixel; None is nothing."""
    pairs = [(true, said) for true, said in pairs if true is not None]
    found = {}
    for name in {true for true, _ in pairs}:
        both = sum(true == said == name for true, said in pairs)
        either = sum(name in pair for pair in pairs)
        found[name] = both / either
    return found


def check(results, expected):
    assert results["mean_iou"] == pytest.approx(sum(expected.values()) / len(expected))
    assert {name: iou for name, iou in results["per_class_iou"].items() if iou is not None} == pytest.approx(expected)
    assert (results["videos"], results["frames"]) == (3, 3)
    assert results["vc8"] is None and results["vc_clips"] == {"vc8": 0, "vc16": 0}  # videos of one frame


def pixels(cityscapes):
    return [value for mask in cityscapes[1].values() for value in mask.ravel().tolist()]


def write_predictions(cityscapes, out, segmenter):
    """What the model says, as files; the videos are named like the images."""
    for name, mask in cityscapes[1].items():
        (out / name).mkdir(parents=True)
        (labels,) = segmenter.label_batch([np.asarray(painted(mask))])
        Image.fromarray(labels).save(out / name / f"{name}_leftImg8bit.png")
    return out


def same_scores(results, others):
    kept = ("mean_iou", "pixel_accuracy", "per_class_iou", "videos", "frames", "source", "table", "split", "dataset")
    assert {key: results[key] for key in kept} == {key: others[key] for key in kept}


def test_a_model_of_the_sources_own_classes(cityscapes):
    results = evaluate_model(of_cityscapes(), cityscapes[0], source="cityscapes19")
    check(results, dict.fromkeys((CITYSCAPES[value] for value in SAID), 1.0))
    assert (results["source"], results["table"]) == ("cityscapes19", None)
    assert list(results["per_class_iou"]) == list(CITYSCAPES.values())


def test_a_vspw_model_is_scored_in_groups_of_the_sources_classes(cityscapes, tmp_path):
    results = evaluate_model(of_vspw(), cityscapes[0], source="cityscapes19", batch_size=2)
    expected = ious((SCORED.get(value), SAID.get(value, (None, None))[1]) for value in pixels(cityscapes))
    assert expected["wall"] == 0 == expected["traffic light"] and 0 < expected["building"] < 1 == expected["road"]
    check(results, expected)
    assert (results["source"], results["table"], results["split"]) == ("cityscapes19", "reverse", "val")
    names = list(results["per_class_iou"])
    assert "person|rider" in names and "rider" not in names and "traffic sign" not in names

    files = write_predictions(cityscapes, tmp_path, of_vspw())
    same_scores(score_predictions(files, cityscapes[0], source="cityscapes19", table="reverse"), results)


def test_ground_truth_remapped_to_vspw(cityscapes, tmp_path):
    results = evaluate_model(of_vspw(), cityscapes[0], source="cityscapes", table="default", num_workers=1)
    expected = ious((REMAPPED.get(value), SAID.get(value, (None,))[0]) for value in pixels(cityscapes))
    assert expected["road"] == expected["traffic_light"] == 0 < expected["person"] == 1
    check(results, expected)
    assert (results["source"], results["table"]) == ("cityscapes", "default")
    assert list(results["per_class_iou"]) == list(VSPW.names)

    files = write_predictions(cityscapes, tmp_path / "files", of_vspw())
    same_scores(score_predictions(files, cityscapes[0], source="cityscapes", table="default"), results)
    liberal = evaluate_model(of_vspw(), cityscapes[0], source="cityscapes", table="liberal")
    assert liberal["per_class_iou"]["billboard_or_Bulletin_Board"] == 1  # the candidate for traffic signs

    names = [*CITYSCAPES.values(), "ground", "parking", "rail track", "guard rail", "bridge", "tunnel", "polegroup"]
    rows = [f"{name},{'sky' if name == 'car' else ''}" for name in (*names, "caravan", "trailer", "license plate")]
    (tmp_path / "cars.csv").write_text("\n".join(["name,vspw", *rows]))
    own = evaluate_model(of_vspw(), cityscapes[0], source="cityscapes", table=tmp_path / "cars.csv")
    assert own["table"] == "cars.csv" and own["classes_scored"] == 1 and own["per_class_iou"]["sky"] == 0


def test_commands(cityscapes, tmp_path, capsys):
    files = write_predictions(cityscapes, tmp_path / "files", of_vspw())
    for table in ("reverse", "default"):
        words = ["score", "--predictions", files, "--data", cityscapes[0], "--source", "cityscapes", "--table", table]
        with pytest.raises(SystemExit) as stopped:
            command_line([*map(str, words), "--json", str(tmp_path / "scores.json")])
        assert stopped.value.code == 0
        written = json.loads((tmp_path / "scores.json").read_text())
        same_scores(written, score_predictions(files, cityscapes[0], source="cityscapes", table=table))
        assert f"(cityscapes, table {table})" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as stopped:
        command_line([*map(str, words[:6]), "citiscapes"])
    assert stopped.value.code == 2 and "'cityscapes'" in capsys.readouterr().err


def test_what_cannot_be_scored(cityscapes, tmp_path):
    root = cityscapes[0]
    with pytest.raises(ValueError, match="the model has 19 classes .* by table 'default' has 124"):
        evaluate_model(of_cityscapes(), root, source="cityscapes", table="default")
    with pytest.raises(ValueError, match="'reverse' is for models of VSPW's 124 classes; this one has 19"):
        evaluate_model(of_cityscapes(), root, source="cityscapes", table="reverse")
    with pytest.raises(ValueError, match="the model has 2 classes .* has 19"):
        evaluate_model(Painted(["a", "b"], {}), root, source="cityscapes19")
    with pytest.raises(ValueError, match="unknown remap table 'libral'"):
        evaluate_model(of_vspw(), root, source="cityscapes", table="libral")
    files = write_predictions(cityscapes, tmp_path, of_vspw())
    path = files / "ulm_000007_000019" / "ulm_000007_000019_leftImg8bit.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), 124, np.uint8)).save(path)
    with pytest.raises(ValueError, match="ulm_000007_000019_leftImg8bit.png: .* value 124; labels of VSPW are 0..123"):
        score_predictions(files, root, source="cityscapes", table="reverse")
    with pytest.raises(ValueError, match="predictions hold the value"):  # files of VSPW's labels as Cityscapes' own
        score_predictions(files, root, source="cityscapes19")


def test_names_of_published_ade20k_models_may_end_in_a_space(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for folder in ("images", "annotations"):
        (root / folder / "validation").mkdir(parents=True)
    mask = np.full((HEIGHT, WIDTH), 8, np.uint8)
    painted(mask).save(root / "images/validation/ADE_val_00000001.png")
    Image.fromarray(mask).save(root / "annotations/validation/ADE_val_00000001.png")
    names = ["bed " if name == "bed" else name for _, name in source_names("ade20k")]
    results = evaluate_model(Painted(names, {8: "bed "}), tmp_path, source="ade20k")
    assert (results["per_class_iou"]["bed"], results["classes_scored"]) == (1, 1)


# --- videos


CAMVID = {"sky": 1, "building": 2, "road": 4, "bicyclist": 7}


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    """A video of 20 frames in VSPW's layout with names of CamVid; its void pixels are 0 and 255 by turns."""
    root = tmp_path_factory.mktemp("camvid")
    rng = np.random.default_rng(0)
    mask = rng.choice(np.array([0, 1, 2, 4, 7, 255], np.uint8), (HEIGHT, WIDTH), p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.1])
    masks = []
    for folder in ("origin", "mask"):
        (root / "data/v" / folder).mkdir(parents=True)
    for number in range(20):
        mask = np.where(np.isin(mask, (0, 255)) & (rng.random(mask.shape) < 0.5), 255 - mask, mask)
        masks.append(mask)
        painted(mask).save(root / f"data/v/origin/{number:08d}.png")
        Image.fromarray(mask).save(root / f"data/v/mask/{number:08d}.png")
    (root / "val.txt").write_text("v\n")
    (root / "label_num_dic_final.json").write_text(json.dumps(CAMVID))
    return root, masks


def consistency(predictions, references, protocol="vspw-official"):
    metric = VideoConsistency(protocol=protocol)
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add_frame(prediction, reference)
    metric.end_video()
    return metric.compute()


@pytest.mark.parametrize("protocol", ("vspw-official", "paper"))
def test_video_consistency_looks_at_labels_where_the_layout_is_not_vspws(camvid, protocol):
    root, masks = camvid
    labels = [np.array([255, 0, 1, 255, 2, 255, 255, 3, *[255] * 248], np.uint8)[mask] for mask in masks]
    says = Painted(CAMVID, {1: "sky", 2: "building", 4: "road", 7: "road", 255: "building"})
    predictions = [says.answers[mask] for mask in masks]
    by_values = evaluate_model(says, root, vc_protocol=protocol)
    by_labels = evaluate_model(says, root, source="camvid", vc_protocol=protocol)
    raw = labels if protocol == "paper" else masks
    assert by_values["vc8"] == pytest.approx(consistency(predictions, raw, protocol)["vc8"])
    assert by_labels["vc8"] == pytest.approx(consistency(predictions, labels, protocol)["vc8"])
    assert (by_values["vc8"] != by_labels["vc8"]) == (protocol == "vspw-official")
    assert by_values["mean_iou"] == by_labels["mean_iou"]
    assert "source" not in by_values and (by_labels["source"], by_labels["table"]) == ("camvid", None)


def test_a_vspw_model_on_camvid(camvid):
    """The way back on a video: a class that nothing counts as is steady, too."""
    root, masks = camvid
    says = Painted(VSPW.names, {1: "sky", 2: "house", 4: "gun", 7: "person"})
    results = evaluate_model(says, root, source="camvid")
    assert results["table"] == "reverse" and list(results["per_class_iou"]) == ["sky", "building", "road"]
    assert results["per_class_iou"] == {"sky": 1.0, "building": 1.0, "road": 0.0}
    with pytest.raises(ValueError, match="the model has 124 classes .* or name source and remap table"):
        evaluate_model(says, root)  # a folder in VSPW's layout whose table nobody named
    group = np.full(256, 255, np.uint8)
    group[[1, 2]] = 0, 1
    truth = group.copy()
    truth[4] = 2
    predictions = [np.where(np.isin(mask, (0, 255)), 1, group[mask]).astype(np.uint8) for mask in masks]  # wall
    expected = consistency(predictions, [truth[mask] for mask in masks])
    assert (results["vc8"], results["vc16"]) == pytest.approx((expected["vc8"], expected["vc16"]))


def test_packed_data_gives_the_same_scores(camvid, tmp_path):
    """Files in Parquet shards are no files of their own; the class list comes from the packed folder."""
    write_parquet(camvid[0], tmp_path / "packed")
    says = Painted(VSPW.names, {1: "sky", 2: "house", 4: "gun", 7: "person"})
    kept = ("mean_iou", "per_class_iou", "vc8", "vc16", "vc_clips", "videos", "frames", "source", "table")
    for options in ({"source": "camvid"}, {"source": "camvid", "table": "liberal"}):
        folder, packed = (evaluate_model(says, root, **options) for root in (camvid[0], tmp_path / "packed"))
        assert [packed[key] for key in kept] == [folder[key] for key in kept]
