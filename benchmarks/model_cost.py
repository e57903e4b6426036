"""Parameters and multiply-accumulates of the OCRNet sizes, and BetterThing's figure for Swin-L + OCRNet.

    python benchmarks/model_cost.py [--json OUT] [--height 480 --width 853]

Counted on the meta device (no weights, no arithmetic) with `torch.utils.flop_counter.FlopCounterMode`, eval forward of
one image: convolutions, linear layers, and all matrix products of window and object attention, at the sizes that they
really have (windows padded to whole ones). The counter gives 2 FLOPs for one multiply-accumulate; this table divides
by 2, because the paper's "540 GFLOPs" are multiply-accumulates. Norms, activations, softmax and resizing are not
counted. The result is exact and the same on every machine.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from vss_hf.modeling.configuration_ocrnet import PRESETS, OCRNetConfig  # noqa: E402
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation  # noqa: E402


# Chen et al. 2021 ("Semantic Segmentation on VSPW Dataset through Aggregation of Transformer Models"), at 480x853.
PAPER_GMAC = {"ocrnet-swin-large": 540}


def model_cost(preset: str, num_labels: int = 124, size: tuple[int, int] = (480, 853)) -> dict[str, float]:
    """Cost of one preset.

    Args:
        preset: a key of `PRESETS`.
        num_labels: number of classes.
        size: (height, width) of the image, in pixels.

    Returns:
        Millions of parameters (`parameters_m`, `backbone_parameters_m`, `head_parameters_m`) and 10^9
        multiply-accumulates (`gmac`, `backbone_gmac`, `head_gmac`).
    """
    config = OCRNetConfig.from_preset(preset, id2label={i: str(i) for i in range(num_labels)})
    with torch.device("meta"):
        model = OCRNetForSemanticSegmentation(config).eval()
        pixels = torch.empty(1, 3, *size)
    total, backbone = macs(model, pixels), macs(model.backbone, pixels)
    parameters = sum(p.numel() for p in model.parameters())
    backbone_parameters = sum(p.numel() for p in model.backbone.parameters())
    return {
        "parameters_m": parameters / 1e6,
        "backbone_parameters_m": backbone_parameters / 1e6,
        "head_parameters_m": (parameters - backbone_parameters) / 1e6,
        "gmac": total / 1e9,
        "backbone_gmac": backbone / 1e9,
        "head_gmac": (total - backbone) / 1e9,
    }


def macs(model: torch.nn.Module, pixels: torch.Tensor) -> int:
    """Multiply-accumulates of one forward."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixels)
    return counter.get_total_flops() // 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here too")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=853)
    parser.add_argument("--num-labels", type=int, default=124)
    options = parser.parse_args()

    size = (options.height, options.width)
    print(f"one image of {options.height}x{options.width}, {options.num_labels} classes; MAC: multiply-accumulate")
    columns = ("parameters M", "= backbone", "+ heads", "GMAC", "= backbone", "+ heads", "paper GMAC")
    print(f"{'':20}" + "".join(f"{column:>13}" for column in columns))
    results = {}
    for preset in PRESETS:
        cost = results[preset] = model_cost(preset, options.num_labels, size)
        paper = PAPER_GMAC.get(preset) if size == (480, 853) else None
        print(f"{preset:20}" + "".join(f"{value:13.1f}" for value in cost.values()) + f"{paper or '':>13}")
    if options.json:
        setting = {"size": list(size), "num_labels": options.num_labels, "torch": torch.__version__}
        results = {"setting": setting, "paper_gmac": PAPER_GMAC, "results": results}
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
