"""Video consistency as a module for the evaluate library: `evaluate.load(str(vss_hf.metrics.VIDEO_CONSISTENCY))`.

evaluate copies this file and imports the copy, so the work is done by vss_hf.metrics. `add`, `add_batch` and `compute`
of evaluate.Metric are replaced: no map is kept or written, memory is a few maps of one frame's size.
"""

import datasets
import evaluate

from vss_hf.metrics import VideoConsistency


DESCRIPTION = """
Video consistency (VC8, VC16): of the pixels whose ground truth is constant over n frames, the share predicted
steadily, as a mean over all windows of n frames. Nothing is written to disk and memory does not grow with the number
of frames.
"""

INPUTS = """
Args:
    predictions: predicted label maps (height, width) of consecutive frames.
    references: ground truth, same shapes.
    videos: for each frame the name of its video. The frames of one video follow each other, in order.

What to count is fixed when the metric is loaded, because frames are scored as they come:
`evaluate.load(path, protocol="paper", num_frames=(8, 16), ignore_index=255)`; protocol is "vspw-official" (the
default), "paper" or "dvis-legacy", see `vss_hf.metrics.video_consistency`.

Returns:
    vc8, vc16 (None without any window), clips, dropped_clips, videos, protocol.
"""


class VideoConsistencyMetric(evaluate.Metric):
    """See `vss_hf.metrics.VideoConsistency`."""

    def _info(self):
        inputs = {"predictions": datasets.Image(), "references": datasets.Image(), "videos": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(inputs),
            reference_urls=["https://github.com/VSPW-dataset/VSPW_code"],
        )

    def __init__(self, *args, num_frames=(8, 16), protocol="vspw-official", ignore_index=255, **kwargs):
        super().__init__(*args, **kwargs)
        if self.num_process != 1:
            raise ValueError(
                f"num_process is {self.num_process}; this metric writes no files that processes could share. "
                "Use vss_hf.metrics.VideoConsistency and its reduce() in distributed runs"
            )
        self._consistency = VideoConsistency(num_frames, protocol, ignore_index)
        self._start()

    def __len__(self):
        return self._frames

    def add(self, *, prediction=None, reference=None, video=None, **kwargs):
        """Adds one frame."""
        # evaluate.combine passes the plural names here
        frame = [
            kwargs.pop("predictions", prediction),
            kwargs.pop("references", reference),
            kwargs.pop("videos", video),
        ]
        _refuse_unknown(kwargs)
        self._add_frame(*frame)

    def add_batch(self, *, predictions=None, references=None, videos=None, **kwargs):
        """Adds several frames, in order."""
        _refuse_unknown(kwargs)
        if predictions is None or references is None or videos is None:
            raise ValueError("predictions, references and videos are all needed")
        if not len(predictions) == len(references) == len(videos):
            raise ValueError(
                f"got {len(predictions)} predictions, {len(references)} references and {len(videos)} videos; "
                "there is one of each per frame"
            )
        for frame in zip(predictions, references, videos, strict=True):
            self._add_frame(*frame)

    def compute(self, *, predictions=None, references=None, videos=None, **kwargs):
        """Scores the frames added so far (and those given here), then starts anew."""
        if kwargs:
            raise ValueError(
                f"unknown arguments {sorted(kwargs)}; protocol, num_frames and ignore_index are given to evaluate.load"
            )
        if any(given is not None for given in (predictions, references, videos)):
            self.add_batch(predictions=predictions, references=references, videos=videos)
        if not self._frames:
            raise ValueError(
                "no frames to score; call add or add_batch first, or give predictions, references, videos"
            )
        self._consistency.end_video()
        result = self._consistency.compute()
        self._start()
        return result

    def _start(self):
        self._consistency.reset()
        self._frames = 0
        self._video = None
        self._ended = set()

    def _add_frame(self, prediction, reference, video):
        if prediction is None or reference is None or video is None:
            raise ValueError("a prediction, a reference and the name of the video are all needed")
        if video != self._video:
            if video in self._ended:
                raise ValueError(f"video {video!r} comes back after another video; its frames must follow each other")
            self._consistency.end_video()
            self._ended.add(self._video)
            self._video = video
        self._consistency.add_frame(prediction, reference)
        self._frames += 1


def _refuse_unknown(inputs):
    if inputs:
        raise ValueError(f"unknown inputs {sorted(inputs)}; this metric takes predictions, references and videos")
