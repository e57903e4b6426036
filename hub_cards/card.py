"""Writes the model card of a model folder from what the folder holds.

Nothing in a card is typed in by hand and nothing is guessed: the text is `model_card.md` (Jinja) filled with the files
that training and evaluation left in the folder, and a missing file is said to be missing.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open

from vss_hf.metrics.made_by import beside_the_model

from .architectures import ARCHITECTURES, BACKBONE_PAPERS
from .card_data import dataset_tags, hub_id, known_terms, recorded_sources, source_in_words
from .card_files import BACKBONE_KINDS, CONFIG_KINDS, RUN_KINDS, check_kinds, flatten, read_mapping, read_results
from .card_origin import Origin, origin_of
from .card_text import (
    cell,
    check_names,
    is_ours,
    kept_text,
    number,
    options_of,
    read_card,
    render,
    replace_card,
    scrub,
    with_stamp,
)
from .dataset_terms import Terms, licence_of
from .eval_results import HUB_ID, METRICS, model_index, other_classes, scored


TEMPLATE = Path(__file__).with_name("model_card.md")
# Recipe fields worth a row of the summary, by their last name.
SUMMARY_FIELDS = (
    "preset", "backbone_weights", "init_from", "crop_size", "scale_range", "max_steps", "num_train_epochs",
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "backbone_learning_rate",
    "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm", "losses", "ema_decay",
    "swa_start", "swa_every", "swa_learning_rate", "bf16", "fp16", "seed",
)  # fmt: skip
STATISTICS = ("running_mean", "running_var", "empty_weight")  # float tensors that are not learned


def write_card(folder: str | Path, **overrides: Any) -> Path:
    """Write `README.md` of a model folder, complete without editing.

    Text between the card's "keep" markers survives. A README.md that was edited elsewhere, or that something else
    wrote, is first copied to README.previous.md (then README.previous-2.md, ...), with a warning.

    Args:
        folder: a model folder: config.json and, where there are, model.safetensors, training_recipe.yaml,
            train_results.json, eval_results.json, overlay.jpg.
        overrides: keyword arguments of `render_card`: repo_id, license, license_name, license_link, dataset_id,
            base_model, title, description, recipe.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: if the folder or its config.json is missing.
        ValueError: for a file that cannot be read, a result that is no fraction, or an override that the Hub would
            refuse.
    """
    path = Path(folder) / "README.md"
    text = render_card(folder, notes=kept_text(read_card(path)), **overrides)
    replace_card(path, text)
    return path


def card_for_repo(folder: str | Path, repo_id: str, with_code: bool = False) -> str | None:
    """The text of a folder's card for its place on the Hub; nothing is written.

    Args:
        folder: as in `write_card`.
        repo_id: "owner/name" on the Hub.
        with_code: the repository gets the model's code, too.

    Returns:
        The card with that repository in title and code, the options that it was written with before, and the kept
        text; None if README.md was edited elsewhere, or written by something else: then it stays as it is.
    """
    old = read_card(Path(folder) / "README.md")
    if old is not None and not is_ours(old):
        return None
    return render_card(folder, repo_id=repo_id, with_code=with_code, notes=kept_text(old), **options_of(old))


def render_card(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    dataset_id: str | None = None,
    base_model: str | None = None,
    title: str | None = None,
    description: str | None = None,
    recipe: str | None = None,
    with_code: bool = False,
    notes: str = "",
) -> str:
    """The text of a model folder's card.

    Args:
        folder: as in `write_card`.
        repo_id: "owner/name" on the Hub, used in title and code. Default: the folder's own name.
        license: identifier from the Hub's list, e.g. "apache-2.0", or "other" with `license_name` and `license_link`.
            Default: of a released recipe what its data allow at most, otherwise "unknown"; with a sentence that none
            has been stated.
        license_name: name of a licence outside the Hub's list.
        license_link: where that licence can be read.
        dataset_id: the evaluation data set's id on the Hub, where it has one.
        base_model: "owner/name" of the model that this one was trained from. Default: the recipe's `model.init_from`
            or `model.backbone_weights`, where that is an id on the Hub.
        title: default: the released recipe's, or the repository's or folder's name, or its parent's for a folder
            called "model".
        description: a paragraph of Markdown below the title.
        recipe: name of the released recipe that the model is of. Default: the one that its run recorded, if any.
        with_code: show how it is loaded without this package. Default: if the folder holds its code.
        notes: Markdown for the section that later versions of the card keep.

    Returns:
        Markdown with its YAML head.
    """
    _check_identifiers(repo_id, license, license_name, license_link, dataset_id, base_model)
    folder = Path(folder)
    config = read_mapping(folder / "config.json")
    if config is None:
        raise FileNotFoundError(f"no config.json in {folder}: expected a model folder, as save_pretrained writes it")
    check_kinds(config, CONFIG_KINDS, folder / "config.json")
    check_kinds(config.get("backbone_config") or {}, BACKBONE_KINDS, f"{folder / 'config.json'}: backbone_config")
    results = read_results(folder / "eval_results.json")
    trained = scrub(read_mapping(folder / "train_results.json") or {})
    check_kinds(trained, RUN_KINDS, folder / "train_results.json")
    settings = scrub(read_mapping(folder / "training_recipe.yaml") or {})
    flat = flatten(settings)
    stages = read_mapping(folder / "training_stages.json") or {}
    check_kinds(stages, dict.fromkeys(stages, dict), folder / "training_stages.json")

    is_video_model = "frame_offsets" in config
    name = repo_id or folder.resolve().name
    given_title = title
    sources = recorded_sources(trained, flat, folder / "train_results.json") or averaged_data(_members(folder))
    origin = origin_of(recipe, trained, sources, folder / "train_results.json")
    of_recipe = origin.source if origin and origin.is_its_data else None  # what is said of data holds, too
    title = title or (of_recipe and of_recipe.title)
    title = title or (name.split("/")[-1] if name != "model" else folder.resolve().parent.name)  # <output_dir>/model
    seen = of_recipe.terms() if of_recipe else []
    seen += [terms for terms in known_terms(sources) if terms not in seen]
    known = seen + [terms for terms in known_terms([results] if results else []) if terms not in seen]
    licence = {"license": license, "license_name": license_name, "license_link": license_link}
    says_licence = of_recipe is not None and origin is not None and origin.licence_holds
    shown_licence = {**licence, **licence_of(seen)} if says_licence and license is None else licence
    labels = [str(label) for label in (config.get("id2label") or {}).values()]
    recipe_text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).strip() if settings else ""

    metadata = ModelCardData(
        **{**shown_licence, "license": shown_licence["license"] or "unknown"},
        library_name="vss_hf",
        pipeline_tag="image-segmentation",
        tags=["vss_hf", "video-semantic-segmentation", "semantic-segmentation", config.get("model_type", "unknown")],
        datasets=dataset_tags(sources, results, dataset_id),
        metrics=["mean_iou", "accuracy"] if results else None,
        base_model=base_model or hub_id(flat.get("model.init_from")) or hub_id(flat.get("model.backbone_weights")),
        model_name=title if results else None,
        eval_results=model_index(results, dataset_id) if results else None,
    )
    card = render(
        TEMPLATE,
        metadata=metadata.to_yaml(),
        title=title,
        description=description,
        num_labels=len(labels) or "an unknown number of",
        architecture=_architecture(config, folder),
        has_picture=(folder / "overlay.jpg").is_file(),
        has_curve=(folder / "training_curve.png").is_file(),
        has_confusion=(folder / "confusion.png").is_file(),
        repo_id=repo_id,
        place="this repository" if repo_id else "this folder",
        source=name,
        with_code=with_code or "auto_map" in config,
        origin=origin,
        of_recipe=of_recipe,
        is_video_model=is_video_model,
        auto_class="AutoModel" if is_video_model else "AutoModelForSemanticSegmentation",
        training_data=[source_in_words(source, alone=len(sources) == 1) for source in sources],
        labels=labels,
        training_rows=_training_rows(flat, trained),
        stage_rows=_stage_rows(stages),
        recipe=recipe_text,
        recipe_fence="`" * max(3, 1 + max((len(run) for run in re.findall("`+", recipe_text)), default=0)),
        results=results,
        counted=_counted,
        environment_rows=_environment_rows(results or {}, trained),
        is_stated=license is not None,
        **{**shown_licence, "license": shown_licence["license"] or "unknown"},
        all_terms=seen if says_licence and license is None else [],
        notices=[terms.of_models for terms in known],
        references=_references(config, known, origin),
        notes=notes,
        **(_results_context(results) if results else {}),
    )
    ModelCard(card)  # the head must be what huggingface_hub can read back
    options = dict(
        **licence, dataset_id=dataset_id, base_model=base_model, title=given_title, description=description,
        recipe=recipe,
    )  # fmt: skip
    return with_stamp(card, options)


# --- what goes into the text


def _architecture(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Sentences about the network, from its configuration and the headers of its weight files."""
    model_type = config.get("model_type", "unknown")
    kind = f"{ARCHITECTURES[model_type][0]}, " if model_type in ARCHITECTURES else ""
    sentences = [f"Architecture: {kind}model type `{model_type}`."]
    backbone = config.get("backbone_config") or {}
    if backbone:
        parts = [f"`{backbone.get('backbone') or backbone.get('model_type', 'unknown')}`"]
        if backbone.get("backbone"):
            parts.append("from timm")
        if backbone.get("embed_dim"):
            parts.append(f"embedding width {backbone['embed_dim']}")
        if backbone.get("depths"):
            parts.append("depths " + "-".join(str(depth) for depth in backbone["depths"]))
        sentences.append(f"Backbone: {', '.join(parts)}.")
    if strides := _strides(config):
        listed = ", ".join(map(str, strides))
        sentences.append(f"The head reads feature maps at strides {listed}; the logits have stride {strides[0]}.")
    if offsets := config.get("frame_offsets"):
        listed = ", ".join(map(str, offsets))
        sentences.append(f"Each frame is labelled with the help of earlier ones (frame offsets {listed}).")
    count = count_parameters(folder)
    size = f"{count / 1e6:.1f} million parameters ({count:,})." if count >= 1e6 else f"{count:,} parameters."
    return [*sentences, size if count else "The folder holds no weights.", *_origin(folder), *_averaging(folder)]


