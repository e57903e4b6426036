"""What the pages leave to the reader, small: a folder that has all of it, and commands for a machine without GPUs.

`MODEL`, `path/to/VSPW_480p`, `models/...` and so on are there under just these names, so that commands run as they are
printed. What a small machine cannot do is changed in the command itself: `made_small`.
"""

import json
import shlex
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from page_blocks import ROOT, make_demo, page_blocks
from PIL import Image
from transformers import AutoConfig, AutoModelForSemanticSegmentation, SwinConfig, SwinModel

from vss_hf import VSPW
from vss_hf.convert.checkpoint import find_config, with_fields
from vss_hf.data import make_sample_dataset
from vss_hf.hub_cards import write_card
from vss_hf.modeling.architectures import model_class
from vss_hf.modeling.backbone import build_backbone
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.modeling_cascade_psp import CascadePSPModel
from vss_hf.training.recipe import load_recipe


for room in ("convert", "data", "modeling", "refinement", "training"):  # small models and trees of other tests
    sys.path.append(str(Path(__file__).parent / room))

from official_trees import make_ade20k, make_cityscapes, make_coco_stuff  # noqa: E402
from test_cascade_psp_checkpoint import NAMES as CASCADE_PSP_NAMES  # noqa: E402
from test_cascade_psp_checkpoint import SMALLER as CASCADE_PSP  # noqa: E402
from test_internimage_names import released  # noqa: E402
from test_paper_recipes import TWO_STEPS, narrow, stages_of  # noqa: E402
from tiny_sam import save_sam  # noqa: E402


# --- the folder

MODELS = [
    *["MODEL", "path/to/model", "path/to/other", "swin", "volo"],
    *[f"runs/{name}/model" for name in ("a", "b", "c", "vspw-small")],
]
VIDEOS = ["path/to/VSPW_480p", "path/to/VSPW", "path/to/camvid_vspw"]
SIZES = {  # frames that half as large are large enough for every model; clips of ten frames
    "height": 64, "width": 96, "train_videos": 5, "val_videos": 5, "test_videos": 1, "frames_per_video": 10,
    "val_frames_per_video": 3,
}  # fmt: skip
OF_THE_CHECKOUT = ["benchmarks", "tests", "train.py", "training"]
LABELS = {"id2label": VSPW.id2label, "label2id": VSPW.label2id}
# The networks of official checkpoints, narrow.
INTERNIMAGE = {"channels": 8, "groups": [1, 2, 4, 8], "depths": [1, 1, 2, 1]}
CONVERTED = {
    "upernet-internimage-t": {
        **{f"backbone_config.{name}": value for name, value in INTERNIMAGE.items()},
        **{"hidden_size": 8, "auxiliary_channels": 8},
    },
    "internimage-h": {**INTERNIMAGE, "level2_post_norm_block_ids": [1]},
    "cascade-psp": CASCADE_PSP,
}


