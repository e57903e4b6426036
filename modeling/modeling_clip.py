r"""What makes a video model of an image model: frames are encoded one by one, and short memories of them combined.

    clip   -> encode, describe (all frames at once) -> memories of all frames --+--> decode_clip -> logits of the last
    stream -> encode, describe (the new frame only) -> memories kept in a state-'

A memory is what other frames need to know of a frame: pooled maps, region vectors, features. So a stream costs one
encoding per frame, whatever the length of the clip. Letters: B clips or streams, T frames of a clip, N frames in a
batch (B * T, or B in a stream), K num_labels.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .configuration_clip import ClipSegmenterConfig
from .losses import dense_segmentation_loss
from .modeling_segmenter import SMALLEST_IMAGE, SegmenterModel
from .outputs import SemanticSegmenterOutput


class FrameFeatures(NamedTuple):
    """What `describe` makes of N frames; every tensor has N entries along axis 0.

    Args:
        current: what only the frame's own segmentation needs.
        memory: what the clips of later frames need, too.
        auxiliary: what the auxiliary heads read.
    """

    current: tuple[torch.Tensor, ...]
    memory: tuple[torch.Tensor, ...]
    auxiliary: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class StreamState:
    """What a stream remembers between two steps; it never grows beyond `config.num_past_frames` frames.

    Args:
        frames: the memories of the latest frames, oldest first.
    """

    frames: tuple[tuple[torch.Tensor, ...], ...] = ()

    def to(self, *args: Any, **kwargs: Any) -> "StreamState":
        """The same state elsewhere; takes what `torch.Tensor.to` takes."""
        return StreamState(tuple(tuple(part.to(*args, **kwargs) for part in frame) for frame in self.frames))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Named tensors, e.g. for a safetensors file, which takes contiguous ones only."""
        frames = enumerate(self.frames)
        return {f"{i}.{j}": part.contiguous() for i, frame in frames for j, part in enumerate(frame)}

    @classmethod
    def from_state_dict(cls, tensors: dict[str, torch.Tensor]) -> "StreamState":
        """The state that `state_dict` was made of."""
        frames: dict[int, dict[int, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            frame, part = map(int, name.split("."))
            frames.setdefault(frame, {})[part] = tensor
        return cls(tuple(tuple(frame[j] for j in sorted(frame)) for _, frame in sorted(frames.items())))


class ClipSegmenterModel(SegmenterModel):
    """Clips and streams for an image model, which comes after this as a base class and brings backbone and heads.

    An architecture adds `describe` and `decode_clip`, and `decode_auxiliary` if it has auxiliary heads.

    Args:
        config: the model's configuration.
    """

    config: ClipSegmenterConfig
    config_class = ClipSegmenterConfig
    main_input_name = "pixel_values_videos"
    input_modalities: Any = ("video",)

    def describe(self, feature_maps: list[torch.Tensor]) -> FrameFeatures:
        """What is kept of each frame.

        With `config.detach_references` nothing is learnt here from the other frames of a clip: layers that only they
        pass through belong into `decode_clip`.

        Args:
            feature_maps: what `encode` returns for N frames, each (N, channels, h, w).
        """
        raise NotImplementedError

    def decode_auxiliary(self, auxiliary: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The logits of the auxiliary heads, for training.

        Args:
            auxiliary: `FrameFeatures.auxiliary` of some frames, each (N, ...).

        Returns:
            (N, K, h, w) for each head; here the argument itself, for models whose `describe` makes such logits.
        """
        return auxiliary

    def decode_clip(self, current: tuple[torch.Tensor, ...], memory: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
        """Segment the last frames of clips.

        Args:
            current: `FrameFeatures.current` of the last frames, each (B, ...).
            memory: `FrameFeatures.memory` of the T frames, oldest first, the last one's included: one tuple of
                (B, ...) for each. At the start of a video there may be fewer frames than later.

        Returns:
            Logits (B, K, h, w).
        """
        raise NotImplementedError

    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        labels: torch.Tensor | None = None,
        reference_labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_auxiliary_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> SemanticSegmenterOutput | tuple:
        r"""Segment the last frame of clips.

        Args:
            pixel_values_videos: float (batch, num_frames, 3, height, width), normalised, oldest frame first; any
                height and width from 32 up. `config.clip_indices` tells which frames of a video belong together.
            labels: long (batch, height, width) of the last frames: classes 0..num_labels-1 and `config.ignore_index`.
            reference_labels: long (batch, num_frames - 1, height, width) of the others, read only with
                `config.wants_reference_labels`: the auxiliary loss is then the mean over all frames (deep
                supervision), otherwise over the last ones.
            num_items_in_batch: labelled pixels in `labels` over all micro-batches and ranks of this step; the loss is
                then their mean instead of this batch's. For the auxiliary loss every other frame counts as many.
            output_auxiliary_logits: also return the auxiliary heads' logits; always on in training.
            output_hidden_states: also return the backbone's hidden states, of all frames one clip after the other (in
                training with `config.detach_references`: of the last frames).
            output_attentions: also return the backbone's attention maps, likewise.
            return_dict: `False` for a plain tuple.

        Returns:
            SemanticSegmenterOutput: with `logits` (batch, num_labels, h, w) of the last frames at the decode head's
            own resolution, and `auxiliary_logits` (batch, t, num_labels, h, w): of all frames with
                `config.wants_reference_labels`, otherwise of the last ones (t = 1).

        Raises:
            ValueError: the clip has another shape, or is too small.
        """
        check_shape("pixel_values_videos", pixel_values_videos, ("batch", "num_frames", "3", "height", "width"))
        if output_auxiliary_logits is None:
            output_auxiliary_logits = self.training
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        wanted = {name: getattr(self.config, name) if value is None else value for name, value in wanted.items()}
        outputs, logits, auxiliary_logits = self.segment_clips(
            pixel_values_videos,
            with_auxiliary_logits=output_auxiliary_logits or labels is not None,
            **{k: v for k, v in wanted.items() if v},
        )

        loss = None
        if labels is not None:
            loss = self.clip_loss(logits, auxiliary_logits, labels, reference_labels, num_items_in_batch)
        output = SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            auxiliary_logits=(auxiliary_logits or None) if output_auxiliary_logits else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def segment_clips(
        self, clips: torch.Tensor, with_auxiliary_logits: bool, **wanted: bool
    ) -> tuple[Any, torch.Tensor, tuple[torch.Tensor, ...]]:
        """All that is between the pixels and the loss; a model that cannot encode frames one by one has its own.

        Args:
            clips: (B, T, 3, H, W).
            with_auxiliary_logits: whether they are wanted; without, a model may leave them out.
            wanted: what else the backbone returns.

        Returns:
            (the backbone's output; logits (B, K, h, w); auxiliary logits, each (B, t, K, h, w)).
        """
        outputs, frames, memory = self.describe_clip(clips, **wanted)
        logits = self.decode_clip(tuple(part[:, -1] for part in frames.current), memory)
        return outputs, logits, self.auxiliary_logits(frames.auxiliary) if with_auxiliary_logits else ()

    def describe_clip(
        self, clips: torch.Tensor, **wanted: bool
    ) -> tuple[Any, FrameFeatures, list[tuple[torch.Tensor, ...]]]:
        """Encode and describe frames: all in one pass, or the last ones in one of their own, with gradients.

        Args:
            clips: (B, T, 3, H, W).
            wanted: what else the backbone returns.

        Returns:
            (the backbone's output; what is kept of the frames that may have gradients, each (B, t, ...), the last
            frame last; the memories of all frames as `decode_clip` takes them).
        """
        memory = []
        if self.training and self.config.detach_references and clips.shape[1] > 1:
            with torch.no_grad():
                others = self.describe(list(self.encode(clips[:, :-1].flatten(0, 1)).feature_maps))
            memory = by_frame(unflatten(others.memory, clips[:, :-1]))
            clips = clips[:, -1:]
        outputs = self.encode(clips.flatten(0, 1), **wanted)
        described = self.describe(list(outputs.feature_maps))
        frames = FrameFeatures(*(unflatten(parts, clips) for parts in described))
        return outputs, frames, [*memory, *by_frame(frames.memory)]

    def auxiliary_logits(self, auxiliary: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The auxiliary heads' logits (B, t, K, h, w) of the frames that count, from what they read (B, T, ...)."""
        if not auxiliary:
            return ()
        if not self.config.wants_reference_labels:
            auxiliary = tuple(part[:, -1:] for part in auxiliary)
        logits = self.decode_auxiliary(tuple(part.flatten(0, 1) for part in auxiliary))
        return unflatten(logits, auxiliary[0])

    def clip_loss(
        self,
        logits: torch.Tensor,
        auxiliary_logits: tuple[torch.Tensor, ...],
        labels: torch.Tensor,
        reference_labels: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """The last frames' loss plus the weighted auxiliary losses; the arguments are `forward`'s and its outputs."""
        config = self.config
        return dense_segmentation_loss(
            logits,
            auxiliary_logits,
            labels,
            reference_labels if config.wants_reference_labels else None,
            auxiliary_loss_weight=config.auxiliary_loss_weight,
            ignore_index=config.ignore_index,
            align_corners=config.align_corners,
            num_items_in_batch=num_items_in_batch,
        )

    def describe_frame(self, pixel_values: torch.Tensor) -> FrameFeatures:
        """What a stream keeps of the new frames (B, 3, H, W)."""
        return self.describe(list(self.encode(pixel_values).feature_maps))

    def init_state(self) -> StreamState:
        """The state before the first frame of a video."""
        return StreamState()

    @torch.no_grad()
    def step(self, pixel_values: torch.Tensor, state: StreamState) -> tuple[SemanticSegmenterOutput, StreamState]:
        """Segment the next frame of a video, or of several that run side by side.

        The logits are those of `forward` on the clip of `config.clip_indices`; only the new frame is encoded.

        Args:
            pixel_values: float (batch, 3, height, width), normalised.
            state: of `init_state` for the first frame, afterwards of the step before. It is not changed, so a stream
                can be continued from it again.

        Returns:
            The output with `logits` (batch, num_labels, h, w), and the state for the next frame.

        Raises:
            ValueError: the frame has another shape or is too small, or the state is of another stream.
        """
        check_shape("pixel_values", pixel_values, ("batch", "3", "height", "width"))
        frame = self.describe_frame(pixel_values)
        shapes = [tuple(part.shape) for part in frame.memory]
        if state.frames and [tuple(part.shape) for part in state.frames[-1]] != shapes:
            found = [tuple(part.shape) for part in state.frames[-1]]
            raise ValueError(
                f"the state is of another stream: it remembers tensors of {found}, this frame makes {shapes}; begin "
                "with init_state() when the number of videos, or for some models the size, changes"
            )
        frames = [*state.frames, frame.memory]
        # Once the state is full the clip lies inside it, and the place in it is as good as the number of the frame.
        memory = [frames[index] for index in self.config.clip_indices(len(state.frames))]
        logits = self.decode_clip(frame.current, memory)
        kept = frames[max(len(frames) - self.config.num_past_frames, 0) :]
        return SemanticSegmenterOutput(logits=logits), StreamState(tuple(kept))


def unflatten(parts: tuple[torch.Tensor, ...], clips: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors (B * T, ...) of all frames of clips (B, T, ...), one by one clip: (B, T, ...)."""
    return tuple(part.unflatten(0, clips.shape[:2]) for part in parts)


def by_frame(parts: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, ...]]:
    """Tensors (B, T, ...) as T tuples of (B, ...); nothing is copied."""
    return list(zip(*(part.unbind(dim=1) for part in parts), strict=True))


def check_shape(name: str, pixels: torch.Tensor, axes: tuple[str, ...]) -> None:
    """Raise unless frames have the axes, and are large enough."""
    if pixels.ndim != len(axes) or not pixels.shape[1] or min(pixels.shape[-2:]) < SMALLEST_IMAGE:
        raise ValueError(
            f"{name} is {tuple(pixels.shape)}: expected ({', '.join(axes)}) with at least {SMALLEST_IMAGE} pixels on "
            "both sides"
        )


__all__ = ["ClipSegmenterModel", "StreamState"]
