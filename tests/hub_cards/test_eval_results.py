"""`.eval_results/*.yaml` is read back with huggingface_hub and compared with the JSON."""

import pytest
import yaml
from huggingface_hub import EvalResultEntry, ModelCardData

from vss_hf.hub_cards import model_index, write_eval_results


RESULTS = {
    "protocol": "evaluate", "vc_protocol": "paper",
    "split": "val", "dataset": "camvid_vspw", "videos": 1, "frames": 101,
    "mean_iou": 0.1 + 0.2, "frequency_weighted_iou": 1, "pixel_accuracy": 0.0, "mean_accuracy": float("nan"),
    "vc8": 0.875, "vc16": None,
}  # fmt: skip
# What has no value (NaN, null) is left out.
VALUES = {"mean_iou": 0.1 + 0.2, "frequency_weighted_iou": 1.0, "pixel_accuracy": 0.0, "vc8": 0.875}


def read(path) -> list[EvalResultEntry]:
    return [
        EvalResultEntry(item["dataset"]["id"], item["dataset"]["task_id"], item["value"], notes=item["notes"])
        for item in yaml.safe_load(path.read_text())
    ]


def test_entries_hold_values_and_protocols(tmp_path):
    path = write_eval_results(tmp_path, RESULTS)
    assert path == tmp_path / ".eval_results" / "camvid_vspw-val.yaml"
    entries = read(path)
    assert {entry.task_id: entry.value for entry in entries} == VALUES  # to the last bit
    for entry in entries:
        assert entry.dataset_id == "camvid_vspw"
        assert f"protocol {'paper' if entry.task_id == 'vc8' else 'evaluate'};" in entry.notes
        assert "split val, 1 video, 101 frames" in entry.notes
        assert "local data set without a Hub id" in entry.notes


def test_a_hub_id_is_used_and_the_note_goes(tmp_path):
    for results, option in ((RESULTS, "owner/vspw"), ({**RESULTS, "dataset": "owner/vspw"}, None)):
        path = write_eval_results(tmp_path, results, option)
        assert path.name == "owner-vspw-val.yaml"
        assert all(entry.dataset_id == "owner/vspw" and "local" not in entry.notes for entry in read(path))
    with pytest.raises(ValueError, match="dataset_id='vspw': expected the id of a data set on the Hub, 'owner/name'"):
        write_eval_results(tmp_path, RESULTS, "vspw")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("default", "labels turned into VSPW's classes by remap table 'default' of cityscapes"),
        ("reverse", "the classes of cityscapes that VSPW does not tell apart count as one"),
    ],
)
def test_scores_in_other_classes_are_no_scores_on_the_data_set(tmp_path, table, words):
    """They say so, have a file of their own, and do not get onto the page of the data set on the Hub."""
    plain = write_eval_results(tmp_path, RESULTS, "owner/cityscapes")
    results = {**RESULTS, "dataset": "cityscapes", "source": "cityscapes", "table": table}
    path = write_eval_results(tmp_path, results, "owner/cityscapes")
    assert path != plain and plain.is_file() and path.name == f"cityscapes-{table}-val.yaml"
    for entry in read(path):
        assert entry.dataset_id == f"cityscapes-{table}"
        assert words in entry.notes and "not comparable" in entry.notes
    for result in model_index(results, "owner/cityscapes"):
        assert result.dataset_type == f"cityscapes-{table}" and result.dataset_name == f"cityscapes, {words}"
        assert result.dataset_args == {"videos": 1, "frames": 101, "source": "cityscapes", "table": table}


def test_own_classes_of_another_layout_are_the_data_sets(tmp_path):
    results = {**RESULTS, "source": "cityscapes19", "table": None}
    path = write_eval_results(tmp_path, results, "owner/cityscapes")
    assert path.name == "owner-cityscapes-val.yaml"
    assert all("layout cityscapes19" in entry.notes and "comparable" not in entry.notes for entry in read(path))
    assert {result.dataset_type for result in model_index(results, "owner/cityscapes")} == {"owner/cityscapes"}


def test_what_made_the_labels_beside_the_model_is_said(tmp_path):
    made_by = {"tta": {"scales": [0.5, 1.0], "flip": True}, "label_steps": [{"step": "CascadePSP"}]}
    (entry, *_) = read(write_eval_results(tmp_path, {**RESULTS, **made_by}))
    assert 'with tta {"scales": [0.5, 1.0], "flip": true}; label_steps [{"step": "CascadePSP"}]' in entry.notes
    assert "tta" not in read(write_eval_results(tmp_path, RESULTS))[0].notes


def test_splits_do_not_overwrite_each_other(tmp_path):
    paths = {write_eval_results(tmp_path, {**RESULTS, "split": split}) for split in ("val", "test", "val")}
    assert {path.name for path in paths} == {"camvid_vspw-val.yaml", "camvid_vspw-test.yaml"}
    assert set((tmp_path / ".eval_results").iterdir()) == paths


def test_names_cannot_leave_the_folder(tmp_path):
    path = write_eval_results(tmp_path, {**RESULTS, "dataset": "../../etc/x y", "split": "../v"})
    assert path.parent == tmp_path / ".eval_results"
    assert path.name == "etc-x-y-v.yaml"


def test_model_index_round_trip():
    data = ModelCardData(model_name="net", eval_results=model_index(RESULTS, "owner/vspw"))
    again = ModelCardData(**yaml.safe_load(data.to_yaml()))
    assert {result.metric_type: result.metric_value for result in again.eval_results} == VALUES
    assert {result.dataset_type for result in again.eval_results} == {"owner/vspw"}
    assert {result.dataset_name for result in again.eval_results} == {"camvid_vspw"}
    # One group: the Hub shows metrics of one data set together.
    assert len(data.to_dict()["model-index"][0]["results"]) == 1


@pytest.mark.parametrize("value", [64.7, -0.1, "0.6", True])
def test_only_fractions_are_accepted(tmp_path, value):
    with pytest.raises(ValueError, match=r"vc8=.* expected a fraction in 0..1 or null"):
        write_eval_results(tmp_path, {**RESULTS, "vc8": value})
    assert not (tmp_path / ".eval_results").exists() or not list((tmp_path / ".eval_results").iterdir())


def test_missing_folder_and_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model folder: .*nowhere"):
        write_eval_results(tmp_path / "nowhere", RESULTS)
    with pytest.raises(ValueError, match="dataset=None, expected the data set's name"):
        write_eval_results(tmp_path, {"mean_iou": 0.5})
