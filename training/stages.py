"""Recipes whose training has stages: each a run of its own, from the result of the one before.

    stages:
      - {name: part1, training: {max_steps: 160000}}
      - name: part2
        model: {config: {backbone_config: {depths: [4, 6, 20, 4]}}}
        training: {max_steps: 40000, learning_rate: 1.0e-5}

A stage is the recipe with the stage's own sections over it (the rules are those of `base:`, see recipe_files.py). It
writes into `<output_dir>/<stage>`; the last one's model folder becomes `<output_dir>/model`, too.

- `model.init_from` of every stage but the first is the model folder of the stage before, and `model.config` what the
  stage changes in it; unless the stage itself says `init_from` (null: a new model, as the recipe describes it) or
  `preset`.
- `{stage: NAME}` stands for the model folder of an earlier stage, wherever a folder is expected.
- On the command line `--max_steps 10` is for all stages, and over what they say; `--stages.part2.max_steps 10` is for
  one. `--model.init_from`, `--model.preset` and `--model.backbone_weights` are for those that do not start from the
  stage before.
- A finished stage is not trained again. Other settings than it was trained with are an error; `--restart` removes the
  results of all stages, `--restart part2` those of part2 and the stages after it.
- `--resume_from_checkpoint true` goes on where an interrupted stage stopped.
"""

import gc
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers.utils import logging

from vss_hf.fields import known_or_raise
from vss_hf.files import write_json
from vss_hf.hub_cards import write_card, write_eval_results
from vss_hf.inference.processes import failing_together, gather_texts, is_first

from .arguments import VSSTrainingArguments
from .checkpoints import clean_up, commit_folder, newest_checkpoint, partial_path
from .hub import link_or_copy
from .recipe import SECTIONS, Recipe, build_recipe, parse_overrides, resolve_key, set_field
from .recipe_files import merge_sections, read_recipe, unless_replaced
from .recipe_yaml import plain


logger = logging.get_logger(__name__)

FINISHED = "finished_stage.json"  # in a stage's folder, written last: the settings that it was trained with
HISTORY = "training_stages.json"  # in a model folder: the stages that led to it
BEGINNINGS = ("init_from", "preset", "backbone_weights")
RESERVED = ("model", "runs")  # what else lies in an output folder
WITHOUT_EFFECT = (  # settings that may change after a stage is finished
    "output_dir", "resume_from_checkpoint", "push_to_hub", "hub_token", "hub_model_id", "hub_strategy",
    "hub_private_repo", "hub_revision", "report_to", "logging_steps", "disable_tqdm", "dataloader_num_workers",
    "per_device_eval_batch_size", "save_total_limit", "logged_overlays", "run_name",
)  # fmt: skip


@dataclass
class Stage:
    """One stage of a recipe.

    Args:
        name: of the stage and its folder.
        recipe: the stage as a recipe of its own.
        settings: what it is known by: its sections before defaults, results of other stages by their names.
    """

    name: str
    recipe: Recipe
    settings: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where its checkpoints and its model folder are."""
        return Path(self.recipe.training.output_dir)

    @property
    def model_folder(self) -> Path:
        """Its result."""
        return self.folder / "model"


# --- from the file to runs


def has_stages(path: str | Path) -> bool:
    """Whether a recipe has stages, for `load_stages`, or is a plain one, for `load_recipe`."""
    return bool(read_recipe(path, SECTIONS)["stages"])


def load_stages(path: str | Path, overrides: list[str] | None = None) -> list[Stage]:
    """Read a recipe with stages and apply overrides.

    Args:
        path: as for `load_recipe`.
        overrides: as for `load_recipe`; those that begin with `--stages.NAME.` are for one stage.

    Returns:
        The stages in their order, all of them checked.

    Raises:
        FileNotFoundError, ValueError: as `load_recipe`; the message names the stage.
    """
    given = read_recipe(path, SECTIONS)
    stages = given.pop("stages")
    if not stages:
        raise ValueError(f"recipe {path} has no stages; read it with load_recipe")
    check_names(list(stages), f"recipe {path}")
    for_all, for_one = split_overrides(parse_overrides(overrides or []), list(stages))
    found: list[Stage] = []
    for number, (name, own) in enumerate(stages.items()):
        if "output_dir" in own.get("training", {}) or any(words[1] == "output_dir" for _, words, _ in for_one[name]):
            raise ValueError(f"stage '{name}': training.output_dir is for all stages together; leave it out here")
        before = found[-1].name if found else None
        sections = stage_sections(given, own, before, for_all, for_one[name])
        training = sections["training"]
        output_dir = Path(training.get("output_dir") or VSSTrainingArguments.output_dir)
        settings = json.loads(json.dumps(plain(sections)))
        for field in WITHOUT_EFFECT:
            settings["training"].pop(field, None)
        training["output_dir"] = str(output_dir / name)
        if training.get("push_to_hub"):  # the last stage's result is the recipe's
            training["push_to_hub"] = number == len(stages) - 1
            training["hub_model_id"] = training.get("hub_model_id") or output_dir.resolve().name
        folders = {stage.name: str(stage.model_folder) for stage in found}
        try:
            recipe = build_recipe(with_results(sections, folders))
        except ValueError as error:
            raise ValueError(f"stage '{name}': {error}") from error
        recipe.stage = name
        found.append(Stage(name, recipe, settings))
    return found


def check_names(names: list[str], place: str) -> None:
    """Raise for a stage's name that cannot be that of a folder and of a field on the command line."""
    for name in names:
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) or name in RESERVED:
            raise ValueError(
                f"{place}: a stage cannot be called '{name}'; expected a letter, then letters, digits and "
                f"underscores, and not {' or '.join(RESERVED)}"
            )


