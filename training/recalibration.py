"""Which training samples the BatchNorm statistics of a finished model are counted from: `vss-hf average`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .batchnorm import first_batches
from .draws import DrawOrder
from .recipe import Recipe, load_recipe
from .sources import open_sources, training_data
from .stages import has_stages


RECIPE = "training_recipe.yaml"


@dataclass
class Recalibration:
    """The first batches of a recipe's augmented training samples.

    Args:
        data: a recipe; or a data set in VSPW's layout, a folder or hf://datasets/owner/name, which takes the place of
            the data in the model's own recipe.
        split: what of it to train on; default: what the recipe says.
        batches: how many, of the recipe's batch size.
        num_workers: processes that decode and augment.
    """

    data: str
    split: str | None = None
    batches: int = 200
    num_workers: int = 2

    def recipe(self, folder: Path) -> Recipe:
        """The recipe that tells the samples.

        Args:
            folder: the model folder or checkpoint with the model's own recipe.

        Raises:
            FileNotFoundError: there is no such recipe or data set, or the folder has no recipe.
            ValueError: as `load_recipe`.
        """
        path, overrides = self.data, []
        if Path(self.data).is_dir() or self.data.startswith("hf:"):
            # A checkpoint has no recipe of its own; that of its run comes with the run's end.
            found = [place for place in (folder / RECIPE, folder.parent / "model" / RECIPE) if place.is_file()]
            if not found:
                raise FileNotFoundError(
                    f"--recalibrate {self.data}: {folder} has no {RECIPE} to tell how its samples are augmented; give "
                    "the recipe of its training instead"
                )
            path = str(found[0])
            own = {"root": self.data, "sources": [], "source": "vspw", "table": None}
            overrides = [f"--data.{field}={json.dumps(value)}" for field, value in own.items()]  # JSON is YAML
        if has_stages(path):
            raise ValueError(f"--recalibrate {path} has stages; give the {RECIPE} in the model folder of one of them")
        if self.split is not None:
            overrides.append(f"--data.train_split={json.dumps(self.split)}")
        return load_recipe(path, overrides)

    def batches_for(self, model: Any, folder: Path) -> Iterator[dict[str, torch.Tensor]]:
        """The batches: of frames, or of the clips that the model takes; `folder` as for `recipe`.

        Raises:
            FileNotFoundError, ValueError: as `recipe` and `open_sources`, or the data has other classes.
        """
        recipe = self.recipe(folder)
        sources = open_sources(recipe.data)
        expected = tuple(model.config.id2label[label] for label in range(model.config.num_labels))
        for source in sources:
            names = tuple(source.split.classes.names)
            if names != expected:
                theirs, ours = (f"{len(each)} classes ({', '.join(each[:3])} ...)" for each in (names, expected))
                raise ValueError(f"--recalibrate {self.data}: {source.split} has {theirs}; the model's are {ours}")
        dataset = training_data(recipe, model.config, sources)
        order = DrawOrder(recipe.training.per_device_train_batch_size, workers=max(1, self.num_workers))
        return first_batches(dataset, order, self.batches, self.num_workers)
