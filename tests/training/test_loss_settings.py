"""The entries of `training.losses`: what they refuse, what they become."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from vss_hf.data.statistics import weights_of_classes
from vss_hf.training.losses import LOSSES, LossData, build_losses, parse_losses


CONFIG = AutoConfig.for_model("vss_ocrnet", num_labels=3)
PIXELS = np.array([10.0, 40.0, 1000.0])
DATA = LossData(num_labels=3, device=torch.device("cpu"), class_pixels=PIXELS)


def built(*entries):
    """The terms of a list of entries."""
    loss = build_losses(parse_losses(entries), CONFIG, DATA)
    assert loss is not None
    return loss.terms


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("ohem", r"training.losses\[1\]: expected fields such as .*; found 'ohem'"),
        ({"weight": 1}, r"training.losses\[1\]: expected fields such as \{name: cross_entropy"),
        ({"name": "lovaz"}, r"training.losses\[1\].name: there is no loss 'lovaz'; did you mean 'lovasz'"),
        ({"name": ["ohem"]}, r"training.losses\[1\].name: there is no loss"),
        ({"name": "ohem", "tresh": 1}, r"training.losses\[1\] has no field 'tresh'; did you mean 'threshold'"),
        ({"name": "ohem", "weight": "1"}, r"training.losses\[1\].weight: expected a number; found '1'"),
        ({"name": "ohem", "weight": -1}, r"training.losses\[1\].weight: -1: expected a number of at least 0"),
        ({"name": "ohem", "weight": math.inf}, r"training.losses\[1\].weight: inf: expected a number of at least 0"),
        ({"name": "ohem", "reduction": "mean"}, r"reduction has no choice 'mean'; .*kept, labelled, all"),
        ({"name": "ohem", "threshold": 1.5}, r"threshold: 1.5: expected 0 <= value <= 1"),
        ({"name": "ohem", "min_kept": -1}, r"min_kept: -1: expected a number of at least 0"),
        ({"name": "ohem", "threshold": 0, "min_kept": 0}, r"losses\[1\]: threshold: 0 needs a min_kept above 0; "),
        (
            {"name": "ohem", "class_weights": "inverse_sqr"},
            "class_weights: .* 'inverse_sqr'; did you mean 'inverse_sq",
        ),
        ({"name": "ohem", "class_weights": [1, -2.0]}, r"class_weights\[1\]: -2.0: expected a number of at least 0"),
        ({"name": "ohem", "class_weights": [1, "x"]}, r"class_weights\[1\]: expected a number; found 'x'"),
        ({"name": "cross_entropy", "clip": [0.1, 10]}, r"losses\[1\].clip needs class_weights"),
        (
            {"name": "cross_entropy", "class_weights": "inverse", "clip": [10, 0.1]},
            r"clip: expected \[lowest, highest\]; found \[10, 0.1\]",
        ),
        ({"name": "cross_entropy", "max_with_predicted": True}, r"max_with_predicted needs class_weights"),
        ({"name": "cross_entropy", "reduction": "weights"}, r"reduction: weights needs class_weights"),
        (
            {"name": "cross_entropy", "class_weights": "inverse", "max_with_predicted": True, "reduction": "weights"},
            r"losses\[1\].reduction: weights: expected pixels with max_with_predicted",
        ),
        ({"name": "focal", "gamma": -1}, r"gamma: -1: expected a number of at least 0"),
        ({"name": "focal", "alpha": 2}, r"alpha: 2: expected 0 <= value <= 1"),
        (
            {"name": "confusion_focal", "matrix": "val"},
            r"matrix: expected running, or a .json or .csv file; found 'val'",
        ),
        ({"name": "confusion_focal", "cap": 0.5}, r"cap: 0.5: expected a number of at least 1.0"),
        ({"name": "confusion_focal", "momentum": 1.5}, r"momentum: 1.5: expected 0 <= value <= 1"),
        ({"name": "dice", "smooth": 0}, r"smooth: 0: expected a number above 0"),
        ({"name": "lovasz", "classes": "some"}, r"classes has no choice 'some'; known: present, all"),
    ],
)
def test_wrong_entries(entry, message):
    with pytest.raises(ValueError, match=message):
        parse_losses([{"name": "cross_entropy"}, entry])


def test_defaults_of_every_loss_are_valid():
    for name in LOSSES:
        (loss,) = parse_losses([{"name": name, **({"teacher": "x"} if name == "self_distillation" else {})}])
        assert loss.weight == 1


def test_no_losses_are_the_models_own():
    assert build_losses([], CONFIG, DATA) is None


def test_class_weights_from_kind_list_and_file(tmp_path):
    for kind in ("inverse_sqrt", "literal_sqrt", "inverse", "effective_number"):
        entry = {"name": "ohem", "class_weights": kind}
        assert parse_losses([entry])[0].needs_class_pixels
        ((_, loss),) = built(entry)
        expected = weights_of_classes(PIXELS, kind)
        assert loss.keywords["class_weights"].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    ((_, clipped),) = built({"name": "cross_entropy", "class_weights": "inverse", "clip": [1, 3]})
    assert clipped.keywords["class_weights"].tolist() == [3, 3, 1]

    path = tmp_path / "weights.json"
    path.write_text("[1, 2.5, 0]")
    for given in (str(path), [1, 2.5, 0]):
        entry = {"name": "ohem", "class_weights": given}
        assert not parse_losses([entry])[0].needs_class_pixels
        ((_, loss),) = built(entry)
        assert loss.keywords["class_weights"].tolist() == [1, 2.5, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "2 weights; expected 3, one for each class"),
        ("[1, 2, null]", r"\[2\]: expected a number; found None"),
        ('{"a": 1}', "expected a list of numbers"),
        ("1,2,3", "not JSON"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "weights.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"training.losses\[0\].class_weights: .*weights.json.*{message}"):
        built({"name": "ohem", "class_weights": str(path)})
    with pytest.raises(FileNotFoundError, match="missing.json"):
        built({"name": "ohem", "class_weights": "missing.json"})


def test_confusion_from_a_file(tmp_path):
    rows = [[4, 1, 0], [2, 8, 0], [0, 0, 0.5]]
    (tmp_path / "c.json").write_text(json.dumps(rows))
    (tmp_path / "c.csv").write_text("4,1,0\n2,8,0\n0,0,0.5\n")
    for name in ("c.json", "c.csv"):
        ((_, loss),) = built({"name": "confusion_focal", "matrix": str(tmp_path / name), "floor": 0.3, "cap": 5})
        assert not loss.running and loss.matrix.tolist() == rows
        expected = torch.tensor([[1, 0.3, 0.3], [0.5, 1, 0.3], [0.3, 0.3, 1]])
        torch.testing.assert_close(loss.factors, expected)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "[[1, 2], [3, 4]]", "expected a matrix of 3 x 3, one row for each true class; found 2 rows"),
        ("c.json", "{}", "expected a matrix of 3 x 3"),
        ("c.json", "[[1,2,3],[1,2],[1,2,3]]", r"\[1\]: 2 numbers; expected 3"),
        ("c.json", "[[1,2,3],[1,2,-1],[1,2,3]]", r"\[1\]\[2\]: -1: expected a number of at least 0"),
        ("c.csv", "a,b,c\n1,2,3", "expected rows of numbers with commas between them: .*'a'"),
    ],
)
def test_wrong_confusion_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"training.losses\[0\].matrix: .*{name}.*{message}"):
        built({"name": "confusion_focal", "matrix": str(tmp_path / name)})


def test_mask_models_have_a_loss_of_their_own():
    config = AutoConfig.for_model("vss_maskformer")
    assert build_losses([], config, DATA) is None
    with pytest.raises(ValueError, match=r"training.losses\[0\]: vss_maskformer classifies masks, not pixels"):
        build_losses(parse_losses([{"name": "ohem"}]), config, DATA)


def test_the_sum_of_weighted_losses():
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 16, 20))
    both = build_losses(parse_losses([{"name": "cross_entropy"}, {"name": "ohem", "weight": 0.3}]), CONFIG, DATA)
    (_, first), (weight, second) = both.terms
    settings = dict(ignore_index=2, align_corners=True, num_items_in_batch=700)
    expected = first(logits, labels, **settings) + 0.3 * second(logits, labels, **settings)
    assert weight == 0.3 and both(logits, labels, **settings).item() == pytest.approx(expected.item(), rel=1e-6)
