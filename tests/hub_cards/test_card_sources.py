"""Card sources of released recipes: against the recipes, the papers' list and the data sets' terms; and in cards."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id


sys.path.append(str(Path(__file__).parents[2]))  # for benchmarks

from benchmarks.collection_table import MARKS, PAGE, table
from vss_hf.cli import main
from vss_hf.hub_cards import render_card, write_card
from vss_hf.hub_cards.card_sources import RECIPES, about_data, card_source, released_recipes
from vss_hf.hub_cards.dataset_terms import TERMS
from vss_hf.training.origin import origin_of
from vss_hf.training.papers import PAPERS
from vss_hf.training.recipe_files import paper_of, shipped_recipes


SOURCES = {name: card_source(name) for name in released_recipes()}
COCO = "betterthing/swin-large-480-coco"


def test_every_recipe_but_bases_is_released():
    assert list(SOURCES) == [name for name in shipped_recipes() if not name.startswith("bases/")]
    for names in ([s.title for s in SOURCES.values()], [s.repository for s in SOURCES.values()]):
        assert len(set(names)) == len(names)
    for source in SOURCES.values():
        validate_repo_id(f"owner/{source.repository}")
        assert all(about_data(name) for name in source.data) and source.limits and source.intended_use


def test_papers_and_figures_are_those_of_the_recipes():
    for name, source in SOURCES.items():
        section = paper_of(name)
        if section is None:
            assert not source.rows and not source.citation
            continue
        paper = PAPERS[section.name]
        assert paper.title in source.citation or source.citation.endswith("(HFGD)")
        assert source.link == paper.link
        found = [(row["table"], row["row"], row["setting"], row.get("val"), row.get("test")) for row in source.rows]
        assert found == [(row.table, row.row, row.setting, row.val, row.test) for row in section.rows]


def test_what_the_paper_leaves_open_names_no_other_recipe():
    for source in SOURCES.values():
        assert not [line for line in source.uncertain if line.startswith("as ")]
        assert len(set(source.uncertain)) == len(source.uncertain)
        assert source.uncertain or not source.citation
    own = paper_of("ustc/swin-640-ohem-swa").uncertain
    told = SOURCES["ustc/swin-640-ohem-swa"].uncertain
    assert own[0] == "as swin-640-ohem" and told[-1] == own[1]
    assert {*paper_of("ustc/swin-480").uncertain, *paper_of("ustc/swin-640-ohem").uncertain[1:]} <= set(told)


def test_data_are_those_that_the_recipe_reads():
    """Layouts in the recipe's own file, and converted models that have seen other labels."""
    seen = set()
    for name, source in SOURCES.items():
        text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
        layouts = set(re.findall(r"\bsource: (\w+)", text)) | set(re.findall(r"init_from: models/.*-(ade20k)", text))
        needed = {next(terms.name for key, terms in TERMS.items() if key in layout) for layout in layouts}
        assert needed <= {terms.name for terms in source.terms()}, name
        seen |= needed
    assert {"COCO-Stuff", "ADE20K", "Cityscapes"} <= seen


def test_licence_follows_from_the_data():
    assert SOURCES["ustc/swin-480"].licence()["license_link"] == TERMS["vspw"].link
    assert SOURCES["camvid-ocrnet"].licence()["license_name"] == TERMS["camvid"].licence
    assert SOURCES["demo-ocrnet"].licence() == {"license": "apache-2.0"}
    several = SOURCES["betterthing/volo-d5-unet-480-ade20k-cityscapes"].licence()
    assert several["license_name"] == "vspw-research-only-and-ade20k-terms-and-cityscapes-terms"


def test_table_in_the_docs():
    text = PAGE.read_text(encoding="utf-8")
    assert text.split(MARKS[0])[1].split(MARKS[1])[0].strip() == "\n".join(table()), (
        "write it anew: python benchmarks/collection_table.py --markdown docs/hub.md"
    )


# --- what a run records


def test_origin_of_a_run(tmp_path):
    words = ["--data.root", "videos", "--max-steps", "2", "--output_dir=x", "--stages.part2.data.sources.1.root", "c"]
    expected = {"recipe": COCO, "recipe_changes": {"max_steps": 2}}
    assert origin_of(COCO, words) == origin_of(RECIPES / f"{COCO}.yaml", words) == expected
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {COCO}\n")
    assert origin_of(own, words) == {}


# --- in a card


