"""Weights and model folders that were tampered with are refused, with one line that names the file."""

import json
import pickle
import re
import shutil
import struct
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation, ResNetConfig, ResNetModel

from vss_hf import VideoSegmenter
from vss_hf.cli import main
from vss_hf.convert import load_reference_state_dict, read_reference_file
from vss_hf.modeling.backbone import build_backbone, load_backbone_weights
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.loading import check_safetensors, load_strictly
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation
from vss_hf.training.recipe import ModelRecipe
from vss_hf.training.run import build_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_ocrnet_config):
    """An intact model folder with a tiny ResNet, 5 classes."""
    torch.manual_seed(0)
    config = tiny_ocrnet_config("resnet", coarse_channels=None)
    folder = tmp_path_factory.mktemp("whole") / "model"
    OCRNetForSemanticSegmentation(config).save_pretrained(folder)
    VSSImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def refusal(folder) -> str:
    """What VideoSegmenter says."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ValueError, OSError)) as caught:
            VideoSegmenter.from_pretrained(folder, "cpu")
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700, message
    assert str(folder) in message
    return message


# --- safetensors


def weights(folder) -> Path:
    return folder / "model.safetensors"


def header_of(path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path, header, rest) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def edit_tensors(path, edit) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


CLASSIFIER = "decode_head.classifier.weight"


def other_dtype(path):
    """The header says whole numbers: as many bytes, other values."""
    header, rest = header_of(path)
    assert header[CLASSIFIER]["dtype"] == "F32"
    header[CLASSIFIER]["dtype"] = "I32"
    write_header(path, header, rest)


def other_offsets(path):
    header, rest = header_of(path)
    header[CLASSIFIER]["data_offsets"] = [0, 2**40]
    write_header(path, header, rest)


def overwrite(start, data):
    def edit(path):
        content = bytearray(path.read_bytes())
        content[start : start + len(data)] = data
        path.write_bytes(bytes(content))

    return edit


def shift_shape(tensors):
    tensors[CLASSIFIER] = torch.zeros(7, 16, 1, 1)


TAMPERED = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "is damaged"),
    "cut off in the header": (lambda path: path.write_bytes(path.read_bytes()[:100]), "is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"\0" * 10), "is damaged"),
    "header of 2^60 bytes": (overwrite(0, struct.pack("<Q", 2**60)), "is damaged"),
    "header length off by one": (lambda path: overwrite(0, bytes([path.read_bytes()[0] ^ 1]))(path), "is damaged"),
    "header no JSON": (overwrite(8, b"\xff\xfe"), "is damaged"),
    "offsets outside": (other_offsets, "is damaged"),
    "random bytes": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "is damaged"),
    "text": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is damaged"),
    "one tensor missing": (
        lambda path: edit_tensors(path, lambda t: t.pop(CLASSIFIER)), f"do not fit .*: missing: {CLASSIFIER}$"
    ),
    "one tensor more": (
        lambda path: edit_tensors(path, lambda t: t.update(extra=torch.zeros(1))), "do not fit .*: unexpected: extra$"
    ),
    "another shape": (
        lambda path: edit_tensors(path, shift_shape),
        rf"other shape: {CLASSIFIER}: \(7, 16, 1, 1\) for \(5, 16, 1, 1\)",
    ),
    "another name": (
        lambda path: edit_tensors(path, lambda t: t.update(renamed=t.pop(CLASSIFIER))),
        f"missing: {CLASSIFIER}; unexpected: renamed",
    ),
    "whole numbers": (other_dtype, f"no floating point numbers: {CLASSIFIER}"),
    "no tensor": (lambda path: save_file({}, path), "missing: .* and [0-9]+ more"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAMPERED)
def test_tampered_weights(folder, kind):
    tamper, message = TAMPERED[kind]
    tamper(weights(folder))
    assert re.search(message, refusal(folder))


def test_every_flipped_header_byte_is_noticed(folder):
    """Random single bytes of the header: refused, unless it still says exactly the same."""
    path = weights(folder)
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    numbers = np.random.default_rng(0)
    whole, accepted = header_of(path)[0], 0
    for position in numbers.choice(np.arange(8 + length), 60, replace=False).tolist():
        changed = bytearray(data)
        changed[position] ^= 1 << int(numbers.integers(8))
        path.write_bytes(bytes(changed))
        try:
            check_safetensors(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}") and "\n" not in str(error)
            continue
        header = header_of(path)[0]
        if {**header, "__metadata__": 0} == {**whole, "__metadata__": 0}:
            accepted += 1  # a space, or the metadata, which nothing reads
        else:
            refusal(folder)
    assert accepted < 20


def test_a_header_of_many_lengths_is_not_taken_for_a_pickle(tmp_path):
    """0x80 and 'PK' can begin a length too."""
    seen = set()
    for padding in range(600, 1100):
        path = tmp_path / "a.safetensors"
        save_file({"a": torch.zeros(1)}, path, metadata={"x": "y" * padding})
        seen.add(path.read_bytes()[:1])
        check_safetensors(path)
    assert b"\x80" in seen


def test_a_missing_file_of_the_weights(folder):
    weights(folder).unlink()
    assert "model.safetensors: no such file" in refusal(folder)


def shard(folder):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    weights(folder).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return sorted(folder.glob("model-*.safetensors")), folder / "model.safetensors.index.json"


def test_parts(folder):
    labels = VideoSegmenter.from_pretrained(folder, "cpu").step(np.zeros((40, 56, 3), np.uint8))
    parts, index = shard(folder)
    assert len(parts) > 2
    again = VideoSegmenter.from_pretrained(folder, "cpu").step(np.zeros((40, 56, 3), np.uint8))
    assert np.array_equal(labels, again)
    data = parts[1].read_bytes()
    parts[1].write_bytes(data[:-8])
    assert f"{parts[1].name} is damaged" in refusal(folder)
    parts[1].unlink()
    assert f"{parts[1].name}: no such file" in refusal(folder)
    parts[1].write_bytes(data)
    content = json.loads(index.read_text())
    for name in ("../model.bin", "weights.bin", "/etc/passwd"):
        content["weight_map"][CLASSIFIER] = name
        index.write_text(json.dumps(content))
        assert f"names '{name}' as weights" in refusal(folder)
    index.write_text("[")
    assert "index.json: not valid JSON" in refusal(folder)


# --- pickles


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.fixture
def canary(tmp_path):
    """(a pickle that would create a file, the file)"""
    path = tmp_path / "the_code_ran"
    assert pickle.loads(pickle.dumps(Canary(path))) is None and path.exists()  # it would, indeed
    path.unlink()
    return Canary(path), path


def write_pickles(folder, canary):
    """The state dict with a canary in it, in all forms that torch has written."""
    content = {**load_file(weights(folder)), "canary": canary}
    torch.save(content, folder / "zipped.bin")
    torch.save(content, folder / "legacy.bin", _use_new_zipfile_serialization=False)
    (folder / "plain.bin").write_bytes(pickle.dumps({"canary": canary}))
    return [folder / f"{name}.bin" for name in ("zipped", "legacy", "plain")]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_by_every_door(folder, tmp_path, canary, name, capsys):
    bomb, ran = canary
    pickles = write_pickles(folder, bomb)
    contents = [path.read_bytes() for path in pickles]
    for path in [*pickles, weights(folder)]:
        path.unlink()
    backbone = build_backbone(OCRNetForSemanticSegmentation.config_class.from_pretrained(folder).backbone_config)
    for content in contents:
        (folder / name).write_bytes(content)
        said = [refusal(folder)]
        with pytest.raises(ValueError) as caught:
            build_model(ModelRecipe(init_from=str(folder)), class_list())
        said.append(str(caught.value))
        with pytest.raises(ValueError) as caught:
            load_backbone_weights(backbone, str(folder))
        said.append(str(caught.value))
        with pytest.raises(SystemExit) as stop:
            main(["predict", str(folder), str(tmp_path), "--out", str(tmp_path / "out")])
        assert stop.value.code == 2
        said.append(capsys.readouterr().err)
        for line in said:
            assert name in line and "refused" in line and "any code" in line and line.strip().count("\n") == 0, line
    assert not ran.exists()


def class_list():
    from vss_hf.data import ClassList

    return ClassList(names=("a", "b"), disk_ids=(1, 2), palette=((1, 1, 1), (2, 2, 2)))


def test_a_configuration_cannot_ask_for_a_pickle(folder, canary):
    """transformers lets config.json name the file of the weights, also `adapter_model.bin`."""
    bomb, ran = canary
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"canary": bomb}))
    edit_json(folder / "config.json", transformers_weights="adapter_model.bin")
    assert "transformers_weights is 'adapter_model.bin'" in refusal(folder)
    assert not ran.exists()


def test_a_pickle_beside_the_weights_is_not_read(folder, canary):
    bomb, ran = canary
    for path in write_pickles(folder, bomb):
        path.rename(folder / "pytorch_model.bin")
    VideoSegmenter.from_pretrained(folder, "cpu")
    assert not ran.exists()


def test_a_timm_folder_with_a_pickle(tmp_path, canary, tiny_ocrnet_config):
    bomb, ran = canary
    backbone = build_backbone(tiny_ocrnet_config("timm").backbone_config)
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "config.json").write_text(json.dumps({"architecture": "test_resnet"}))
    (tmp_path / "timm" / "pytorch_model.bin").write_bytes(pickle.dumps(bomb))
    with pytest.raises(ValueError, match="pytorch_model.bin: pickled weights are refused"):
        load_backbone_weights(backbone, f"local-dir:{tmp_path / 'timm'}")
    assert not ran.exists()


def test_reference_files(tmp_path, canary):
    bomb, ran = canary
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    torch.save({"state_dict": tensors, "meta": {"epoch": 1, "classes": ["road"]}}, tmp_path / "mmseg.pth")
    torch.save(tensors, tmp_path / "bare.pth")
    save_file(tensors, tmp_path / "safe.safetensors")
    for name in ("mmseg.pth", "bare.pth", "safe.safetensors"):
        read = read_reference_file(tmp_path / name)
        assert read.keys() == tensors.keys() and all(torch.equal(read[key], tensors[key]) for key in tensors)
    bad = {
        "canary.pth": lambda path: torch.save({"state_dict": tensors, "meta": bomb}, path),
        "legacy.pth": lambda path: torch.save(bomb, path, _use_new_zipfile_serialization=False),
        "plain.pth": lambda path: path.write_bytes(pickle.dumps(bomb)),
        "cut.pth": lambda path: path.write_bytes((tmp_path / "bare.pth").read_bytes()[:-50]),
        "empty.pth": lambda path: path.write_bytes(b""),
        "text.pth": lambda path: path.write_text("<html>"),
        "cut.safetensors": lambda path: path.write_bytes((tmp_path / "safe.safetensors").read_bytes()[:-5]),
        "numbers.pth": lambda path: torch.save({"state_dict": {"a": 1}}, path),
        "tensor.pth": lambda path: torch.save(torch.zeros(3), path),
    }
    for name, write in bad.items():
        write(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: (refused|expected)") as caught:
            read_reference_file(tmp_path / name)
        assert "\n" not in str(caught.value) and "weights_only=False" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="none.pth: no such checkpoint file"):
        read_reference_file(tmp_path / "none.pth")
    assert not ran.exists()


def test_a_checkpoint_with_the_log_of_its_training(tmp_path, monkeypatch):
    """mmengine keeps its message hub in the file: buffers of its own class, and numbers of NumPy."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    code = "class HistoryBuffer:\n    def __init__(self, values):\n        self._log_history = values\n"
    exec(code, module.__dict__)
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    hub = {"loss": module.HistoryBuffer(np.arange(3.0)), "lr": np.float64(1e-4), "iter": np.int64(7)}
    path = tmp_path / "iter_160000.pth"
    torch.save({"meta": {"epoch": 1}, "message_hub": hub, "state_dict": {"weight": torch.ones(2)}}, path)
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    assert torch.equal(read_reference_file(path)["weight"], torch.ones(2))


