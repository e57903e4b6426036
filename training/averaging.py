"""The mean of several models' weights as a model of its own: `vss-hf average`.

Tensors are read one by one from the files of all members, so memory holds one model and one tensor, whatever the
number of members. Names are those in the files: transformers writes some tensors under other names than the model has.
"""

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors import safe_open
from transformers import CONFIG_MAPPING

from vss_hf.data.parquet import file_sha256
from vss_hf.files import check_new_folder, new_folder, write_json
from vss_hf.hub_cards import write_card
from vss_hf.modeling.loading import (
    INDEX,
    WEIGHTS,
    check_config,
    check_weight_files,
    is_hub_id,
    load_segmentation_model,
    loading,
    read_json,
)

from .batchnorm import has_batchnorm, recalibrate_batchnorm
from .checkpoints import first_difference, shortened
from .recalibration import RECIPE, Recalibration


AVERAGING = "averaging.json"
TRAINED = "train_results.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
LARGEST_FILE = "50GB"  # as save_pretrained: one file, unless the model is very large


@dataclass
class Member:
    """A model that goes into an average.

    Args:
        source: as the user named it.
        folder: where its files are.
        files: its weights' files by the names of the tensors in them.
        weight: what it counts, relative to the others.
    """

    source: str
    folder: Path
    files: dict[str, Path]
    weight: float

    @property
    def name(self) -> str:
        """What tells it from others, without the folders of this machine."""
        if is_hub_id(self.source):
            return self.source
        folder = self.folder.resolve()
        told = folder.name != "model" and not is_checkpoint(folder)
        return folder.name if told else f"{folder.parent.name}/{folder.name}"


@dataclass
class Averaged:
    """What `average_models` made.

    Args:
        folder: the model.
        averaged: floating-point tensors that were averaged.
        copied: tensors of whole numbers, which are the first member's.
        batches: from which the BatchNorm statistics were counted; None: they are means as well.
        has_batchnorm: whether the model has any.
    """

    folder: Path
    averaged: int
    copied: int
    batches: int | None
    has_batchnorm: bool


def average_models(
    members: Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    recalibrate: Recalibration | None = None,
    device: str | torch.device | None = None,
) -> Averaged:
    """Write a model folder with the mean of the weights of models that differ in nothing else.

    Floating-point tensors are averaged in float64 and stored in their own type; whole numbers (counters, index tables)
    are copied from the first member. Results and pictures of the members are not taken over.

    Args:
        members: at least two model folders, checkpoints of a run, or ids on the Hub; the first one gives configuration
            and image processor.
        out: folder to make, whole or not at all; one with files in it is refused.
        weights: a positive number for each member; default: all the same.
        recalibrate: training samples from which BatchNorm statistics are counted anew; default: they are averaged.
        device: where the model runs for that; default: a GPU if there is one.

    Raises:
        FileExistsError: `out` holds files.
        FileNotFoundError: a member, or a file of it, is missing.
        OSError: the disk is full.
        ValueError: the members differ in architecture, classes, image processor, or names, shapes or types of tensors;
            a tensor is not finite; or the weights are wrong.

    Source: BetterThing (arXiv 2109.01316) averages four checkpoints of VOLO, the fifth of the VSPW 2021 challenge ten.
    """
    out = Path(out)
    check_new_folder(out)
    opened = open_members(members, weights)
    first = opened[0]
    for member in opened[1:]:
        check_same_settings(first, member)
    tensors = check_same_tensors(opened)
    if recalibrate is not None:
        recalibrate.recipe(first.folder)  # before gigabytes are read: is there one?
    with new_folder(out) as partial:
        copied = write_average(opened, tensors, partial)
        for name in ("config.json", *PROCESSORS):
            if (first.folder / name).is_file():
                shutil.copyfile(first.folder / name, partial / name)
        model = load_segmentation_model(partial)  # strictly: what does not load is not left behind
        batches = None
        if recalibrate is not None and has_batchnorm(model):
            model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            batches = recalibrate_batchnorm(model, recalibrate.batches_for(model, first.folder))
            model.save_pretrained(partial, max_shard_size=LARGEST_FILE)
        write_json(partial / AVERAGING, described(opened, recalibrate if batches else None))
        result = Averaged(out, len(tensors) - copied, copied, batches, has_batchnorm(model))
    write_card(out)  # after the folder got its name, which the card tells
    return result


# --- members


def open_members(members: Sequence[str | Path], weights: Sequence[float] | None) -> list[Member]:
    """The members with their files, each of them whole."""
    if len(members) < 2:
        raise ValueError(f"an average needs at least 2 models; found {len(members)}")
    weights = [1.0] * len(members) if weights is None else list(weights)
    if len(weights) != len(members):
        raise ValueError(f"--weights has {len(weights)} numbers for {len(members)} models; give one for each")
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"--weights {', '.join(f'{w:g}' for w in weights)}: expected numbers above 0")
    if sum(weights) == math.inf:
        raise ValueError(f"--weights {', '.join(f'{w:g}' for w in weights)} add up to more than any number")
    return [open_member(str(source), weight) for source, weight in zip(members, weights, strict=True)]


