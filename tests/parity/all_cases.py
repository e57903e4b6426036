"""Every fixture of ../shared/parity that this package reproduces, and the function that compares it.

`find_cases` looks for folders by what they hold, so that new ones of a known kind are found without being listed.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbone_cases import compare_internimage, compare_volo
from clip_cases import compare_clips
from component_cases import (
    BISENET_PARTS,
    compare_bisenet_part,
    compare_cascade_psp,
    compare_cascade_psp_regions,
    compare_dcnv3_core,
    compare_dcnv3_layer,
)
from fixture_cases import compare_segmenter
from mask_cases import compare_masks
from metric_cases import compare_metrics
from rows import Row
from tmanet_cases import compare_memory, compare_tmanet


@dataclass(frozen=True)
class Kind:
    """One kind of fixture.

    Args:
        files: where its settings or values are, as a pattern below the folder of all fixtures.
        fits: whether settings are of this kind; more than one kind may lie below the same folder.
        compare: takes the folder of a fixture and returns one row per quantity.
        rows: regular expressions for names of rows, each of which must be there.
    """

    files: str
    fits: Callable[[dict[str, Any]], bool]
    compare: Callable[[Path], list[Row]]
    rows: tuple[str, ...]


def having(key: str) -> Callable[[dict[str, Any]], bool]:
    """Settings that have a key."""
    return lambda settings: key in settings


KINDS = (
    Kind("0[12349]_*/**/config.json", having("mmseg_cfg"), compare_segmenter, (".*logits.*", "grad_input")),
    Kind("04_*/**/config.json", having("kernel_h"), compare_dcnv3_core, ("output.*", "grad_offset", "grad_mask")),
    Kind("04_*/**/config.json", having("dcnv3"), compare_dcnv3_layer, ("output", "grad_input", "grad offset.weight")),
    Kind(
        "04_*/**/config.json",
        having("internimage"),
        compare_internimage,
        ("feat0", "extra0_feat0", "zero_image_.*", "grad_input", "grad stages.*"),
    ),
    Kind(
        "05_*/**/config.json",
        having("volo"),
        compare_volo,
        ("feat/net0", "size0/feat/net0", ".*pos_embed_resized", "grad_input"),
    ),
    Kind("06_*/**/values.json", having("maskformer_v1"), compare_masks, (".*total", "matching.*", ".*labels.*")),
    Kind("07_*/pspnet*/config.json", having("deep_sup_scale"), compare_segmenter, (".*logits.*", "grad_input")),
    Kind("07_*/**/config.json", having("clip_num"), compare_clips, ("call0_logits", "grad_frame0")),
    Kind("08_*/**/config.json", having("decode_head"), compare_tmanet, ("logits.*", "aux_logits", "grad_sequence")),
    Kind("08_*/**/config.json", having("matmul_norm"), compare_memory, ("output", "grad_memory_keys")),
    Kind(
        "09_*/**/config.json",
        lambda settings: settings["kind"] in BISENET_PARTS,
        compare_bisenet_part,
        ("output0", "grad_input0"),
    ),
    Kind(
        "10_*/**/config.json",
        lambda settings: "RefinementModule" in settings["kind"],
        compare_cascade_psp,
        ("full/out_224", "given_s8/.*", "given_s8_s4/.*", "grad_image", "grad_seg"),
    ),
    Kind(
        "10_*/**/config.json", having("split_files"), compare_cascade_psp_regions, ("region .*", "box .*", "labels .*")
    ),
    Kind("12_*/**/values.json", having("vspw_vc"), compare_metrics, ("vspw mean_iou", "vc8.*")),
)


@dataclass(frozen=True)
class Case:
    """One fixture: its name (its folder below the one of all fixtures), the folder, and its kind."""

    name: str
    folder: Path
    kind: Kind

    def compare(self) -> list[Row]:
        """One row per quantity."""
        return self.kind.compare(self.folder)


def find_cases(fixtures: Path) -> list[Case]:
    """The fixtures that are in a folder and that the package reproduces, by name; none without the folder."""
    cases = [
        Case(path.parent.relative_to(fixtures).as_posix(), path.parent, kind)
        for kind in KINDS
        for path in fixtures.glob(kind.files)
        if kind.fits(json.loads(path.read_text()))
    ]
    return sorted(cases, key=lambda case: case.name)
