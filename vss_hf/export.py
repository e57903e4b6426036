"""Image models as one file for other programs: ONNX, or what `torch.export` saves; for any batch and image size.

    pixel_values (batch, 3, height, width), normalised
        -> per-pixel models: logits (batch, num_labels, h, w) at the head's own resolution;
           with `labels=True` instead labels (batch, height, width)
        -> mask models: class_queries_logits (batch, queries, num_labels + 1), the last class being "no object", and
           masks_queries_logits (batch, queries, h, w)

What is written is run at once on several image sizes and compared with the model; a file that differs is not kept.
"""

import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config

import vss_hf

from .export_graphs import LogitsGraph, MasksGraph, exported_graph
from .export_tracing import models_of_any_size
from .fields import known_or_raise
from .files import check_new_folder, new_folder, replacing
from .inference.segmenter import load_processor
from .install import install_advice
from .modeling.architectures import BACKBONES, CLIP_BACKBONES, MODELS, REFINERS, VIDEO_MODELS
from .modeling.dense import upsampled_argmax
from .modeling.loading import load_segmentation_model, one_line, stored_config


tracing: Any = _config  # its `patch` is made when it is imported
Format = Literal["onnx", "torch"]
SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
METADATA_FILE = "metadata.json"  # inside a .pt2 file; see `torch.export.load`'s extra_files
OPSET = 18  # the oldest that torch's exporter writes, so the one that most programs read
# Pixels. From here on no map has a side of 1, which a tracer takes for a constant; ConvNeXt rounds its sides down.
SMALLEST_IMAGE = 64
# Nothing is computed on it. Its maps of strides 4 to 32 have odd sides, so that Swin's are several windows and a part
# of one: the general case, of which a tracer takes down the steps.
TRACED_IMAGE = (2, 3, 1346, 963)
CHECKED_IMAGES = ((1, 65, 97), (2, 96, 64), (1, 131, 203))  # batch, height, width; odd ones among them
TOLERANCE = 1e-3  # largest difference from torch's output, as a part of the largest number in that
LABEL_TOLERANCE = 1e-3  # part of the pixels with another label; rounding decides where two classes are equal
# Mask2Former attends to places where earlier masks are above a half. Rounding decides on the edge, in torch as well:
# there scores in float32 and float64 may differ by a hundredth. What is wrong with a graph is so on every picture.
MASK_PICTURES = 5
LARGEST_FILE = 1536 * 2**20  # bytes; from here on torch writes the weights of an .onnx file beside it


@dataclass
class ExportedModel:
    """What was written.

    Args:
        path: the .onnx or .pt2 file.
        metadata: what is stored with it: class names, normalisation, inputs and outputs.
        differences: for each image that was tried, as (batch, height, width), the largest difference from torch:
            of scores as a part of the largest score, of labels the part of the pixels.
    """

    path: Path
    metadata: dict[str, Any]
    differences: dict[tuple[int, int, int], float]


def export_model(
    source: str | Path, out: str | Path, format: Format = "onnx", *, labels: bool = False
) -> ExportedModel:
    """Write an image model as one graph for any batch size, height and width, and check it against torch.

    Args:
        source: model folder or Hub id.
        out: a file that ends on .onnx or .pt2, as `format` wants; or a new folder for it, which a model of more than
            1.5 GiB needs in ONNX. A file that is there is replaced.
        format: onnx, or torch for a program that `torch.export.load` reads.
        labels: the graph ends in a label map of the image's size, uint8 up to 255 classes and else int64, instead of
            logits; only for per-pixel models. No more than 16 classes have scores at full size at a time.

    Returns:
        Where the file is, what it says about itself, and how much it differs from torch.

    Raises:
        ValueError: the model cannot be exported, a package is missing, or the result differs from torch by more than
            a thousandth; the message says which. Nothing is left then.
        FileExistsError, FileNotFoundError: `out` is a folder that is not empty, or in a folder that is not there.
        OSError: the disk is full; a file that was there is as it was.
    """
    known_or_raise(format, list(get_args(Format)), f"--format {format}: there is no format")
    check_packages(format)
    out = checked_place(Path(out), format)
    refuse_unfit(source)
    model = load_segmentation_model(source).float().eval()
    model.config.return_dict = True
    graph = exported_graph(model, labels, source)
    metadata = described(model, load_processor(source), graph)
    check_file_size(model, out, format)
    program = traced(graph, source, format)
    write = {"onnx": write_onnx, "torch": write_torch}[format]
    in_folder = out.suffix != SUFFIX[format]
    with new_folder(out) if in_folder else replacing(out) as partial:
        path = partial / f"model{SUFFIX[format]}" if in_folder else partial
        write(program, path, graph, metadata)
        differences = compared(path, format, model, graph)
    return ExportedModel(out / path.name if in_folder else out, metadata, differences)


