"""Parameters and multiply-accumulates of every preset, with what the papers say.

    python benchmarks/model_cost.py [PRESET ...] [--json OUT] [--markdown FILE] [--height 480 --width 853]

Counted on the meta device (no weights, no arithmetic) with `torch.utils.flop_counter.FlopCounterMode`, eval forward of
one image, for a video model one `step` of a stream that has gone on for a while: convolutions, linear layers, and all
matrix products of attention, at the sizes that they really have (windows padded to whole ones). The counter gives 2
FLOPs for one multiply-accumulate; this table divides by 2, because the papers' "GFLOPs" are multiply-accumulates.
Norms, activations, softmax, resizing and the sampling of deformable operators are not counted (the products of a
deformable convolution are: those of a plain one). The result is exact and
the same on every machine. UperNet's last convolution counts as it is computed here (`ResizedConv2d`): with resized and
concatenated maps, as others count, it is 124.6 GMAC more.

--markdown rewrites the table between the two marks in FILE (docs/models.md).
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  (its operators)
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from benchmarks.markdown_tables import write_between  # noqa: E402
from vss_hf.hub_cards.architectures import PUBLISHED, Published  # noqa: E402
from vss_hf.modeling.architectures import CLIP_BACKBONES, config_from_preset, model_class, presets  # noqa: E402
from vss_hf.modeling.modeling_clip import StreamState  # noqa: E402


# Chen et al. 2021 ("Semantic Segmentation on VSPW Dataset through Aggregation of Transformer Models"), at 480x853.
PAPER_GMAC = {"ocrnet-swin-large": 540}
# Presets by their names -> the reference fixture (narrow, random weights) that the same layers were compared with.
FIXTURES = {
    r"ocrnet-swin-.*": "01_ocr_swin/strides_8_16_32",
    r"ocrnet-resnet(50|101)": "03_cnn_heads/resnetv1c50_os8_ocr",
    r"ocrnet-hrnet-.*": "03_cnn_heads/hrnet_ocr",
    r"ocrnet-volo-.*": "05_volo/qkvbias_false",
    r"upernet-swin-.*": "02_upernet_swin_convnext/swin",
    r"upernet-convnext-.*": "02_upernet_swin_convnext/convnext",
    r"upernet-internimage-.*": "04_internimage/upernet_t_like",
    r"mask(2)?former-.*": "06_maskformer",
    r"deeplabv3-.*": "03_cnn_heads/resnetv1c50_os8_aspp",
    r"semantic-fpn-.*": "03_cnn_heads/resnet18_semanticfpn",
    r"pspnet-.*-vspw": "07_vspw_clip/pspnet_deepsup",
    r"(bisenet|tbn)-.*": "09_bisenetv1/context_path",
    r"st-ppm-.*": "07_vspw_clip/clip_psp",
    r"tcb-ocr-.*": "07_vspw_clip/clip_ocr",
    r"tmanet-.*": "08_tmanet/tmanet_T2",
}
MARKS = ("<!-- presets: begin (benchmarks/model_cost.py --markdown) -->", "<!-- presets: end -->")


def deformable_conv_flops(input_shape: Any, weight_shape: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """What torch's counter knows of plain convolutions only."""
    return conv_flop_count(input_shape, weight_shape, out_shape)


COUNTED_TOO: Any = {torch.ops.torchvision.deform_conv2d: deformable_conv_flops}


def model_cost(preset: str, num_labels: int = 124, size: tuple[int, int] = (480, 853)) -> dict[str, float]:
    """Cost of one preset.

    Args:
        preset: a name that `presets()` lists.
        num_labels: number of classes.
        size: (height, width) of the image or frame, in pixels.

    Returns:
        Millions of parameters (`parameters_m`, `backbone_parameters_m`, `head_parameters_m`), 10^9
        multiply-accumulates (`gmac`, `backbone_gmac`, `head_gmac`), and `stride` of the logits or masks.
    """
    config = config_from_preset(preset, id2label={i: str(i) for i in range(num_labels)})
    with torch.device("meta"):
        model = model_class(config.model_type)(config).eval()
        pixels = torch.empty(1, 3, *size)
    backbone = find_backbone(model)
    total, logits = macs(model if not hasattr(model, "init_state") else stream(model, pixels), pixels)
    if config.backbone_config.model_type in CLIP_BACKBONES:
        pixels = pixels.expand(len(config.frame_offsets) + 1, -1, -1, -1).unsqueeze(0)  # (1, T, 3, H, W)
    backbone_total, _ = macs(backbone, pixels)
    parameters = sum(p.numel() for p in model.parameters())
    backbone_parameters = sum(p.numel() for p in backbone.parameters())
    return {
        "parameters_m": parameters / 1e6,
        "backbone_parameters_m": backbone_parameters / 1e6,
        "head_parameters_m": (parameters - backbone_parameters) / 1e6,
        "gmac": total / 1e9,
        "backbone_gmac": backbone_total / 1e9,
        "head_gmac": (total - backbone_total) / 1e9,
        "stride": round(size[0] / logits.shape[-2]),
    }