@pytest.fixture
def folder(tmp_path):
    """A model folder with results of ours, mean IoU 0.5, of a run of a recipe that also saw COCO-Stuff."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vss_ocrnet", "id2label": {"0": "sea", "1": "sky"}}))
    results = {"dataset": "VSPW_480p", "split": "val", "mean_iou": 0.5, "protocol": "vspw"}
    (folder / "eval_results.json").write_text(json.dumps(results))
    record(folder)
    return folder


def record(folder, dataset="VSPW_480p", **others):
    told = {"dataset": dataset, "recipe": COCO, "recipe_changes": {"max_steps": 2, "model.init_from": "/home/x/y"}}
    (folder / "train_results.json").write_text(json.dumps(told | others))


def test_card_of_a_released_recipe(folder):
    card = ModelCard(render_card(folder))
    head, text = card.data, card.text
    source = SOURCES[COCO]
    assert head.model_name == source.title and f"# {source.title}" in text
    assert (head.license, head.license_name) == ("other", "vspw-research-only-and-coco-terms")
    licence = text.split("## Licence")[1]
    assert all(f"[{TERMS[key].licence}]({TERMS[key].link})" in licence for key in ("vspw", "coco_stuff"))
    assert "Nobody has stated a licence of these weights." in text
    assert TERMS["coco_stuff"].of_models in text  # not recorded as data of the last stage
    assert "with other settings than it ships with: `max_steps: 2`, `model.init_from: y`." in text
    assert all(limit in text for limit in source.limits) and source.intended_use in text
    # The paper's figure is in its own table, below its own sentence, and nowhere for programs.
    before, after = text.split("**Reported by the paper, not measured with these weights**")
    assert "56.8" not in before and "| 56.80 | – |" in after and "on VSPW" in after.split("\n")[0]
    assert [result.metric_value for result in head.eval_results] == [0.5]
    assert "56.8" not in yaml.safe_dump(head.to_dict())


def test_a_stated_licence_counts(folder):
    card = ModelCard(render_card(folder, license="mit"))
    assert card.data.license == "mit" and card.data.license_name is None and "Nobody has stated" not in card.text


@pytest.mark.parametrize(
    ("told", "licence"),
    [
        ({}, "apache-2.0"),
        ({"sources": [{"dataset": "sample_videos"}, {"dataset": "VSPW_480p"}]}, "unknown"),
        ({"recipe_changes": {"model.init_from": "runs/vspw/model"}}, "unknown"),
        ({"dataset": "our_sample_videos_of_patients"}, "unknown"),
    ],
)
def test_a_free_licence_is_for_nothing_but_drawn_data(folder, told, licence):
    drawn = {"dataset": "sample_videos", "recipe": "demo-ocrnet", "recipe_changes": {}}
    (folder / "train_results.json").write_text(json.dumps(drawn | told))
    assert ModelCard(render_card(folder)).data.license == licence


def test_recipe_on_other_data(folder):
    record(folder, "my_streets")
    card = ModelCard(render_card(folder))
    assert card.data.license == "unknown" and card.data.model_name == "my-model"
    assert "**Trained on other data than the recipe's, VSPW**" in card.text
    assert not any(limit in card.text for limit in SOURCES[COCO].limits)
    assert "| 56.80 | – |" in card.text  # of the settings, and said to be


def test_recipe_of_another_version(folder):
    record(folder, recipe="betterthing/not-yet")
    assert "Recipe:" not in render_card(folder)
    record(folder, recipe=["x"])
    with pytest.raises(ValueError, match=r"train_results.json: recipe is .*expected text"):
        render_card(folder)


def test_a_recipe_that_is_said(folder, capsys):
    (folder / "train_results.json").unlink()
    words = ["card", str(folder), "--recipe"]
    with pytest.raises(SystemExit) as end:
        main([*words, "ustc/swin-64"])
    assert end.value.code == 2
    assert (
        "recipe 'ustc/swin-64' is not released, so it has no card; did you mean ustc/swin-640"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit) as end:
        main([*words, "ustc/swin-640"])
    assert end.value.code == 0
    text = (folder / "README.md").read_text()
    assert "# USTC: UperNet on Swin-L, crops of 640" in text and "| 5, 1 | Swin | 55.40 | 50.99 |" in text
    assert '{"recipe": "ustc/swin-640"}' in text.splitlines()[-1]  # so that a push writes the same card


def test_a_step_towards_other_rows(folder):
    text = render_card(folder, recipe="betterthing/volo-d5-unet-480-ade20k-cityscapes")
    assert "It gives no figure for this training alone" in text and "Reported by the paper" not in text
    assert TERMS["cityscapes"].of_models in text


@pytest.mark.parametrize("with_code", [False, True])
def test_snippet_without_the_package(folder, with_code):
    assert ("trust_remote_code=True" in render_card(folder, with_code=with_code)) == with_code
    config = json.loads((folder / "config.json").read_text())
    if with_code:
        (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "auto_classes.X"}}))
        write_card(folder)
        assert (
            "AutoModelForSemanticSegmentation.from_pretrained(source, trust_remote_code=True)"
            in (folder / "README.md").read_text()
        )


def test_the_page_says_where_each_licence_stands():
    lines = PAGE.read_text(encoding="utf-8").split("## Licences of weights")[1].split("\n## ")[0].splitlines()
    for terms in TERMS.values():
        (line,) = [line for line in lines if line.startswith(f"| {terms.name} |")]
        assert f"| `{terms.licence}` |" in line and f"| <{terms.link}> |" in line
