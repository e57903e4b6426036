"""One run from a recipe to a model folder with its card."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForSemanticSegmentation, set_seed

from vss_hf.confusion_plot import plot_confusion, title_of
from vss_hf.data.labels import ClassList
from vss_hf.data.splits import LabelledSplit
from vss_hf.data.statistics import label_statistics
from vss_hf.files import write_json
from vss_hf.hub_cards import write_card, write_eval_results
from vss_hf.inference.processes import failing_together, first_process_first, is_first
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.modeling.architectures import VIDEO_MODELS
from vss_hf.modeling.backbone import load_backbone_weights
from vss_hf.modeling.deepen import deepen_swin
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.loading import auto_class, load_segmentation_model, load_strictly, stored_config
from vss_hf.scoring.class_scores import shared_statistics, show_results
from vss_hf.scoring.evaluation import environment, evaluate_model
from vss_hf.scoring.ground_truth import data_set_name
from vss_hf.visualize import plot_training_curve

from .cpu_memory import keep_freed_memory
from .deepening import put_off_depths
from .eval_reports import draw_examples
from .losses import check_model_takes, parse_losses
from .origin import origin_of
from .progress import without_bars_of_transformers
from .recipe import FROM_DATA, ModelRecipe, Recipe, check_config, load_recipe
from .recipe_files import merge_fields
from .sources import check_classes, check_clips, open_evaluation, open_sources, trained_on, training_data, with_commits
from .stages import HISTORY, has_stages, load_stages, restarted, train_stages
from .trainer import VSSTrainer


def main(arguments: list[str] | None = None) -> Path:
    """`train.py RECIPE.yaml [--field value ...]`: train, evaluate, write the model folder; stages one after another.

    Returns:
        The model folder, `<output_dir>/model`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        raise SystemExit("usage: train.py RECIPE.yaml [--field value ...]; --resume_from_checkpoint continues a run")
    path, *words = arguments
    origin = origin_of(path, words)
    if has_stages(path):
        stages = load_stages(path, words)
        stages[-1].recipe.origin = origin  # the results of those before it are not what the shipped recipe gives
        return train_stages(stages, restarted(words), train)
    recipe = load_recipe(path, words)
    recipe.origin = origin
    return train(recipe)


def train(recipe: Recipe, more_to_come: bool = False) -> Path:
    """Carry out a plain recipe or one stage; see `main`.

    Args:
        recipe: what to do.
        more_to_come: another run follows in these processes.

    Returns:
        The model folder.
    """
    args = recipe.training
    if args.n_gpu > 1:  # transformers would take torch's DataParallel
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs: start one for each (accelerate launch train.py ...), or show it one "
            "(CUDA_VISIBLE_DEVICES=0)"
        )
    # --- before anything slow: can the results be written at all?
    folder = Path(args.output_dir) / "model"
    make_writable(folder)

    # --- data: are the files there, and do all of them have the same classes?
    recipe = replace(recipe, data=with_commits(recipe.data))
    sources = open_sources(recipe.data)
    eval_data, evaluated = open_evaluation(recipe.data)
    check_classes(sources, evaluated)

    # --- model
    if args.device.type == "cpu" and not args.activation_checkpointing:  # which is asked for to save memory
        keep_freed_memory()
    set_seed(args.seed)
    model = build_model(recipe.model, evaluated.classes)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    processor = build_processor(recipe)
    losses = parse_losses(args.losses)
    check_model_takes(losses, model.config)

    # --- samples: single frames, or the clips that the model takes
    check_clips(recipe, model.config, sources)
    dataset = training_data(recipe, model.config, sources)
    pixels = None
    if any(loss.needs_class_pixels for loss in losses):
        splits = [source.split for source in sources]
        pixels = class_pixels(splits, recipe.data.on_bad_sample, dataset.mixture.shares.tolist())
    num_samples = dataset.num_samples
    if args.max_steps <= 0:
        per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        args.max_steps = max(1, round(args.num_train_epochs * num_samples / per_step))
    if args.warmup_steps >= args.max_steps:
        raise ValueError(f"--warmup_steps {args.warmup_steps}: expected fewer than the run's {args.max_steps} steps")

    # --- train, or resume
    own = [source.split for source in sources if str(source.recipe.root) == str(recipe.data.root)]
    trainer = VSSTrainer(
        model,
        args,
        train_dataset=dataset,
        eval_data=eval_data,
        processing_class=processor,
        class_pixels=pixels,
        class_statistics=shared_statistics((own or [sources[0].split])[0]),
    )
    trainer.recipe = recipe.to_dict()
    began = time.time()
    result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.time() - began

    # --- model folder
    finish(folder, recipe, trainer, result, seconds, evaluated, trained_on(sources, dataset))
    trainer.accelerator.wait_for_everyone()
    if not more_to_come:
        trainer.accelerator.end_training()  # without it, processes on CPU sometimes abort at exit
    if args.push_to_hub and trainer.is_world_process_zero():
        pushed = trainer.push_model_folder(folder).result()  # last, so that the others need not wait for it
        print(*pushed.lines(), sep="\n")
    return folder


