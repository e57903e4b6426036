"""The file of CascadePSP's pip package becomes a folder that `--refine cascade-psp:` takes: the command line."""

import json

import pytest
import torch

from vss_hf.cli import main
from vss_hf.modeling.configuration_cascade_psp import CascadePSPConfig
from vss_hf.modeling.modeling_cascade_psp import CascadePSPModel
from vss_hf.refinement import CascadePSP


SMALLER = {
    "backbone_config.stem_channels": 4,
    "backbone_config.hidden_sizes": [8, 12, 16, 20],
    "channels": 10,
    "upsample_channels": [9, 7, 6],
    "head_channels": 5,
}
# Ours at the beginning of a name, and what stands there in the package's file.
NAMES = {
    "backbone": "feats",
    "pyramid.pools": "psp.stages",
    "pyramid.merge": "psp.bottleneck",
    "up_stride4.fuse": "up_1.conv",
    "up_stride2.fuse": "up_2.conv",
    "up_stride1.fuse": "up_3.conv",
    "up_stride4.refine": "up_1.conv2",
    "up_stride2.refine": "up_2.conv2",
    "up_stride1.refine": "up_3.conv2",
    "up_stride4.shortcut": "up_1.shortcut",
    "up_stride2.shortcut": "up_2.shortcut",
    "up_stride1.shortcut": "up_3.shortcut",
    "head_stride8": "final_28",
    "head_stride4": "final_56",
    "head_stride1.0": "final_11",
    "head_stride1.2": "final_21",
}


@pytest.fixture
def checkpoint(tmp_path):
    """A narrow network, and the file in which the package keeps such a one."""
    torch.manual_seed(0)
    fields = CascadePSPConfig().to_dict()
    for path, value in SMALLER.items():
        place = fields["backbone_config"] if path.startswith("backbone_config.") else fields
        place[path.removeprefix("backbone_config.")] = value
    model = CascadePSPModel(CascadePSPConfig(**fields)).eval()
    file = {}
    for name, tensor in model.state_dict().items():
        (own,) = [own for own in NAMES if name.startswith(f"{own}.")]
        file[f"module.{NAMES[own]}{name.removeprefix(own)}"] = tensor
    torch.save(file, tmp_path / "model")
    return model, tmp_path / "model"


def convert(path, out, *more):
    words = ["convert", path, "--source", "cascadepsp", "--arch", "cascade-psp", "--out", out, *more]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


def test_the_packages_file_becomes_a_folder(checkpoint, tmp_path, capsys):
    model, path = checkpoint
    out = tmp_path / "refiner"
    settings = [word for name, value in SMALLER.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    assert convert(path, out, *settings) == 0
    assert f"{out}: {len(model.state_dict())} tensors of cascade-psp" in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {"config.json", "model.safetensors", "conversion.json"}
    origin = json.loads((out / "conversion.json").read_text())
    assert (origin["source"], origin["arch"], origin["fields"]) == ("cascadepsp", "cascade-psp", SMALLER)
    assert origin["not_used"] == origin["kept_new"] == {}
    step = CascadePSP.from_pretrained(str(out), "cpu")
    image, mask = torch.randn(1, 3, 33, 47), torch.rand(1, 1, 33, 47) * 2 - 1
    assert all(map(torch.equal, step.model.state_dict().values(), model.state_dict().values()))
    with torch.no_grad():
        torch.testing.assert_close(step.model(image, mask).logits, model(image, mask).logits, rtol=1e-4, atol=1e-5)


def test_a_file_of_another_width_is_refused(checkpoint, tmp_path, capsys):
    assert convert(checkpoint[1], tmp_path / "refiner", "--set", "channels=12") == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "does not fit CascadePSPModel: other shape:" in message and not (tmp_path / "refiner").exists()
