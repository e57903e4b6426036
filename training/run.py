"""One run from a recipe to a model folder with its card."""

import copy
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForSemanticSegmentation, set_seed

from vss_hf.data.clips import load_vspw
from vss_hf.data.labels import ClassList
from vss_hf.data.transforms import TrainTransform
from vss_hf.data.vspw import FrameRecord, read_image, read_mask, scan_split
from vss_hf.files import write_json
from vss_hf.hub_cards import write_card, write_eval_results
from vss_hf.inference.evaluation import environment, evaluate_model, labelled_videos
from vss_hf.inference.processes import failing_together
from vss_hf.inference.segmenter import VideoSegmenter
from vss_hf.modeling.architectures import VIDEO_MODELS
from vss_hf.modeling.backbone import load_backbone_weights
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.loading import auto_class, load_segmentation_model, load_strictly, stored_config
from vss_hf.visualize import overlay_sheet, plot_training_curve

from .cpu_memory import keep_freed_memory
from .draws import TrainingDraws, TrainingStream
from .recipe import FROM_DATA, ModelRecipe, Recipe, check_config, load_recipe
from .trainer import VSSTrainer


def main(arguments: list[str] | None = None) -> Path:
    """`train.py RECIPE.yaml [--field value ...]`: train, evaluate, write the model folder.

    Returns:
        The model folder, `<output_dir>/model`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        raise SystemExit("usage: train.py RECIPE.yaml [--field value ...]; --resume_from_checkpoint continues a run")
    recipe = load_recipe(arguments[0], arguments[1:])
    return train(recipe)


def train(recipe: Recipe) -> Path:
    """Carry out a recipe; see `main`."""
    args = recipe.training
    # --- before anything slow: can the results be written at all?
    folder = Path(args.output_dir) / "model"
    make_writable(folder)

    # --- data: are the videos there?
    classes = ClassList.from_root(recipe.data.root)
    videos = labelled_videos(recipe.data.root, recipe.data.train_split)
    labelled_videos(recipe.data.root, recipe.data.eval_split)

    # --- model
    if args.device.type == "cpu":
        keep_freed_memory()
    set_seed(args.seed)
    model = build_model(recipe.model, classes)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    processor = build_processor(recipe)
    weights = None
    if args.class_weighting != "none":
        if not hasattr(model.config, "auxiliary_loss_weight"):  # only per-pixel models have it
            kind = model.config.model_type
            raise ValueError(
                f"--class_weighting {args.class_weighting}: {kind} classifies masks, not pixels, and balances them by "
                "no_object_weight; leave it out"
            )
        weights = class_weights(recipe.data.root, recipe.data.train_split, classes, recipe.data.on_bad_sample)

    # --- samples: single frames, or the clips that the model takes
    check_clips(recipe, model.config, longest=max(len(video.frames) for video in videos))
    dataset = training_data(recipe, model.config)
    num_samples = dataset.num_samples
    if args.max_steps <= 0:
        per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        args.max_steps = max(1, round(args.num_train_epochs * num_samples / per_step))
    if args.warmup_steps >= args.max_steps:
        raise ValueError(f"--warmup_steps {args.warmup_steps}: expected fewer than the run's {args.max_steps} steps")

    # --- train, or resume
    trainer = VSSTrainer(
        model,
        args,
        train_dataset=dataset,
        eval_data=(recipe.data.root, recipe.data.eval_split),
        processing_class=processor,
        class_weights=weights,
    )
    trainer.recipe = recipe.to_dict()
    began = time.time()
    result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.time() - began

    # --- model folder
    finish(folder, recipe, trainer, result, seconds, num_samples)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()  # without it, processes on CPU sometimes abort at exit
    if args.push_to_hub and trainer.is_world_process_zero():
        pushed = trainer.push_model_folder(folder).result()  # last, so that the others need not wait for it
        print(*pushed.lines(), sep="\n")
    return folder


def check_clips(recipe: Recipe, config: Any, longest: int) -> None:
    """Raise for clips that the data cannot give.

    Args:
        recipe: the recipe.
        config: of the model.
        longest: frames of the longest training video.
    """
    offsets = list(getattr(config, "frame_offsets", ()))
    reversal = recipe.augmentation.time_reversal_prob
    if offsets and -offsets[0] >= longest:
        raise ValueError(
            f"model.config.frame_offsets={offsets}: no video of split '{recipe.data.train_split}' is that long; the "
            f"longest has {longest} frames, so offsets from {1 - longest} up would find a frame"
        )
    if not reversal:
        return
    if not offsets:
        raise ValueError(
            f"augmentation.time_reversal_prob={reversal}: {config.model_type} is trained on single frames, which have "
            "no order; leave it out, or take a video model with frame_offsets"
        )
    if [offsets[0] - offset for offset in reversed([*offsets, 0])] != [*offsets, 0]:
        raise ValueError(
            f"augmentation.time_reversal_prob={reversal}: model.config.frame_offsets={offsets} are other distances "
            "when played backwards; space them evenly, e.g. [-9, -6, -3], or leave time_reversal_prob out"
        )


def training_data(recipe: Recipe, config: Any) -> TrainingDraws | TrainingStream:
    """The augmented training samples by random access or as a stream: frames, or the clips that `config` asks for."""
    args, data = recipe.training, recipe.data
    offsets = getattr(config, "frame_offsets", ())
    supervised = bool(offsets) and config.wants_reference_labels
    clip_start: Any = getattr(config, "clip_start", "repeat")
    samples = load_vspw(
        data.root,
        data.train_split,
        frame_offsets=offsets,
        clip_start="drop" if clip_start == "existing" else clip_start,  # clips of a batch must have one length
        reference_labels=supervised or recipe.augmentation.time_reversal_prob > 0,
        cache=data.cache,
    )
    transform = TrainTransform(
        recipe.augmentation, for_video_model=config.model_type in VIDEO_MODELS, reference_labels=supervised
    )
    kind = TrainingStream if data.streaming else TrainingDraws
    return kind(samples, transform, args.draw_seed, on_bad_sample=data.on_bad_sample)


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
        kind = AutoModel if config.model_type in VIDEO_MODELS else auto_class(recipe.init_from)
        return load_strictly(kind, recipe.init_from, new=CLASSIFIERS, added=ADDED_BY_TIME, config=config)
    config = recipe.build_config(**labels)
    model = (AutoModel if config.model_type in VIDEO_MODELS else AutoModelForSemanticSegmentation).from_config(config)
    if recipe.backbone_weights:
        load_backbone_weights(model.backbone, recipe.backbone_weights)
    return model


def changed_config(stored: dict[str, Any], recipe: ModelRecipe, labels: dict[str, Any]) -> Any:
    """The configuration that `init_from` holds, with the fields in `config` changed and the data's class list."""
    model_type: Any = recipe.config.get("model_type", stored.get("model_type"))
    check_config({**recipe.config, "model_type": model_type}, "model.config")
    fields = {name: value for name, value in stored.items() if name not in FROM_DATA}
    fields = {**fields, **copy.deepcopy(recipe.config), **labels, "model_type": model_type}
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