CLASSIFIERS = ("classifier", "class_predictor", "criterion.empty_weight")  # the last two of mask models
ADDED_BY_TIME = ("context_conv", "frame_score")  # what video models have beside the tensors of their image models


def build_model(recipe: ModelRecipe, classes: ClassList) -> Any:
    """The model that a recipe asks for, with the class list of the data."""
    labels = {"id2label": classes.id2label, "label2id": classes.label2id}
    if recipe.init_from:
        # A classifier of another size is replaced; everything else must fit.
        stored = stored_config(recipe.init_from) if recipe.config else {}
        if not stored:  # nothing to change, or no such model, which is said here
            return load_segmentation_model(recipe.init_from, new=CLASSIFIERS, **labels)
        config = changed_config(stored, recipe, labels)
        depths = put_off_depths(config, stored, recipe.init_from)
        kind = AutoModel if config.model_type in VIDEO_MODELS else auto_class(recipe.init_from)
        model = load_strictly(kind, recipe.init_from, new=CLASSIFIERS, added=ADDED_BY_TIME, config=config)
        return deepen_swin(model, depths) if depths else model
    config = recipe.build_config(**labels)
    model = (AutoModel if config.model_type in VIDEO_MODELS else AutoModelForSemanticSegmentation).from_config(config)
    if recipe.backbone_weights:
        load_backbone_weights(model.backbone, recipe.backbone_weights)
    return model


def changed_config(stored: dict[str, Any], recipe: ModelRecipe, labels: dict[str, Any]) -> Any:
    """The configuration that `init_from` holds, with the fields in `config` changed and the data's class list."""
    model_type: Any = recipe.config.get("model_type", stored.get("model_type"))
    fields = {name: value for name, value in stored.items() if name not in FROM_DATA}
    fields = {**merge_fields(fields, recipe.config), **labels, "model_type": model_type}
    given = {**recipe.config, "model_type": model_type}
    if isinstance(given.get("backbone_config"), dict):
        given["backbone_config"] = {**given["backbone_config"], "model_type": fields["backbone_config"]["model_type"]}
    check_config(given, "model.config")
    try:
        return CONFIG_MAPPING[model_type].from_dict(fields)
    except (ValueError, StrictDataclassError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"model.config: {recipe.init_from} is a {stored.get('model_type')}: {said}") from error


def build_processor(recipe: Recipe) -> VSSImageProcessor:
    """The image processor that matches the training data's scale and normalisation."""
    resize = {}
    if recipe.data.shortest_edge is not None:
        resize = {"do_resize": True, "size": {"shortest_edge": recipe.data.shortest_edge}}
    augmentation = recipe.augmentation
    return VSSImageProcessor(
        image_mean=list(augmentation.image_mean), image_std=list(augmentation.image_std), **resize
    )


