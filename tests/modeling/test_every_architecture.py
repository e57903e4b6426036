"""What every architecture of modeling/architectures.py must do alike; the files beside this one test what each is."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation

import vss_hf
from vss_hf.inference import VideoSegmenter
from vss_hf.modeling.architectures import BACKBONES, MODELS, config_from_preset, configuration_class, presets
from vss_hf.modeling.backbone_presets import backbone_fields, known_backbones
from vss_hf.modeling.image_processing_vss import VSSImageProcessor


STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 2],
    "window_size": 4,
    "out_features": STAGES,
}
RESNET = {
    "model_type": "vss_resnet",
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 12, 16, 20],
    "stem_channels": 8,
    "block": "basic",
    "out_features": STAGES,
}
MIT = {
    "model_type": "vss_mit",
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "out_features": STAGES,
}
INTERNIMAGE = {
    "model_type": "vss_internimage",
    "channels": 8,
    "depths": [1, 1, 1, 1],
    "groups": [1, 2, 2, 4],
    "out_features": STAGES,
}
# Every kind of backbone with maps at strides 4, 8, 16 and 32.
FOUR_MAPS = {
    "swin": SWIN,
    "vss_resnet": RESNET,
    "vss_mit": MIT,
    "vss_internimage": INTERNIMAGE,
    "vss_hrnet": {
        "model_type": "vss_hrnet",
        "stage1_channels": 4,
        "hidden_sizes": [4, 8, 12, 16],
        "num_modules": [1, 1, 1, 1],
        "num_blocks": [[1], [1, 1], [1, 1, 1], [1, 1, 1, 1]],
    },
    "convnext": {
        "model_type": "convnext",
        "hidden_sizes": [8, 12, 16, 20],
        "depths": [1, 1, 1, 1],
        "out_features": STAGES,
    },
    "resnet": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 12, 16, 20],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": STAGES,
    },
    "timm_backbone": {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [1, 2, 3, 4]},
}
# A small configuration of each architecture, on different backbones.
TINY = {
    "vss_ocrnet": dict(backbone_config=RESNET, in_indices=[1, 2, 3], channels=8, ocr_channels=8, coarse_channels=8),
    "vss_upernet": dict(backbone_config=INTERNIMAGE, hidden_size=8, auxiliary_channels=8),
    "vss_fcn": dict(backbone_config=RESNET, channels=8, auxiliary_channels=8),
    "vss_pspnet": dict(backbone_config=RESNET, channels=8, auxiliary_channels=8),
    "vss_deeplabv3": dict(backbone_config=RESNET, channels=8, auxiliary_channels=8),
    "vss_deeplabv3plus": dict(
        backbone_config=RESNET, channels=8, auxiliary_channels=8, low_level_in_index=0, low_level_channels=4
    ),
    "vss_segformer": dict(backbone_config=MIT, channels=8),
    "vss_semantic_fpn": dict(backbone_config=RESNET, channels=8, pyramid_channels=8),
    "vss_hfgd": dict(
        backbone_config=RESNET, channels=8, encoding_channels=8, wide_channels=12, key_channels=4, axial_heads=2
    ),
    "vss_bisenet": dict(
        backbone_config={**RESNET, "out_features": ["stage3", "stage4"]},
        spatial_channels=[4, 4, 4, 8],
        context_channels=8,
        fusion_channels=8,
        channels=8,
        auxiliary_channels=8,
    ),
    "vss_maskformer": dict(
        backbone_config=SWIN,
        fpn_feature_size=32,
        mask_feature_size=16,
        decoder_config={
            "model_type": "detr",
            "d_model": 32,
            "decoder_layers": 2,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 32,
            "num_queries": 7,
        },
    ),
    "vss_mask2former": dict(
        backbone_config=SWIN,
        feature_size=32,
        mask_feature_size=16,
        hidden_dim=32,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        num_queries=7,
        train_num_points=100,
    ),
}
NAMES = ["sky", "sea", "sand", "tree", "road"]
every_architecture = pytest.mark.parametrize("model_type", MODELS)


def build_config(model_type, names=NAMES, **changes):
    """A small configuration; each has its own copies of the dictionaries."""
    fields = {**json.loads(json.dumps(TINY[model_type])), **changes}
    return AutoConfig.for_model(model_type, **fields, id2label=dict(enumerate(names)))


def build(model_type, names=NAMES):
    """A small model in eval mode; its norms and statistics are random, because new ones hide mistakes."""
    torch.manual_seed(0)
    config = build_config(model_type, names)
    model = AutoModelForSemanticSegmentation.from_config(config).eval()
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model


def scores(model, pixels):
    """The model's own result, whichever kind it is."""
    with torch.no_grad():
        output = model(pixels)
    return output.masks_queries_logits if "masks_queries_logits" in output else output.logits


def test_each_has_a_small_configuration_and_its_names_are_public():
    assert set(TINY) == set(MODELS)
    for _, configuration, model in (*MODELS.values(), *BACKBONES.values()):
        assert getattr(vss_hf, configuration).__name__ == configuration and getattr(vss_hf, model).__name__ == model