def test_reference_tensors_of_whole_numbers_are_refused(folder, monkeypatch):
    from vss_hf.convert import state_dict
    from vss_hf.convert.tables import Rename, Table

    model = OCRNetForSemanticSegmentation.from_pretrained(folder)
    own = dict(model.state_dict())
    own[CLASSIFIER] = own[CLASSIFIER].to(torch.int32)
    same_names = Table((Rename("(.*)", r"\1"),))
    monkeypatch.setattr(state_dict, "table_for", lambda source, config: same_names)
    with pytest.raises(ValueError, match=f"other kind of numbers: {CLASSIFIER}: torch.int32 for torch.float32"):
        load_reference_state_dict(model, own, "own")


# --- the other files of a folder


def edit_json(path, **fields):
    content = json.loads(path.read_text())
    content.update(fields)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


CONFIGS = {
    "cut off": (lambda path: path.write_text(path.read_text()[:50]), "config.json: not valid JSON"),
    "empty": (lambda path: path.write_text(""), "config.json: not valid JSON"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "config.json: not valid JSON"),
    "a list": (lambda path: path.write_text("[1, 2]"), "config.json: expected a JSON object, found"),
    "deep": (lambda path: path.write_text("[" * 100_000), "config.json: not valid JSON"),
    "gone": (lambda path: path.unlink(), "config.json: no such file"),
    "unknown type": (lambda path: edit_json(path, model_type="vss_ocrnt"), "did you mean 'vss_ocrnet'"),
    "no type": (lambda path: edit_json(path, model_type=None), "model_type None is not known"),
    "type of a language model": (lambda path: edit_json(path, model_type="bert"), "bert|Bert"),
    "unknown backbone": (
        lambda path: edit_json(path, backbone_config={"model_type": "resnt"}), "of the backbone 'resnt' is not known"
    ),
    "num_labels contradicts": (
        lambda path: edit_json(path, num_labels=7), "num_labels is 7, but id2label names 5 classes"
    ),
    "fewer names than weights": (
        lambda path: edit_json(path, id2label={"0": "a", "1": "b"}, label2id=None), r"other shape: .*for \(2,"
    ),
    "names with a gap": (
        lambda path: edit_json(path, id2label={str(i): "x" for i in (0, 1, 2, 3, 5)}), "must name the classes 0 to n-1"
    ),
    "names as list": (lambda path: edit_json(path, id2label=["a", "b"]), "must name the classes 0 to n-1"),
    "channels of another size": (lambda path: edit_json(path, channels=24), "other shape: "),
    "channels as text": (lambda path: edit_json(path, channels="many"), "channels"),
    "another backbone": (
        lambda path: edit_json(path, backbone_config={"model_type": "swin", "out_features": ["stage1"]}), "in_indices"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_damaged_configurations(folder, kind):
    damage, message = CONFIGS[kind]
    damage(folder / "config.json")
    with warnings.catch_warnings(), pytest.raises(Exception) as caught:
        warnings.simplefilter("ignore")
        VideoSegmenter.from_pretrained(folder, "cpu")
    assert re.search(message, str(caught.value)), caught.value


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_command_line_says_it_in_one_line(folder, tmp_path, capsys, kind):
    CONFIGS[kind][0](folder / "config.json")
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(folder), str(tmp_path), "--out", str(tmp_path / "out")])
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if line and not line.startswith("Loading weights")]  # a progress bar
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 1200, text


