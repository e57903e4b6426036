"""What predictions are compared with: which classes are scored, and what mask values and predicted labels count as.

A data set with other classes than the model's can be scored in two ways. Its labels are turned into VSPW's classes
(`table`), as in training; or a model of VSPW's classes is measured on the data set's own labels ("reverse"), where
classes that VSPW does not tell apart count as one, and what is none of them counts as missed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vss_hf.data.labels import IGNORE_INDEX, VSPW, ClassList
from vss_hf.data.parquet import hub_id, pinned
from vss_hf.data.remap import SOURCES_WITH_TABLE, reverse_map
from vss_hf.data.splits import LabelledSplit, open_split
from vss_hf.inference.processes import failing_together, gather_texts, is_first


REVERSE = "reverse"


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The labelled frames of a split and how predictions are compared with them.

    Args:
        split: the files.
        classes: that are scored.
        lookup: uint8, the scored label of every value in a mask, 255 = ignored.
        counts_as: uint8 (124,), the scored label of every predicted one, 255 = none; None: predictions are scored
            labels as they are.
        raw_consistency: whether video consistency looks at the values in the masks, as the official VSPW script does
            (there 0 ("others") and 255 (void) are two values), and not at labels.
        table: the remap table in use, "reverse", or None.
    """

    split: LabelledSplit
    classes: ClassList
    lookup: np.ndarray
    counts_as: np.ndarray | None
    raw_consistency: bool
    table: str | None

    def scored_prediction(self, prediction: np.ndarray) -> np.ndarray:
        """A label map (H, W) of the model in the labels that are scored.

        Raises:
            ValueError: with "reverse", a value that is no class of VSPW.
        """
        if self.counts_as is None:
            return prediction
        wrong = prediction[(prediction >= VSPW.num_labels) & (prediction != IGNORE_INDEX)]
        if wrong.size:
            raise ValueError(f"predictions hold the value {wrong[0]}; labels of VSPW are 0..123, or 255 for none")
        table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
        table[: VSPW.num_labels] = self.counts_as
        return table[prediction]


def open_ground_truth(
    root: str | Path, split: str, source: str = "vspw", table: str | Path | None = None, names: list[str] | None = None
) -> GroundTruth:
    """Opens a split to score predictions on it.

    Args:
        root, split, source: as for `open_split`.
        table: None: the data set's own classes; "default", "liberal" or a CSV file: VSPW's classes; "reverse": the
            data set's own, for predictions in VSPW's classes.
        names: the model's classes. With VSPW's, and where the data set has others and a table, None means "reverse".

    Raises:
        FileNotFoundError, ValueError: as `open_split` and `load_table`; the split has no masks; or the model's classes
            are not those that are scored.
    """
    opened = open_split(root, split, source=source, table=None if table == REVERSE else table)
    if not opened.has_masks:
        raise ValueError(f"split '{split}' of {root} has no masks: it can be predicted, not scored")
    of_vspw = names is not None and tuple(names) == VSPW.names
    if table is None and of_vspw and opened.classes.names != VSPW.names and source in SOURCES_WITH_TABLE:
        table = REVERSE
    if table != REVERSE:
        if names is not None:
            check_classes(names, opened.classes, f"{root} by table {opened.table!r}" if opened.table else root)
        raw = source == "vspw" and opened.table is None
        return GroundTruth(opened, opened.classes, opened.reader.lookup, None, raw, opened.table)
    if names is not None and not of_vspw:
        raise ValueError(
            f"table 'reverse' is for models of VSPW's {VSPW.num_labels} classes; this one has {len(names)}"
        )
    back = reverse_map(source, opened.classes)
    lookup = opened.reader.remapped(back.labels).lookup
    return GroundTruth(opened, back.classes, lookup, back.predictions, False, REVERSE)


def data_set_name(root: str | Path) -> str:
    """What a data set is called in results: "owner/name" on the Hub, else its folder's name."""
    named = hub_id(root)
    return Path(root).resolve().name if named is None else named[0]


def pinned_everywhere(roots: Iterable[str | Path]) -> dict[str, str]:
    """For each data set that is on the Hub, its id with the commit that the first process finds there.

    Processes that looked by themselves could see two versions, if somebody pushes at that moment. All must call this.
    """
    found: dict[str, str] = {}
    with failing_together():
        if is_first():
            found = {str(root): pinned(root) for root in roots if hub_id(root)}
    return json.loads(gather_texts(json.dumps(found))[0])


def check_classes(names: list[str], classes: ClassList, root: str | Path) -> None:
    """Raise unless the model's classes are the data set's, in order."""
    if len(names) != classes.num_labels:
        raise ValueError(
            f"the model has {len(names)} classes (num_labels) and {root} has {classes.num_labels}: "
            "train on this data set, evaluate on the one that the model was trained on, or name source and remap table"
        )
    for i, (ours, theirs) in enumerate(zip(names, classes.names, strict=True)):
        if ours.strip() != theirs.strip() and not ours.startswith("LABEL_"):  # "bed " in models for ADE20K
            raise ValueError(
                f"class {i} is '{ours}' for the model and '{theirs}' in {root}: another class list or order"
            )
