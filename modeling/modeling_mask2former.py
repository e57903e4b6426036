r"""Mask2Former that learns from label maps: transformers' model with our label preparation and loss.

    image -> backbone -> 4 maps -> pixel decoder (deformable attention over strides 8, 16, 32; FPN to stride 4)
                                     | strides 32, 16, 8 in turn                     | pixel embeddings
    queries -> [attention inside the query's last mask -> self-attention -> FFN] x 9 -> class and mask of each query

Parameters and their names on disk are those of transformers' Mask2FormerForUniversalSegmentation, whose files load
unchanged. What differs from it, and why:

- Deformable attention samples in fp32, as Facebook's code does: at 480x853 bf16 coordinates are off by parts of a
  pixel. (Measured on random weights: the pixel embeddings are wrong by 10 % under autocast, and by 1.5 % this way.)
- The queries themselves and every layer are supervised, as published; transformers stumbles over
  `use_auxiliary_loss=False`, which here leaves the last layer's loss.
- The loss: see mask_losses.py.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerForUniversalSegmentationOutput,
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
    Mask2FormerPixelDecoderEncoderOnly,
    multi_scale_deformable_attention,
)
from transformers.utils.generic import maybe_autocast

from .backbone import finish_swin
from .configuration_mask2former import VSSMask2FormerConfig
from .mask_classification import MaskClassifier
from .mask_losses import Mask2FormerCriterion


class DeformableAttention(Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
    """transformers' layer with its sampling in fp32 whatever the precision."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        position_embeddings: Tensor,
        spatial_shapes_list: list[tuple[int, int]],
        **unused: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attend to a few points around each place.

        Args:
            hidden_states: (batch, places, channels), the places of all three levels one after the other.
            encoder_hidden_states: the same without positions.
            position_embeddings: (batch, places, channels).
            spatial_shapes_list: height and width of each level.
            unused: reference points in the precision of the features, and a mask of padding that there never is.
        """
        batch, places, _ = hidden_states.shape
        per_head = (batch, places, self.n_heads)
        queries = hidden_states + position_embeddings
        values = self.value_proj(encoder_hidden_states).view(*per_head, -1)
        offsets = self.sampling_offsets(queries).view(*per_head, self.n_levels, self.n_points, 2)
        precise = torch.promote_types(values.dtype, torch.float32)
        weights = self.attention_weights(queries).view(*per_head, -1).softmax(-1, dtype=precise)
        weights = weights.view(*per_head, self.n_levels, self.n_points)

        device = hidden_states.device
        whole = torch.ones(batch, self.n_levels, 2, device=device, dtype=precise)  # nothing is padding
        centres = Mask2FormerPixelDecoderEncoderOnly.get_reference_points(spatial_shapes_list, whole, device)
        sizes = torch.tensor([(width, height) for height, width in spatial_shapes_list], device=device)
        locations = centres[:, :, None, :, None] + offsets.to(precise) / sizes[:, None]  # x and y in 0..1
        with maybe_autocast(device.type, enabled=False):
            context = multi_scale_deformable_attention(values.to(precise), spatial_shapes_list, locations, weights)
        return self.output_proj(context.to(values.dtype)), weights


class Mask2FormerForSemanticSegmentation(MaskClassifier, Mask2FormerForUniversalSegmentation):
    """Mask2Former with its loss.

    Args:
        config: the model's configuration.
    """

    config: VSSMask2FormerConfig
    config_class = VSSMask2FormerConfig
    # Never used: DistributedDataParallel would wait for its gradient for ever.
    _keys_to_ignore_on_load_unexpected = [r"pixel_level_module\.encoder\.(swin\.)?layernorm\."]

    def __init__(self, config: VSSMask2FormerConfig):
        super().__init__(config)
        self.criterion = Mask2FormerCriterion(config, self.weight_dict)
        decoder = self.model.pixel_level_module.decoder
        if self.class_predictor.weight.is_meta:  # torch.Tensor(...), by which transformers makes this one, never is
            decoder.level_embed = nn.Parameter(decoder.level_embed.to("meta"))
        for layer in decoder.encoder.layers:
            layer.self_attn.__class__ = DeformableAttention  # another forward; the initial weights stay
        finish_swin(self.backbone)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
        output_auxiliary_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Mask2FormerForUniversalSegmentationOutput | tuple:
        r"""Segment images.

        Args:
            pixel_values: float (batch, 3, height, width), normalised; any height and width from 32 up.
            labels: integer (batch, height, width), classes 0..num_labels-1 and `config.ignore_index`, of any size.
            num_items_in_batch: labelled pixels over all micro-batches and ranks of this step; the loss is then
                weighted with this batch's share of them. The Trainer passes it.
            mask_labels: instead of `labels`: per image (n, height, width), 0 and 1.
            class_labels: with `mask_labels`: per image int64 (n,).
            pixel_mask: accepted and unused, as in transformers: padding is segmented like a picture.
            output_auxiliary_logits: also return the logits of the queries themselves and of the other decoder layers.
            output_hidden_states: also return hidden states.
            output_attentions: also return attention maps.
            return_dict: `False` for a plain tuple.

        Returns:
            Mask2FormerForUniversalSegmentationOutput: `class_queries_logits` (batch, queries, num_labels + 1), the
            last class being "no object", and `masks_queries_logits` (batch, queries, height / 4, width / 4). Class
            probabilities of the pixels: `vss_hf.inference.semantic_scores`.
        """
        config = self.config
        return_dict = config.return_dict if return_dict is None else return_dict
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if output_auxiliary_logits is None:
            output_auxiliary_logits = config.output_auxiliary_logits
        # With hidden states come the queries after each layer, through the last norm: the classes are read from them.
        outputs = self.model(
            pixel_values, output_hidden_states=True, output_attentions=output_attentions, return_dict=True
        )
        masks = outputs.masks_queries_logits  # the queries' own, then after each layer: (B, Q, h, w)
        classes = [
            self.class_predictor(state.transpose(0, 1)) for state in outputs.transformer_decoder_intermediate_states
        ]
        auxiliary_logits = [
            {"masks_queries_logits": each_masks, "class_queries_logits": each_classes}
            for each_masks, each_classes in zip(masks[:-1], classes[:-1], strict=True)
        ]
        loss = self.total_loss(
            masks[-1],
            classes[-1],
            auxiliary_logits if config.use_auxiliary_loss else [],
            labels=labels,
            mask_labels=mask_labels,
            class_labels=class_labels,
            num_items_in_batch=num_items_in_batch,
        )
        names = [f"{part}_hidden_states" for part in ("encoder", "pixel_decoder", "transformer_decoder")]
        output = Mask2FormerForUniversalSegmentationOutput(
            loss=loss,
            class_queries_logits=classes[-1],
            masks_queries_logits=masks[-1],
            auxiliary_logits=auxiliary_logits if output_auxiliary_logits else None,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            pixel_decoder_last_hidden_state=outputs.pixel_decoder_last_hidden_state,
            transformer_decoder_last_hidden_state=outputs.transformer_decoder_last_hidden_state,
            attentions=outputs.attentions,
            **({name: outputs[name] for name in names} if output_hidden_states else {}),
        )
        return output if return_dict else output.to_tuple()


__all__ = ["Mask2FormerForSemanticSegmentation"]
