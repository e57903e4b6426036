"""Ensembles: a folder that names models and what each counts, used like a model's folder.

    create_ensemble("ours", [{"name": "swin", "weight": 0.56}, {"name": "volo", "weight": 0.44, "tta": "flip"}])
    segmenter = VideoSegmenter.from_pretrained("ours")

Every member prepares frames with its own processor and views, and a video model remembers its own past. Their class
probabilities are added at the frame's size, a few rows at a time: no member has a (num_labels, H, W) tensor. Scores of
mask classification models are made to sum to 1 at every pixel first, so that all members count as their weights say.
"""

import copy
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedModel

from vss_hf.files import new_folder, write_text
from vss_hf.modeling.configuration_ensemble import EnsembleConfig
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.loading import is_hub_id, load_segmentation_model, loading, read_json, stored_config
from vss_hf.modeling.outputs import SemanticSegmenterOutput


if TYPE_CHECKING:
    from vss_hf.inference.segmenter import VideoSegmenter
    from vss_hf.inference.views import TTA

MODEL_TYPE = EnsembleConfig.model_type
CONFIG, PROCESSOR, REPORT = "config.json", "preprocessor_config.json", "search.json"
# What `from_pretrained` hands on to the members; the rest is about the ensemble's own files.
SHARED_SETTINGS = ("dtype", "torch_dtype", "device_map", "cache_dir", "token", "local_files_only", "force_download")


class EnsembleForSemanticSegmentation(PreTrainedModel):
    """The weighted mean of what several models say. It is used, not trained.

    Args:
        config: members and weights.
        models: one for each member whose weight is above 0, image or video models.
        processors: theirs.
        folder: where the config's relative folders begin; None: it names Hub ids only.
    """

    config: EnsembleConfig
    config_class = EnsembleConfig
    main_input_name = "pixel_values"

    def __init__(
        self,
        config: EnsembleConfig,
        models: Sequence[Any] = (),
        processors: Sequence[Any] = (),
        folder: Path | None = None,
    ):
        from vss_hf.inference.views import parse_tta

        super().__init__(config)
        self.members = used_members(config)
        if len(models) != len(self.members) or len(processors) != len(self.members):
            raise ValueError(
                f"an ensemble of {len(self.members)} members with {len(models)} models and {len(processors)} "
                "processors: expected one each; use EnsembleForSemanticSegmentation.from_pretrained(folder)"
            )
        self.models = nn.ModuleList(models)
        self.processors, self.folder = list(processors), folder
        self.tta = [
            None if "tta" not in member else parse_tta(member["tta"], f"tta of member '{member['name']}'")
            for member, _ in self.members
        ]

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, source: str | Path, *, config: Any = None, revision: str | None = None, **settings: Any
    ) -> Any:
        """Load an ensemble's folder or Hub repo, and its members.

        Args:
            source: folder or Hub id.
            config: its configuration, if that is loaded already.
            revision: branch, tag or commit of a Hub repo.
            settings: `dtype`, `device_map`, and where and how to download, are for the members.

        Returns:
            The model; with `output_loading_info=True` also which weights were not in the files: none, or loading a
            member would have failed.

        Raises:
            FileNotFoundError: a member is neither a folder nor a Hub id.
            ValueError: a member is an ensemble, has other classes, or cannot be loaded; the message names it.
        """
        shared = {name: settings[name] for name in SHARED_SETTINGS if settings.get(name) is not None}
        if not isinstance(config, EnsembleConfig):
            config = EnsembleConfig.from_pretrained(config or source, revision=revision or "main")
        folder = Path(source) if Path(source).is_dir() else None
        parts = [load_member(member, folder, config, shared) for member, _ in used_members(config)]
        model = cls(config, [one for one, _ in parts], [processor for _, processor in parts], folder)
        model.eval()
        if settings.get("output_loading_info"):
            return model, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
        return model

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, push_to_hub: bool = False, **_: Any
    ) -> None:
        """Write config.json alone: members stay where they are, named relative to the new place.

        Raises:
            ValueError: with `push_to_hub`, because members in folders would not be found there.
        """
        if push_to_hub:
            raise ValueError("an ensemble's members do not go with it: upload them, name their ids, then `hf upload`")
        place = Path(save_directory)
        place.mkdir(parents=True, exist_ok=True)
        write_text(place / CONFIG, config_text(moved(self.config, self.folder, place)))

    def segmenters(self, tta: "TTA | None" = None) -> list[tuple[float, "VideoSegmenter"]]:
        """What labels frames with each member, and its weight.

        Args:
            tta: views for members that have none of their own.

        Raises:
            ValueError: `tta` is given and a member has views of its own.
        """
        from vss_hf.inference.segmenter import VideoSegmenter

        for (member, _), own in zip(self.members, self.tta, strict=True):
            if tta is not None and own is not None:
                raise ValueError(
                    f"tta: member '{member['name']}' of the ensemble has views of its own; use the ensemble as it is, "
                    "or one whose members have none"
                )
        parts = zip(self.members, self.models, self.processors, self.tta, strict=True)
        return [
            (weight, VideoSegmenter(model, processor, tta=own or tta)) for (_, weight), model, processor, own in parts
        ]

    def settings(self) -> list[dict[str, Any]]:
        """For results: each member's name, its weight in the sum, and its views where it has any."""
        members = zip(self.members, self.tta, strict=True)
        return [
            {"name": member["name"], "weight": weight, **({} if own is None else {"tta": own.settings()})}
            for (member, weight), own in members
        ]

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, return_dict: bool | None = None) -> SemanticSegmenterOutput | tuple:
        """Label images, each for itself: to a video model it is the first frame of a video.

        `VideoSegmenter` needs neither the size of these logits nor forgets the frames before.

        Args:
            pixel_values: (batch, 3, height, width), 0..1, as the ensemble's processor makes them; the members'
                processors do the rest.
            return_dict: False gives a tuple.

        Returns:
            `logits`: fp32 (batch, num_labels, height, width), logarithms of the mean probabilities.
        """
        from vss_hf.inference.segmenter import VideoSegmenter

        frames = (pixel_values.float() * 255).round_().clamp_(0, 255).to(torch.uint8)
        segmenter = VideoSegmenter(self, VSSImageProcessor())
        logits = torch.empty(len(frames), len(segmenter.names), *frames.shape[-2:], device=frames.device)
        for frame, of_frame in zip(frames, logits, strict=True):
            segmenter.reset()
            (scores,) = segmenter.score_maps([frame])
            of_frame.copy_(scores.dense())
        logits.clamp_(min=torch.finfo(torch.float32).tiny).log_()
        if return_dict is False:
            return (logits,)
        return SemanticSegmenterOutput(logits=logits)


