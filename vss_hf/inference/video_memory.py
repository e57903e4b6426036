"""What a video model remembers of the video that it is in."""

import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import torch


class VideoMemory:
    """One video on its way through a model: what a video model remembers of it, and how far it is. An image model
    remembers nothing.

    Args:
        model: an image or a video model.
        steps: what forgets the frames before when their size changes.
    """

    def __init__(self, model: Any, steps: Sequence[Any] = ()):
        self.model, self.steps = model, steps
        self.states: dict[Hashable, Any] = {}  # by view, what a video model remembers
        self.frames = 0
        self.size: tuple[int, int] | None = None

    def expect(self, size: tuple[int, int], count: int = 1, name: str | None = None) -> None:
        """The next frames are about to come; those of another size than before begin a new memory, with a warning.

        Args:
            size: (height, width) of the frames themselves.
            count: how many.
            name: how the warning calls the first of them; None: by its number.
        """
        forgetting = [*([self.model] if self.states else []), *self.steps]
        if self.size not in (None, size) and forgetting:
            names = ", ".join(type(one).__name__ for one in forgetting)
            warnings.warn(
                f"frame {name or self.frames} is {size[1]}x{size[0]} after frames of "
                f"{self.size[1]}x{self.size[0]} (width x height): {names} forgets those and begins anew",
                RuntimeWarning,
                stacklevel=2,
            )
            self.states = {}
            for step in self.steps:
                step.reset()
        self.size = size
        self.frames += count

    def outputs(self, pixel_values: torch.Tensor, view: Hashable = None) -> Any:
        """What the model says about the frames that `expect` announced; a video model takes one.

        Args:
            pixel_values: (frames, 3, h, w).
            view: in which of its views the model sees them; a video model remembers each apart.
        """
        if not hasattr(self.model, "init_state"):
            return self.model(pixel_values=pixel_values)
        state = self.states[view] if view in self.states else self.model.init_state()
        outputs, self.states[view] = self.model.step(pixel_values, state)
        return outputs
