"""What all per-pixel segmentation models share: image -> backbone -> `decode` -> low-resolution logits and loss."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .backbone import Backbone, StartsFromBackbone, build_backbone
from .configuration_segmenter import SegmenterConfig
from .layers import PixelClassifier
from .losses import dense_segmentation_loss
from .outputs import SemanticSegmenterOutput


SMALLEST_IMAGE = 32  # pixels; the deepest maps of most backbones have a thirty-second of them


class SegmenterModel(StartsFromBackbone, PreTrainedModel):
    """A backbone, the loss, and the initial weights of the heads; an architecture adds its heads and `decode`.

    Args:
        config: the model's configuration.
    """

    config: SegmenterConfig
    config_class = SegmenterConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)  # as transformers' own models have it; its annotation knows no tuple
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = []

    def __init__(self, config: SegmenterConfig):
        config.validate()  # again: from_pretrained(folder, field=...) sets fields after the configuration's own checks
        super().__init__(config)
        assert isinstance(config.backbone_config, PreTrainedConfig)  # since the configuration's __post_init__
        self.backbone: Backbone = build_backbone(config.backbone_config)
        if config.cosine_scale is not None:  # a plain model's weights go on with a cosine, which has no bias
            ignored = self._keys_to_ignore_on_load_unexpected or ()
            self._keys_to_ignore_on_load_unexpected = {*ignored, r"^decode_head\.classifier\.bias$"}

    def encode(self, pixel_values: torch.Tensor, **wanted: bool) -> Any:
        """What `decode` reads: the backbone's maps; an architecture may add some.

        Args:
            pixel_values: as in `forward`.
            wanted: what else to return, `output_hidden_states` and `output_attentions`.

        Returns:
            BackboneOutput: with `feature_maps`.
        """
        return self.backbone.forward_with_filtered_kwargs(pixel_values, **wanted)

    def decode(self, feature_maps: list[torch.Tensor], with_auxiliary_logits: bool) -> Any:
        """The architecture's heads.

        Args:
            feature_maps: what `encode` returns, each (batch, channels, h, w).
            with_auxiliary_logits: whether they are wanted; without, an architecture may leave them out.

        Returns:
            (logits, auxiliary logits), each (batch, num_labels, h, w) at its head's own resolution; an architecture
            with a `regularisation_loss` adds its features as a third, or None.
        """
        raise NotImplementedError

    def regularisation_loss(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """What an architecture's loss has beside the cross entropy of its heads.

        Args:
            features: (batch, channels, h, w), the third of what `decode` returned.
            labels: as in `forward`.
            num_items_in_batch: as in `forward`.

        Returns:
            Scalar, fp32, to be added to the loss.
        """
        raise NotImplementedError

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_auxiliary_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> SemanticSegmenterOutput | tuple:
        r"""Segment images.

        Args:
            pixel_values: float (batch, 3, height, width), normalised; any height and width from 32 up.
            labels: long (batch, height, width), classes 0..num_labels-1 and `config.ignore_index`. Their size may
                differ from the image's: the logits are upsampled to the labels.
            num_items_in_batch: labelled pixels over all micro-batches and ranks of this step; the loss is then their
                mean instead of this batch's. The Trainer passes it.
            output_auxiliary_logits: also return the auxiliary heads' logits; always on in training.
            output_hidden_states: also return the backbone's hidden states.
            output_attentions: also return the backbone's attention maps.
            return_dict: `False` for a plain tuple.

        Returns:
            SemanticSegmenterOutput: with `logits` at the decode head's own resolution.

        Raises:
            ValueError: the image is too small.
        """
        if min(pixel_values.shape[-2:]) < SMALLEST_IMAGE:
            raise ValueError(
                f"pixel_values is {tuple(pixel_values.shape)}: expected (batch, 3, height, width) with at least "
                f"{SMALLEST_IMAGE} pixels on both sides"
            )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        if output_auxiliary_logits is None:
            output_auxiliary_logits = self.training
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        outputs = self.encode(pixel_values, **{k: v for k, v in wanted.items() if v})
        logits, auxiliary_logits, *regularised = self.decode(
            list(outputs.feature_maps), with_auxiliary_logits=output_auxiliary_logits or labels is not None
        )
        features = regularised[0] if regularised else None

        loss = None
        if labels is not None:
            loss = dense_segmentation_loss(
                logits,
                auxiliary_logits,
                labels,
                auxiliary_loss_weight=self.config.auxiliary_loss_weight,
                ignore_index=self.config.ignore_index,
                align_corners=self.config.align_corners,
                num_items_in_batch=num_items_in_batch,
            )
            if features is not None:
                loss = loss + self.regularisation_loss(features, labels, num_items_in_batch)
        output = SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            auxiliary_logits=(auxiliary_logits or None) if output_auxiliary_logits else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            regularised_features=features if output_auxiliary_logits or self.training else None,
        )
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """The heads only: the backbone, a PreTrainedModel, initialises itself."""
        if isinstance(module, nn.Conv2d):
            if module.bias is None and not isinstance(module, PixelClassifier):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:  # all that have a bias are classifiers
                init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            super()._init_weights(module)


__all__ = ["SegmenterModel"]