def find_backbone(model: Any) -> torch.nn.Module:
    """The backbone, also inside the mask models of transformers."""
    if hasattr(model, "backbone"):
        return model.backbone
    return model.model.pixel_level_module.encoder


@torch.no_grad()
def stream(model: Any, pixels: torch.Tensor) -> Callable[[torch.Tensor], Any]:
    """`step` of a video model with as many frames in its state as it remembers."""
    _, state = model.step(pixels, model.init_state())
    state = StreamState(state.frames * model.config.num_past_frames)
    return lambda frame: model.step(frame, state)[0]


def macs(model: Callable[[torch.Tensor], Any], pixels: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Multiply-accumulates of one forward, and its logits (masks; last feature map)."""
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=COUNTED_TOO) as counter:
        output = model(pixels)
    for name in ("masks_queries_logits", "logits"):
        if getattr(output, name, None) is not None:
            return counter.get_total_flops() // 2, getattr(output, name)
    return counter.get_total_flops() // 2, output.feature_maps[-1]


def markdown_row(preset: str, model_type: str, cost: dict[str, float], measured: dict[str, str]) -> str:
    """One row of docs/models.md; `measured` is what `differences` found there."""
    fixture = next((name for pattern, name in FIXTURES.items() if re.fullmatch(pattern, preset)), None)
    parity = "–" if fixture is None else f"{measured[fixture]} ({fixture.split('_')[0]})"
    published = PUBLISHED.get(preset, Published())
    papers = "; ".join(
        f"{shown(val)} / {shown(test)} ({', '.join(part for part in (paper, setting) if part)})"
        for paper, setting, val, test in published.vspw
    )
    checkpoints = ", ".join(f"`{name}`" if " " not in name else name for name in published.checkpoints)
    numbers = f"{cost['parameters_m']:.1f} | {cost['gmac']:.1f} | {cost['stride']}"
    return f"| `{preset}` | `{model_type}` | {numbers} | {checkpoints} | {papers} | {parity} |"


def differences(page: str) -> dict[str, str]:
    """Fixture -> difference from the reference, from the table that benchmarks/parity.py wrote into the page."""
    rows = re.findall(r"^\| `([^`]+)` \| \d+ \| [^|]+ \| ([^|]+) \|", page, re.MULTILINE)
    return {fixture: difference.strip() for fixture, difference in rows}


def shown(value: float | None) -> str:
    """A percentage, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def write_markdown(path: Path, rows: list[str]) -> None:
    """Put the table between the marks of a file."""
    heading = [
        "| preset | model type | parameters M | GMAC | stride | official checkpoints that convert | papers' mIoU on "
        "VSPW, val / test (theirs, not ours) | parity (fixture) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    write_between(MARKS, [*heading, *rows], path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", help="default: all")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="rewrite the table of presets in this file")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=853)
    parser.add_argument("--num-labels", type=int, default=124)
    options = parser.parse_args()

    size = (options.height, options.width)
    model_types = presets()
    print(f"one image of {options.height}x{options.width}, {options.num_labels} classes; MAC: multiply-accumulate")
    columns = ("parameters M", "= backbone", "+ heads", "GMAC", "= backbone", "+ heads", "stride", "paper GMAC")
    print(f"{'':32}" + "".join(f"{column:>13}" for column in columns))
    measured = differences(options.markdown.read_text(encoding="utf-8")) if options.markdown else {}
    results, rows = {}, []
    for preset in options.presets or model_types:
        cost = results[preset] = model_cost(preset, options.num_labels, size)
        paper = PAPER_GMAC.get(preset) if size == (480, 853) else None
        print(f"{preset:32}" + "".join(f"{value:13.1f}" for value in cost.values()) + f"{paper or '':>13}", flush=True)
        if options.markdown:
            rows.append(markdown_row(preset, model_types[preset], cost, measured))
    if options.json:
        setting = {"size": list(size), "num_labels": options.num_labels, "torch": torch.__version__}
        results = {"setting": setting, "paper_gmac": PAPER_GMAC, "results": results}
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if options.markdown:
        write_markdown(options.markdown, rows)


if __name__ == "__main__":
    main()
