"""InternImage's releases: every name of the full-size networks has a place, and nothing is dropped unseen."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from vss_hf.convert import load_reference_state_dict
from vss_hf.convert.internimage import LAYERS
from vss_hf.convert.tables import rename
from vss_hf.modeling.configuration_internimage import INTERNIMAGE_SIZES, InternImageConfig
from vss_hf.modeling.modeling_internimage import InternImageBackbone


MANIFESTS = Path(__file__).resolve().parents[2] / "../shared/parity/15_key_manifests"
SMALL = dict(channels=8, depths=(1, 1, 2, 1), groups=(1, 2, 4, 8))
LIKE_T = SMALL
LIKE_S = dict(**SMALL, layer_scale=1e-5, post_norm=True)
LIKE_H = dict(
    **SMALL, res_post_norm=True, dw_kernel_size=5, center_feature_scale=True, level2_post_norm=True,
    level2_post_norm_block_ids=(1,),
)  # fmt: skip
CLASSIFIER_T = {
    "conv_head.0.weight": (96, 64, 1, 1), "conv_head.1.0.weight": (96,), "conv_head.1.0.running_mean": (96,),
    "conv_head.1.0.num_batches_tracked": (), "head.weight": (10, 96), "head.bias": (10,),
}  # fmt: skip
CLASSIFIER_H = {
    "dcnv3_head_x4.0.weight": (64, 64, 1, 1), "dcnv3_head_x3.bias": (16,), "clip_projector.norm1_q.weight": (16,),
    "clip_projector.cross_dcn.q.weight": (16, 16), "fc_norm.0.weight": (12,), "head.weight": (10, 12),
}  # fmt: skip


# Every name of ours by the original's, written by hand and not by the table.
def reference_names(model) -> dict[str, str]:
    def original(name: str) -> str:
        if name.startswith("stem.norm"):
            return (
                name.replace("stem.", "patch_embed.").replace(".norm1.", ".norm1.1.").replace(".norm2.", ".norm2.1.")
            )
        if name.startswith("stem."):
            return name.replace("stem.", "patch_embed.")
        if name.startswith("downsamples."):
            _, level, part, kind = name.split(".")
            return f"levels.{level}.downsample.{part}.{'1.' if part == 'norm' else ''}{kind}"
        name = name.replace("stages.", "levels.")
        for own, theirs in {
            ".dw_conv.": ".dw_conv.0.", ".dw_norm.": ".dw_conv.1.1.", ".layer_scale": ".gamma",
            ".center_feature_scale_proj.": ".center_feature_scale_proj_",
        }.items():  # fmt: skip
            name = name.replace(own, theirs)
        *path, module, kind = name.split(".")
        is_norm = "norm" in module and "dcn" not in path
        is_post_norm = path[-1:] == ["post_norms"]
        return ".".join([*path, module, *(["0"] if is_norm or is_post_norm else []), kind])

    return {name: original(name) for name in model.state_dict()}


def backbone(**fields) -> InternImageBackbone:
    torch.manual_seed(0)
    model = InternImageBackbone(InternImageConfig(**fields))
    for parameter in model.parameters():  # no zeros, no two alike
        torch.nn.init.normal_(parameter)
    return model


def released(model, prefix="", extra=(), factor="gamma") -> dict[str, torch.Tensor]:
    """The model's tensors as a release names them."""
    tensors = model.state_dict()
    names = reference_names(model)
    tensors = {prefix + names[name].replace("gamma", factor): tensor.clone() for name, tensor in tensors.items()}
    return {**tensors, **{prefix + name: torch.zeros(shape) for name, shape in dict(extra).items()}}


RELEASES = {
    "classification of T": (LIKE_T, "", CLASSIFIER_T, "gamma"),
    "classification of S": (LIKE_S, "", CLASSIFIER_T, "gamma"),
    "classification and joint pre-training of H": (LIKE_H, "", CLASSIFIER_H, "gamma"),
    "the Hub's S": (LIKE_S, "model.", CLASSIFIER_T, "layer_scale"),
    "the Hub's H": (LIKE_H, "model.", CLASSIFIER_H, "layer_scale"),
    "segmentation": (LIKE_S, "backbone.", {}, "gamma"),
}