@every_architecture
def test_saved_and_loaded_it_is_the_same(model_type, tmp_path):
    model = build(model_type)
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    for auto_class in (AutoModelForSemanticSegmentation, AutoModel):
        again = auto_class.from_pretrained(tmp_path)
        assert type(again) is type(model) and not again.training
        again.save_pretrained(tmp_path / "again")
        assert settings(tmp_path / "again") == settings(tmp_path)
        for (name, tensor), (other_name, other) in zip(tensors(model), tensors(again), strict=True):
            assert name == other_name and torch.equal(tensor, other), name
    # Weights mapped from a file lie otherwise in memory, where matrix products may add up in another order.
    pixels = torch.randn(1, 3, 33, 47)
    torch.testing.assert_close(scores(again, pixels), scores(model, pixels), rtol=1e-5, atol=1e-6)


def settings(folder):
    """The lines of a configuration file; transformers notes a backbone's type of numbers only when it loads it."""
    return [line for line in (folder / "config.json").read_text().splitlines() if '"dtype"' not in line]


def tensors(model):
    """All parameters and buffers by name; non-persistent buffers are in no file and must be computed alike."""
    return [*model.named_parameters(), *model.named_buffers()]


@pytest.mark.parametrize("backbone", FOUR_MAPS)
@pytest.mark.parametrize("model_type", [m for m in MODELS if m != "vss_bisenet"])  # BiSeNet reads two maps
def test_any_backbone_will_do(model_type, backbone, tmp_path):
    torch.manual_seed(0)
    config = build_config(model_type, backbone_config=json.loads(json.dumps(FOUR_MAPS[backbone])))
    model = AutoModelForSemanticSegmentation.from_config(config).eval()
    model.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 64, 96)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    torch.testing.assert_close(scores(again, pixels), scores(model, pixels), rtol=1e-5, atol=1e-6)


@every_architecture
def test_it_starts_from_a_pretrained_backbone(model_type, tmp_path):
    """A folder with the backbone alone, as `vss-hf convert` or transformers writes it; the heads stay new."""
    donor, config = build(model_type), build_config(model_type)
    for p in donor.backbone.parameters():
        p.data.add_(0.5)
    donor.backbone.save_pretrained(tmp_path)
    torch.manual_seed(1)
    model = type(donor).from_backbone_pretrained(str(tmp_path), config)
    for name, tensor in donor.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor), name
    classifier = next(name for name, _ in model.named_parameters() if "class" in name and name.endswith("weight"))
    assert not torch.equal(model.get_parameter(classifier), donor.get_parameter(classifier))
    with pytest.raises(FileNotFoundError):
        (tmp_path / "empty").mkdir()
        type(donor).from_backbone_pretrained(str(tmp_path / "empty"), config)


@every_architecture
def test_bfloat16_weights(model_type, tmp_path):
    model = build(model_type)
    model.save_pretrained(tmp_path)
    half = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    pixels = torch.randn(1, 3, 64, 96)
    ours, exact = scores(half, pixels.bfloat16()).float(), scores(model, pixels)
    assert (ours - exact).abs().mean() <= 0.05 * exact.abs().mean() + 0.02


@every_architecture
def test_on_the_meta_device_nothing_is_allocated(model_type, tmp_path):
    model = build(model_type)
    model.save_pretrained(tmp_path)
    empty = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, device_map="meta")
    assert all(p.is_meta for p in empty.parameters())
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        empty = AutoModelForSemanticSegmentation.from_config(config).eval()
    assert (
        scores(empty, torch.empty(1, 3, 33, 47, device="meta")).shape == scores(model, torch.zeros(1, 3, 33, 47)).shape
    )


@every_architecture
def test_another_class_list_gets_a_new_classifier_only(model_type, tmp_path):
    model = build(model_type)
    model.save_pretrained(tmp_path)
    names = {0: "road", 1: "car", 2: "person"}
    other, report = AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path, id2label=names, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert other.config.num_labels == 3 and other.config.label2id == {"road": 0, "car": 1, "person": 2}
    new = {name for name, *_ in report["mismatched_keys"]}
    assert new and all("classifier" in name or "class_predictor" in name or "empty_weight" in name for name in new)
    own = dict(other.state_dict())
    for name, tensor in model.state_dict().items():
        if name not in new:
            assert torch.equal(own[name], tensor), name
    assert scores(other, torch.randn(1, 3, 33, 47)).isfinite().all()


