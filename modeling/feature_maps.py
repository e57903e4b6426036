"""What this package's backbones share: which maps they return, and in which form."""

from typing import Any

import torch
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput


class FeatureMaps(BackboneMixin):
    """The forward of a backbone, a base class before PreTrainedModel; an architecture adds `compute_maps`."""

    config: Any
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)  # as transformers' own models have it; its annotation knows no tuple
    supports_gradient_checkpointing = True
    has_attentions = False  # none are returned, also where there are some

    def compute_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """One map (batch, channels, h, w) for each of `stage_names`."""
        raise NotImplementedError

    def returned_map(self, name: str, feature_map: torch.Tensor) -> torch.Tensor:
        """What stands in `feature_maps` for a map of `compute_maps`; by default the map itself."""
        return feature_map

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple:
        r"""Compute feature maps.

        Args:
            pixel_values: float (batch, num_channels, height, width), normalised; any height and width from 32 up.
            output_hidden_states: also return the maps of all `stage_names`, whatever `out_features` says.
            output_attentions: accepted and ignored.
            return_dict: `False` for a plain tuple.

        Returns:
            BackboneOutput: with `feature_maps`, each (batch, channels, h, w), in the order of `out_features`. A map's
                size is the image's divided by its stride, rounded up.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        maps = dict(zip(self.stage_names, self.compute_maps(pixel_values), strict=True))
        # transformers' annotation knows tuples of one map only.
        feature_maps: Any = tuple(self.returned_map(name, maps[name]) for name in self.out_features)
        hidden_states: Any = tuple(maps.values()) if output_hidden_states else None
        output = BackboneOutput(feature_maps=feature_maps, hidden_states=hidden_states)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


__all__ = ["FeatureMaps"]
