"""A plan as tables for people."""

import re
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .plan import RunPlan


WIDTH = 100  # in a pipe; a terminal has its own
MEMORY = {
    "weights": "weights (fp32) and buffers",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "averages": "EMA or SWA copy",
    "teachers": "teachers",
    "activations": "activations, at the fullest moment",
    "loss": "gradients of logits",
    "communication": "DDP's buckets; FSDP2's whole units",
    "context": "CUDA, cuBLAS, NCCL (about)",
    "total": "together",
}


def show_plans(plans: list[RunPlan], console: Console | None = None) -> None:
    """Print plans, one after the other.

    Args:
        plans: from `make_plans`.
        console: where to; default the standard output.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
    for plan in plans:
        show_plan(plan, console)


def show_plan(plan: RunPlan, console: Console) -> None:
    """Print one plan."""
    console.rule(f"stage {plan.name}" if plan.name else "plan", align="left", characters="-")
    two_columns(console, summary(plan))
    if plan.data:
        columns = ("data set", "split", "source", "table", "weight", "sampling", "videos", "frames", "samples")
        table = new_table("data (samples: of one pass)", columns, numbers=columns[-3:])
        for told in plan.data:
            words = [told.get(key) for key in ("root", "split", "source", "table", "weight", "sampling")]
            counts = [told[key] for key in ("videos", "frames", "samples")]
            table.add_row(*(str(word) if word is not None else "-" for word in words), *map(number, counts))
        console.print(table)
    if plan.groups:
        columns = ("parameters of", "tensors", "parameters", "peak learning rate", "weight decay")
        table = new_table("optimizer groups", columns, numbers=columns[1:])
        for row in collapsed(plan.groups):
            table.add_row(*row)
        console.print(table)
    if plan.schedule.get("milestones"):
        columns = ("step", "highest learning rate", "lowest of a group")
        table = new_table(f"schedule: {plan.schedule['name']}", columns, numbers=columns)
        for mark in plan.schedule["milestones"]:
            table.add_row(number(mark["step"]), f"{mark['highest']:.3g}", f"{mark['lowest']:.3g}")
        console.print(table)
    columns = ("devices", "per device", "accumulation", "effective batch")
    table = new_table("batch on other numbers of devices", columns, numbers=columns[:1])
    for told in plan.batch["on_other_devices"]:
        if "error" in told:
            table.add_row(str(told["devices"]), "does not fit", "", "")
        else:
            table.add_row(*(str(told[key]) for key in ("devices", "per_device", "accumulation", "effective")))
    console.print(table)
    if plan.memory:
        table = new_table("GiB per GPU (estimate)", ("", *plan.memory), numbers=tuple(plan.memory))
        for key, words in MEMORY.items():
            values = [getattr(memory, key) for memory in plan.memory.values()]
            if any(values):
                table.add_row(words, *(f"{value / 2**30:.2f}" for value in values), end_section=key == "context")
        console.print(table)
    for note in plan.notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)


def summary(plan: RunPlan) -> dict[str, str]:
    """The lines above the tables."""
    model, samples, steps, batch, checkpoints = plan.model, plan.samples, plan.steps, plan.batch, plan.checkpoints
    lines = {"output folder": plan.output_dir}
    if model:
        start = model["init_from"] or model["backbone_weights"]
        lines["model"] = f"{model['preset'] or model['model_type']} ({model['model_type']} on {model['backbone']})"
        lines["starts from"] = f"{start}" if start else "new weights"
        trained = "" if model["trainable"] == model["parameters"] else f", {millions(model['trainable'])} trained"
        lines["parameters"] = (
            f"{millions(model['parameters'])}{trained}: backbone {millions(model['backbone_parameters'])}; "
            f"{model['num_labels']} classes"
        )
        lines["FSDP units"] = ", ".join(
            f"{unit['number']} x {unit['class']} (largest {4 * unit['largest'] / 2**20:.0f} MiB)"
            for unit in plan.fsdp_units
        )
    frames = f"clips of {samples['frames']} frames {samples['frame_offsets']}" if samples["frames"] > 1 else "frames"
    height, width = samples["crop_size"]
    lines["samples"] = f"{frames}, crop {height} x {width} (height x width)"
    lines["augmentation"] = (
        f"scale {samples['scale_mode']} {list(samples['scale_range'])} of {samples['base_size'] or 'the frame'}, "
        f"flip {samples['horizontal_flip_prob']}, photometric {samples['photometric_prob']}, "
        f"cat_max_ratio {samples['cat_max_ratio']}"
    )
    lines["losses"] = "; ".join(describe(loss) for loss in plan.losses) or "the model's own"
    if plan.schedule:
        clipped = f"gradients clipped at {plan.schedule['max_grad_norm']:g}"
        lines["optimizer"] = (
            f"{plan.schedule['optimizer']}, {clipped if plan.schedule['max_grad_norm'] else 'no clipping'}"
        )
    lines["precision"] = plan.precision
    lines["averaging"] = plan.averaging
    lines["steps"] = f"{number(steps['steps'])} of {batch['effective']} samples = {number(steps['samples'])} samples"
    if plan.schedule:
        lines["steps"] += f"; warm-up {number(plan.schedule['warmup_steps'])}"
    if steps["passes"]:
        lines["steps"] += f" = {steps['passes']:.1f} passes over {number(steps['samples_per_pass'])}"
    wanted = f" (global_batch_size {batch['global_batch_size']})" if batch["global_batch_size"] else ""
    lines["effective batch"] = (
        f"{batch['effective']} = {batch['per_device']} per device x {batch['accumulation']} accumulated "
        f"x {batch['devices']} devices{wanted}"
    )
    lines["evaluations"] = number(steps["evaluations"])
    if checkpoints:
        lines["checkpoints"] = (
            f"{number(checkpoints['written'])} written, {gib(checkpoints['bytes_each'])} each; with the model folder "
            f"{gib(checkpoints['disk'])} of disk"
        )
    return lines


def describe(loss: dict[str, Any]) -> str:
    """'ohem (threshold 0.7)'."""
    settings = ", ".join(f"{key} {value}" for key, value in loss.items() if key != "name")
    return loss["name"] + (f" ({settings})" if settings else "")


def collapsed(groups: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the groups; the layers of a backbone, of which there may be fifty, in one."""
    merged: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        merged.setdefault(re.sub(r"_layer_\d+", "_layers", group["name"]), []).append(group)
    rows = []
    for name, members in merged.items():
        rates = sorted({member["learning_rate"] for member in members})
        rate = f"{rates[0]:.3g}" if len(rates) == 1 else f"{rates[0]:.3g} to {rates[-1]:.3g}"
        title = name if len(members) == 1 else f"{name} ({len(members)} groups)"
        totals = [sum(member[key] for member in members) for key in ("tensors", "parameters")]
        rows.append((title, *map(number, totals), rate, f"{members[0]['weight_decay']:g}"))
    return rows


# --- words and tables


def new_table(title: str, columns: tuple[str, ...], numbers: tuple[str, ...] = ()) -> Table:
    """A table with lines that a pipe can take."""
    table = Table(title=title, title_justify="left", box=box.ASCII2, title_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def two_columns(console: Console, lines: dict[str, str]) -> None:
    """Names and what is said of them."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines.items():
        table.add_row(name, text)
    console.print(table, highlight=False)


def number(value: int | None) -> str:
    """12,345, or a question mark."""
    return "?" if value is None else f"{value:,}"


def millions(value: int) -> str:
    """'232.1 M'."""
    return f"{value / 1e6:,.1f} M"


def gib(value: int | None) -> str:
    """'4.2 GiB'."""
    return "?" if value is None else f"{value / 2**30:.1f} GiB"