def class_weights(root: str | Path, split: str, classes: ClassList, on_bad_sample: str = "raise") -> torch.Tensor:
    """sqrt(mean pixels per class / pixels of the class) over a split: BetterThing's pixel-distribution weights.

    The paper prints the fraction upside down (its sec. 4.2.1 weighs frequent classes up); this is the form that does
    what its text wants. Classes that are absent get the weight of the rarest present one. A mask that cannot be read
    is an error, or with `on_bad_sample="skip"` left out with a warning.
    """
    counts = np.zeros(256, dtype=np.int64)
    for video in scan_split(root, split):
        for record in video.frames:
            try:
                labels = read_labels(record, classes)
            except (ValueError, OSError) as error:
                if on_bad_sample == "raise":
                    raise
                warnings.warn(f"class weights are counted without a mask: {error}", RuntimeWarning, stacklevel=2)
                continue
            counts += np.bincount(labels.ravel(), minlength=256)
    counts = counts[: classes.num_labels]
    if not counts.any():
        raise ValueError(f"split '{split}' of {root}: no labelled pixel, so there are no class weights")
    present = counts > 0
    weights = np.sqrt(counts[present].mean() / np.where(present, counts, counts[present].min()))
    return torch.from_numpy(weights).float()


def finish(folder, recipe, trainer, result, seconds, num_samples) -> None:
    """Write everything a model folder holds: weights, processor, recipe, results, picture, card.

    The first process writes; all of them measure what it wrote, so `folder` must be one that all of them see.
    """
    data, args = recipe.data, recipe.training
    trainer.save_model_folder(folder)
    # What others will load is measured, in float32: the model in hand may run in bf16 or another memory layout.
    with failing_together():
        segmenter = VideoSegmenter.from_pretrained(folder, args.device)
    results = evaluate_model(
        segmenter,
        data.root,
        data.eval_split,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
    )
    results["model"] = Path(args.output_dir).name
    with failing_together():
        if args.should_save:
            write_reports(folder, recipe, trainer, segmenter, results, result.training_loss, seconds, num_samples)


