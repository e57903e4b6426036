r"""MaskFormer that learns from label maps: transformers' model with our label preparation and loss.

    image -> backbone -> 4 maps -> pixel decoder (FPN) -> pixel embeddings (stride 4) --.
                           \ last map                                                   x -> mask of each query
                            `-> transformer decoder <- queries --> mask embeddings -----'
                                                               `-> class of each query

Parameters and their names on disk are those of transformers' MaskFormerForInstanceSegmentation, whose files load
unchanged. What differs from it, and why:

- Deep supervision (`use_auxiliary_loss`) takes the output of every decoder layer through the decoder's last norm, as
  Facebook's code does. transformers takes the raw outputs and the zero input of the first layer as well, and stumbles
  without `output_hidden_states=True`.
- Swin's feed-forward part has no drop path in transformers' MaskFormerSwin, unlike in Swin itself: kept.
- The loss: see mask_losses.py.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import MaskFormerForInstanceSegmentation
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.maskformer.modeling_maskformer import MaskFormerForInstanceSegmentationOutput

from .backbone import finish_swin
from .configuration_maskformer import VSSMaskFormerConfig
from .mask_classification import MaskClassifier
from .mask_losses import MaskFormerCriterion


# On disk the decoder's layers have other names than in memory; transformers knows which by the model type.
register_checkpoint_conversion_mapping(
    VSSMaskFormerConfig.model_type, get_checkpoint_conversion_mapping("maskformer") or [], overwrite=True
)


class MaskFormerForSemanticSegmentation(MaskClassifier, MaskFormerForInstanceSegmentation):
    """MaskFormer with its loss.

    Args:
        config: the model's configuration.
    """

    config: VSSMaskFormerConfig
    config_class = VSSMaskFormerConfig
    # Never used: DistributedDataParallel would wait for its gradient for ever.
    _keys_to_ignore_on_load_unexpected = [r"pixel_level_module\.encoder\.model\.layernorm\."]

    def __init__(self, config: VSSMaskFormerConfig):
        super().__init__(config)
        assert config.num_labels is not None  # id2label has a default
        self.criterion = MaskFormerCriterion(
            config.num_labels, self.matcher, self.weight_dict, eos_coef=config.no_object_weight
        )
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
    ) -> MaskFormerForInstanceSegmentationOutput | tuple:
        r"""Segment images.

        Args:
            pixel_values: float (batch, 3, height, width), normalised; any height and width from 32 up.
            labels: integer (batch, height, width), classes 0..num_labels-1 and `config.ignore_index`, of any size.
            num_items_in_batch: labelled pixels over all micro-batches and ranks of this step; the loss is then
                weighted with this batch's share of them. The Trainer passes it.
            mask_labels: instead of `labels`: per image (n, height, width), 0 and 1.
            class_labels: with `mask_labels`: per image int64 (n,).
            pixel_mask: accepted and unused, as in transformers: padding is segmented like a picture.
            output_auxiliary_logits: also return the logits of the other decoder layers (`use_auxiliary_loss`).
            output_hidden_states: also return hidden states.
            output_attentions: also return attention maps.
            return_dict: `False` for a plain tuple.

        Returns:
            MaskFormerForInstanceSegmentationOutput: `class_queries_logits` (batch, queries, num_labels + 1), the last
            class being "no object", and `masks_queries_logits` (batch, queries, height / 4, width / 4). Class
            probabilities of the pixels: `vss_hf.inference.semantic_scores`.
        """
        config = self.config
        return_dict = config.return_dict if return_dict is None else return_dict
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if output_auxiliary_logits is None:
            output_auxiliary_logits = config.output_auxiliary_logits
        has_targets = labels is not None or mask_labels is not None
        deep = config.use_auxiliary_loss and bool(has_targets or output_auxiliary_logits)
        outputs = self.model(
            pixel_values,
            output_hidden_states=output_hidden_states or deep,
            output_attentions=output_attentions,
            return_dict=True,
        )
        pixels = outputs.pixel_decoder_last_hidden_state  # (B, C, h, w)
        classes, masks = self.predict(outputs.transformer_decoder_last_hidden_state, pixels)
        auxiliary_logits: Any = []
        if deep:
            for state in outputs.transformer_decoder_hidden_states[1:-1]:  # without the first layer's input
                state = self.model.transformer_module.decoder.layernorm(state)
                each_classes, each_masks = self.predict(state, pixels)
                auxiliary_logits.append({"masks_queries_logits": each_masks, "class_queries_logits": each_classes})
        loss = self.total_loss(
            masks,
            classes,
            auxiliary_logits,
            labels=labels,
            mask_labels=mask_labels,
            class_labels=class_labels,
            num_items_in_batch=num_items_in_batch,
        )
        names = [f"{part}_hidden_states" for part in ("encoder", "pixel_decoder", "transformer_decoder")]
        hidden = {name: outputs[name] for name in (*names, "hidden_states")} if output_hidden_states else {}
        output = MaskFormerForInstanceSegmentationOutput(
            loss=loss,
            class_queries_logits=classes,
            masks_queries_logits=masks,
            auxiliary_logits=(auxiliary_logits or None) if output_auxiliary_logits else None,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            pixel_decoder_last_hidden_state=pixels,
            transformer_decoder_last_hidden_state=outputs.transformer_decoder_last_hidden_state,
            attentions=outputs.attentions,
            **hidden,
        )
        return output if return_dict else output.to_tuple()

    def predict(self, queries: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, K + 1) and mask logits (B, Q, h, w) from queries (B, Q, C) and pixels (B, C', h, w)."""
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embedder(queries), pixels)
        return self.class_predictor(queries), masks


__all__ = ["MaskFormerForSemanticSegmentation"]
