r"""UperNet: pyramid pooling on the last map, a top-down feature pyramid over all maps, and an FCN auxiliary head.

    image -> backbone -> maps ---> 1x1 convs --(+ upsampled next)--> 3x3 convs --> concat --> 3x3 conv --> logits
                            \`--> last map: pyramid pooling, 3x3 conv --^                          (stride of map 0)
                             `--> third map: FCN head --> auxiliary logits

Paper: see configuration_upernet.py. The heads are transformers' (mmsegmentation's UPerHead and FCNHead), with its
names, so that existing weights load; what they lack is added here: dropout, logits at the heads' own resolution,
auxiliary logits, the loss from low-resolution logits, and a last convolution that does not need the concatenated maps.
"""

from typing import Any

import torch
from torch import nn
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from .configuration_upernet import UperNetConfig
from .layers import BatchNorm2d, PixelClassifier, ResizedConv2d, resize
from .modeling_segmenter import SegmenterModel


class UperNetForSemanticSegmentation(SegmenterModel):
    """UperNet with its loss; `logits` have the stride of the backbone's first map.

    Args:
        config: the model's configuration.
    """

    config: UperNetConfig
    config_class = UperNetConfig
    # transformers keeps SwinBackbone's last norm, which no map passes through: see `build_backbone`.
    _keys_to_ignore_on_load_unexpected = [r"backbone\.(swin\.)?layernorm\."]

    def __init__(self, config: UperNetConfig):
        super().__init__(config)
        self.decode_head, self.auxiliary_head = upernet_heads(config, self.backbone.channels)
        self.post_init()

    def decode(
        self, feature_maps: list[torch.Tensor], with_auxiliary_logits: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        logits = self.decode_head(feature_maps)  # (B, K, h, w)
        if self.auxiliary_head is None or not with_auxiliary_logits:
            return logits, ()
        return logits, (self.auxiliary_head(feature_maps),)


class PyramidHead(UperNetHead):
    """transformers' decode head, but that its last convolution reads the maps at their own sizes.

    Args:
        config: the model's configuration.
        in_channels: widths of the backbone's maps.
    """

    def __init__(self, config: UperNetConfig, in_channels: list[int]):
        super().__init__(config, in_channels=in_channels)
        self.align_corners = self.psp_modules.align_corners = config.align_corners
        read = len(in_channels) * self.channels
        self.fpn_bottleneck.conv = ResizedConv2d(read, self.channels, config.align_corners)

    def forward(self, encoder_hidden_states: list[torch.Tensor]) -> torch.Tensor:
        """Logits (batch, num_labels, h, w) of the first map's size."""
        laterals = [conv(features) for conv, features in zip(self.lateral_convs, encoder_hidden_states, strict=False)]
        laterals.append(self.psp_forward(encoder_hidden_states))
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + resize(laterals[i + 1], laterals[i].shape[-2:], self.align_corners)
        pyramid = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals, strict=False)]
        return self.classifier(self.fpn_bottleneck([*pyramid, laterals[-1]]))


def upernet_heads(config: UperNetConfig, channels: list[int]) -> tuple[PyramidHead, UperNetFCNHead | None]:
    """The decode head and the auxiliary head, if there is one, on maps of these widths."""
    decode_head, auxiliary_head = PyramidHead(config, channels), None
    if config.use_auxiliary_head:
        check_auxiliary_channels(config, channels)
        auxiliary_head = UperNetFCNHead(config, in_channels=channels, in_index=config.auxiliary_in_index)
    adapt_head(decode_head, config, config.cosine_scale)
    if auxiliary_head is not None:
        adapt_head(auxiliary_head, config)
    return decode_head, auxiliary_head


def adapt_head(head: Any, config: UperNetConfig, cosine_scale: float | None = None) -> None:
    """Our classifier, with dropout, and norms that train on a single value; the tensors keep their names."""
    assert config.num_labels is not None  # id2label has a default
    head.classifier = PixelClassifier(
        head.channels, config.num_labels, cosine_scale, dropout=config.classifier_dropout
    )
    for module in list(head.modules()):
        if isinstance(getattr(module, "batch_norm", None), nn.BatchNorm2d):
            module.batch_norm = BatchNorm2d(module.batch_norm.num_features)


def check_auxiliary_channels(config: UperNetConfig, channels: list[int]) -> None:
    """Raise when the configuration promises the auxiliary head another map than the backbone has."""
    found, told = channels[config.auxiliary_in_index], config.auxiliary_in_channels
    if told is not None and told != found:
        raise ValueError(
            f"UperNetConfig.auxiliary_in_channels={told}, but map {config.auxiliary_in_index} of the backbone has "
            f"{found} channels; expected {found}, or None"
        )


__all__ = ["UperNetForSemanticSegmentation"]
