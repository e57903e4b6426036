"""ST-PPM: PSPNet whose pooled maps are averages over the frames of a clip. Paper: see configuration_st_ppm.py.

Its tensors have PSPNet's names, so a PSPNet can be continued as an ST-PPM; on a clip of one frame both are the same.
"""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_st_ppm import STPPMConfig
from .modeling_clip import ClipSegmenterModel, FrameFeatures
from .modeling_pspnet import PSPNetForSemanticSegmentation


class STPPMForVideoSemanticSegmentation(ClipSegmenterModel, PSPNetForSemanticSegmentation):
    """ST-PPM with its loss; `logits` have the stride of the map `in_index`.

    Args:
        config: the model's configuration.
    """

    config: STPPMConfig
    config_class = STPPMConfig

    def __init__(self, config: STPPMConfig):
        super().__init__(config)
        self.frame_score = None
        if config.frame_weights is not None:
            self.frame_score = nn.Linear(self.backbone.channels[config.in_index], 1, bias=False)
        self.post_init()

    def describe(self, feature_maps: list[torch.Tensor]) -> FrameFeatures:
        features = feature_maps[self.config.in_index]
        memory = self.decode_head.pool(features)  # each (N, C, scale, scale)
        if self.frame_score is not None:
            memory = [*memory, self.frame_score(features.mean(dim=(2, 3)))]  # (N, 1)
        auxiliary = (feature_maps[self.config.auxiliary_in_index],) if self.auxiliary_head is not None else ()
        return FrameFeatures((features,), tuple(memory), auxiliary)

    def decode_auxiliary(self, auxiliary: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (self.auxiliary_head(auxiliary[0]),) if self.auxiliary_head is not None else ()

    def decode_clip(self, current: tuple[torch.Tensor, ...], memory: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
        parts = [torch.stack(frames, dim=1) for frames in zip(*memory, strict=True)]  # each (B, T, ...), small
        if self.frame_score is None:
            pooled = [part.mean(dim=1) for part in parts]
        else:
            *parts, scores = parts
            weights = self.average_weights(scores)[:, :, None, None].to(scores.dtype)  # (B, T, 1, 1, 1)
            pooled = [(weights * part).sum(dim=1) for part in parts]
        return self.decode_head.join(current[0], pooled)

    def average_weights(self, scores: torch.Tensor) -> torch.Tensor:
        """What each frame counts in the average, from the frames' scores (B, T, 1); see `config.frame_weights`."""
        weights = scores.float().softmax(dim=1)
        if self.config.frame_weights == "published":
            return weights.roll(-1, dims=1) / weights.shape[1]
        return weights

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):  # the heads' only one gives the frames' scores
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)


__all__ = ["STPPMForVideoSemanticSegmentation"]
