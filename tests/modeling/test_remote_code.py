"""Model folders that carry their code: loaded where this package is missing, and where it is not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_every_architecture import INTERNIMAGE, build, build_config
from tiny_video_models import TINY as VIDEO
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

from vss_hf.modeling import remote_code
from vss_hf.modeling.architectures import MODELS, VIDEO_MODELS
from vss_hf.modeling.image_processing_vss import VSSImageProcessor, VSSImageProcessorPil
from vss_hf.modeling.remote_code import RELATIVE_IMPORT, add_code, check_code


HERE = Path(__file__).parent
NAMES = {0: "sky", 1: "sea"}


def small_model(name):
    """A model by its type, or by type and backbone."""
    if name == "vss_mask2former on vss_internimage":
        config = build_config("vss_mask2former", backbone_config=INTERNIMAGE)
    elif name in VIDEO_MODELS:
        config = AutoConfig.for_model(name, **json.loads(json.dumps(VIDEO[name])), id2label=NAMES)
    else:
        return build(name)
    torch.manual_seed(0)
    auto_class = AutoModel if name in VIDEO_MODELS else AutoModelForSemanticSegmentation
    return auto_class.from_config(config).eval()


def inputs_for(model):
    shape = (1, 3, 64, 96)
    if model.main_input_name == "pixel_values_videos":
        shape = (1, len(getattr(model.config, "frame_offsets", ())) + 1, 3, 64, 96)
    return {model.main_input_name: torch.randn(shape, generator=torch.Generator().manual_seed(1))}


def logits_of(model, inputs):
    with torch.no_grad():
        output = model(**inputs)
    return output.logits if hasattr(output, "logits") else output.masks_queries_logits


def run_without_the_package(folders, tmp_path):
    settings = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "load_remote_code.py"), *map(str, folders)]
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_architecture_without_the_package(tmp_path):
    expected = {}
    for name in (*MODELS, *VIDEO_MODELS, "vss_mask2former on vss_internimage"):
        model = small_model(name)
        folder = tmp_path / name.replace(" ", "_")
        first, second = (VSSImageProcessor(), model) if len(expected) % 2 else (model, VSSImageProcessor())
        for part in (first, second):  # in either order
            part.save_pretrained(folder, **({"with_code": True} if part is model else {}))
        inputs = inputs_for(model)
        save_file(inputs, f"{folder}.safetensors")
        expected[folder] = logits_of(model, inputs)
    run_without_the_package(expected, tmp_path)
    for folder, logits in expected.items():
        for written in ("out", "again.out"):  # `save_pretrained` of what was loaded ships the code on
            found = load_file(f"{folder}.{written}.safetensors")["logits"]
            # Another process's memory lies otherwise, and sums run in another order.
            assert torch.allclose(found, logits, rtol=1e-4, atol=1e-6), (folder.name, written)


@pytest.fixture
def folder(tmp_path):
    """UperNet on InternImage with its code."""
    path = tmp_path / "upernet"
    small_model("vss_upernet").save_pretrained(path, with_code=True)
    VSSImageProcessor().save_pretrained(path)
    return path


def test_what_is_written(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]["AutoModelForSemanticSegmentation"] == "auto_classes.UperNetForSemanticSegmentation"
    names = {path.name for path in folder.glob("*.py")}
    # What is needed and no more: the backbone with its optional kernel, and no other architecture.
    assert {"modeling_upernet.py", "modeling_internimage.py", "dcnv3_triton.py", "image_processing_vss.py"} <= names
    assert not {"modeling_resnet.py", "modeling_ocrnet.py", "modeling_swin3d.py"} & names
    for name in names:
        text = (folder / name).read_text(encoding="utf-8")
        assert {f"{module}.py" for module in RELATIVE_IMPORT.findall(text)} <= names
        assert not re.search(r"^\s*(from|import) vss_hf", text, re.MULTILINE)


def test_own_classes_win_where_the_package_is_installed(folder):
    (folder / "auto_classes.py").write_text("raise RuntimeError('must not run')\n")
    for settings in ({}, {"trust_remote_code": True}):
        model = AutoModelForSemanticSegmentation.from_pretrained(folder, **settings)
        assert type(model).__module__ == "vss_hf.modeling.modeling_upernet"
        assert type(AutoImageProcessor.from_pretrained(folder, **settings)) is VSSImageProcessor


def test_a_folder_that_names_code_which_it_lacks(folder, tmp_path):
    check_code(folder)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(FileNotFoundError, match=r"auto_classes\.py, which is not there; push --with_code"):
        check_code(tmp_path / "tuned")
    add_code(tmp_path / "tuned")
    check_code(tmp_path / "tuned")


@pytest.mark.parametrize("kind", ["vss_ensemble", "vss_resnet", "swin"])
def test_models_without_code_of_their_own(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ValueError, match=f"a model of type '{kind}' carries no code; expected one of .*vss_ocrnet"):
        add_code(tmp_path)
    with pytest.raises(FileNotFoundError, match="no config.json"):
        add_code(tmp_path / "nothing")


# --- written whole, and the version that it is of


def loads_from(folder, expected, name):
    """The folder's configuration leads nowhere, or to files that are all there; and here it is loaded as before."""
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert type(model).__name__ == expected
    check_code(folder)
    assert not list(folder.glob("*.part")), name


