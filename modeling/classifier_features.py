"""What a decode head's classifier reads, of any per-pixel model while it computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def classifier_features(model: Any) -> Iterator[list[torch.Tensor]]:
    """Within this context a per-pixel model leaves what its decode head's classifier reads, in a list: (N, C, h, w).

    It is taken before the dropout: a dropped channel would be a difference between places of one class.

    Args:
        model: the model itself, whatever is wrapped around it.
    """
    features: list[torch.Tensor] = []
    head = model.decode_head
    reader = getattr(head, "dropout", head.classifier)  # a head without drops in its classifier, if at all
    handle = reader.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    try:
        yield features
    finally:
        handle.remove()


__all__ = ["classifier_features"]
