"""A process that has no vss_hf: loads model folders with `trust_remote_code`, and writes their outputs.

    python load_remote_code.py FOLDER [FOLDER ...]        (or owner/name on the Hub that HF_ENDPOINT names)

Beside each folder lies FOLDER.safetensors with its input; its output goes to FOLDER.out.safetensors. The model is also
saved anew, to FOLDER.again, whose output goes to FOLDER.again.out.safetensors.
"""

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation


class Missing(MetaPathFinder):
    """The package is not installed here, whatever sys.path says."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in ("vss_hf", "modeling"):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def output_of(folder, inputs):
    """The model's logits, of whichever kind."""
    auto_class = AutoModel if "pixel_values_videos" in inputs else AutoModelForSemanticSegmentation
    model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    with torch.no_grad():
        output = model(**inputs)
    logits = output.logits if hasattr(output, "logits") else output.masks_queries_logits
    return model, logits.contiguous()


def main(folders):
    sys.meta_path.insert(0, Missing())
    for folder in map(Path, folders):
        inputs = load_file(f"{folder}.safetensors")
        model, logits = output_of(folder, inputs)
        save_file({"logits": logits}, f"{folder}.out.safetensors")
        model.save_pretrained(f"{folder}.again")
        AutoImageProcessor.from_pretrained(folder, trust_remote_code=True).save_pretrained(f"{folder}.again")
        save_file({"logits": output_of(f"{folder}.again", inputs)[1]}, f"{folder}.again.out.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