@every_architecture
def test_one_step_of_training_moves_every_parameter(model_type):
    model = build(model_type).train()
    pixels, labels = torch.randn(2, 3, 33, 47), torch.randint(0, 5, (2, 33, 47))
    labels[:, :5] = 255
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(pixels, labels=labels).loss
    loss.backward()
    assert loss.isfinite() and loss.ndim == 0
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not unused, unused
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("model_type", [m for m in MODELS if hasattr(configuration_class(m), "auxiliary_loss_weight")])
def test_auxiliary_heads_run_only_where_they_are_wanted(model_type):
    model = build_with_auxiliary_heads(model_type)
    heads = dict(model.named_children())
    heads = [heads["auxiliary_head"]] if "auxiliary_head" in heads else list(heads.get("auxiliary_heads", ()))
    runs = []
    for head in heads:
        head.register_forward_hook(lambda *_: runs.append(1))

    def count(**arguments):
        runs.clear()
        with torch.no_grad():
            output = model(torch.randn(2, 3, 33, 47), **arguments)
        return len(runs), output.auxiliary_logits

    labels = torch.randint(0, 5, (2, 33, 47))
    # OCRNet's coarse head is no luxury: the regions follow from it. HFGD's guidance is the decode head's own.
    others = int(model_type in ("vss_ocrnet", "vss_hfgd"))
    assert count() == (0, None)
    assert count(labels=labels) == (len(heads), None)
    for wanted in (count(output_auxiliary_logits=True), model.train() and count()):
        assert wanted[0] == len(heads) and len(wanted[1] or ()) == len(heads) + others
    assert count(output_auxiliary_logits=False) == (0, None)


def build_with_auxiliary_heads(model_type):
    """As `build`; Semantic FPN has its head only when asked."""
    torch.manual_seed(0)
    extra = dict(use_auxiliary_head=True, auxiliary_channels=8) if model_type == "vss_semantic_fpn" else {}
    return AutoModelForSemanticSegmentation.from_config(build_config(model_type, **extra)).eval()


@every_architecture
def test_a_frame_is_labelled_at_its_own_size(model_type, tmp_path):
    model = build(model_type)
    model.save_pretrained(tmp_path)
    VSSImageProcessor().save_pretrained(tmp_path)
    segmenter = VideoSegmenter.from_pretrained(tmp_path, "cpu")
    frame = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    labels = segmenter.step(frame)
    assert labels.shape == (45, 70) and labels.dtype == np.uint8 and labels.max() < 5


@every_architecture
def test_gradient_checkpointing_changes_memory_only(model_type):
    """Dropout and drop path draw the same numbers again; BatchNorm counts a batch once."""
    results = []
    for checkpointing in (False, True):
        model = build(model_type).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        loss = model(torch.randn(2, 3, 64, 96), labels=torch.randint(0, 5, (2, 64, 96))).loss
        loss.backward()
        gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
        results.append({"loss": loss.detach(), **gradients, **dict(model.named_buffers())})
    for name, plain in results[0].items():
        largest = max(plain.abs().max().item(), 1e-3) if plain.is_floating_point() else 1
        torch.testing.assert_close(results[1][name], plain, rtol=0, atol=1e-4 * largest, msg=name)


@every_architecture
def test_bfloat16_training_step(model_type):
    model = build(model_type).to(torch.bfloat16).train()
    labels = torch.randint(0, 5, (2, 33, 47))
    for autocast in (False, True):
        model = model.float() if autocast else model
        pixels = torch.randn(2, 3, 33, 47, dtype=torch.float32 if autocast else torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(pixels, labels=labels).loss
        model.zero_grad()
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@every_architecture
def test_compiles_without_graph_breaks(model_type):
    torch.compiler.reset()
    model = build(model_type)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    for size in ((64, 96), (33, 47)):
        pixels = torch.randn(1, 3, *size)
        torch.testing.assert_close(scores(compiled, pixels), scores(model, pixels), rtol=1e-4, atol=1e-5)


@every_architecture
def test_wrong_backbones_and_images_are_named(model_type):
    with pytest.raises((ValueError, StrictDataclassError), match="'swim' is not known; did you mean 'swin'"):
        build_config(model_type, backbone_config={"model_type": "swim"})
    with pytest.raises((ValueError, StrictDataclassError), match="bert"):
        build_config(model_type, backbone_config={"model_type": "bert"})
    if "mask" in model_type:  # transformers' pad what they need
        assert scores(build(model_type), torch.zeros(1, 3, 16, 64)).isfinite().all()
    else:
        with pytest.raises(ValueError, match=r"\(1, 3, 16, 64\).*at least 32"):
            build(model_type)(torch.zeros(1, 3, 16, 64))


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid_configurations(name, tmp_path):
    config = config_from_preset(name, id2label=dict(enumerate(NAMES)))
    assert config.num_labels == 5
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize("name", known_backbones())
def test_published_backbones_are_valid_configurations(name, tmp_path):
    config = AutoConfig.for_model(**backbone_fields(name))
    assert config.out_features == STAGES
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize("model_type", BACKBONES)
def test_misspelt_choices_of_maps_are_refused(model_type):
    with pytest.raises((ValueError, StrictDataclassError), match="no field 'out_feature'; did you mean"):
        configuration_class(model_type)(out_feature=["stage1"])
    with pytest.raises((ValueError, StrictDataclassError), match="stage9"):
        configuration_class(model_type)(out_features=["stage9"])