def create_ensemble(
    out: str | Path, members: Sequence[dict[str, Any]], groups: dict[str, float] | None = None
) -> EnsembleConfig:
    """Write an ensemble's folder, new or in the place of another ensemble.

    Args:
        out: its folder.
        members: as in `EnsembleConfig`, but folders are relative to the current one.
        groups: as in `EnsembleConfig`.

    Returns:
        The configuration that was written, with folders relative to `out`.

    Raises:
        FileExistsError: `out` holds something else.
        FileNotFoundError: a member is neither a folder nor a Hub id.
        ValueError: a field is wrong, members have other classes, or one is an ensemble; the message names them.
    """
    out = Path(out)
    check_place(out)
    config = ensemble_of(members, groups)
    config = moved(config, Path(), out)
    # Members look at frames themselves: each with its own size and normalisation.
    processor = VSSImageProcessor(do_resize=False, do_normalize=False)
    with nullcontext(out) if (out / CONFIG).is_file() else new_folder(out) as folder:
        write_text(folder / PROCESSOR, processor.to_json_string())
        write_text(folder / CONFIG, config_text(config))
        (folder / REPORT).unlink(missing_ok=True)  # of other weights
    return config


def ensemble_of(members: Sequence[dict[str, Any]], groups: dict[str, float] | None = None) -> EnsembleConfig:
    """The configuration of an ensemble, checked with its members' own; folders are relative to the current one.

    Raises:
        As `create_ensemble`.
    """
    from vss_hf.inference.views import parse_tta

    try:
        config = EnsembleConfig(members=[dict(member) for member in members], groups=groups)
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from None
    if not members:
        raise ValueError("an ensemble needs one member at least")
    names: list[str] = []
    for member in members:
        if "tta" in member:
            parse_tta(member["tta"], f"tta of member '{member['name']}'")
        own = names_of(member, member_source(member["name"], Path()))
        names = names or own
        check_names(own, member["name"], names, members[0]["name"])
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    return config


def two_models(first: dict[str, Any], second: dict[str, Any], gamma: float) -> list[dict[str, Any]]:
    """Members for gamma * P_first + (1 - gamma) * P_second; published with Swin first, VOLO second, and 0.5 and 0.56.

    Raises:
        ValueError: gamma is not in 0..1.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma: expected a number from 0 to 1; found {gamma}")
    return [{**first, "weight": gamma}, {**second, "weight": 1 - gamma}]


def used_members(config: EnsembleConfig) -> list[tuple[dict[str, Any], float]]:
    """The members that count, each with its weight; the weights' sum is 1."""
    assert config.members is not None
    return [pair for pair in zip(config.members, config.weights, strict=True) if pair[1] > 0]