def test_a_step_that_fails_leaves_a_folder_that_loads(tmp_path, monkeypatch):
    small_model("vss_upernet").save_pretrained(tmp_path)
    VSSImageProcessor().save_pretrained(tmp_path)
    names = [name for name in remote_code.code_files(tmp_path)]
    assert names[-2:] == ["preprocessor_config.json", "config.json"]  # what leads to the code comes after it
    before = (tmp_path / "config.json").read_bytes()
    real = os.replace
    for failing in ("layers.py", "auto_classes.py", "preprocessor_config.json", "config.json"):

        def replace(source, target, failing=failing):
            if Path(target).name == failing:
                raise OSError(28, "No space left on device")
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="No space left"):
            add_code(tmp_path)
        assert (tmp_path / "config.json").read_bytes() == before
        loads_from(tmp_path, "UperNetForSemanticSegmentation", failing)
    monkeypatch.undo()
    add_code(tmp_path)
    loads_from(tmp_path, "UperNetForSemanticSegmentation", "all")


KILLED = """
import os, sys
from vss_hf.modeling.remote_code import add_code
real = os.replace
def replace(source, target):
    if os.path.basename(target) == sys.argv[2]:
        os._exit(9)
    real(source, target)
os.replace = replace
add_code(sys.argv[1])
"""


@pytest.mark.parametrize("moment", ["config.json", pytest.param("layers.py", marks=pytest.mark.slow)])
def test_a_killed_process_leaves_a_folder_that_loads(tmp_path, moment):
    small_model("vss_upernet").save_pretrained(tmp_path)
    VSSImageProcessor().save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment], env={**os.environ})
    assert done.returncode == 9 and (tmp_path / "config.json").read_bytes() == before
    check_code(tmp_path)
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    add_code(tmp_path)
    loads_from(tmp_path, "UperNetForSemanticSegmentation", moment)


def test_code_of_another_version(folder, recwarn):
    check_code(folder)
    assert not recwarn.list
    old = (folder / "auto_classes.py").read_text().replace("    layers.py\n", "    gone.py\n    layers.py\n")
    (folder / "auto_classes.py").write_text(old)
    (folder / "gone.py").write_text("# needed by an earlier version\n")
    (folder / "own.py").write_text("# a user's\n")
    (folder / "layers.py").write_text((folder / "layers.py").read_text() + "\n# earlier\n")
    with pytest.warns(UserWarning, match=r"auto_classes\.py, gone\.py, layers\.py\. It is pushed as it is; push"):
        check_code(folder)
    (folder / "dcnv3.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"imports dcnv3\.py, which is not there; push --with_code"):
        check_code(folder)
    add_code(folder)
    recwarn.clear()
    check_code(folder)
    assert not recwarn.list and not (folder / "gone.py").exists() and (folder / "own.py").exists()


@pytest.mark.parametrize("kind", [VSSImageProcessor, VSSImageProcessorPil])
def test_an_image_processor_that_is_saved_later(folder, tmp_path, kind):
    kind(do_resize=True).save_pretrained(folder)
    written = json.loads((folder / "preprocessor_config.json").read_text())
    listed = ["auto_classes.VSSImageProcessorPil", "auto_classes.VSSImageProcessor"]
    assert written["auto_map"] == {"AutoImageProcessor": listed} and written["do_resize"] is True
    processor = AutoImageProcessor.from_pretrained(folder)
    processor.save_pretrained(tmp_path / "elsewhere")  # where there is no code, nothing leads there
    assert "auto_map" not in json.loads((tmp_path / "elsewhere/preprocessor_config.json").read_text())