def fill(folder: Path) -> Path:
    """Make all that the pages name and do not make themselves."""
    made, videos = make_demo(folder) / "demo/demo-ocrnet/model", folder / "demo/sample_videos"
    recipe = load_recipe("demo-ocrnet", ["--data.root", VIDEOS[0]])
    (made / "training_recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()), encoding="utf-8")
    write_card(made, license="apache-2.0")
    for name in OF_THE_CHECKOUT:
        (folder / name).symlink_to(ROOT / name)
    for name in MODELS:
        shutil.copytree(made, folder / name)
    make_sample_dataset(folder / VIDEOS[0], **SIZES, progress=False)
    for name in VIDEOS[1:]:
        shutil.copytree(folder / VIDEOS[0], folder / name)
    (videos / "data/20_Sample-street_00").symlink_to(next((videos / "data").glob("*street*")).name)
    for name in ("street.mp4", "path/to/videos/street.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "video.mp4", folder / name)
    make_ade20k(folder / "path/to")
    make_coco_stuff(folder / "path/to/coco")
    make_cityscapes(folder / "path/to/cityscapes")
    for name in ("ours", "theirs", "path/to/our_masks", "path/to/their_masks"):
        save_masks(folder / VIDEOS[0], folder / name)
    save_hfgd(folder / "path/to/hfgd")
    save_sam(folder / "facebook/sam-vit-huge", "sam")
    save_sam(folder / "facebook/sam2.1-hiera-large", "sam2")
    swin = SwinConfig(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
    SwinModel(swin).save_pretrained(folder / "microsoft/swin-tiny-patch4-window7-224")
    save_checkpoints(folder)
    for name in ("ambiguous", "camvid"):
        save_calibration(folder / "runs" / name, name)
    write_recipe(folder, "")
    return folder


def save_masks(videos: Path, folder: Path) -> None:
    """Label maps as somebody else's program writes them: the true ones."""
    for video in (videos / "val.txt").read_text().split():
        (folder / video).mkdir(parents=True)
        for path in (videos / "data" / video / "mask").iterdir():
            Image.fromarray(VSPW.lookup[np.array(Image.open(path))]).save(folder / video / path.name)


def save_hfgd(folder: Path) -> None:
    """A model with two branches."""
    backbone = {
        "model_type": "vss_resnet", "depths": [1] * 4, "hidden_sizes": [8, 12, 16, 20], "stem_channels": 8,
        "block": "basic", "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }  # fmt: skip
    widths = dict(channels=8, encoding_channels=8, wide_channels=12, key_channels=4, axial_heads=2)
    config = AutoConfig.for_model("vss_hfgd", backbone_config=backbone, **widths, **LABELS)
    AutoModelForSemanticSegmentation.from_config(config).save_pretrained(folder)
    VSSImageProcessor().save_pretrained(folder)


def save_calibration(folder: Path, settings: str) -> None:
    """What benchmarks/video_models.py measures first: here a second for each step, however busy the machine is."""
    found = {"setting": {"settings": settings, "threads": 1}, "models": {"tbn-vit": {"seconds_per_step": 1.0}}}
    folder.mkdir()
    (folder / "calibration.json").write_text(json.dumps(found))


def save_checkpoints(folder: Path) -> None:
    """Files of official weights, with the names that the original code gives its tensors."""
    configs = {arch: with_fields(find_config(arch), fields) for arch, fields in CONVERTED.items()}
    upernet = model_class("vss_upernet")(configs["upernet-internimage-t"])
    tensors = released(upernet.backbone, "backbone.")
    for name, tensor in upernet.state_dict().items():
        if not name.startswith("backbone."):
            tensors[name.replace(".classifier.", ".conv_seg.").replace(".batch_norm.", ".bn.")] = tensor
    torch.save({"state_dict": tensors}, folder / "upernet_internimage_t_512_160k_ade20k.pth")
    backbone = build_backbone(configs["internimage-h"])
    torch.save({"model": released(backbone)}, folder / "internimage_h_jointto22k_384.pth")
    refiner, tensors = CascadePSPModel(configs["cascade-psp"]), {}
    refiner.save_pretrained(folder / "path/to/cascade-psp")  # the same, converted
    for name, tensor in refiner.state_dict().items():
        (own,) = [own for own in CASCADE_PSP_NAMES if name.startswith(f"{own}.")]
        tensors[f"module.{CASCADE_PSP_NAMES[own]}{name.removeprefix(own)}"] = tensor
    (folder / ".segmentation-refinement").mkdir()  # the folder is the reader's home, too
    torch.save(tensors, folder / ".segmentation-refinement/model")


def write_recipe(folder: Path, text: str) -> Path:
    """A recipe of a page as a file: under the name that it begins with, or laid over README's as my_recipe.yaml."""
    if text.startswith("# "):
        path = folder / text.split()[1]
        path.write_text(text, encoding="utf-8")
        return path
    (block,) = [block.text for block in page_blocks("README.md") if block.language == "yaml"]
    path = folder / "my_recipe.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(block), **(yaml.safe_load(text) or {})}), encoding="utf-8")
    return path


# --- the commands

# 20 steps of one model, where the pages have four models, three seeds and minutes.
SHORT_COMPARISON = "--models tbn-vit --seeds 42 --budget-seconds 20"


def made_small(command: str) -> list[str]:
    """The words of a command: a narrow network, two steps, two processes, any certainty; and `alice` pushes."""
    words = shlex.split(command.replace("your-name/", "alice/").replace("user/", "alice/").replace("~/", ""))
    if words[0] == "make":
        words = [*made_by_make(words[1]), *"--out made --data demo/sample_videos".split()]
        words += small_training("demo-ocrnet", [])
    elif (words[1] == "train" or "train.py" in words) and "--dry_run" not in words:
        recipe = words.index("train.py" if "train.py" in words else "train") + 1
        words += small_training(words[recipe], words[recipe + 1 :])
    elif words[1] == "convert":
        for name, value in CONVERTED[words[words.index("--arch") + 1]].items():
            words += ["--set", f"{name}={json.dumps(value)}"]
    elif "pseudo-label" in words:  # the model is not trained, and sure of nothing
        words += [*([] if "--class_balanced" in words else ["--threshold", "0"]), "--min_labelled", "0"]
    elif "benchmarks/video_models.py" in words:
        words += SHORT_COMPARISON.split()
    return launched_here(words)


def made_by_make(target: str) -> list[str]:
    """What the Makefile runs for a target."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return shlex.split(text.split(f"\n{target}:")[1].split("\n\t")[1].split("\n")[0].replace("$(BIN)/", ""))


def launched_here(words: list[str]) -> list[str]:
    """The same with this Python, and two processes on this machine's CPUs for any number of GPUs."""
    if words[0] == "python":
        return [sys.executable, *words[1:]]
    if words[0] == "torchrun":
        start = "torch.distributed.run --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=localhost:0"
        return [sys.executable, "-m", *start.split(), *words[2:]]
    if words[0] == "accelerate":
        several = any("8gpu" in word for word in words)
        here = ["--num_processes", "2" if several else "1", "--main_process_port", str(free_port())]
        script = words.index("-m" if "-m" in words else "train.py")
        words = ["127.0.0.1" if word == "10.0.0.1" else word for word in [*words[1:script], *here, *words[script:]]]
        return [sys.executable, "-m", "accelerate.commands.accelerate_cli", *words]
    return words


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def small_training(recipe: str, given: list[str]) -> list[str]:
    """Options that make a training small: those of test_paper_recipes.py."""
    first = stages_of(recipe, *given)[0]
    height, width = first.augmentation.crop_size
    fields = {
        "model.config": narrow(first.model.build_config()),
        "augmentation.crop_size": [64, 8 * round(8 * width / height)],
        "training": {**TWO_STEPS, "per_device_train_batch_size": 1, "warmup_steps": 1, "save_strategy": "steps"},
    }
    if first.model.backbone_weights:
        fields["model.backbone_weights"] = None
    if first.training.swa_every:
        fields["training"] |= {"swa_every": 1, "swa_start": 1}
    return [word for name, value in flat(fields) for word in (f"--{name.removeprefix('training.')}", value)]


def flat(fields: dict, above: str = ""):
    """Nested fields as the command line names them, with their values as text."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value if isinstance(value, str) else json.dumps(value)
