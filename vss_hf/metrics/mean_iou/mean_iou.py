"""Mean IoU as a module for the evaluate library: `evaluate.load(str(vss_hf.metrics.MEAN_IOU))`.

evaluate copies this file and imports the copy, so the work is done by vss_hf.metrics. The class replaces `add`,
`add_batch` and `compute` of evaluate.Metric: those write every map to an Arrow file and read all of them back, this
one counts each pair of maps at once and keeps 256 x 256 counts.
"""

import datasets
import evaluate
import numpy as np

from vss_hf.metrics import ConfusionMatrix
from vss_hf.metrics.confusion import value_table


DESCRIPTION = """
Mean intersection over union of label maps, computed from one confusion matrix over all maps. Nothing is written to
disk and memory does not grow with the number of maps.
"""

INPUTS = """
Args:
    predictions: predicted label maps, a list of (height, width) arrays or one (batch, height, width) array, values
    0..255. references: ground truth, same shapes, values 0..255.
    num_labels (`int`): number of classes; labels are 0..num_labels-1. Given to `compute`, as in evaluate's own
    mean_iou. ignore_index (`int`, defaults to 255): reference value of pixels that are not scored.
    protocol (`str`, defaults to "vspw"): "vspw" averages over the classes in the ground truth, as the VSPW benchmark
        does; "evaluate" over the classes in ground truth or prediction, which gives the numbers of evaluate's own
        mean_iou.
    nan_to_num (`float`, *optional*): replaces the NaN of classes that are not scored.
    reduce_labels (`bool`, defaults to `False`): the reference value 0 is void and v means class v-1, as on disk.

Returns:
    mean_iou, mean_accuracy, overall_accuracy, per_category_iou and per_category_accuracy (arrays, NaN where a class is
    not scored), frequency_weighted_iou, num_classes_scored, protocol.
"""


class MeanIoU(evaluate.Metric):
    """See `vss_hf.metrics.ConfusionMatrix`.

    A user of evaluate names `num_labels` and `ignore_index` only in `compute`. Until then pairs of *values* are
    counted, all 256 x 256 of them, which any choice of the two can be read from later.
    """

    def _info(self):
        maps = {"predictions": datasets.Image(), "references": datasets.Image()}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(maps),
            reference_urls=["https://github.com/VSPW-dataset/VSPW_baseline"],
        )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.num_process != 1:
            raise ValueError(
                f"num_process is {self.num_process}; this metric writes no files that processes could share. "
                "Use vss_hf.metrics.ConfusionMatrix and its reduce() in distributed runs"
            )
        self._start()

    def __len__(self):
        return self._maps

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Counts one pair of maps."""
        # evaluate.combine passes the plural names here
        prediction, reference = kwargs.pop("predictions", prediction), kwargs.pop("references", reference)
        _refuse_unknown(kwargs)
        self._count(prediction, reference)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Counts several pairs of maps; sizes may differ between pairs."""
        _refuse_unknown(kwargs)
        if predictions is None or references is None:
            raise ValueError("predictions and references are both needed")
        if len(predictions) != len(references):
            raise ValueError(f"got {len(predictions)} predictions and {len(references)} references; they form pairs")
        for prediction, reference in zip(predictions, references, strict=True):
            self._count(prediction, reference)

    def compute(self, *, predictions=None, references=None, **kwargs):
        """Scores the maps added so far (and those given here), then starts anew."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not self._maps:
            raise ValueError("no maps to score; call add or add_batch first, or give predictions and references")
        result = _score(self._pairs, **kwargs)
        self._start()
        return result

    def _compute(self, *, predictions, references, **kwargs):
        """Scores these maps alone (tutorials call it to avoid the Arrow file of other metrics)."""
        kept, kept_maps = self._pairs, self._maps
        self._start()
        try:
            return self.compute(predictions=predictions, references=references, **kwargs)
        finally:
            self._pairs, self._maps = kept, kept_maps

    def _start(self):
        self._pairs = np.zeros((256, 256), dtype=np.int64)  # rows: reference value, columns: predicted value
        self._maps = 0

    def _count(self, prediction, reference):
        if prediction is None or reference is None:
            raise ValueError("a prediction and a reference are both needed")
        np.add(self._pairs, value_table(prediction, reference), out=self._pairs, casting="unsafe")
        self._maps += 1


def _refuse_unknown(inputs):
    if inputs:
        raise ValueError(f"unknown inputs {sorted(inputs)}; this metric takes predictions and references")


def _score(table, *, num_labels, ignore_index=255, protocol="vspw", nan_to_num=None, reduce_labels=False):
    if reduce_labels:  # rows move up by one; 0 and 255 become 255
        table = np.roll(table, -1, axis=0)
        table[255] += table[254]
        table[254] = 0
    matrix = ConfusionMatrix(num_labels, ignore_index=ignore_index)
    matrix.add_value_table(table)
    scores = matrix.compute(protocol)

    def plain(value):
        array = np.array(value, dtype=np.float64)  # None becomes NaN
        return array if nan_to_num is None else np.nan_to_num(array, nan=nan_to_num)

    return {
        "mean_iou": float(plain(scores["mean_iou"])),
        "mean_accuracy": float(plain(scores["mean_accuracy"])),
        "overall_accuracy": float(plain(scores["pixel_accuracy"])),
        "frequency_weighted_iou": float(plain(scores["frequency_weighted_iou"])),
        "per_category_iou": plain(scores["per_class_iou"]),
        "per_category_accuracy": plain(scores["per_class_accuracy"]),
        "num_classes_scored": scores["num_classes_scored"],
        "protocol": protocol,
    }
