"""How much memory a training step needs on each device, from the model's shape alone: no weights, no data, no GPU.

Weights, gradients and the optimizer's state follow from the parameters. What forward and backward keep is found by
carrying out a step on fake tensors, which have shapes and no contents, while every storage that comes and goes is
counted: so checkpointing, autocast, clips and odd sizes are in it as they are. Fake tensors and dispatch modes are
torch's, but not under its promise of stability; all use of them is in this file.

The losses of dense predictions look at values and cannot run on fakes. Theirs is a formula: fp32 gradients of the
low-resolution logits, a few maps of the labels' size, and a block of rows (modeling/dense.py).

Not in it: what cuDNN and NCCL take for themselves, holes between allocations, and the batches that wait in line.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import Trainer

from vss_hf.modeling.architectures import VIDEO_MODELS

from .losses import is_per_pixel


CONTEXT = 2**30  # what CUDA, cuBLAS and NCCL take, about
BLOCKS = {"cpu": 2 * 6 * 2**20, "cuda": 2 * 64 * 2**20}  # two blocks of rows of modeling/dense.py live at a time
MASKS_PER_IMAGE = 16  # assumed classes in a crop, of which mask models make a mask each


@dataclass
class Activations:
    """What a forward and backward pass needs beside weights and inputs, in bytes.

    Args:
        peak: at the fullest moment, with the gradients that there are by then.
        peak_without_gradients: at the fullest moment of everything but the weights' gradients.
        kept: after the forward pass.
        logits: shapes of the logits of all heads, (batch, num_labels, h, w).
    """

    peak: int
    peak_without_gradients: int
    kept: int
    logits: list[tuple[int, ...]] = field(default_factory=list)


@dataclass
class MemoryEstimate:
    """Bytes on one device while it trains; `activations` are those of the fullest moment, beside all gradients."""

    weights: int
    gradients: int
    optimizer: int
    averages: int
    teachers: int
    activations: int
    loss: int
    communication: int
    context: int = CONTEXT

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


def estimate_memory(
    model: nn.Module,
    args: Any,
    activations: Activations,
    crop: tuple[int, int],
    *,
    losses: int = 1,
    teachers: int = 0,
    devices: int = 1,
    accumulation: int = 1,
    sharded: bool = False,
    device_type: str = "cuda",
) -> MemoryEstimate:
    """Put together what is known of a step.

    Args:
        model: on any device, meta too.
        args: the run's `VSSTrainingArguments`.
        activations: from `trace_step`.
        crop: height and width of the training samples.
        losses: how many losses of each head are summed.
        teachers: of self distillation, each taken to be as large as the model.
        devices: how many take part.
        accumulation: micro-batches of a step.
        sharded: whether weights, gradients and optimizer state are spread over the devices (FSDP2).
        device_type: cuda or cpu, between which the losses' blocks of rows differ.
    """
    weights = bytes_of(model.parameters())
    buffers = bytes_of(model.buffers())
    trainable = bytes_of(parameter for parameter in model.parameters() if parameter.requires_grad)
    state, during_step = optimizer_bytes(model, args)
    shards = devices if sharded else 1
    kept_by_loss, of_loss = loss_bytes(activations.logits, crop, losses, device_type)

    if accumulation > 1 or devices > 1:
        fullest = max(activations.peak_without_gradients, activations.kept + of_loss)
    else:  # the gradients come one by one, the last ones when most activations are gone
        fullest = max(activations.peak, activations.kept + of_loss, trainable) - trainable
    fullest = max(fullest, during_step // shards)
    communication = 0
    if sharded:
        communication = gathered_bytes(fsdp_units(model), 2 if args.bf16 or args.fp16 else 4)
    elif devices > 1:
        communication = trainable  # DistributedDataParallel's buckets hold the gradients once more
    return MemoryEstimate(
        weights=weights // shards + buffers,
        gradients=trainable // shards,
        optimizer=state // shards,
        averages=(weights + buffers) * sum((bool(args.ema_decay), bool(args.swa_every))),  # whole, sharded or not
        teachers=(weights + buffers) * teachers,
        activations=fullest,
        loss=kept_by_loss,
        communication=communication,
        context=CONTEXT if device_type == "cuda" else 0,
    )


def bytes_of(tensors: Any) -> int:
    """Bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors)