# --- what can be exported, and where to


def check_packages(format: str) -> None:
    """Raise if something is not installed."""
    missing = [name for name in ONNX_PACKAGES if format == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {', '.join(missing)}: {install_advice('export')}")


def checked_place(out: Path, format: str) -> Path:
    """`out`, if it is a file of the format or a folder to make."""
    suffix = SUFFIX[format]
    if out.suffix == suffix:
        if out.is_dir():
            raise FileExistsError(f"--out {out}: is a folder; give a file in it, or a name without {suffix}")
        if not out.parent.is_dir():
            raise FileNotFoundError(f"--out {out}: there is no folder {out.parent}")
    elif re.fullmatch(r"\.[A-Za-z]\w*", out.suffix) and not out.is_dir():  # not "model-1.5"
        raise ValueError(
            f"--out {out}: a file of --format {format} ends on {suffix}, and a folder's name on nothing like "
            f"{out.suffix}"
        )
    else:
        check_new_folder(out)
    return out


def refuse_unfit(source: str | Path) -> None:
    """Raise for a kind of model that is no graph from an image to scores."""
    model_type = stored_config(source).get("model_type")
    reasons = {
        **dict.fromkeys(VIDEO_MODELS, "a video model, which remembers earlier frames; a graph remembers nothing"),
        **dict.fromkeys((*BACKBONES, *CLIP_BACKBONES), "a backbone alone, which tells no classes"),
        **dict.fromkeys(REFINERS, "a refiner, which takes masks beside the image"),
    }
    if model_type in reasons:
        raise ValueError(
            f"{source}: {model_type} is {reasons[model_type]}. What can be exported are image models: "
            f"{', '.join(MODELS)}, and some of transformers"
        )
    if model_type == "vss_ensemble":
        raise ValueError(f"{source}: an ensemble is several models with image processors of their own; export those")


def check_file_size(model: nn.Module, out: Path, format: str) -> None:
    """Raise if the weights are too large for a single file."""
    size = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
    if format == "onnx" and out.suffix == ".onnx" and size > LARGEST_FILE:
        raise ValueError(
            f"--out {out}: the weights have {size:,} bytes, and an .onnx file at most 1.5 GiB; give a folder, where "
            "they lie beside it"
        )


# --- the graph


def traced(graph: LogitsGraph, source: str | Path, format: str) -> torch.export.ExportedProgram:
    """The graph as operations on tensors of any batch size, height and width."""
    sides = {name: torch.export.Dim(name, min=SMALLEST_IMAGE) for name in ("height", "width")}
    shapes = ({0: torch.export.Dim("batch"), 2: sides["height"], 3: sides["width"]},)
    try:
        # Without this switch a tracer asks of every map whether it has a side of 1, and holds on to the answer.
        with torch.no_grad(), models_of_any_size(format == "onnx"), tracing.patch(backed_size_oblivious=True):
            program = torch.export.export(
                graph,
                (torch.zeros(TRACED_IMAGE),),
                dynamic_shapes=shapes,
                prefer_deferred_runtime_asserts_over_guards=True,  # what it cannot prove of sizes becomes assertions
            )
    except Exception as error:  # whatever a tracer stumbles over: torch names no class for it
        config = graph.model.config
        backbone = getattr(getattr(config, "backbone_config", None), "model_type", None)
        raise ValueError(
            f"{source}: {config.model_type}{f' with backbone {backbone}' if backbone else ''} cannot be exported for "
            f"all image sizes; torch.export: {type(error).__name__}: {one_line(error)}"
        ) from error
    drop_assertions(program)
    program.example_inputs = None  # a .pt2 file would hold the whole picture
    return program


def drop_assertions(program: torch.export.ExportedProgram) -> None:
    """Take out what the tracer assumed of sizes: how maps of the traced size lie in memory, which others need not.

    What such an assumption changes, the comparison with the model shows.
    """
    module = program.graph_module
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_scalar.default):
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


# --- files


def described(model: Any, processor: Any, graph: LogitsGraph) -> dict[str, Any]:
    """What a program that runs the file must know."""
    config, settings = model.config, processor.to_dict()
    if not settings.get("do_rescale", True):
        settings["rescale_factor"] = 1
    if not settings.get("do_normalize", True):
        settings.update(image_mean=[0, 0, 0], image_std=[1, 1, 1])
    prepared = ("rescale_factor", "image_mean", "image_std", "do_resize", "size", "resample")
    return {
        "made_by": f"vss_hf {vss_hf.__version__}",
        "model_type": config.model_type,
        "class_names": [config.id2label[i] for i in range(config.num_labels)],
        "ignore_index": getattr(config, "ignore_index", 255),
        "align_corners": bool(getattr(config, "align_corners", False)),
        "inputs": ["pixel_values"],
        "outputs": list(graph.outputs),
        "smallest_image": SMALLEST_IMAGE,
        **{name: settings[name] for name in prepared if name in settings},
    }


