"""What every image segmentation model of this package returns."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class SemanticSegmenterOutput(ModelOutput):
    """Output of an image model.

    Args:
        loss: scalar, fp32; present when labels were given.
        logits: (batch, num_labels, height / stride, width / stride), the decode head's own resolution. Upsample with
            `vss_hf.modeling.dense` or `vss_hf.inference.semantic_scores`.
        auxiliary_logits: one (batch, num_labels, h, w) tensor per auxiliary head, in training or with
            `output_auxiliary_logits=True`.
        hidden_states: the backbone's hidden states, with `output_hidden_states=True`.
        attentions: the backbone's attention maps, with `output_attentions=True`.
        regularised_features: (batch, channels, h, w), what the architecture's `regularisation_loss` reads, if it has
            one; in training, or with `output_auxiliary_logits=True`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    auxiliary_logits: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    regularised_features: torch.Tensor | None = None