def write_reports(folder, recipe, trainer, segmenter, results, training_loss, seconds, num_samples) -> None:
    """The parts of a model folder that tell how the model came about and how good it is."""
    data, args = recipe.data, recipe.training
    write_json(folder / "eval_results.json", results)
    write_json(
        folder / "train_results.json",
        {
            "steps": trainer.state.global_step,
            "best_step": trainer.state.best_global_step,
            "seconds": round(seconds, 1),
            "samples": trainer.draws_done(),
            "skipped_steps": trainer.skipped_steps,
            "skipped_samples": trainer.train_dataset.skipped,
            "train_frames": num_samples,
            "train_loss": training_loss or None,  # 0: all steps were done before this session
            "seed": args.seed,
            "processes": args.world_size,
            "dataset": Path(data.root).resolve().name,
            "train_split": data.train_split,
            **environment(args.device),
        },
    )
    curve = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_mean_iou" in entry]
    write_json(folder / "training_log.json", curve)
    plot_training_curve(curve, folder / "training_curve.png")
    draw_examples(folder / "overlay.jpg", segmenter, data.root, data.eval_split)
    write_eval_results(folder, results)
    write_card(folder)


def draw_examples(path: Path, segmenter: VideoSegmenter, root: str | Path, split: str, rows: int = 3) -> None:
    """A picture of frames, ground truth and prediction, spread over the split."""
    classes = ClassList.from_root(root)
    places = [(video, index) for video in labelled_videos(root, split) for index in range(len(video.frames))]
    chosen = [places[int(i)] for i in np.linspace(0, len(places) - 1, min(rows, len(places)))]
    past = getattr(segmenter.model.config, "num_past_frames", 0)  # what a video model looks at before it labels one
    frames, labels, predictions = [], [], []
    for video, index in chosen:
        clip = [read_image(record.image_path) for record in video.frames[max(index - past, 0) : index + 1]]
        frames.append(clip[-1])
        labels.append(read_labels(video.frames[index], classes))
        *_, prediction = segmenter.label_video(clip)
        predictions.append(prediction)
    overlay_sheet(frames, labels, predictions, classes, path)


def read_labels(record: FrameRecord, classes: ClassList) -> np.ndarray:
    """The labels (height, width) of a frame of a split with masks."""
    assert record.mask_path is not None  # `train` began by asking for labelled videos
    return classes.lookup[read_mask(record.mask_path)]


def make_writable(folder: Path) -> None:
    """Create the folder and prove that it can be written, so that hours of training are not lost at the end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write_test_{os.getpid()}"
        probe.write_text("x")
        probe.unlink()
    except OSError as error:
        raise OSError(f"--output_dir {folder.parent}: cannot be written ({error.strerror or error})") from error
