r"""Video Swin for segmentation: the frames of a clip see each other in the backbone, a head reads the last one's maps.

    clip (B, T, 3, H, W) -> Video Swin -> maps of the last frame -> head of UperNet or OCRNet -> its logits

Papers: see configuration_video_swin.py. The heads' tensors have the names that they have in UperNet and OCRNet.
"""

from typing import Any

import torch

from .configuration_video_swin import VideoSwinConfig
from .modeling_clip import ClipSegmenterModel, FrameFeatures
from .modeling_ocrnet import ocr_heads, read_maps
from .modeling_upernet import upernet_heads


class VideoSwinForVideoSemanticSegmentation(ClipSegmenterModel):
    """Video Swin with its loss; `logits` have the stride of the first map that the head reads.

    A stream keeps the frames themselves, and costs as much as whole clips do.

    Args:
        config: the model's configuration.
    """

    config: VideoSwinConfig
    config_class = VideoSwinConfig

    def __init__(self, config: VideoSwinConfig):
        super().__init__(config)
        channels = self.backbone.channels
        if config.decode_head == "upernet":
            self.decode_head, self.auxiliary_head = upernet_heads(config, channels)
        else:
            assert config.coarse_in_indices is not None  # since the configuration's __post_init__
            widths = (sum(channels[i] for i in chosen) for chosen in (config.in_indices, config.coarse_in_indices))
            self.coarse_head, self.decode_head = ocr_heads(config, *widths)
        self.post_init()

    def decode(
        self, feature_maps: list[torch.Tensor], with_auxiliary_logits: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        config = self.config
        if config.decode_head == "upernet":
            logits = self.decode_head(feature_maps)  # (B, K, h, w)
            if self.auxiliary_head is None or not with_auxiliary_logits:
                return logits, ()
            return logits, (self.auxiliary_head(feature_maps),)
        assert config.coarse_in_indices is not None  # since the configuration's __post_init__
        maps = read_maps(feature_maps, config.in_indices, config.coarse_in_indices, config.align_corners)
        coarse_logits = self.coarse_head(maps[1])  # always, because the regions follow from it
        return self.decode_head(maps[0], coarse_logits), (coarse_logits,)

    def segment_clips(
        self, clips: torch.Tensor, with_auxiliary_logits: bool, **wanted: bool
    ) -> tuple[Any, torch.Tensor, tuple[torch.Tensor, ...]]:
        outputs = self.encode(clips, **wanted)
        logits, auxiliary_logits = self.decode(list(outputs.feature_maps), with_auxiliary_logits)
        return outputs, logits, tuple(part.unsqueeze(1) for part in auxiliary_logits)

    def describe_frame(self, pixel_values: torch.Tensor) -> FrameFeatures:
        return FrameFeatures((), (pixel_values.to(self.dtype, copy=True),))  # the caller may write into his again

    def decode_clip(self, current: tuple[torch.Tensor, ...], memory: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
        clips = torch.stack([pixel_values for (pixel_values,) in memory], dim=1)
        return self.segment_clips(clips, with_auxiliary_logits=False)[1]


__all__ = ["VideoSwinForVideoSemanticSegmentation"]