def restarted(overrides: list[str]) -> str | bool:
    """What `--restart` says: the first stage that is to be trained again; True: all; False: it is not there."""
    return dict(parse_overrides(overrides)).get("restart", False)


Override = tuple[str, list[str], Any]  # as typed, [section, field, ...], value


def split_overrides(
    pairs: list[tuple[str, Any]], names: list[str]
) -> tuple[list[Override], dict[str, list[Override]]]:
    """Overrides for all stages, and those for each one."""
    for_all: list[Override] = []
    for_one: dict[str, list[Override]] = {name: [] for name in names}
    for key, value in pairs:
        first, *rest = key.replace("-", "_").split(".")
        if key == "restart":
            continue
        if first == "stages":
            name = rest[0] if rest else ""
            known_or_raise(name, names, f"--{key}: there is no stage")
            if len(rest) < 2:
                raise ValueError(f"--{key} is a stage; name a field of it, e.g. --stages.{name}.training.max_steps")
            for_one[name].append((key, resolve_key(".".join(rest[1:])), value))
            continue
        words = resolve_key(key)
        if words[1] == "resume_from_checkpoint" and str(value).lower() not in ("true", "false", "none"):
            raise ValueError(f"--{key} {value}: a folder belongs to one stage; give true, or --stages.NAME.{words[1]}")
        for_all.append((key, words, value))
    return for_all, for_one


def stage_sections(
    given: dict[str, Any], own: dict[str, Any], before: str | None, for_all: list[Override], for_one: list[Override]
) -> dict[str, Any]:
    """All sections of a stage; `before` is the name of the stage before it."""
    model = own.get("model", {})
    start = {**model, **{words[1]: value for _, words, value in for_one if words[0] == "model"}}
    follows = before is not None and not {"init_from", "preset"} & start.keys()
    if follows:
        start = {"init_from": {"stage": before}}
        own = {**own, "model": {**model, **start}}
    below = {**given, "model": unless_replaced(given["model"], start)}
    sections = merge_sections(below, own, SECTIONS)
    for key, (section, *parts), value in [*for_all, *for_one]:
        if not (follows and section == "model" and parts[0] in BEGINNINGS):
            set_field(sections[section], parts, value, key)
    return sections


