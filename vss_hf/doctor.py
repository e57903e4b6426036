"""What this machine has for this package: versions, devices, caches, and what is missing for what."""

import os
import platform
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .install import install_advice, requirements


PACKAGE = "vss_hf"
EXTRAS = {  # of pyproject.toml -> what it is for
    "analysis": "vss-hf analyze",
    "demo": "vss-hf demo",
    "export": "vss-hf export --format onnx",
    "docs": "make docs",
    "dev": "the tests",
}
LOW_DISK = 5e9  # bytes; a large model with its optimizer's state takes about that


@dataclass
class Finding:
    """One line of the report.

    Args:
        subject: what was looked at.
        found: what is there.
        state: "ok"; "missing", of something optional; "wrong", of something that the package cannot do without.
        advice: what to do, and what it is for.
    """

    subject: str
    found: str
    state: str = "ok"
    advice: str = ""


@dataclass
class Examination:
    """Everything that was found, by heading."""

    parts: dict[str, list[Finding]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; what is missing is optional."""
        return not any(finding.state == "wrong" for part in self.parts.values() for finding in part)

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        parts = {name: [asdict(finding) for finding in part] for name, part in self.parts.items()}
        return {"ok": self.ok, "parts": parts}

    def print(self, console: Console) -> None:
        """A table for each heading."""
        colours = {"ok": "green", "missing": "yellow", "wrong": "bold red"}
        for name, part in self.parts.items():
            table = Table(title=name, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", show_header=False)
            for finding in part:
                state = f"[{colours[finding.state]}]{finding.state}[/]"
                table.add_row(escape(finding.subject), escape(finding.found), state, escape(finding.advice))
            console.print(table)
        console.print("All that is needed is there." if self.ok else "[bold red]Something is wrong, see above.[/]")


def examine() -> Examination:
    """Look at the whole environment; nothing is loaded from the network, and nothing is written."""
    return Examination(
        {
            "Packages": packages(),
            "Optional": extras(),
            "Devices": devices(),
            "Folders": folders(),
        }
    )


def packages() -> list[Finding]:
    """Python, this package, and what it requires."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return [
            Finding(PACKAGE, "runs from a folder", "wrong", "install it, so that versions are known: pip install -e .")
        ]
    python = Finding("Python", f"{platform.python_version()} ({platform.system()} {platform.machine()})")
    return [python, Finding(PACKAGE, version), *(check(requirement) for requirement in requirements(None))]


def extras() -> list[Finding]:
    """For each extra, what of it is missing."""
    found = []
    for extra, purpose in EXTRAS.items():
        checked = [check(requirement) for requirement in requirements(extra)]
        if not checked:
            continue
        missing = [finding.subject for finding in checked if finding.state != "ok"]
        state = "missing" if missing else "ok"
        advice = f"for {purpose}" + (f": {install_advice(extra)}" if missing else "")
        found.append(Finding(extra, f"without {', '.join(missing)}" if missing else "complete", state, advice))
    return found


def check(requirement: Requirement) -> Finding:
    """Whether a package is installed in a version that fits."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(requirement.name, "not installed", "wrong", f"pip install '{requirement.name}'")
    if not requirement.specifier.contains(version, prereleases=True):
        wanted = f"{requirement.name}{requirement.specifier}"
        return Finding(requirement.name, version, "wrong", f"pip install '{wanted}'")
    return Finding(requirement.name, version)


def devices() -> list[Finding]:
    """Cores, memory, GPUs, and what GPUs are good for."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [Finding("CPU", f"{cores} cores" + (f", {memory / 2**30:.0f} GiB" if memory else ""))]
    found.append(Finding("torch's threads", str(torch.get_num_threads())))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            size = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
            half = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: train with fp16"
            found.append(Finding(f"cuda:{index}", f"{size}, {half}"))
        found.append(triton())
    elif torch.backends.mps.is_available():
        found.append(Finding("mps", "Apple's GPU", "missing", "not tried with this package; choose --device cpu"))
    else:
        built = torch.version.cuda
        reason = f"torch is built for CUDA {built}, but finds no GPU or driver" if built else "torch is built without"
        found.append(Finding("GPU", "none", "missing", f"{reason}; everything runs on the CPU"))
    return found


def triton() -> Finding:
    """The compiler of DCNv3's fast kernel."""
    try:
        return Finding("triton", metadata.version("triton"), advice="for InternImage's fast kernel")
    except metadata.PackageNotFoundError:
        return Finding(
            "triton", "not installed", "missing", "InternImage runs without, more slowly: pip install triton"
        )


def folders() -> list[Finding]:
    """Where models and data are kept, how full it is there, and whether somebody is logged in to the Hub."""
    from huggingface_hub import constants, get_token

    hub = Path(constants.HF_HUB_CACHE)
    found = [Finding("Hub's cache", f"{hub} ({size_of(hub)})")]
    for name, place in (("disk of the cache", hub), ("disk of this folder", Path.cwd())):
        free = shutil.disk_usage(nearest(place)).free
        state, advice = ("missing", "little room for checkpoints") if free < LOW_DISK else ("ok", "")
        found.append(Finding(name, f"{free / 1e9:.0f} GB free", state, advice))
    login = "there is a token" if get_token() else "no token"
    found.append(
        Finding("Hub's login", login, *(() if get_token() else ("missing", "for vss-hf push: hf auth login")))
    )
    if constants.HF_HUB_OFFLINE:
        found.append(Finding("HF_HUB_OFFLINE", "set", "missing", "nothing is loaded from the Hub, or pushed to it"))
    return found


def nearest(place: Path) -> Path:
    """The folder itself, or the lowest one above it that exists."""
    return next(folder for folder in (place, *place.absolute().parents) if folder.exists())


def size_of(folder: Path) -> str:
    """The bytes in a folder, links not followed."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(path, name)
            with suppress(FileNotFoundError):  # another program may clear its cache right now
                if not os.path.islink(file):
                    total += os.path.getsize(file)
    return f"{total / 1e9:.1f} GB"


__all__ = ["Examination", "Finding", "examine"]
