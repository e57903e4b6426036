"""A recipe's batch over all devices: `training.global_batch_size`, and what each device does of it."""


def accumulation_steps(global_batch_size: int, given: int | None, per_device: int, devices: int) -> int:
    """Micro-batches of an optimisation step.

    Args:
        global_batch_size: samples of a step, over all devices.
        given: `gradient_accumulation_steps` as it was given, or None.
        per_device: `per_device_train_batch_size`.
        devices: how many take part.

    Raises:
        ValueError: the numbers do not fit one another; the message says which do.
    """
    wanted = f"--global_batch_size {global_batch_size}"
    if global_batch_size < 1:
        raise ValueError(f"{wanted}: expected at least 1")
    at_once = per_device * devices
    if global_batch_size % at_once:
        if global_batch_size % devices:
            near = max(devices, global_batch_size // devices * devices)
            numbers = [number for number in range(1, global_batch_size + 1) if global_batch_size % number == 0]
            advice = f"{listed(numbers)} devices, or a global batch of {near} or {near + devices} samples"
        else:
            share = global_batch_size // devices
            numbers = [number for number in range(1, share + 1) if share % number == 0]
            advice = f"--per_device_train_batch_size {listed(numbers)}"
        raise ValueError(
            f"{wanted}: {devices} device{'s' if devices > 1 else ''} with --per_device_train_batch_size {per_device} "
            f"take {at_once} samples at once; what fits: {advice}"
        )
    steps = global_batch_size // at_once
    if given not in (None, steps):
        raise ValueError(
            f"{wanted} with {at_once} samples at once needs --gradient_accumulation_steps {steps}, and {given} is "
            "given; leave one of them out"
        )
    return steps


def listed(numbers: list[int]) -> str:
    """'1, 2 or 4'."""
    return " or ".join([", ".join(map(str, numbers[:-1])), str(numbers[-1])] if len(numbers) > 1 else ["1"])
