"""A card is read back and compared with the files that it was made from."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file

from vss_hf.hub_cards import card as card_module
from vss_hf.hub_cards import write_card
from vss_hf.hub_cards.card import count_parameters
from vss_hf.hub_cards.card_text import KEEP_CLOSE, KEEP_OPEN, cell, scrub


ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "model_type": "vss_ocrnet",
    "id2label": {"0": "wall", "1": "other_machine", "2": "a|b", "3": "<i>x</i>", "4": "_edge_"},
    "in_indices": [0, 1, 2],
    "backbone_config": {
        "model_type": "swin",
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "patch_size": 4,
        "out_features": ["stage2", "stage3", "stage4"],
    },
}
RESULTS = {
    "protocol": "vspw",
    "vc_protocol": "vspw-official",
    "split": "val",
    "dataset": "VSPW_480p",
    "videos": 343,
    "frames": 24502,
    "mean_iou": 0.123456789,
    "frequency_weighted_iou": 0.6,
    "pixel_accuracy": 0.75,
    "mean_accuracy": 0.2,
    "per_class_iou": {"wall": 0.5, "other_machine": 0.25, "a|b": None, "<i>x</i>": 0.75, "_edge_": 0.0},
    "vc8": 0.91,
    "vc16": None,
    "vc_clips": {"vc8": 21000, "vc16": 0},
    "frames_per_second": 31.25,
    "model": "/home/somebody/runs/one",
    "versions": {"torch": "2.15.0", "vss_hf": "0.1.0"},
    "hardware": "1 x NVIDIA H200",
}
RECIPE = {
    "model": {"preset": None, "init_from": "somebody/ocrnet-ade20k", "backbone_weights": None},
    "data": {"root": "/home/somebody/data sets/VSPW_480p", "cache": "~/cache/vspw", "num_frames": 1},
    "training": {
        "learning_rate": 6e-5,
        "max_steps": 4000,
        "bf16": True,
        "fp16": False,
        "seed": None,
        "hub_token": "hf_" + "a1B2" * 9,
        "note": "started as `train.py /mnt/disk/x/run.yaml --out=/mnt/out/two`, see https://example.org/a/b",
        "command": "export KEY=hf_" + "c3D4" * 9,
    },
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "vspw-ocrnet"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def full_folder(folder):
    (folder / "eval_results.json").write_text(json.dumps(RESULTS))
    (folder / "training_recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    trained = {"steps": 4000, "seconds": 4980.0, "hardware": "8 x A100", "versions": {"torch": "2.14"}}
    trained |= {"dataset": "VSPW_480p", "train_split": "train", "train_frames": 198244}
    (folder / "train_results.json").write_text(json.dumps(trained))
    Image.new("RGB", (8, 8)).save(folder / "overlay.jpg")
    weights = {"w": torch.zeros(3, 5, 7), "bn.running_mean": torch.zeros(9), "bn.num_batches_tracked": torch.tensor(1)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tables(markdown: str) -> list[list[list[str]]]:
    """Tables of a Markdown text as rows of cells, split only at bars that are not escaped."""
    found, rows = [], []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            assert line.endswith("|")
            rows.append([part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            found.append(rows)
            rows = []
    return found


def test_head_holds_the_numbers_of_the_json(full_folder):
    card = ModelCard.load(write_card(full_folder))
    head = card.data
    assert (head.library_name, head.pipeline_tag, head.license) == ("vss_hf", "image-segmentation", "unknown")
    assert head.datasets == ["VSPW_480p"]
    assert head.base_model == "somebody/ocrnet-ade20k"
    assert head.model_name == "vspw-ocrnet"
    values = {result.metric_type: result.metric_value for result in head.eval_results}
    present = ("mean_iou", "frequency_weighted_iou", "pixel_accuracy", "mean_accuracy", "vc8")  # no vc16: it is null
    assert values == {key: RESULTS[key] for key in present}
    for result in head.eval_results:
        protocol = "vspw-official" if result.metric_type == "vc8" else "vspw"
        assert result.metric_args == {"protocol": protocol}
        assert (result.dataset_type, result.dataset_split) == ("VSPW_480p", "val")
        assert result.dataset_args == {"videos": 343, "frames": 24502}


def test_tables_agree_with_the_json_and_are_well_formed(full_folder):
    text = ModelCard.load(write_card(full_folder)).text
    for table in tables(text):
        assert len({len(row) for row in table}) == 1, table  # as many cells in every row
        assert all(set(part) == {"-"} for part in table[1])
    by_head = {table[0][0]: table[2:] for table in tables(text)}

    metrics = {row[0]: row[1:] for row in by_head["metric"]}
    assert metrics["mean IoU"] == ["vspw", "0.1235"]
    assert metrics["video consistency over 8 frames (VC8)"] == ["vspw-official", "0.9100"]
    assert metrics["video consistency over 16 frames (VC16)"] == ["vspw-official", "–"]
    assert by_head["class"] == [
        ["&lt;i&gt;x&lt;/i&gt;", "0.7500"],
        ["wall", "0.5000"],
        ["other_machine", "0.2500"],
        [r"\_edge\_", "0.0000"],
        [r"a\|b", "–"],
    ]
    assert "The mean is over 4 of 5 classes." in text
    assert "21000 clips of 8 frames" in text and "No value of VC16" in text
    assert "343 videos, 24502 frames" in text
    settings = dict(by_head["setting"])
    assert settings == {
        "init_from": "somebody/ocrnet-ade20k", "max_steps": "4000", "learning_rate": "6e-05", "bf16": "True",
        "steps done": "4000", "duration": "1 h 23 min",
    }  # fmt: skip
    assert "Trained on VSPW_480p, split train, 198244 labelled frames." in text


def test_architecture_comes_from_config_and_weights(full_folder):
    text = write_card(full_folder).read_text()
    assert "one of 5 classes" in text
    assert "`swin`, embedding width 96, depths 2-2-6-2" in text
    assert "strides 8, 16, 32; the logits have stride 8" in text
    assert "105 parameters." in text  # 3 * 5 * 7: neither statistics nor counters
    assert count_parameters(full_folder) == 105
    assert "](overlay.jpg)" in text and "training_curve.png" not in text
    (full_folder / "training_curve.png").write_bytes(b"")
    assert "](training_curve.png)" in write_card(full_folder).read_text()


@pytest.mark.parametrize("start", ["runs/first", "data/net", "/home/me/net", "net", "here/net"])
def test_a_local_start_is_no_base_model(folder, monkeypatch, start):
    (folder / "here" / "net").mkdir(parents=True)
    monkeypatch.chdir(folder)
    (folder / "training_recipe.yaml").write_text(yaml.safe_dump({"model": {"init_from": start}}))
    assert ModelCard.load(write_card(folder)).data.base_model is None


def test_a_folder_called_model_takes_its_parents_name(full_folder):
    folder = full_folder.rename(full_folder.parent / "model")
    head, text = ModelCard.load(write_card(folder)).data, (folder / "README.md").read_text()
    assert head.model_name == folder.parent.name
    assert f"# {cell(folder.parent.name)}" in text and 'source = "model"' in text


def test_nothing_private_is_printed(full_folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_environment_must_not_appear")
    text = write_card(full_folder).read_text()
    here = str(full_folder.parent)
    for secret in ("somebody/data", "/home", "/mnt", "~/", "hf_a1B2", "hf_c3D4", "must_not_appear", here):
        assert secret not in text
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)\n```", text, re.DOTALL).group(1))
    assert recipe["data"] == {"root": "VSPW_480p", "cache": "vspw", "num_frames": 1}
    assert recipe["training"]["note"] == "started as `train.py run.yaml --out=two`, see https://example.org/a/b"
    assert recipe["training"]["hub_token"] == "(left out)"
    assert recipe["training"]["max_steps"] == 4000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/x", "x"),
        ("/home/me/x/", "x"),
        ("../../me/data", "data"),
        (r"C:\Users\me\vspw", "vspw"),
        ("file:///home/me/x.yaml", "x.yaml"),
        ("hf://datasets/owner/name", "hf://datasets/owner/name"),
        ("owner/name", "owner/name"),
        ("data/vspw", "data/vspw"),
        ("1/8 of the frames, and/or more", "1/8 of the frames, and/or more"),
        (["/a/b", {"password": "p", "tokenizer": "t"}], ["b", {"password": "(left out)", "tokenizer": "t"}]),
        ({"token": 0.5, "sort_key": "k"}, {"token": 0.5, "sort_key": "k"}),  # a class may be called so
    ],
)
def test_scrub(value, expected):
    assert scrub(value) == expected


def test_a_bare_folder_says_what_is_missing(folder):
    card = ModelCard.load(write_card(folder))
    assert card.data.eval_results is None and card.data.datasets is None and card.data.metrics is None
    assert "model-index" not in card.data.to_dict() and "model_name" not in card.data.to_dict()
    for sentence in (
        "No results are stored with this model",
        "The training data are not recorded",
        "How this model was trained is not recorded",
        "No example picture",
        "The folder holds no weights",
        "licence of these weights has not been stated",
    ):
        assert sentence in card.text
    assert r"wall, other_machine, a\|b, &lt;i&gt;x&lt;/i&gt;, \_edge\_" in card.text  # the classes, without a table
    assert "0.0000" not in card.text and "None" not in card.text


@pytest.mark.parametrize(
    ("dataset", "present", "absent"),
    [("VSPW_480p", "non-commercial", "CamVid"), ("camvid_vspw", "CamVid", "non-commercial"), ("mine", "", "Note.")],
)
def test_terms_of_known_data_sets(folder, dataset, present, absent):
    (folder / "eval_results.json").write_text(json.dumps({**RESULTS, "dataset": dataset}))
    text = write_card(folder).read_text()
    assert present in text and absent not in text


SOURCES = [
    {"dataset": "VSPW_480p", "split": "train", "source": "vspw", "table": None, "frames": 198244, "share": 0.75},
    {
        "dataset": "COCO", "split": "train2017", "source": "coco_stuff", "table": "default", "min_labelled": 0.8,
        "frames": 107912, "share": 0.25,
    },
]  # fmt: skip


def test_everything_that_was_trained_on_is_told(full_folder):
    """Also where the data set that was evaluated on was not trained on; with the terms of all of them."""
    path = full_folder / "train_results.json"
    path.write_text(json.dumps({"sources": SOURCES, "train_frames": 306156}))
    card = ModelCard.load(write_card(full_folder, dataset_id="owner/vspw"))
    assert card.data.datasets == ["owner/vspw", "COCO"]
    assert "- VSPW_480p, split train, 198244 labelled frames, 75 % of the samples\n" in card.text
    assert (
        "- COCO, split train2017, read as coco_stuff, labels turned into VSPW's classes by remap table default, "
        "frames with at least 80 % labelled pixels, 107912 labelled frames, 25 % of the samples\n"
    ) in card.text
    for words in ("non-commercial research only", "COCO does not own its images", "Caesar", "VSPW: A Large-scale"):
        assert words in card.text

    path.write_text(json.dumps({"sources": SOURCES[1:], "train_frames": 107912}))
    card = ModelCard.load(write_card(full_folder, dataset_id="owner/vspw"))
    assert card.data.datasets == ["COCO"]
    assert "Trained on COCO, split train2017, read as coco_stuff," in card.text and "% of the samples" not in card.text
    assert "Evaluated on VSPW_480p, split val" in card.text


@pytest.mark.parametrize("sources", [{"dataset": "x"}, ["x"], [{"split": "x"}], [{"dataset": 1}]])
def test_sources_that_are_none(full_folder, sources):
    (full_folder / "train_results.json").write_text(json.dumps({"sources": sources}))
    with pytest.raises(ValueError, match=r"train_results.json: sources.*expected a list of fields with a dataset"):
        write_card(full_folder)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("default", "labels turned into VSPW's classes by remap table 'default' of cityscapes"),
        ("reverse", "the classes of cityscapes that VSPW does not tell apart count as one"),
    ],
)
def test_scores_in_other_classes_say_so(full_folder, table, words):
    """Beside the numbers, where the data are named, and in the head; and whose terms these are follows the layout."""
    results = {**RESULTS, "dataset": "city_data", "source": "cityscapes", "table": table}
    (full_folder / "eval_results.json").write_text(json.dumps(results))
    card = ModelCard.load(write_card(full_folder, dataset_id="owner/city"))
    assert card.text.count(words) >= 2 and "not comparable with scores in the data set's own classes" in card.text
    assert {result.dataset_type for result in card.data.eval_results} == {f"city_data-{table}"}
    assert "Cityscapes is offered for non-commercial use only" in card.text


def test_licence_and_ids(folder):
    link = "https://example.org/terms"
    path = write_card(folder, repo_id="me/net", license="other", license_name="my-terms", license_link=link)
    head = ModelCard.load(path).data
    assert (head.license, head.license_name, head.license_link) == ("other", "my-terms", link)
    text = path.read_text()
    assert f"[my-terms]({link})" in text and 'source = "me/net"' in text and "vss-hf predict me/net" in text
    for wrong, message in (
        ({"license": "Apache License 2.0"}, "license='Apache License 2.0': expected an identifier"),
        ({"license": "other"}, "needs license_name and license_link"),
        ({"dataset_id": "vspw"}, "dataset_id='vspw': expected an id on the Hub"),
        ({"base_model": "/home/x"}, "base_model='/home/x': expected"),
        ({"repo_id": "a b"}, "a b"),
    ):
        with pytest.raises(ValueError, match=message):
            write_card(folder, **wrong)


@pytest.mark.parametrize("name", ["yes", "null", "1e3", "x: y", "# no", "- a", "name with 'quotes' \" and é"])
def test_hostile_names_survive_yaml(folder, name):
    results = {**RESULTS, "dataset": name, "split": name, "per_class_iou": {name: 0.5}}
    (folder / "eval_results.json").write_text(json.dumps(results))
    head = ModelCard.load(write_card(folder)).data
    assert {result.dataset_name for result in head.eval_results} == {name}
    assert {result.dataset_split for result in head.eval_results} == {name}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sign_symbol", "sign_symbol"),
        ("__a__b", r"\_\_a__b"),
        ("a*b`c`[d](e)", r"a\*b\`c\`\[d\](e)"),
        ("two\nlines  here", "two lines here"),
        ("a & b \\", "a &amp; b \\\\"),
    ],
)
def test_cell(text, expected):
    assert cell(text) == expected


def test_many_classes_are_folded(folder):
    iou = {f"class_{i}": i / 124 for i in range(124)}
    (folder / "eval_results.json").write_text(json.dumps({**RESULTS, "per_class_iou": iou}))
    text = write_card(folder).read_text()
    assert "<summary>IoU of each of the 124 classes</summary>" in text
    assert text.count("<details>") == text.count("</details>") == 1
    assert "weakest classes in the evaluation above: class_0 (0.0000), class_1 (0.0081), class_2 (0.0161)." in text


def test_recipe_with_a_fence_stays_inside_its_own(folder):
    recipe = {"note": "```\n# not a title\n```", "blank": "a\n\n\n\nb"}
    (folder / "training_recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = write_card(folder).read_text()
    shown = re.search(r"^````yaml\n(.*?)\n````$", text, re.DOTALL | re.MULTILINE).group(1)
    assert yaml.safe_load(shown) == recipe


# --- writing again


def test_writing_twice_gives_the_same_card(full_folder):
    first = write_card(full_folder).read_text()
    assert write_card(full_folder).read_text() == first
    assert not list(full_folder.glob("README.previous*")) and not list(full_folder.glob(".*partial"))


def test_notes_are_kept(full_folder, recwarn):
    path = write_card(full_folder)
    notes = "Trained on a *rainy* day.\n\n\n\n| a | b |\n|---|---|\n{{ braces }} {% raw %}"
    path.write_text(path.read_text().replace(f"{KEEP_OPEN}\n\n{KEEP_CLOSE}", f"{KEEP_OPEN}\n{notes}\n{KEEP_CLOSE}"))
    (full_folder / "eval_results.json").write_text(json.dumps({**RESULTS, "mean_iou": 0.5}))
    for _ in range(2):
        text = write_card(full_folder).read_text()
        assert f"{KEEP_OPEN}\n{notes}\n{KEEP_CLOSE}" in text
    assert "| mean IoU | vspw | 0.5000 |" in text  # and the rest is new
    assert not list(full_folder.glob("README.previous*"))  # notes are no reason for a copy
    assert not recwarn.list


def test_other_edits_are_copied_before_they_are_replaced(full_folder):
    path = write_card(full_folder)
    edited = path.read_text().replace("# vspw-ocrnet", "# My network")
    path.write_text(edited)
    with pytest.warns(UserWarning, match="old text is kept in README.previous.md"):
        write_card(full_folder)
    assert (full_folder / "README.previous.md").read_text() == edited
    assert "# My network" not in path.read_text()

    path.write_text("# A card by hand\n")
    with pytest.warns(UserWarning, match="README.previous-2.md"):
        write_card(full_folder)
    assert (full_folder / "README.previous-2.md").read_text() == "# A card by hand\n"
    assert (full_folder / "README.previous.md").read_text() == edited


def test_a_failure_leaves_the_old_card(full_folder, monkeypatch):
    before = write_card(full_folder).read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    (full_folder / "eval_results.json").unlink()
    with pytest.raises(OSError, match="disk full"):
        write_card(full_folder)
    assert (full_folder / "README.md").read_text() == before
    assert not list(full_folder.glob(".*partial"))


def test_errors_name_the_file(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=f"no config.json in {tmp_path}"):
        write_card(tmp_path)
    (folder / "eval_results.json").write_bytes((folder / "config.json").read_bytes())  # no scores, no data set
    with pytest.raises(ValueError, match="eval_results.json: .*dataset=None, expected the data set's name"):
        write_card(folder)
    (folder / "eval_results.json").write_text("{")
    with pytest.raises(ValueError, match="eval_results.json cannot be read"):
        write_card(folder)
    (folder / "eval_results.json").write_text(json.dumps({**RESULTS, "mean_iou": 65.7}))
    with pytest.raises(ValueError, match=r"eval_results.json: .*mean_iou=65.7, expected a fraction in 0..1"):
        write_card(folder)
    (folder / "eval_results.json").unlink()
    (folder / "training_recipe.yaml").write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="training_recipe.yaml holds a list: expected a mapping"):
        write_card(folder)


def test_template_is_package_data():
    assert card_module.TEMPLATE.is_file() and card_module.TEMPLATE.suffix == ".md"


# --- the code in the card


def test_the_code_in_the_card_runs(tmp_path):
    import vss_hf  # noqa: F401, I001  (before the Auto classes are used)
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation  # noqa: F401
    from vss_hf import OCRNetConfig, OCRNetForSemanticSegmentation
    from vss_hf.modeling.image_processing_vss import VSSImageProcessor

    backbone = {
        "model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2,
        "out_features": ["stage2", "stage3", "stage4"],
    }  # fmt: skip
    names = {0: "road", 1: "sky", 2: "tree"}
    config = OCRNetConfig(backbone_config=backbone, channels=16, ocr_channels=8, id2label=names)
    folder = tmp_path / "it's a tiny net"
    model = OCRNetForSemanticSegmentation(config)
    model.save_pretrained(folder)
    VSSImageProcessor().save_pretrained(folder)
    Image.effect_noise((77, 45), 60).save(tmp_path / "frame.jpg")
    text = write_card(folder).read_text()
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text  # its own count

    classes, shape = run_code(text, tmp_path)[-2:]
    assert set(eval(classes)) <= set(names.values())
    assert shape == "(45, 77)"


def run_code(card: str, folder: Path) -> list[str]:
    """What the code in a card prints, and the shape of the last label map; run where the card says."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL)) + "\nprint(tuple(labels.shape))\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_the_code_in_the_card_of_a_video_model_runs(tmp_path):
    from vss_hf import STPPMConfig, STPPMForVideoSemanticSegmentation
    from vss_hf.modeling.image_processing_vss import VSSImageProcessor
    from vss_hf.video_io import VideoWriter

    backbone = {
        "model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2,
        "out_features": ["stage3", "stage4"],
    }  # fmt: skip
    names = {0: "road", 1: "sky", 2: "tree"}
    settings = dict(in_index=1, auxiliary_in_index=0, channels=8, auxiliary_channels=8, frame_offsets=[-2, -1])
    model = STPPMForVideoSemanticSegmentation(STPPMConfig(backbone_config=backbone, id2label=names, **settings))
    model.save_pretrained(tmp_path / "tiny")
    VSSImageProcessor().save_pretrained(tmp_path / "tiny")
    with VideoWriter(tmp_path / "video.mp4", 15, (45, 77)) as writer:
        for number in range(2):
            image = Image.effect_noise((77, 45), 60).convert("RGB")
            image.save(tmp_path / f"frame_{number}.jpg")
            writer.write(np.array(image))
    text = write_card(tmp_path / "tiny").read_text()
    assert "with the help of earlier ones (frame offsets -2, -1)." in text
    *lines, shape = run_code(text, tmp_path)
    assert [line.split(" [")[0] for line in lines[:2]] == ["00000000", "00000001"] and len(lines) == 4
    assert all(set(eval(line[line.index("[") :])) <= set(names.values()) for line in lines)
    assert shape == "(45, 77)"
