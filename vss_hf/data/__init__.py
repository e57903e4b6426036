"""Data: VSPW and data sets in its layout, class lists, shuffled streams, verification, transforms, samples.

Everything is imported on first use, so that `vss_hf.data.labels` costs numpy only.
"""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .clips import load_split as load_split
    from .clips import load_vspw as load_vspw
    from .labels import IGNORE_INDEX as IGNORE_INDEX
    from .labels import VSPW as VSPW
    from .labels import ClassList as ClassList
    from .order import ClassBalanced as ClassBalanced
    from .order import EveryFrame as EveryFrame
    from .order import EveryNth as EveryNth
    from .order import Mixture as Mixture
    from .order import OnePerVideo as OnePerVideo
    from .order import VideoWindows as VideoWindows
    from .parquet import open_parquet_split as open_parquet_split
    from .parquet import verify_parquet as verify_parquet
    from .parquet_writer import write_parquet as write_parquet
    from .remap import RemapTable as RemapTable
    from .remap import ReverseMap as ReverseMap
    from .remap import load_table as load_table
    from .remap import reverse_map as reverse_map
    from .repair import RepairReport as RepairReport
    from .repair import repair_dataset as repair_dataset
    from .sample import make_sample_dataset as make_sample_dataset
    from .sample_ambiguous import make_ambiguous_dataset as make_ambiguous_dataset
    from .scan import LabelScan as LabelScan
    from .scan import filter_labelled as filter_labelled
    from .scan import scan_labels as scan_labels
    from .splits import LabelledSplit as LabelledSplit
    from .splits import open_split as open_split
    from .statistics import LabelStatistics as LabelStatistics
    from .statistics import frame_weights as frame_weights
    from .statistics import label_statistics as label_statistics
    from .stream import FrameStream as FrameStream
    from .transforms import AugmentationConfig as AugmentationConfig
    from .transforms import TrainTransform as TrainTransform
    from .verify import VerifyReport as VerifyReport
    from .verify import verify_dataset as verify_dataset
    from .vspw import FrameRecord as FrameRecord
    from .vspw import VSPWVideo as VSPWVideo
    from .vspw import decode_frame as decode_frame
    from .vspw import scan_split as scan_split

_HOME = {
    "IGNORE_INDEX": "labels",
    "VSPW": "labels",
    "ClassList": "labels",
    "FrameRecord": "vspw",
    "VSPWVideo": "vspw",
    "decode_frame": "vspw",
    "load_split": "clips",
    "load_vspw": "clips",
    "LabelledSplit": "splits",
    "open_split": "splits",
    "scan_split": "vspw",
    "RemapTable": "remap",
    "ReverseMap": "remap",
    "load_table": "remap",
    "reverse_map": "remap",
    "open_parquet_split": "parquet",
    "verify_parquet": "parquet",
    "write_parquet": "parquet_writer",
    "LabelScan": "scan",
    "filter_labelled": "scan",
    "scan_labels": "scan",
    "LabelStatistics": "statistics",
    "frame_weights": "statistics",
    "label_statistics": "statistics",
    "ClassBalanced": "order",
    "EveryFrame": "order",
    "EveryNth": "order",
    "Mixture": "order",
    "OnePerVideo": "order",
    "VideoWindows": "order",
    "FrameStream": "stream",
    "RepairReport": "repair",
    "repair_dataset": "repair",
    "VerifyReport": "verify",
    "verify_dataset": "verify",
    "AugmentationConfig": "transforms",
    "TrainTransform": "transforms",
    "make_ambiguous_dataset": "sample_ambiguous",
    "make_sample_dataset": "sample",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_HOME})