def class_pixels(
    splits: Sequence[LabelledSplit], on_bad_sample: str = "raise", shares: Sequence[float] = (1.0,)
) -> np.ndarray:
    """Labelled pixels of each class in all splits together, float64 (num_labels,); of one split whole numbers.

    Each split counts as much as it gives to the training: `shares` of the samples. A mask that cannot be read is an
    error, or with `on_bad_sample="skip"` left out with a warning.
    """
    with first_process_first():  # it counts, the others read what it kept
        statistics = [label_statistics(split, on_bad_sample=on_bad_sample, progress=is_first()) for split in splits]
    per_frame = [share / max(1, counted.num_frames) for share, counted in zip(shares, statistics, strict=True)]
    factors = [weight / per_frame[0] for weight in per_frame]  # 1 for a single split, whose pixels count as they are
    pixels = np.sum([counted.pixels * f for counted, f in zip(statistics, factors, strict=True)], axis=0)
    if not pixels.any():
        raise ValueError(f"{', '.join(map(str, splits))}: no labelled pixel, so there are no class weights")
    return pixels


def finish(folder, recipe, trainer, result, seconds, evaluated, sources) -> None:
    """Write everything a model folder holds: weights, processor, recipe, results, picture, card.

    The first process writes; all of them measure what it wrote, so `folder` must be one that all of them see.
    """
    args = recipe.training
    with without_bars_of_transformers():
        trainer.save_model_folder(folder)
    # What others will load is measured, in float32: the model in hand may run in bf16 or another memory layout.
    with failing_together(), without_bars_of_transformers():
        segmenter = VideoSegmenter.from_pretrained(folder, args.device)
    results = evaluate_model(
        segmenter,
        **trainer.eval_dataset._asdict(),
        training=trainer.class_statistics,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        with_confusion=True,
    )
    confusion = results.pop("confusion")
    output_dir = Path(args.output_dir)
    results["model"] = f"{output_dir.parent.name}-{recipe.stage}" if recipe.stage else output_dir.name
    results["dataset"] = data_set_name(recipe.data.root)  # not the folder that a data set of the Hub came to
    with failing_together():
        if args.should_save:
            if any(map(sum, confusion)):
                names = list(results["per_class_iou"])
                plot_confusion(confusion, names, folder / "confusion.png", title_of(results))
            write_reports(
                folder, recipe, trainer, segmenter, results, result.training_loss, seconds, evaluated, sources
            )
    if trainer.is_world_process_zero():
        show_results(results)


def write_reports(folder, recipe, trainer, segmenter, results, training_loss, seconds, evaluated, sources) -> None:
    """The parts of a model folder that tell how the model came about and how good it is."""
    args = recipe.training
    write_json(folder / "eval_results.json", results)
    write_json(
        folder / "train_results.json",
        {
            "steps": trainer.state.global_step,
            "best_step": trainer.state.best_global_step,
            "seconds": round(seconds, 1),
            "samples": trainer.draws_done(),
            "skipped_steps": trainer.skipped_steps,
            **trainer.samples_by_source(),
            "skipped_samples": trainer.train_dataset.skipped,
            "sources": sources,
            "train_frames": sum(source["frames"] for source in sources),
            "train_loss": training_loss or None,  # 0: all steps were done before this session
            "seed": args.seed,
            **recipe.origin,
            **({"teachers_sha256": trainer.teachers()} if trainer.teachers() else {}),
            "processes": args.world_size,
            **environment(args.device),
        },
    )
    if recipe.stage:
        told = {"steps": trainer.state.global_step, "mean_iou": results["mean_iou"], "recipe": recipe.to_dict()}
        write_json(folder / HISTORY, {**recipe.earlier_stages, recipe.stage: told})
    curve = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_mean_iou" in entry]
    write_json(folder / "training_log.json", curve)
    plot_training_curve(curve, folder / "training_curve.png")
    draw_examples(folder / "overlay.jpg", segmenter, evaluated)
    write_eval_results(folder, results)
    write_card(folder)


def make_writable(folder: Path) -> None:
    """Create the folder and prove that it can be written, so that hours of training are not lost at the end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write_test_{os.getpid()}"
        probe.write_text("x")
        probe.unlink()
    except OSError as error:
        raise OSError(f"--output_dir {folder.parent}: cannot be written ({error.strerror or error})") from error
