"""TCB-OCR: OCRNet whose region vectors are averages over the frames of a clip. Paper: see configuration_tcb_ocr.py.

Its tensors have OCRNet's names, so an OCRNet can be continued as a TCB-OCR; on a clip of one frame both are the same.
"""

import torch

from .configuration_tcb_ocr import TCBOCRConfig
from .modeling_clip import ClipSegmenterModel, FrameFeatures
from .modeling_ocrnet import OCRNetForSemanticSegmentation, gather_regions


class TCBOCRForVideoSemanticSegmentation(ClipSegmenterModel, OCRNetForSemanticSegmentation):
    """TCB-OCR with its loss; `logits` have the stride of the first map of `in_indices`, or the neck's.

    Args:
        config: the model's configuration.
    """

    config: TCBOCRConfig
    config_class = TCBOCRConfig

    def describe(self, feature_maps: list[torch.Tensor]) -> FrameFeatures:
        features, coarse_features = self.head_maps(feature_maps)
        coarse_logits = self.coarse_head(coarse_features)  # (N, K, h, w)
        pixels = self.decode_head.pixel_conv(features)  # (N, C, h, w)
        return FrameFeatures((pixels,), (gather_regions(pixels, coarse_logits),), (coarse_logits,))

    def decode_clip(self, current: tuple[torch.Tensor, ...], memory: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
        regions = torch.stack([regions for (regions,) in memory]).mean(dim=0)  # (B, C, K, 1)
        return self.decode_head.classify(current[0], regions)


__all__ = ["TCBOCRForVideoSemanticSegmentation"]