def _origin(folder: Path) -> list[str]:
    """A sentence about the file that `vss-hf convert` made the weights from, if it did."""
    origin = scrub(read_mapping(folder / "conversion.json") or {})
    names = [origin.get(key) for key in ("checkpoint", "source", "sha256")]
    if not all(isinstance(name, str) for name in names):
        return []
    checkpoint, source, digest = map(cell, names)
    return [
        f"The weights were converted from `{checkpoint}` ({source}; SHA-256 {digest}); their licence and results are "
        "those of that file's authors."
    ]


def _members(folder: Path) -> list[dict[str, Any]]:
    """The models that `vss-hf average` made this one from; none if it did not."""
    path = folder / "averaging.json"
    members = (scrub(read_mapping(path)) or {}).get("members") or []
    kinds = {"model": str, "weight": (int, float), "trained_on": list}
    for member in members:
        if not all(isinstance(member.get(key), kind) for key, kind in kinds.items()):
            raise ValueError(f"{path}: a member is {str(member)[:80]}, expected {', '.join(kinds)}")
    return members


def averaged_data(members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the members of an average were trained on, by name."""
    names = dict.fromkeys(str(name) for member in members for name in member["trained_on"])
    return [{"dataset": name} for name in names]


def _averaging(folder: Path) -> list[str]:
    """A sentence about the members of an average."""
    if not (members := _members(folder)):
        return []
    equal = len({member["weight"] for member in members}) == 1
    names = [f"`{cell(m['model'])}`" + ("" if equal else f" (weight {m['weight']:g})") for m in members]
    sentence = f"The weights are the mean of those of {len(members)} models: {', '.join(names)}."
    return [f"{sentence} Only an evaluation of this model itself counts, no result of theirs."]


def _strides(config: Mapping[str, Any]) -> list[int]:
    """Strides of the maps that the head reads; empty where the configuration alone does not tell."""
    backbone = config.get("backbone_config") or {}
    stages = [int(name[5:]) for name in backbone.get("out_features") or [] if re.fullmatch(r"stage[1-9]", str(name))]
    indices = config.get("in_indices") or []
    if backbone.get("model_type") not in ("swin", "swinv2", "convnext", "convnextv2"):
        return []
    if not stages or not indices or not all(type(i) is int and 0 <= i < len(stages) for i in indices):
        return []
    patch_size = backbone.get("patch_size", 4)
    if not isinstance(patch_size, int):
        return []
    return [patch_size * 2 ** (stages[index] - 1) for index in indices]


def count_parameters(folder: str | Path) -> int:
    """Parameters in a folder's *.safetensors, read from the headers alone.

    Normalisation statistics and integer tensors (counters, index tables) are state, not parameters: not counted.
    """
    total = 0
    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as weights:
                tensors = {name: weights.get_slice(name) for name in weights.keys()}
                kinds = {name: (tensor.get_dtype(), tensor.get_shape()) for name, tensor in tensors.items()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}); copy or save it again") from error
        for name, (dtype, shape) in kinds.items():
            is_state = name.endswith(STATISTICS) or dtype.startswith(("I", "U", "BOOL"))
            total += 0 if is_state else math.prod(shape)
    return total


def _results_context(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the Results section and the sentence about weak classes need."""
    values = {key: value for key, _, _, value in scored(results)}
    iou = {name: number(value) for name, value in results["per_class_iou"].items()}
    ranked = sorted(((value, name) for name, value in iou.items() if value is not None), key=lambda pair: -pair[0])
    absent = [name for name, value in iou.items() if value is None]
    clips = [f"{count} clips of {key.strip('vc')} frames" for key, count in results["vc_clips"].items() if count]
    weakest = [f"{cell(name)} ({value:.4f})" for value, name in ranked[:-4:-1]]
    return {
        "metric_rows": [
            (name, results[which] or "not stated", f"{values[key]:.4f}" if key in values else "–")
            for key, name, which in METRICS
        ],
        "other_classes": other_classes(results),
        "made_by": beside_the_model(results),
        "clips": " and ".join(clips),
        "without_clips": [key.upper() for key in ("vc8", "vc16") if key not in values],
        "class_rows": [(name, f"{value:.4f}") for value, name in ranked] + [(name, "–") for name in absent],
        "absent": len(absent),
        "weakest": ", ".join(weakest) if len(ranked) > 5 else "",
        "frames_per_second": number(results["frames_per_second"]),
    }


def _training_rows(flat: Mapping[str, Any], trained: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Settings from the recipe, then what the run came to."""
    rows = []
    for field in SUMMARY_FIELDS:
        found = [value for key, value in flat.items() if key.split(".")[-1] == field]
        if found and found[0] is not None and found[0] is not False:
            rows.append((field, found[0]))
    for key, label in (("steps", "steps done"), ("best_step", "best step"), ("samples", "samples seen")):
        if trained.get(key) is not None:
            rows.append((label, trained[key]))
    if (seconds := number(trained.get("seconds"))) is not None:
        rows.append(("duration", _duration(seconds)))
    if (loss := number(trained.get("train_loss"))) is not None:
        rows.append(("mean training loss", f"{loss:.4f}"))
    return rows


def _stage_rows(stages: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Of every stage: name, model that it began with, steps, mIoU."""
    rows = []
    for name, told in stages.items():
        flat = flatten(told.get("recipe") or {})
        start = flat.get("model.init_from") or flat.get("model.preset") or "a new model"
        result_of = [f"the result of {earlier}" for earlier in stages if str(start).endswith(f"{earlier}/model")]
        start = result_of[0] if result_of else scrub(start)
        value = number(told.get("mean_iou"))
        rows.append((name, start, told.get("steps", "–"), "–" if value is None else f"{value:.4f}"))
    return rows


def _environment_rows(results: Mapping[str, Any], trained: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for what, source in (("training", trained), ("evaluation", results)):
        if source.get("hardware"):
            rows.append((f"hardware, {what}", source["hardware"]))
        if source.get("versions"):
            listed = ", ".join(f"{package} {version}" for package, version in source["versions"].items())
            rows.append((f"versions, {what}", listed))
    return rows


def _counted(source: Mapping[str, Any], key: str) -> str:
    """'3 videos', '1 video' or 'number of videos not recorded'."""
    count = source.get(key)
    return f"number of {key} not recorded" if count is None else f"{count} {key if count != 1 else key[:-1]}"


def _references(config: Mapping[str, Any], known: list[Terms], origin: Origin | None) -> list[str]:
    references = ["This model was made with vss_hf, video semantic segmentation for the Hugging Face tools."]
    if origin and origin.source.citation:
        references.append(f"{origin.source.citation}. {origin.source.link} (recipe)".replace("  ", " "))
    if config.get("model_type") in ARCHITECTURES:
        references.append(ARCHITECTURES[config["model_type"]][1])
    backbone = config.get("backbone_config") or {}
    name = str(backbone.get("backbone") or backbone.get("model_type") or "")
    references += [paper for prefix, paper in BACKBONE_PAPERS.items() if re.match(rf"{prefix}(?!v2)", name)]
    return references + [terms.paper for terms in known]


# --- checks


def _check_identifiers(repo_id, license, license_name, license_link, dataset_id, base_model) -> None:
    """What the Hub would refuse is refused here, with the option's name."""
    check_names(repo_id, license, license_name, license_link)
    for option, value in (("dataset_id", dataset_id), ("base_model", base_model)):
        if value is not None and not HUB_ID.fullmatch(value):
            raise ValueError(f"{option}={value!r}: expected an id on the Hub, 'owner/name'")


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