def shown(path: Path) -> str:
    """The name that a file gets when it is whole."""
    return path.name.removesuffix(".part")


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, graph: LogitsGraph, metadata: dict[str, Any]
) -> None:
    """Write an .onnx file, and in a folder of its own the weights beside it if they are too large for it."""
    from onnxscript import ir

    with warnings.catch_warnings(), quiet("onnxscript"):
        warnings.simplefilter("ignore")  # of the exporter, about functions of its own
        try:
            exported = torch.onnx.export(
                program,
                input_names=["pixel_values"],
                output_names=list(graph.outputs),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except RuntimeError as error:  # the base of its errors; the cause says what it is about
            raise ValueError(
                f"{shown(path)}: torch.onnx cannot write this model: {one_line(error.__cause__)}"
            ) from error
    assert exported is not None  # it is None where it writes the file itself
    # Everything is JSON, lists and the names of files alike, so that one rule reads all.
    exported.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    if path.suffix == SUFFIX["onnx"]:
        exported.save(path)
    else:  # it gets another name when it is whole, and would not find a second file under that
        ir.save(exported.model, path)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Nothing but errors from the loggers below a name."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def write_torch(
    program: torch.export.ExportedProgram, path: Path, graph: LogitsGraph, metadata: dict[str, Any]
) -> None:
    """Write a .pt2 file."""
    stored: Any = {METADATA_FILE: json.dumps(metadata, indent=2, ensure_ascii=False)}
    whole = io.BytesIO()  # where writing fails, as on a full disk, torch ends the process
    try:
        torch.export.save(program, whole, extra_files=stored)
    except Exception as error:  # its errors have no base of their own
        raise ValueError(
            f"{shown(path)}: torch.export cannot save this model, --format onnx may: {one_line(error)}"
        ) from error
    path.write_bytes(whole.getbuffer())


# --- the check


def compared(path: Path, format: str, model: Any, graph: LogitsGraph) -> dict[tuple[int, int, int], float]:
    """How far what the file gives is from what the model gives, for several image sizes."""
    try:
        run = {"onnx": onnx_runner, "torch": torch_runner}[format](path)
    except Exception as error:  # onnxruntime raises classes of its own
        raise ValueError(f"{shown(path)} does not open: {one_line(error)}") from error
    generator = torch.Generator().manual_seed(0)
    differences = {}
    limit = LABEL_TOLERANCE if graph.outputs == ("labels",) else TOLERANCE
    for batch, height, width in CHECKED_IMAGES:
        difference = float("inf")
        for _ in range(MASK_PICTURES if isinstance(graph, MasksGraph) else 1):
            pixels = torch.randn(batch, 3, height, width, generator=generator)
            with torch.inference_mode():
                expected = expected_outputs(model, graph, pixels)
            try:
                found = run(pixels)
            except Exception as error:
                size = f"{height} x {width}"
                raise ValueError(f"{shown(path)} does not run on {size} pixels: {one_line(error)}") from error
            difference = min(difference, max(map(difference_of, found, expected)))
            if difference <= limit:
                break
        else:
            raise ValueError(
                f"{shown(path)} gives other {' and '.join(graph.outputs)} than torch for {height} x {width} pixels: "
                f"the largest difference is {difference:.1e}, and {limit:.0e} is allowed; nothing was kept"
            )
        differences[batch, height, width] = difference
    return differences


def expected_outputs(model: Any, graph: LogitsGraph, pixels: Tensor) -> list[Tensor]:
    """What the model gives by itself."""
    output = model(pixels)
    if graph.outputs == ("labels",):
        aligned = bool(getattr(model.config, "align_corners", False))
        size = (pixels.shape[-2], pixels.shape[-1])
        return [upsampled_argmax(output.logits, size, align_corners=aligned)]
    return [getattr(output, name) for name in graph.outputs]


def difference_of(found: Tensor, expected: Tensor) -> float:
    """Of labels the part that differs, of scores the largest difference as a part of the largest score."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not expected.is_floating_point():
        return (found != expected).float().mean().item()
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()


def onnx_runner(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """The file in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> list[Tensor]:
        outputs: Any = session.run(None, {"pixel_values": pixels.numpy()})
        return [torch.from_numpy(np.ascontiguousarray(output)) for output in outputs]

    return run


def torch_runner(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """The file in torch."""
    with open(path, "rb") as file:
        program = torch.export.load(io.BytesIO(file.read())).module()

    def run(pixels: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(program(pixels))

    return run