def open_member(source: str, weight: float) -> Member:
    """One member; of the Hub the files are downloaded."""
    folder = Path(source)
    if is_hub_id(source):
        with loading(source):
            # Beside the model: what it was trained on, whose terms the card tells, and how samples are augmented.
            wanted = ["config.json", *PROCESSORS, "model*.safetensors", INDEX, AVERAGING, TRAINED, RECIPE]
            folder = Path(snapshot_download(source, allow_patterns=wanted))
    elif not folder.is_dir():
        raise FileNotFoundError(f"{source}: no such model folder (and not a Hub id of the form user/name)")
    check_config(folder)
    check_weight_files(folder)
    if (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    else:
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    files = {}
    for name in names:
        with safe_open(folder / name, framework="pt") as tensors:
            files.update(dict.fromkeys(tensors.keys(), folder / name))
    return Member(source, folder, files, weight)


def check_same_settings(first: Member, other: Member) -> None:
    """Raise where a member's architecture, class list or image processor is not the first one's."""
    stored = read_json(first.folder / "config.json")
    with loading(first.source):
        config = CONFIG_MAPPING[stored["model_type"]].from_dict(stored)
    with loading(other.source):
        difference = first_difference(read_json(other.folder / "config.json"), config)
    if difference is None:
        theirs, ours = (processor_settings(member.folder) for member in (other, first))
        differing = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
        if not differing:
            return
        difference = f"{differing[0]} of the image processor", theirs.get(differing[0]), ours.get(differing[0])
    field, theirs, ours = difference
    raise ValueError(
        f"{other.source} and {first.source} have no average: {field} is {shortened(theirs)} in the one and "
        f"{shortened(ours)} in the other"
    )


def processor_settings(folder: Path) -> dict[str, Any]:
    """The fields of a folder's image processor; none where it has no such file."""
    found = next((folder / name for name in PROCESSORS if (folder / name).is_file()), None)
    return {} if found is None else read_json(found)


def check_same_tensors(members: Sequence[Member]) -> list[str]:
    """The names of all tensors; raises for the first one that is not the same kind of tensor in all members."""
    first = members[0]
    with ExitStack() as stack:
        kinds = [Files(member, stack) for member in members]
        for member, files in zip(members[1:], kinds[1:], strict=True):
            if differing := sorted(first.files.keys() ^ member.files.keys()):
                has, lacks = (first, member) if differing[0] in first.files else (member, first)
                raise ValueError(f"{lacks.source} has no tensor {differing[0]}, which {has.source} has")
            for name in sorted(first.files):
                theirs, ours = files.kind(name), kinds[0].kind(name)
                if theirs != ours:
                    raise ValueError(
                        f"{name} is {theirs} in {member.source} and {ours} in {first.source}; expected the same"
                    )
    return sorted(first.files)


class Files:
    """The open files of a member.

    Args:
        member: the member.
        stack: closes the files.
    """

    def __init__(self, member: Member, stack: ExitStack):
        self.member = member
        paths = set(member.files.values())
        self.opened = {path: stack.enter_context(safe_open(path, framework="pt")) for path in paths}

    def kind(self, name: str) -> str:
        """'F32 (64, 3, 7, 7)' of a tensor, from the header."""
        tensor = self.opened[self.member.files[name]].get_slice(name)
        return f"{tensor.get_dtype()} {tuple(tensor.get_shape())}"

    def read(self, name: str) -> torch.Tensor:
        """A tensor."""
        return self.opened[self.member.files[name]].get_tensor(name)


# --- the average


def write_average(members: Sequence[Member], names: Sequence[str], folder: Path) -> int:
    """Write the weights of the average; returns how many tensors are copies of the first member's."""
    state, copied = {}, 0
    with ExitStack() as stack:
        files = [Files(member, stack) for member in members]
        for name in names:
            tensor = files[0].read(name)
            if tensor.is_floating_point():
                state[name] = mean(files, name)
            else:
                state[name], copied = tensor, copied + 1
        save_torch_state_dict(state, folder, max_shard_size=LARGEST_FILE)
    return copied


def mean(files: Sequence[Files], name: str) -> torch.Tensor:
    """The weighted mean of a tensor in its own type; equal tensors give, bit for bit, the same."""
    total, dtype = None, None
    for each in files:
        tensor = each.read(name)
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{each.member.source}: {name} holds values that are not finite; leave this member out")
        dtype, part = tensor.dtype, tensor.double().mul_(each.member.weight)
        total = part if total is None else total.add_(part)
    assert total is not None and dtype is not None  # there are two files at least
    return total.div_(sum(each.member.weight for each in files)).to(dtype)


def described(members: Sequence[Member], recalibrated: Recalibration | None) -> dict[str, Any]:
    """What averaging.json tells, for the card and whoever wants to know."""
    told = []
    for member in members:
        digests = {path.name: file_sha256(path) for path in sorted(set(member.files.values()))}
        trained_on = datasets_of(member.folder)
        told.append({"model": member.name, "weight": member.weight, "trained_on": trained_on, "sha256": digests})
    batchnorm = None
    if recalibrated is not None:
        data = Path(recalibrated.data).name  # not the folder of this machine
        batchnorm = {"data": data, "split": recalibrated.split, "batches": recalibrated.batches}
    return {"members": told, "batchnorm": batchnorm}


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one of a run's checkpoints, by its name."""
    return folder.name.startswith("checkpoint-")


def datasets_of(folder: Path) -> list[str]:
    """The names of the data sets that a member says it was trained on, or its own members were."""
    if (folder / AVERAGING).is_file():
        members = json.loads((folder / AVERAGING).read_text(encoding="utf-8"))["members"]
        return list(dict.fromkeys(name for member in members for name in member["trained_on"]))
    # A checkpoint has no results of its own; those of its run come with the run's end.
    places = [folder / TRAINED, *([folder.parent / "model" / TRAINED] if is_checkpoint(folder) else [])]
    found = next((place for place in places if place.is_file()), None)
    told = {} if found is None else read_json(found)
    sources = told.get("sources") or [told]  # one alone in the files of earlier versions
    return list(dict.fromkeys(str(source["dataset"]) for source in sources if source.get("dataset")))
