"""The section `data` of a recipe: sources and sampling, their mistakes, overrides of list entries, the round trip."""

import pytest
import yaml
from tiny import write_recipe

from vss_hf.training.data_recipe import SourceRecipe
from vss_hf.training.recipe import load_recipe
from vss_hf.training.recipe_yaml import to_yaml


@pytest.fixture
def path(tmp_path):
    sources = [{"weight": 2}, {"root": "coco", "source": "coco_stuff", "table": "default", "min_labelled": 0.8}]
    return write_recipe(
        tmp_path / "recipe.yaml", "videos", tmp_path / "run", data={"root": "videos", "sources": sources}
    )


def sources(path, *words):
    return load_recipe(path, list(words)).data.training_sources()


def test_what_is_left_out_is_filled_in(path):
    videos, images = sources(path, "--train_split=train_small", "--data.sampling=one_per_video")
    assert videos == SourceRecipe("videos", "train_small", "vspw", weight=2, sampling="one_per_video")
    assert images == SourceRecipe(
        "coco", "train_small", "coco_stuff", "default", min_labelled=0.8, sampling="one_per_video"
    )


def test_without_sources_it_is_the_root(path):
    words = ["--data.sources=[]", "--data.source=camvid", "--data.table=liberal", "--data.sampling=every_nth"]
    assert sources(path, *words, "--data.every_nth=5") == [
        SourceRecipe("videos", "train", "camvid", "liberal", sampling="every_nth", every_nth=5)
    ]


def test_layout_and_table_of_the_root_are_not_those_of_other_roots(path):
    first, second = sources(path, "--data.source=camvid", "--data.table=default", "--data.sources.1={root: elsewhere}")
    assert (first.source, first.table) == ("camvid", "default")
    assert (second.root, second.source, second.table) == ("elsewhere", "vspw", None)


def test_a_source_samples_as_it_likes(path):
    words = ["--data.sampling=class_balanced", "--data.balance_by=pixels", "--data.sources.1.sampling=every_nth"]
    first, second = sources(path, *words, "--data.sources.1.every_nth=3")
    assert (first.sampling, first.every_nth, first.balance_by) == ("class_balanced", None, "pixels")
    assert (second.sampling, second.every_nth, second.balance_by) == ("every_nth", 3, None)


def test_entries_of_a_list_on_the_command_line(path):
    words = ["--data.sources.1.weight", "0.5", "--data.sources.1.root=other", "--sources.0.split", "val"]
    first, second = sources(path, *words)
    assert (first.split, first.weight, second.root, second.weight) == ("val", 2, "other", 0.5)
    assert [source.root for source in sources(path, "--data.sources", "[{root: a}, {root: b}, {}]")] == [
        "a",
        "b",
        "videos",
    ]
    recipe = load_recipe(path, ["--scale_range", "[0.5, 2.0]", "--augmentation.scale_range.1", "1.5"])
    assert recipe.augmentation.scale_range == (0.5, 1.5)


def test_a_saved_recipe_has_the_same_sources(path, tmp_path):
    words = ["--data.mix_by=videos", "--data.mix_temperature=2", "--data.sources.1.every_nth=3"]
    first = load_recipe(path, [*words, "--data.sources.1.sampling=every_nth"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(to_yaml(first.to_dict()))
    assert load_recipe(saved).data == first.data and load_recipe(saved).to_dict() == first.to_dict()
    assert yaml.safe_load(saved.read_text())["data"]["sources"][0] == {"weight": 2}  # as it was given


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.sources.1.wieght=2"], r"data.sources\[1\] has no field 'wieght'; did you mean 'weight'"),
        (["--data.sources.1.weight=0"], r"data.sources\[1\].weight=0: expected a number above 0; leave out unwanted"),
        (["--data.sources.1.weight=.inf"], r"data.sources\[1\].weight=inf"),
        (["--data.sources.1.weight=two"], r"data.sources\[1\].weight: expected a number; found 'two'"),
        (["--data.sources.1.min_labelled=80"], r"data.sources\[1\].min_labelled=80: expected a share of the pixels"),
        (
            ["--data.sources.1.source=coco_stuf"],
            r"data.sources\[1\].source has no choice 'coco_stuf'; did you mean 'c",
        ),
        (["--data.source=citiscapes"], "data.source has no choice 'citiscapes'; did you mean 'cityscapes"),
        (["--data.sources=coco"], "data.sources: expected a list; found 'coco'"),
        (["--data.sources=[coco]"], r"data.sources\[0\]: expected fields such as {root: .*}; found 'coco'"),
        (["--data.sources=null"], "data.sources: expected a list; found null"),
        (["--data.sources.2.weight=1"], "--data.sources.2.weight: '2' is no entry of a list of 2, which count from 0"),
        (["--data.sources.weight=1"], "--data.sources.weight: 'weight' is no entry of a list of 2"),
        (["--data.sources.-1.weight=1"], "no entry of a list"),
        (["--data.sources.1.weight.x=1"], "'weight' holds|has no field 'x'|expected a number; found {'x': 1}"),
        (["--data.source_s=[]"], "section 'data' has no field 'source_s'; did you mean 'source"),
        (["--data.sampling=one_per_vide"], "data.sampling has no choice 'one_per_vide'; did you mean 'one_per_video'"),
        (["--data.sampling=every_nth"], "data: sampling: every_nth and every_nth: N belong together; .*: None"),
        (["--data.every_nth=2"], "belong together; found sampling: every_frame and every_nth: 2"),
        (["--data.sampling=every_nth", "--data.every_nth=0"], "data.every_nth=0: expected at least 1"),
        (["--data.sources.0.every_nth=2"], r"data.sources\[0\]: sampling: every_nth and every_nth: N belong together"),
        (["--data.balance_by=pixels"], "data.balance_by is for sampling: class_balanced; found sampling: every_frame"),
        (["--data.sampling=class_balanced", "--data.balance_by=frames"], "data.balance_by has no choice 'frames'"),
        (["--data.mix_by=frame"], "data.mix_by has no choice 'frame'; did you mean 'frames'"),
        (["--data.mix_temperature=0.5"], "data.mix_temperature=0.5: expected a number from 1"),
        (["--data.mix_by=weights", "--data.mix_temperature=2"], "mix_temperature with mix_by: weights has no numbers"),
    ],
)
def test_mistakes(path, words, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(path, words)
