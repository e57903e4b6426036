"""TMANet: every pixel reads from all pixels of the frames before. Paper: see configuration_tmanet.py.

    labelled frame -> query value -----------------------------+
                   -> query key -+                             +-> beside each other -> logits
                                 +-> softmax(products) values -+
    frames before  -> keys, values

Letters: B clips, C channels of the backbone's map, T frames before, K num_labels.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_tmanet import TMANetConfig
from .layers import ConvNormAct, PixelClassifier
from .modeling_auxiliary import AuxiliarySegmenterModel
from .modeling_clip import ClipSegmenterModel, FrameFeatures


class TemporalMemoryHead(nn.Module):
    """Keys and values of all frames, the attention, and a classifier.

    Args:
        config: the model's configuration.
        in_channels: channels of the map that the head reads.
    """

    memory_key: nn.ModuleList
    memory_value: nn.ModuleList

    def __init__(self, config: TMANetConfig, in_channels: int):
        super().__init__()
        assert config.num_labels is not None  # id2label has a default
        key, value = config.key_channels, config.value_channels
        self.scale = key**-0.5 if config.scale_attention else 1.0
        self.query_key = embedding(in_channels, key)
        self.query_value = embedding(in_channels, value)
        # one each for every frame of the memory, oldest first, or a single one for all
        self.memory_key = nn.ModuleList(embedding(in_channels, key) for _ in range(config.num_memory_convs))
        self.memory_value = nn.ModuleList(embedding(in_channels, value) for _ in range(config.num_memory_convs))
        self.merge = ConvNormAct(2 * value, config.channels, 3)
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        self.classifier = PixelClassifier(config.channels, config.num_labels, config.cosine_scale)

    def memorise(self, features: torch.Tensor, place: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """What a frame is remembered by.

        Args:
            features: its map (B, C, h, w).
            place: which one before the labelled frame it is in the clip: 1 is the nearest.

        Returns:
            Keys (B, key_channels, h, w) and values (B, value_channels, h, w).
        """
        conv = -min(place, len(self.memory_key))
        return self.memory_key[conv](features), self.memory_value[conv](features)

    def forward(self, features: torch.Tensor, memory: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Logits (B, K, h, w) of a frame from its map (B, C, h, w) and the keys and values of others."""
        keys, values = zip(*memory, strict=True)
        read = read_memory(self.query_key(features), list(keys), list(values), self.scale)
        merged = self.merge(torch.cat([self.query_value(features), read], dim=1))  # (B, channels, h, w)
        return self.classifier(self.dropout(merged))


def embedding(in_channels: int, channels: int) -> nn.Sequential:
    """The convolutions that make a key or a value of every pixel."""
    return nn.Sequential(ConvNormAct(in_channels, channels), ConvNormAct(channels, channels, 3))


def read_memory(
    query: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor], scale: float = 1.0
) -> torch.Tensor:
    """Attention from every pixel of a frame to all pixels of others.

    The matrix of all weights, 660 MB for T = 4 maps of 60x107 in fp32, is never made: torch's fused attention goes
    through it in blocks, in training too. On the CPU it does so only if keys and values have the same width, so the
    narrower ones are filled up with zeros, which changes no product. It computes products and softmax in fp32 whatever
    the tensors are: without a scale the products may be large, and half precision would blur the softmax.

    Args:
        query: keys of the frame's pixels (B, key_channels, h, w).
        keys: for each other frame (B, key_channels, h', w').
        values: for each other frame (B, value_channels, h', w').
        scale: factor of the products of keys.

    Returns:
        (B, value_channels, h, w): for every pixel the mean of all values, weighted by the softmax over them.
    """
    value_channels = values[0].shape[1]
    width = max(query.shape[1], value_channels)
    pixels, memory_keys, memory_values = (as_rows(maps, width) for maps in ([query], keys, values))
    read = F.scaled_dot_product_attention(pixels, memory_keys, memory_values, scale=scale)  # (B, 1, h * w, width)
    return read[:, 0, :, :value_channels].transpose(1, 2).unflatten(2, query.shape[-2:])


def as_rows(maps: list[torch.Tensor], width: int) -> torch.Tensor:
    """All pixels of maps (B, channels, h, w), one after the other: (B, 1, pixels, width), the rest zeros."""
    rows = torch.cat([part.flatten(2).transpose(1, 2) for part in maps], dim=1)
    return F.pad(rows, (0, width - rows.shape[2])).unsqueeze(1).contiguous()


class TMANetForVideoSemanticSegmentation(ClipSegmenterModel, AuxiliarySegmenterModel):
    """TMANet with its loss; `logits` have the stride of the map `in_index`.

    Args:
        config: the model's configuration.
    """

    config: TMANetConfig
    config_class = TMANetConfig
    decode_head: TemporalMemoryHead

    def __init__(self, config: TMANetConfig):
        super().__init__(config)
        self.decode_head = TemporalMemoryHead(config, self.backbone.channels[config.in_index])
        self.post_init()

    @property
    def remembers_keys(self) -> bool:
        """Whether a frame is remembered by its keys and values; otherwise by its whole map.

        With shared convolutions they are computed once for each frame, and smaller: 31 MB instead of 201 MB for four
        frames of 480x853 (ResNet-50, fp32). With convolutions for each place a frame needs others whenever it grows
        older. To compute those of all its places in advance would cost a step as much as the T frames' cost here, and
        `forward` T times as much. In training, `describe` may be without gradients (`config.detach_references`), and
        the convolutions have to learn.
        """
        return self.config.share_memory_convs and not self.training

    def describe(self, feature_maps: list[torch.Tensor]) -> FrameFeatures:
        features = feature_maps[self.config.in_index]
        memory = self.decode_head.memorise(features) if self.remembers_keys else (features,)
        auxiliary = (feature_maps[self.config.auxiliary_in_index],) if self.auxiliary_head is not None else ()
        return FrameFeatures((features,), memory, auxiliary)

    def decode_auxiliary(self, auxiliary: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (self.auxiliary_head(auxiliary[0]),) if self.auxiliary_head is not None else ()

    def decode_clip(self, current: tuple[torch.Tensor, ...], memory: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
        self.check_clip(len(memory) - 1)
        others = memory[:-1] or memory  # a frame without any is its own memory
        if self.remembers_keys:
            pairs = [(keys, values) for keys, values in others]
        else:
            places = range(len(others), 0, -1)
            pairs = [self.decode_head.memorise(maps, place) for place, (maps,) in zip(places, others, strict=True)]
        return self.decode_head(current[0], pairs)

    def check_clip(self, num_others: int) -> None:
        """Raise unless a clip has as many frames before the labelled one as there are convolutions for."""
        expected = len(self.config.frame_offsets)
        if self.config.share_memory_convs or num_others == expected:
            return
        if num_others > expected or self.config.clip_start != "existing":
            at_most = "at most " if self.config.clip_start == "existing" else ""
            raise ValueError(
                f"the clips have {num_others} frames before the labelled one: expected {at_most}{expected}, one for "
                f"each of frame_offsets={list(self.config.frame_offsets)}, because each has convolutions of its own; "
                "clips of any length need share_memory_convs=True"
            )


__all__ = ["TMANetForVideoSemanticSegmentation"]