@pytest.mark.parametrize("release", RELEASES)
def test_every_kind_of_release_fills_the_backbone(release):
    fields, prefix, extra, factor = RELEASES[release]
    original, copy = backbone(**fields), InternImageBackbone(InternImageConfig(**fields))
    report = load_reference_state_dict(copy, released(original, prefix, extra, factor), "internimage")
    assert sorted(report.loaded) == sorted(copy.state_dict()) and not report.kept
    assert sorted(report.unused) == sorted(prefix + name for name in extra) and all(report.unused.values())
    for name, tensor in original.state_dict().items():
        assert torch.equal(copy.state_dict()[name], tensor), name


def test_heads_of_a_segmentation_file_are_named_as_unused():
    model = backbone(**LIKE_S)
    heads = {"decode_head.conv_seg.weight": torch.zeros(3), "auxiliary_head.convs.0.bn.weight": torch.zeros(3)}
    report = load_reference_state_dict(model, {**released(model, "backbone."), **heads}, "internimage")
    assert set(report.unused) == set(heads)


def test_a_classifier_t_may_start_a_segmentation_t():
    """The classifiers of T have no factors; the segmentation recipe adds them with 1, which changes nothing."""
    classifier = backbone(**LIKE_T).eval()
    segmentation = InternImageBackbone(InternImageConfig(**LIKE_T, layer_scale=1.0)).eval()
    report = load_reference_state_dict(segmentation, released(classifier), "internimage")
    assert len(report.kept) == 10 and all("layer_scale" in name for name in report.kept)
    pixels = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        assert torch.equal(segmentation(pixels).feature_maps[0], classifier(pixels).feature_maps[0])


@pytest.mark.parametrize("fields", [LIKE_S, {**LIKE_S, "layer_scale": 1.0}, {**LIKE_T, "layer_scale": 1e-5}])
def test_other_missing_factors_are_an_error(fields):
    model = backbone(**fields)
    tensors = {name: tensor for name, tensor in released(model).items() if "gamma" not in name}
    with pytest.raises(ValueError, match=r"missing: .*stages\.0\.blocks\.0\.layer_scale1"):
        load_reference_state_dict(model, tensors, "internimage")


def test_missing_unknown_misshapen_and_doubled_tensors_are_errors():
    model = backbone(**LIKE_H)
    tensors = released(model)
    with pytest.raises(ValueError, match=r"levels\.0\.blocks\.0\.dcn\.speed"):
        load_reference_state_dict(model, {**tensors, "levels.0.blocks.0.dcn.speed": torch.zeros(1)}, "internimage")
    with pytest.raises(ValueError, match=r"levels\.7\.norm\.0\.weight"):
        load_reference_state_dict(model, {**tensors, "levels.7.norm.0.weight": torch.zeros(8)}, "internimage")
    with pytest.raises(ValueError, match=r"other shape: stem\.conv1\.bias"):
        load_reference_state_dict(model, {**tensors, "patch_embed.conv1.bias": torch.zeros(3)}, "internimage")
    with pytest.raises(ValueError, match=r"one place in our model: stem\.conv1\.bias"):
        load_reference_state_dict(model, {**tensors, "model.patch_embed.conv1.bias": torch.zeros(4)}, "internimage")
    name = "levels.2.post_norms.0.0.weight"
    lacking = {key: tensor for key, tensor in tensors.items() if key != name}
    with pytest.raises(ValueError, match=r"missing: stages\.2\.post_norms\.0\.weight"):
        load_reference_state_dict(model, lacking, "internimage")
    with pytest.raises(ValueError, match="unexpected: .*res_post_norm"):  # an H checkpoint, a T configuration
        load_reference_state_dict(InternImageBackbone(InternImageConfig(**LIKE_T)), tensors, "internimage")


@pytest.mark.parametrize("size", INTERNIMAGE_SIZES)
def test_names_and_shapes_of_full_size_networks(size):
    manifest = MANIFESTS / f"internimage_{size.removeprefix('internimage-')}_upernet.json.gz"
    if not manifest.is_file():
        pytest.skip(f"key manifest not found at {manifest}")
    with gzip.open(manifest, "rt") as file:
        tensors = {name: torch.empty(shape, device="meta") for name, shape in json.load(file).items()}
    with torch.device("meta"):
        model = InternImageBackbone(InternImageConfig(**INTERNIMAGE_SIZES[size]))
    report = load_reference_state_dict(model, tensors, "internimage")
    assert len(report.loaded) == len(model.state_dict()) and not report.kept
    assert all(name.startswith(("decode_head.", "auxiliary_head.")) for name in report.unused)
    # The same rows serve as the backbone's part of an mmseg model's table.
    own = {n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.")}
    assert set(rename(own, LAYERS).tensors) == set(model.state_dict())