def with_results(value: Any, folders: dict[str, str], place: str = "") -> Any:
    """A copy of fields in which `{stage: NAME}` is that stage's model folder; `place` is where it stands."""
    if isinstance(value, dict) and set(value) == {"stage"}:
        known = folders or {"(none)": ""}
        known_or_raise(value["stage"], known, f"{place}: there is no earlier stage")
        return folders[value["stage"]]
    if isinstance(value, dict):
        return {key: with_results(item, folders, f"{place}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list):
        return [with_results(item, folders, f"{place}[{number}]") for number, item in enumerate(value)]
    return value


# --- what is done already


def unfinished(stages: list[Stage], restart: str | bool) -> list[Stage]:
    """The stages that are to be trained.

    Args:
        stages: all of them.
        restart: the name of the first stage that is to be trained again; True: of all.

    Raises:
        ValueError: a stage was trained with other settings, or there is no stage `restart`.
    """
    names = [stage.name for stage in stages]
    if not isinstance(restart, bool):
        known_or_raise(restart, names, "--restart: there is no stage")
        again = names.index(str(restart))
    else:
        again = 0 if restart else len(stages)
    for number, stage in enumerate(stages[:again]):
        mark = stage.folder / FINISHED
        if not mark.is_file():
            return stages[number:]
        changes = list(differences(json.loads(mark.read_text(encoding="utf-8")), stage.settings))
        if changes:
            field = changes[0].split(":")[0]
            raise ValueError(
                f"stage '{stage.name}' in {stage.folder} was trained with other settings: {'; '.join(changes[:5])}; "
                f"set them back, change them for other stages alone (--stages.NAME.{field}), or train this stage and "
                f"those after it again with --restart {stage.name}"
            )
    return stages[again:]


def differences(was: Any, now: Any, place: str = "") -> Iterator[str]:
    """Lines such as `training.max_steps: 4 then, 8 now`."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in {**was, **now}:
            if key not in was or key not in now:
                told = ["not given" if key not in side else repr(side[key]) for side in (was, now)]
                yield f"{place}{key}: {told[0]} then, {told[1]} now"
            else:
                yield from differences(was[key], now[key], f"{place}{key}.")
    elif was != now:
        yield f"{place.rstrip('.')}: {was!r} then, {now!r} now"


# --- the runs


def train_stages(stages: list[Stage], restart: str | bool, train: Callable[..., Path]) -> Path:
    """Carry out the stages that are not done yet. All processes go through them together.

    Args:
        stages: from `load_stages`.
        restart: as in `unfinished`; what these stages have written is removed.
        train: `vss_hf.training.run.train`.

    Returns:
        The model folder of the whole recipe, `<output_dir>/model`.
    """
    output_dir = stages[-1].folder.parent
    first = is_first()  # asked now: the last stage ends the process group, and alone everybody is the first
    with failing_together():
        left = unfinished(stages, restart)
    with failing_together():
        if first:
            clean_up(output_dir)
            if restart:
                for folder in [output_dir / "model", *(stage.folder for stage in left)]:
                    shutil.rmtree(folder, ignore_errors=True)
    for number, stage in enumerate(stages):
        if stage not in left:
            logger.warning(f"stage '{stage.name}' is finished: {stage.model_folder}")
            continue
        with failing_together():
            if first:
                (stage.folder / FINISHED).unlink(missing_ok=True)
        # Anew: making the settings of another stage has set accelerate's to them.
        recipe = build_recipe(stage.recipe.given)
        recipe.stage = stage.name
        recipe.origin = stage.recipe.origin
        if number:
            recipe.earlier_stages = json.loads((stages[number - 1].model_folder / HISTORY).read_text("utf-8"))
        began = bool(gather_texts("yes" if newest_checkpoint(stage.folder) else "")[0])
        if number and not began and str(recipe.training.resume_from_checkpoint).lower() == "true":
            recipe.training.resume_from_checkpoint = None  # it was the stage before that was interrupted, or its end
        train(recipe, more_to_come=stage is not stages[-1])
        if first:
            # Of an earlier recipe, and not to be taken for the result of this one. (Not sooner: a run that fails at
            # once must not cost it.)
            shutil.rmtree(output_dir / "model", ignore_errors=True)
            write_json(stage.folder / FINISHED, stage.settings)
        gc.collect()  # a Trainer and its callbacks know each other, and hold the model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if first and not (output_dir / "model" / "config.json").is_file():
        copy_result(stages[-1].model_folder, output_dir / "model")
    if not left:
        PartialState().destroy_process_group()  # as at the end of a run
    return output_dir / "model"


def copy_result(result: Path, folder: Path) -> None:
    """The last stage's model folder as that of the whole recipe, under its name."""
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(result, partial, copy_function=lambda path, second: link_or_copy(Path(path), Path(second)))
    results = json.loads((partial / "eval_results.json").read_text(encoding="utf-8"))
    results["model"] = folder.resolve().parent.name
    write_json(partial / "eval_results.json", results)
    write_eval_results(partial, results)
    commit_folder(partial, folder)
    write_card(folder)
