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
from torch.nn import functional as F

import vss_hf

from .export_tracing import models_of_any_size
from .fields import known_or_raise
from .files import check_new_folder, new_folder, replacing, write_text
from .inference.segmenter import load_processor
from .modeling.architectures import MODELS, VIDEO_MODELS
from .modeling.dense import upsampled_argmax
from .modeling.loading import load_segmentation_model, one_line, stored_config


tracing: Any = _config  # its `patch` is made when it is imported
Format = Literal["onnx", "torch"]
SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18  # the oldest that torch's exporter writes, so the one that most programs read
# Pixels. From here on no map has a side of 1, which a tracer takes for a constant; ConvNeXt rounds its sides down.
SMALLEST_IMAGE = 64
# Nothing is computed on it. Its maps of strides 4 to 32 have odd sides, so that Swin's are several windows and a part
# of one: the general case, of which a tracer takes down the steps.
TRACED_IMAGE = (2, 3, 1346, 963)
CHECKED_IMAGES = ((1, 65, 97), (2, 96, 64), (1, 131, 203))  # batch, height, width; odd ones among them
TOLERANCE = 1e-3  # largest difference from torch's output, as a part of the largest number in that
LABEL_TOLERANCE = 1e-3  # part of the pixels with another label; rounding decides where two classes are equal
LARGEST_FILE = 1536 * 2**20  # bytes; from here on torch writes the weights of an .onnx file beside it
CLASSES_AT_ONCE = 16  # whose scores exist at full size, in a graph that gives labels


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
            2 GB needs in ONNX. Beside a .pt2 file comes a .json with the metadata, which an .onnx holds itself.
        format: onnx, or torch for a program that `torch.export.load` reads.
        labels: the graph ends in a label map of the image's size, uint8 up to 255 classes and else int64, instead of
            logits; only for per-pixel models. No more than 16 classes have scores at full size at a time.

    Returns:
        Where the file is, what it says about itself, and how much it differs from torch.

    Raises:
        ValueError: the model cannot be exported, a package is missing, or the result differs from torch by more than
            a thousandth; the message says which. Nothing is left then.
        FileExistsError: `out` is a folder that is not empty.
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
        if in_folder and format == "torch":
            write_text(path.with_suffix(".json"), as_json(metadata))
    path = out / path.name if in_folder else out
    if format == "torch" and not in_folder:
        write_text(path.with_suffix(".json"), as_json(metadata))
    return ExportedModel(path, metadata, differences)


# --- what can be exported, and where to


def check_packages(format: str) -> None:
    """Raise if something is not installed."""
    missing = [name for name in ONNX_PACKAGES if format == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {', '.join(missing)}: pip install 'vss-hf[export]'")


def checked_place(out: Path, format: str) -> Path:
    """`out`, if it is a file of the format or a folder to make."""
    suffix = SUFFIX[format]
    if out.suffix in SUFFIX.values() and out.suffix != suffix:
        raise ValueError(f"--out {out}: a file of --format {format} ends on {suffix}")
    if out.suffix != suffix:
        check_new_folder(out)
    elif out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out}: expected a file in a folder that exists, or a folder without {suffix}")
    return out


def refuse_unfit(source: str | Path) -> None:
    """Raise for a kind of model that is no graph from an image to scores."""
    model_type = stored_config(source).get("model_type")
    if model_type in VIDEO_MODELS:
        raise ValueError(
            f"{source}: {model_type} is a video model, which remembers earlier frames; an exported graph remembers "
            f"nothing. What can be exported are image models: {', '.join(MODELS)}"
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


# --- graphs


class LogitsGraph(nn.Module):
    """Logits of a per-pixel model."""

    outputs = ("logits",)

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """From (B, 3, H, W)."""
        return (self.model(pixel_values).logits,)


class MasksGraph(LogitsGraph):
    """Class and mask logits of a mask model."""

    outputs = ("class_queries_logits", "masks_queries_logits")

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """From (B, 3, H, W)."""
        output = self.model(pixel_values)
        return output.class_queries_logits, output.masks_queries_logits


class LabelsGraph(LogitsGraph):
    """The class of each pixel, by a per-pixel model."""

    outputs = ("labels",)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """From (B, 3, H, W)."""
        logits, size = self.model(pixel_values).logits, pixel_values.shape[-2:]
        aligned = bool(getattr(self.model.config, "align_corners", False))
        highest: Any = None
        labels: Any = None
        for first in range(0, logits.shape[1], CLASSES_AT_ONCE):
            some = logits[:, first : first + CLASSES_AT_ONCE]
            scores = F.interpolate(some, size=size, mode="bilinear", align_corners=aligned)
            score, label = scores.max(dim=1)
            label = label + first
            # The first class wins a tie, as it does in argmax.
            labels = label if labels is None else torch.where(score > highest, label, labels)
            highest = score if highest is None else torch.maximum(score, highest)
        return (labels.to(torch.uint8) if logits.shape[1] <= 255 else labels,)


def exported_graph(model: Any, labels: bool, source: str | Path) -> LogitsGraph:
    """The graph for a model: by its kind, and with labels at the end if they are wanted."""
    if not hasattr(model, "class_predictor"):
        return LabelsGraph(model) if labels else LogitsGraph(model)
    if labels:
        raise ValueError(
            f"--labels: {source} is a mask model, whose label map needs every query's mask at full size; export it "
            "without --labels"
        )
    return MasksGraph(model)


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
        backbone = getattr(getattr(config, "backbone_config", None), "model_type", "none")
        raise ValueError(
            f"{source}: {config.model_type} with backbone {backbone} cannot be exported for all image sizes; "
            f"torch.export: {type(error).__name__}: {one_line(error)}"
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
    prepared = ("image_mean", "image_std", "rescale_factor", "do_resize", "size")
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


def as_json(metadata: dict[str, Any]) -> str:
    """The text of the file beside a .pt2."""
    return json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, graph: LogitsGraph, metadata: dict[str, Any]
) -> None:
    """Write an .onnx file, and beside it the weights if they are too large for it."""
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
    exported.save(path)


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
    with open(path, "wb") as file:  # a path would have to end on .pt2
        try:
            torch.export.save(program, file)
        except Exception as error:  # its errors have no base of their own
            raise ValueError(
                f"{shown(path)}: torch.export cannot save this model, --format onnx may: {one_line(error)}"
            ) from error


# --- the check


def compared(path: Path, format: str, model: Any, graph: LogitsGraph) -> dict[tuple[int, int, int], float]:
    """How far what the file gives is from what the model gives, for several image sizes."""
    try:
        run = {"onnx": onnx_runner, "torch": torch_runner}[format](path)
    except Exception as error:  # onnxruntime raises classes of its own
        raise ValueError(f"{shown(path)} does not open: {one_line(error)}") from error
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for batch, height, width in CHECKED_IMAGES:
        pixels = torch.randn(batch, 3, height, width, generator=generator)
        with torch.inference_mode():
            expected = expected_outputs(model, graph, pixels)
        try:
            found = run(pixels)
        except Exception as error:
            raise ValueError(f"{shown(path)} does not run on {height} x {width} pixels: {one_line(error)}") from error
        difference = max(map(difference_of, found, expected))
        limit = LABEL_TOLERANCE if graph.outputs == ("labels",) else TOLERANCE
        if not difference <= limit:
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