def loss_bytes(logits: Sequence[tuple[int, ...]], crop: tuple[int, int], losses: int, device: str) -> tuple[int, int]:
    """(bytes that dense losses keep until backward, bytes while one of them is computed).

    Args:
        logits: shapes of all heads' logits, (batch, num_labels, h, w).
        crop: height and width of the labels.
        losses: how many are summed.
        device: cpu or cuda.
    """
    if not logits:
        return 0, 0
    low = [4 * torch.Size(shape).numel() for shape in logits]  # fp32
    batch = max(shape[0] for shape in logits)
    maps = batch * crop[0] * crop[1] * (8 + 8 + 4 * 4)  # labels, places, loss, weights and their products
    one_image = max(size // shape[0] for size, shape in zip(low, logits, strict=True))
    row_blocks = min(BLOCKS[device], 2 * 4 * max(shape[1] for shape in logits) * crop[0] * crop[1])
    return losses * sum(low), maps + 2 * one_image + row_blocks


# --- the optimizer


def optimizer_bytes(model: nn.Module, args: Any) -> tuple[int, int]:
    """(bytes of the optimizer's state after a step, bytes that a step needs for a moment).

    The optimizer itself tells, in a step on fake tensors. Those of bitsandbytes need a GPU: two moments (Lion: one) of
    a byte each, and a scale for every 256 of them.

    Raises:
        ImportError: it is not installed.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    name = str(getattr(args.optim, "value", args.optim))
    if "8bit" in name:
        moments = 1 if "lion" in name else 2
        state = sum(parameter.numel() * (1 if parameter.numel() >= 4096 else 4) for parameter in trainable)
        return moments * (state + state // 64), 0
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fakes = [nn.Parameter(torch.empty(p.shape, dtype=p.dtype)) for p in trainable]
        for fake in fakes:
            fake.grad = torch.empty_like(fake)
        optimizer = kind([{"params": fakes, "lr": 1e-3}], **settings)
        optimizer.step()
    state = bytes_of(v for values in optimizer.state.values() for v in values.values() if torch.is_tensor(v))
    at_once = "foreach" in optimizer.defaults and not optimizer.defaults.get("fused")
    return state, bytes_of(trainable) if at_once else 0  # torch's default on GPUs: all tensors in one go


# --- forward and backward on fakes


def trace_step(
    model: nn.Module,
    args: Any,
    batch: int,
    crop: tuple[int, int],
    *,
    clip: int = 0,
    device_type: str = "cuda",
) -> Activations:
    """Carry out a micro-batch on fake tensors and count.

    Args:
        model: one of this package's, on the meta device; it is copied.
        args: the run's settings; its precision and activation checkpointing count.
        batch: samples.
        crop: their height and width.
        clip: frames of a sample; 0: single images.
        device_type: whose kernels: with cuda, autocast keeps norms and softmax in fp32, and attention never holds a
            matrix of all pairs.
    """
    config: Any = model.config
    model = copy.deepcopy(model).train()
    kernels = Kernels(device_type)
    if args.activation_checkpointing:
        enable_checkpointing(model, args, kernels)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        model.to_empty(device="cpu")
        frames = (batch, clip) if clip else (batch,)
        pixels = torch.empty(*frames, 3, *crop)
    name = "pixel_values_videos" if config.model_type in VIDEO_MODELS else "pixel_values"
    counter = StorageCounter([*model.parameters(), *model.buffers(), pixels])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(counter.note_gradient)
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    per_pixel = is_per_pixel(config)
    with ExitStack() as stack:
        stack.enter_context(counter)
        stack.enter_context(kernels)
        with torch.autocast("cpu", dtype=dtype, enabled=bool(args.bf16 or args.fp16)):
            if per_pixel:
                outputs = model(**{name: pixels}, output_auxiliary_logits=config.auxiliary_loss_weight != 0)
                heads = [outputs.logits, *(outputs.auxiliary_logits or ())]
            else:
                with any_matching(model.criterion):
                    outputs = model(**{name: pixels}, **fake_masks(mode, batch, crop, config.num_labels))
                heads = [outputs.loss]
        del outputs
        kept = counter.live
        gradients = [torch.empty_like(head) for head in heads]
        logits = [tuple(head.flatten(0, -4).shape) for head in heads] if per_pixel else []
        torch.autograd.backward(heads, gradients)
    return Activations(counter.peak, counter.peak_without_gradients, kept, logits)


def enable_checkpointing(model: Any, args: Any, kernels: "Kernels") -> None:
    """As the Trainer does it; what backward computes again is computed with `kernels`, which torch forgets there."""
    settings = dict(args.activation_checkpointing_kwargs or {})
    every_n_layers, offload = settings.pop("every_n_layers", 1), settings.pop("offload", False)
    # The state of random numbers cannot be read from fakes.
    settings.update(use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), kernels))
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs=settings, every_n_layers=every_n_layers, offload=offload
    )


def fake_masks(mode: FakeTensorMode, batch: int, crop: tuple[int, int], num_labels: int) -> dict[str, Any]:
    """Targets of mask models, as many as a picture may have."""
    number = min(MASKS_PER_IMAGE, num_labels)
    with mode:
        masks = [torch.empty(number, *crop, dtype=torch.bool) for _ in range(batch)]
    return {"mask_labels": masks, "class_labels": [torch.arange(number) for _ in range(batch)]}


@contextmanager
def any_matching(criterion: Any) -> Iterator[None]:
    """Inside: queries are matched in order, because the best match depends on values."""

    def in_order(masks: Any, classes: Any, mask_labels: Any, class_labels: Any, void: Any) -> list:
        return [(labels.clone(), labels.clone()) for labels in class_labels]

    criterion.match = in_order
    try:
        yield
    finally:
        del criterion.match


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, as long as somebody holds them; not those of `known`."""

    def __init__(self, known: Sequence[torch.Tensor]):
        super().__init__()
        self.live = self.gradients = self.peak = self.peak_without_gradients = 0
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_iter(results):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return results

    def add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        self.peak_without_gradients = max(self.peak_without_gradients, self.live - self.gradients)
        weakref.finalize(storage, self.drop, size)

    def drop(self, size: int) -> None:
        self.live -= size

    def note_gradient(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        self.gradients += parameter.grad.nbytes


class Kernels(TorchFunctionMode):
    """CUDA's habits on tensors of the CPU, as far as memory is concerned; and an answer to questions about values.

    Args:
        device_type: cuda, or cpu for the CPU's own habits.
    """

    IN_FP32 = (F.layer_norm, F.group_norm, F.softmax, F.log_softmax, torch.softmax, torch.Tensor.softmax)

    def __init__(self, device_type: str):
        super().__init__()
        self.cuda = device_type == "cuda"

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__bool__:
            return True  # transformers' Mask2Former asks whether everything is finite
        if self.cuda and func is F.scaled_dot_product_attention:
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            return FusedAttention.apply(*args[:3], mask)
        halves = (torch.bfloat16, torch.half)
        if self.cuda and func in self.IN_FP32 and torch.is_autocast_enabled("cpu") and args[0].dtype in halves:
            with torch.autocast("cpu", enabled=False):
                floats = [a.float() if torch.is_tensor(a) and a.is_floating_point() else a for a in args]
                return func(*floats, **kwargs)
        return func(*args, **kwargs)


class FusedAttention(torch.autograd.Function):
    """What fused attention keeps: its inputs, its output and a number per query."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, mask, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return tuple(None if t is None else torch.empty_like(t) for t in ctx.saved_tensors[:4])


# --- FSDP2


@dataclass
class Unit:
    """Modules of a class that are gathered one at a time.

    Args:
        name: their class; for what is in none of them "the rest".
        sizes: parameters of each.
    """

    name: str
    sizes: list[int]


def fsdp_units(model: Any) -> list[Unit]:
    """What accelerate's TRANSFORMER_BASED_WRAP makes of a model, by its `_no_split_modules`; at the end the rest."""
    names = set(model._no_split_modules or ())
    chosen = [module for module in model.modules() if type(module).__name__ in names and module is not model]
    counted: set[int] = set()
    units: dict[str, Unit] = {}
    for module in reversed(chosen):  # what is inside comes first
        own = {id(p): p.numel() for p in module.parameters() if id(p) not in counted}
        counted.update(own)
        name = type(module).__name__
        units.setdefault(name, Unit(name, [])).sizes.append(sum(own.values()))
    rest = sum({id(p): p.numel() for p in model.parameters() if id(p) not in counted}.values())
    return [*units.values(), Unit("the rest", [rest])]


def gathered_bytes(units: list[Unit], size: int) -> int:
    """Whole weights and gradients that a device holds beside its shards, about.

    The rest stays gathered, the unit at work and the next one are; of two units the gradients wait for the others.

    Args:
        units: from `fsdp_units`, the rest at the end.
        size: bytes of a number while it is computed with.
    """
    largest = max((number for unit in units[:-1] for number in unit.sizes), default=0)
    rest = units[-1].sizes[0]
    return size * (rest + 2 * largest + 2 * max(largest, rest))