PROCESSORS = {
    "cut off": (lambda path: path.write_text(path.read_text()[:50]), "not valid JSON"),
    "a number": (lambda path: path.write_text("3"), "expected a JSON object"),
    "gone": (lambda path: path.unlink(), "no such file"),
    "unknown type": (lambda path: edit_json(path, image_processor_type="NoProcessor"), "model"),
    "two means": (lambda path: edit_json(path, image_mean=[0.5, 0.5]), "mean|size|match|shape"),
    "spread of zero": (lambda path: edit_json(path, image_std=[0.0, 0.0, 0.0]), "not finite|image_std"),
    "size as text": (lambda path: edit_json(path, do_resize=True, size="big"), "size|cannot be loaded"),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_damaged_processors(folder, kind):
    damage, message = PROCESSORS[kind]
    damage(folder / "preprocessor_config.json")
    with pytest.raises((ValueError, OSError)) as caught:
        VideoSegmenter.from_pretrained(folder, "cpu")
    assert re.search(message, str(caught.value)) and str(folder) in str(caught.value), caught.value


# --- what may differ, and where


def test_a_new_classifier_is_the_only_thing_that_may_differ(folder):
    recipe = ModelRecipe(init_from=str(folder))
    model = build_model(recipe, class_list())
    assert model.decode_head.classifier.weight.shape[0] == 2
    before = load_file(weights(folder))["decode_head.pixel_conv.0.weight"]
    assert torch.equal(model.decode_head.pixel_conv[0].weight, before)
    edit_tensors(weights(folder), lambda t: t.update({"decode_head.pixel_conv.0.weight": torch.zeros(3, 3)}))
    with pytest.raises(ValueError, match="other shape: decode_head.pixel_conv.0.weight"):
        build_model(recipe, class_list())
    edit_tensors(weights(folder), lambda t: t.pop("decode_head.pixel_conv.0.weight"))
    with pytest.raises(ValueError, match="missing: decode_head.pixel_conv.0.weight"):
        build_model(recipe, class_list())
    with pytest.raises(FileNotFoundError, match="nowhere: no such model folder"):
        build_model(ModelRecipe(init_from="./nowhere"), class_list())


def test_backbone_weights_of_another_size_warn(tmp_path, tiny_ocrnet_config):
    backbone = build_backbone(tiny_ocrnet_config("resnet").backbone_config)
    settings = dict(layer_type="basic", depths=[1, 1, 1], embedding_size=8)
    ResNetModel(ResNetConfig(hidden_sizes=[8, 12, 24], **settings)).save_pretrained(tmp_path / "wide")
    with pytest.warns(UserWarning, match="have another shape for encoder.stages.2.*random numbers"):
        load_backbone_weights(backbone, str(tmp_path / "wide"))
    ResNetModel(ResNetConfig(hidden_sizes=[8, 12, 16], **settings)).save_pretrained(tmp_path / "fits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_backbone_weights(backbone, str(tmp_path / "fits"))
    path = tmp_path / "fits" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="fits/model.safetensors is damaged"):
        load_backbone_weights(backbone, str(tmp_path / "fits"))


def test_an_intact_folder_loads_as_transformers_loads_it(folder):
    strict = load_strictly(AutoModelForSemanticSegmentation, folder)
    plain = AutoModelForSemanticSegmentation.from_pretrained(folder)
    with safe_open(weights(folder), framework="pt") as file:
        assert set(file.keys()) == set(strict.state_dict())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, strict.state_dict()[name]), name
