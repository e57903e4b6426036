"""BatchNorm statistics counted anew: after averaging, the ones at hand belong to none of the averaged weights."""

import copy
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, default_collate

from vss_hf.data.workers import end_with_parent
from vss_hf.inference.processes import rank_and_world
from vss_hf.metrics import sum_over_processes

from .draws import DrawOrder, EndlessSampler, TrainingDraws, TrainingStream


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any BatchNorm of the model gathers statistics in training."""
    return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in model.modules())


@torch.no_grad()
def recalibrate_batchnorm(model: Any, batches: Iterable[dict[str, torch.Tensor]]) -> int:
    """Replace the running statistics of all BatchNorms by their means over some batches of training samples.

    The model runs as in training, but without labels and gradients. The random numbers of whoever calls this are not
    touched. Several processes bring batches of their own, equally many, and all get the same statistics.

    Args:
        model: a model of this package, changed in place.
        batches: as the Trainer has them, with `pixel_values` (batch, 3, height, width) or `pixel_values_videos`
            (batch, frames, 3, height, width); other entries are not read.

    Returns:
        The number of batches of this process; 0 when the model has no BatchNorm: nothing is done then.

    Raises:
        ValueError: there are no batches, or a statistic is not finite.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization" (UAI 2018), section
    3.2; torch.optim.swa_utils.update_bn, which takes other inputs.
    """
    training = model.training
    model.train()
    # After train(): a model may keep some of its BatchNorms as they are.
    norms: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.training
    }
    if not norms:
        model.train(training)
        return 0
    momenta = {name: norm.momentum for name, norm in norms.items()}
    count = 0
    try:
        for norm in norms.values():
            norm.momentum = None  # torch's word for: the mean over all batches
            # With the count at 0 the first batch replaces the statistics. They are not reset, because a norm that
            # sees single values goes on with them (modeling/layers.py); but 0 times what is not finite would stay.
            norm.num_batches_tracked.zero_()
            for statistic in (norm.running_mean, norm.running_var):
                statistic.nan_to_num_(0.0, 0.0, 0.0)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(0)  # for dropout: the same statistics whatever was drawn before, in a resumed run too
            for batch in batches:
                name = model.main_input_name
                model(**{name: batch[name].to(model.device, model.dtype)})
                count += 1
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
        model.train(training)
    if not count:
        raise ValueError("no batches to count BatchNorm statistics from; give at least 1")
    mean_over_processes(norms.values())
    for name, norm in norms.items():
        if not (torch.isfinite(norm.running_mean).all() and torch.isfinite(norm.running_var).all()):
            raise ValueError(f"the BatchNorm statistics of {name} are not finite; were these weights ever any good?")
    return count


def mean_over_processes(norms: Iterable[Any]) -> None:
    """Give all processes the means of their running statistics, which are means over equally many batches."""
    world = rank_and_world()[1]
    if world == 1:
        return
    for norm in norms:
        for statistic in (norm.running_mean, norm.running_var):
            statistic.copy_(sum_over_processes(statistic.double()) / world)


def first_batches(
    dataset: TrainingDraws | TrainingStream, order: DrawOrder, number: int, num_workers: int = 0
) -> Iterator[dict[str, torch.Tensor]]:
    """The first batches of a sequence of training samples; the data set itself stays where it is in it.

    Args:
        dataset: augmented training samples.
        order: which of them this process takes, in which batches.
        number: of batches.
        num_workers: processes that decode and augment.
    """
    dataset = copy.copy(dataset)  # with an order of its own
    dataset.order = order
    settings: dict[str, Any] = {}
    if isinstance(dataset, TrainingDraws):
        settings["sampler"] = EndlessSampler(order)
    loader = DataLoader(
        dataset,
        batch_size=order.batch_size,
        collate_fn=default_collate,
        num_workers=num_workers,
        worker_init_fn=end_with_parent,
        generator=torch.Generator().manual_seed(dataset.seed),  # torch's global one belongs to the training
        **settings,
    )
    yield from islice(loader, number)