def member_source(name: str, folder: Path | None) -> str:
    """What `from_pretrained` takes for a member's name: a folder, if there is one, or a Hub id.

    Args:
        name: as in the configuration.
        folder: where relative folders begin; None: only Hub ids can be meant. So an ensemble that comes from the Hub
            reads no folder of this machine.

    Raises:
        FileNotFoundError: it is neither.
    """
    if folder is not None:
        path = Path(os.path.normpath(folder / name))
        if path.is_dir():
            return str(path)
        if is_hub_id(name):
            return name
        raise FileNotFoundError(f"member '{name}': no folder {path}, and no Hub id of the form user/name")
    if name.count("/") != 1 or name[0] in "./":
        raise FileNotFoundError(f"member '{name}': an ensemble on the Hub names Hub ids (user/name), no folders")
    return name


def load_member(
    member: dict[str, Any], folder: Path | None, config: EnsembleConfig, shared: dict[str, Any]
) -> tuple[Any, Any]:
    """A member's model and processor.

    Args:
        member: as in the configuration.
        folder: where relative folders begin.
        config: the ensemble's, whose classes it must have.
        shared: for `from_pretrained`.
    """
    from vss_hf.inference.segmenter import load_processor

    source = member_source(member["name"], folder)
    check_names(names_of(member, source), member["name"], class_names(config), "the ensemble")
    pinned = {"revision": member["revision"]} if "revision" in member else {}
    hub = {name: value for name, value in shared.items() if name not in ("dtype", "torch_dtype", "device_map")}
    model = load_segmentation_model(source, **shared, **pinned)
    model.config.return_dict = True
    return model, load_processor(source, **hub, **pinned)


def names_of(member: dict[str, Any], source: str) -> list[str]:
    """The class names of a member, from its config.json.

    Raises:
        FileNotFoundError: it has none.
        ValueError: it is an ensemble.
    """
    from transformers import AutoConfig

    stored = stored_config(source, member.get("revision"))
    if not stored:
        raise FileNotFoundError(f"{source}: no config.json; expected a model's folder")
    if stored.get("model_type") == MODEL_TYPE:
        raise ValueError(f"{source} is an ensemble itself; name its members instead, with weights that are products")
    with loading(source):
        config = AutoConfig.from_pretrained(source, revision=member.get("revision"), trust_remote_code=False)
    return class_names(config)


def class_names(config: Any) -> list[str]:
    """The names of a configuration's classes, in the order of the labels."""
    return [config.id2label[i] for i in range(config.num_labels)]


def check_names(names: list[str], whose: str, expected: list[str], whose_expected: str) -> None:
    """Raise unless two lists of classes are one."""
    if len(names) != len(expected):
        raise ValueError(
            f"member '{whose}' has {len(names)} classes and '{whose_expected}' {len(expected)}; "
            "models of one class list have a sum"
        )
    for i, (one, other) in enumerate(zip(names, expected, strict=True)):
        if one.strip() != other.strip():
            raise ValueError(f"class {i} is '{one}' in member '{whose}' and '{other}' in '{whose_expected}'")


def moved(config: EnsembleConfig, folder: Path | None, place: Path) -> EnsembleConfig:
    """A copy of a configuration whose folders, relative to `folder` until now, are relative to `place`."""
    config = copy.deepcopy(config)
    config.architectures = [EnsembleForSemanticSegmentation.__name__]
    for member in config.members or []:
        path = None if folder is None else folder / member["name"]
        if path is not None and path.is_dir() and not Path(member["name"]).is_absolute():
            name = os.path.relpath(path.resolve(), place.resolve()).replace(os.sep, "/")
            # A bare user/name would be taken for a Hub id once the folder is gone.
            member["name"] = name if name.startswith(".") else f"./{name}"
    return config


def config_text(config: EnsembleConfig) -> str:
    """What stands in config.json."""
    return config.to_json_string(use_diff=True)


def check_place(out: Path) -> None:
    """Raise unless an ensemble can be written there: nothing is there, or an ensemble."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    stored = read_json(out / CONFIG) if (out / CONFIG).is_file() else {}
    if stored.get("model_type") != MODEL_TYPE:
        raise FileExistsError(f"{out} is already there and holds no ensemble; give another folder, or remove it")
