"""CascadePSP for label maps: against the published scripts in float64, stub networks, batches, options, folders."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from tiny_models import NAMES, moving_frames, save_model
from torch import nn
from torch.nn import functional as F

from vss_hf.cli import main
from vss_hf.inference import VideoSegmenter
from vss_hf.modeling.configuration_cascade_psp import BACKBONE, CascadePSPConfig
from vss_hf.modeling.modeling_cascade_psp import CascadePSPModel, CascadePSPOutput
from vss_hf.refinement import CascadePSP
from vss_hf.refinement.cascade_psp import STUFF, CascadePSPSettings, Coarse, Crop, MaskRefiner, normalised, parse


TINY = dict(
    backbone_config={
        **BACKBONE,
        "stem_channels": 4,
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 12, 16, 20],
        "dilations": [[1], [1], [1], [1]],
    },
    channels=10,
    pool_scales=[1, 2, 3],
    upsample_channels=[9, 7, 6],
    head_channels=5,
)


@torch.no_grad()
def tiny_network():
    """Random weights whose probabilities vary around a half, for masks as for images."""
    torch.manual_seed(0)
    model = CascadePSPModel(CascadePSPConfig(**copy.deepcopy(TINY))).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_var, 0.05, 0.3)
    inputs = [picture((64, 64), seed) for seed in range(4)]
    image = torch.stack([normalised(image, torch.device("cpu")) for image, _ in inputs])
    mask = torch.stack([torch.from_numpy(labels[None] % 2 * 2.0 - 1).float() for _, labels in inputs])
    for head, name in ((model.head_stride8, 8), (model.head_stride4, 4), (model.head_stride1, 1)):
        output = model(image, mask)
        logits = {8: output.logits_stride8[-1], 4: output.logits_stride4[-1], 1: output.logits}[name]
        head[2].weight.mul_(2 / logits.std())
        head[2].bias.copy_((head[2].bias - logits.mean()) * 2 / logits.std())
    return model


@pytest.fixture(scope="module")
def network():
    return tiny_network()


def picture(size, seed=0, grain=23, classes=4):
    """An image and a label map of coarse patches."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size[0] // 11 + 1, size[1] // 11 + 1, 3), dtype=np.uint8)
    image = np.kron(image, np.ones((11, 11, 1), np.uint8))[: size[0], : size[1]]
    patches = rng.integers(0, classes, (size[0] // grain + 2, size[1] // grain + 2))
    labels = np.kron(patches, np.ones((grain, grain), int))[7 : size[0] + 7, 4 : size[1] + 4]
    return image, labels.astype(np.uint8)


# --- the published scripts, written down in float64


class Reference:
    """CascadePSP's evaluation scripts for scene parsing, in float64, one region, window and pixel class at a time."""

    def __init__(self, model, longest, stride, min_size, global_only, min_area, stuff):
        self.model = copy.deepcopy(model).double()
        self.longest, self.stride, self.min_size = longest, stride, min_size
        self.global_only, self.min_area, self.stuff = global_only, min_area, stuff

    def forward(self, image, mask, stride8=None):
        """Probabilities of full resolution and of stride 4, of an input padded by hand."""
        height, width = mask.shape[2:]
        tensors = [image, mask] + ([] if stride8 is None else [stride8])
        if height % 8 or width % 8:
            right, bottom = (width // 8 + 1) * 8 - width, (height // 8 + 1) * 8 - height
            fills = (0.0, -1.0, -1.0)
            tensors = [F.pad(t, (0, right, 0, bottom), value=fill) for t, fill in zip(tensors, fills, strict=False)]
        with torch.no_grad():
            output = self.model(*tensors)
        cut = (..., slice(0, height), slice(0, width))
        return output.logits[cut].sigmoid(), output.logits_stride4[-1][cut].sigmoid()

    def refine(self, image, mask):
        """Probabilities (h, w) of a crop."""
        height, width = mask.shape[2:]
        side = max(height, width)
        small, small_mask = image, mask
        if self.global_only and side < self.min_size:
            factor = self.min_size / side
            small = F.interpolate(image, scale_factor=factor, mode="bicubic", align_corners=False)
            small_mask = F.interpolate(mask, scale_factor=factor, mode="bilinear", align_corners=False)
        elif side > self.longest:
            small, small_mask = (
                F.interpolate(t, scale_factor=self.longest / side, mode="area") for t in (image, mask)
            )
        final, stride4 = self.forward(small, small_mask)
        if self.global_only:
            how = dict(mode="area") if side < self.min_size else dict(mode="bilinear", align_corners=False)
            return F.interpolate(final, size=(height, width), **how)[0, 0]
        final, stride4 = (F.interpolate(t, size=(height, width), mode="bilinear") for t in (final, stride4))
        mask = (final > 0.5).double()
        total, count, seen = torch.zeros(height, width).double(), torch.zeros(height, width).double(), set()
        step = self.stride - 32
        for i in range(width // step + 1):
            for j in range(height // step + 1):
                right, bottom = min(i * step + self.longest, width), min(j * step + self.longest, height)
                left = max(0, right - self.longest if i * step + self.longest > width else i * step)
                top = max(0, bottom - self.longest if j * step + self.longest > height else j * step)
                part = (..., slice(top, bottom), slice(left, right))
                if (top, left) in seen or not 0.1 <= mask[part].mean() <= 0.9:
                    continue
                seen.add((top, left))
                result = self.forward(image[part], mask[part] * 2 - 1, stride4[part] * 2 - 1)[0][0, 0]
                for y in range(top + 16 * (top > 0), bottom - 16 * (bottom < height)):
                    columns = np.arange(left + 16 * (left > 0), right - 16 * (right < width))
                    total[y, columns] += result[y - top, columns - left]
                    count[y, columns] += 1
        self.windows = len(seen)
        return torch.where(count == 0, mask[0, 0], total / count)

    def regions(self, labels):
        """(label, mask, top, bottom, left, right) of every region."""
        disc = [(y, x) for y in range(-5, 5) for x in range(-5, 5) if y * y + x * x <= 25]

        def over_disc(mask, outside, combine):
            padded = np.pad(mask, 5, constant_values=outside)
            height, width = mask.shape
            return combine.reduce([padded[5 + y : 5 + y + height, 5 + x : 5 + x + width] for y, x in disc])

        for label in np.unique(labels):
            of_class = labels == label
            if of_class.sum() <= self.min_area:
                continue
            components, number = ndimage.label(over_disc(of_class, False, np.logical_or), np.ones((3, 3)))
            for component in range(1, number + 1):
                eroded = over_disc(components == component, True, np.logical_and)
                mask = eroded & of_class
                if eroded.sum() <= self.min_area:
                    continue
                sides = []
                for inside, length in zip((mask.any(1), mask.any(0)), labels.shape, strict=True):
                    first, last = np.nonzero(inside)[0][[0, -1]]
                    margin = (last - first) / 8
                    sides += [int(max(0, first - margin)), int(min(length - 1, last + margin))]
                yield label, mask, *sides

    def __call__(self, image, labels):
        pixels = torch.from_numpy(image).double().permute(2, 0, 1)[None] / 255
        mean, std = (torch.tensor(v).double().view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        pixels = (pixels - mean) / std
        result, confidence = labels.copy(), np.full(labels.shape, 0.5)
        for label, mask, top, bottom, left, right in self.regions(labels):
            seen = torch.from_numpy(mask[top:bottom, left:right] * 2.0 - 1)[None, None]
            claim = self.refine(pixels[:, :, top:bottom, left:right], seen).numpy()
            claim = claim * (0.51 if label in self.stuff else 1)
            window = result[top:bottom, left:right], confidence[top:bottom, left:right]
            window[0][claim > window[1]] = label
            window[1][:] = np.maximum(window[1], claim)
        return result


CASES = {
    "within L": dict(longest=200, stride=100),
    "smaller than the frame": dict(longest=72, stride=60),
    "windows that leave gaps": dict(longest=66, stride=66),
    "global": dict(longest=200, min_size=10, global_only=True),
    "global, enlarged": dict(longest=300, min_size=100, global_only=True),
    "global, reduced": dict(longest=80, min_size=10, global_only=True),
}


@pytest.mark.parametrize("case,size", [*((case, (97, 131)) for case in CASES), ("smaller than the frame", (128, 90))])
def test_label_maps_are_those_of_the_published_scripts(network, case, size):
    image, labels = picture(size)
    settings = {"stride": None, "min_size": 224, "global_only": False, "min_area": 300, **CASES[case]}
    step = CascadePSP(
        network,
        CascadePSPSettings(
            "",
            max_side=settings["longest"],
            stuff=("b",),
            **{name: settings[name] for name in ("stride", "min_size", "global_only", "min_area")},
        ),
    )
    step.set_names(["a", "b", "c", "d"])
    refined = step(image, labels, None)
    reference = Reference(network, stuff={1}, **settings)
    assert len(list(reference.regions(labels))) >= 3
    wanted = reference(image, labels)
    assert refined.dtype == np.uint8 and np.array_equal(refined, wanted)
    assert 0.02 < np.mean(refined != labels) < 0.9


@pytest.mark.parametrize(
    "size,windows", [((90, 150), 18), ((75, 161), 14), ((66, 66), 1), ((40, 300), 14)], ids=lambda value: str(value)
)
def test_windows_are_averaged_as_in_a_loop(network, size, windows):
    """Some of the windows that there are hold no border and are left out."""
    image, labels = picture(size)
    crop = Crop(normalised(image, torch.device("cpu")), torch.from_numpy(labels[None] % 2 * 2.0 - 1).float())
    refiner = MaskRefiner(network, CascadePSPSettings("", max_side=70, stride=50, batch_size=3))
    reference = Reference(network, 70, 50, 0, False, 0, ())
    wanted = reference.refine(crop.image[None].double(), crop.mask[None].double())
    with torch.no_grad():
        ((place, refined),) = refiner.refined([crop])
    assert place == 0 and 0.5 * windows < reference.windows <= windows
    torch.testing.assert_close(refined.double(), wanted, rtol=0, atol=1e-4)


# --- stub networks


class Copying(nn.Module):
    """Gives its mask back, and notes the sizes of its inputs."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, pixel_values, mask, mask_stride8=None, mask_stride4=None, return_dict=None):
        assert pixel_values.shape == (len(mask), 3, *mask.shape[2:]) and mask.abs().eq(1).all()
        self.sizes.append(tuple(mask.shape))
        return CascadePSPOutput(mask * 20, (mask * 20,), (mask * 20,))


def vspw_step(network, **options):
    """A step for a model of four classes, two of which are stuff."""
    step = CascadePSP(network, CascadePSPSettings("", **{"min_area": 50, **options}))
    step.set_names(["person", "sky", "wall", "car"])
    return step


@pytest.mark.parametrize("size", [(97, 131), (64, 64), (31, 200), (23, 20)])
@pytest.mark.parametrize("options", [{}, {"global_only": True, "min_size": 0}], ids=["both steps", "global"])
def test_a_network_that_changes_nothing_changes_no_label(size, options):
    """At full resolution: masks that were enlarged or reduced are not what they were."""
    for seed in range(3):
        image, labels = picture(size, seed, grain=11)
        labels[seed::7, 3] = 2  # single pixels
        network = Copying()
        assert np.array_equal(vspw_step(network, **options)(image, labels), labels)
        assert network.sizes


def test_windows_that_change_nothing_change_nothing():
    """The local step alone, on windows smaller than the frame."""
    image, labels = picture((150, 201))
    mask = torch.from_numpy(labels[None] % 2 * 1.0).float()
    crop = Crop(normalised(image, torch.device("cpu")), mask * 2 - 1)
    refiner = MaskRefiner(Copying(), CascadePSPSettings("", max_side=70, stride=50))
    (refined,) = refiner.local_step([crop], [Coarse(mask, mask)])
    assert torch.equal(refined > 0.5, mask[0] > 0.5) and len(refiner.model.sizes) > 10


@pytest.mark.parametrize("labels", [np.zeros((40, 50), np.uint8), np.full((40, 50), 3, np.uint8)])
def test_a_map_of_one_class_stays(network, labels):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert np.array_equal(vspw_step(network)(image, labels), labels)
    unused = Copying()
    small = vspw_step(unused, min_area=4000)(image, labels)
    assert np.array_equal(small, labels) and unused.sizes == []


def test_a_small_region_stays_until_a_neighbour_takes_it():
    class Everything(Copying):
        def forward(self, pixel_values, mask, *others, return_dict=None):
            return super().forward(pixel_values, mask.new_ones(mask.shape), *others)

    image, labels = picture((60, 80), classes=1)
    labels[20:30, 20:30] = 3  # no region of its own
    assert np.array_equal(vspw_step(Copying(), min_area=200)(image, labels), labels)
    taken = vspw_step(Everything(), min_area=200)(image, labels)
    assert not taken.any()
    # As stuff it takes it only with near certainty.
    unsure = vspw_step(Everything(), min_area=200, stuff=("person",), stuff_factor=0.4)(image, labels)
    assert np.array_equal(unsure, labels)


# --- batches


def test_batches_give_what_each_alone_gives(network):
    image, labels = picture((120, 170), classes=5, grain=30)
    results = []
    for batch_size in (1, 2, 7):
        step = vspw_step(network, batch_size=batch_size, max_side=100)
        step.set_names(list("abcde"))
        results.append(step(image, labels))
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
    assert not np.array_equal(results[0], labels)


def test_regions_of_one_padded_size_go_together():
    """Boxes of 37 and 40 rows are both padded to 40 where their columns are no multiples of 8, or to 48."""
    sizes = [(37, 50), (40, 50), (37, 50), (39, 56), (37, 49), (40, 56)]
    padded = {(37, 50): (40, 56), (40, 50): (48, 56), (39, 56): (40, 64), (37, 49): (40, 56), (40, 56): (40, 56)}
    crops = [Crop(torch.zeros(3, *size), torch.ones(1, *size)) for size in sizes]
    network = Copying()
    network.forward = lambda image, mask, *_, return_dict: (  # masks hold padding here
        network.sizes.append(tuple(mask.shape)),
        CascadePSPOutput(mask, (mask,), (mask,)),
    )[1]
    refiner = MaskRefiner(network, CascadePSPSettings("", global_only=True, min_size=0, batch_size=3))
    places = [place for place, mask in refiner.refined(crops) if mask.shape == sizes[place]]
    assert sorted(places) == list(range(6))
    assert sorted(network.sizes) == [(1, 1, 40, 56), (1, 1, 40, 64), (1, 1, 48, 56), (3, 1, 40, 56)]
    assert {padded[size] for size in sizes} == {size[2:] for size in network.sizes}


def test_padding_to_a_common_size_would_change_masks(network):
    """Why only boxes of one size go together: the network averages over all that it sees."""
    image, labels = picture((40, 56))
    pixels = normalised(image, torch.device("cpu"))[None]
    mask = torch.from_numpy(labels[None, None] % 2 * 2.0 - 1).float()
    with torch.no_grad():
        alone = network(pixels, mask).logits.sigmoid()
        larger = network(F.pad(pixels, (0, 40, 0, 24)), F.pad(mask, (0, 40, 0, 24), value=-1.0)).logits.sigmoid()
    assert (larger[..., :40, :56] - alone).abs().max() > 0.05


def test_half_precision(network):
    image, labels = picture((97, 131))
    crop = Crop(normalised(image, torch.device("cpu")), torch.from_numpy(labels[None] % 2 * 2.0 - 1).float())
    results = []
    for dtype in ("float32", "bfloat16"):
        refiner = MaskRefiner(network, CascadePSPSettings("", global_only=True, dtype=dtype))
        with torch.no_grad():
            results += [mask for _, mask in refiner.refined([crop])]
    assert all(mask.dtype == torch.float32 for mask in results)
    assert 0 < (results[0] - results[1]).abs().mean() < 0.03
    with pytest.raises(ValueError, match="'float16' needs a GPU"):
        CascadePSP(network, CascadePSPSettings("", dtype="float16"))


# --- options, folders


def test_stuff_goes_by_names(network):
    assert "sky" in STUFF and "wall" in STUFF and "person" not in STUFF and len(STUFF) == 66
    step = CascadePSP(network, CascadePSPSettings("folder"))
    with pytest.raises(RuntimeError, match="does not know the class names"):
        step(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8))
    assert step.settings["stuff"] is None
    step.set_names(["Sky", "person", "cloud", "road"])  # CamVid writes Sky; no class of VSPW is called cloud
    assert step.stuff == {0: "Sky", 3: "road"} and step.settings["stuff"] == ["Sky", "road"]
    step = CascadePSP(network, CascadePSPSettings("folder", stuff=["cloud"]))
    step.set_names(["Sky", "person", "cloud", "road"])
    assert step.stuff == {2: "cloud"} and json.loads(json.dumps(step.settings))["stuff"] == ["cloud"]
    with pytest.raises(ValueError, match="stuff: the model has no class 'cloud'; did you mean 'clouds'"):
        step.set_names(["clouds", "person"])
    step = CascadePSP(network, CascadePSPSettings("folder", stuff=()))
    step.set_names(["sky"])
    assert step.stuff == {}


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"max_sid": 1}, "--refine cascade-psp has no field 'max_sid'; did you mean 'max_side'?"),
        ({"max_side": 60}, "--refine cascade-psp.max_side: expected a whole number from 66; found 60"),
        ({"max_side": "900"}, "--refine cascade-psp.max_side: expected a whole number; found '900'"),
        ({"stride": 32}, "--refine cascade-psp.stride: expected more than 32, up to max_side (900); found 32"),
        ({"stride": 500, "max_side": 400}, "stride: expected more than 32, up to max_side (400); found 500"),
        ({"stuff_factor": 0}, "--refine cascade-psp.stuff_factor: expected more than 0, up to 1; found 0"),
        ({"batch_size": 0}, "--refine cascade-psp.batch_size: expected a whole number from 1; found 0"),
        ({"dtype": "fp16"}, "--refine cascade-psp.dtype: there is no 'fp16'; did you mean 'float16'?"),
        ({"stuff": [1]}, "--refine cascade-psp.stuff: expected text; found 1"),
    ],
)
def test_settings_that_cannot_be(fields, message):
    with pytest.raises(ValueError) as caught:
        parse({"model": "nowhere", **fields}, torch.device("cpu"), "--refine cascade-psp")
    assert message in str(caught.value)


def test_folders_that_hold_something_else(tmp_path):
    save_model(tmp_path / "model")
    with pytest.raises(ValueError, match="model holds a model of type 'vss_ocrnet'; expected a 'vss_cascade_psp'"):
        CascadePSP.from_pretrained(str(tmp_path / "model"), "cpu")
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        with pytest.raises(FileNotFoundError, match=name):
            parse(str(tmp_path / name), torch.device("cpu"), "--refine cascade-psp")
    with pytest.raises(ValueError, match="--refine cascade-psp: the field 'model' is missing"):
        parse({"global_only": True}, torch.device("cpu"), "--refine cascade-psp")


@pytest.fixture(scope="module")
def places(network, tmp_path_factory):
    """A model, a refiner, and a data set of one video."""
    folder = tmp_path_factory.mktemp("places")
    save_model(folder / "model")
    network.save_pretrained(folder / "refiner")
    names = {"others": 0, **{name: i + 1 for i, name in enumerate(NAMES)}}
    for kind in ("origin", "mask"):
        (folder / "root/data/one" / kind).mkdir(parents=True)
    (folder / "root/label_num_dic_final.json").write_text(json.dumps(names))
    (folder / "root/val.txt").write_text("one\n")
    for number, frame in enumerate(moving_frames(3)):
        Image.fromarray(frame).save(folder / f"root/data/one/origin/{number:08d}.png")
        Image.fromarray(frame[..., 0] % 5 + 1).save(folder / f"root/data/one/mask/{number:08d}.png")
    return folder


def test_in_a_segmenter(places, network):
    options = dict(min_area=60, stuff=("sky",))
    step = CascadePSP.from_pretrained(str(places / "refiner"), "cpu", **options)
    frames = moving_frames(3)
    plain = VideoSegmenter.from_pretrained(places / "model", "cpu").label_batch(frames)
    refined = VideoSegmenter.from_pretrained(places / "model", "cpu", label_steps=[step]).label_batch(frames)
    wanted = [step(frame, labels) for frame, labels in zip(frames, plain, strict=True)]
    assert step.stuff == {2: "sky"} and np.array_equal(refined, wanted) and not np.array_equal(refined, plain)


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def test_from_the_command_line(places, tmp_path, capsys):
    """A folder alone, and fields; results say what was done, and files hold the step's labels."""
    refiner, model, root = places / "refiner", places / "model", places / "root"
    words = ("--refine", f"cascade-psp:{refiner}")
    device = ("--device", "cpu", "--num-workers", 0)
    assert run("evaluate", model, "--data", root, *words, *device, "--json", tmp_path / "e") == 0
    (recorded,) = json.loads((tmp_path / "e").read_text())["label_steps"]
    assert recorded == {
        "step": "CascadePSP",
        "model": str(refiner),
        "global_only": False,
        "max_side": 900,
        "stride": None,
        "min_size": 224,
        "min_area": 1024,
        "stuff": NAMES,
        "stuff_factor": 0.51,
        "batch_size": 2,
        "dtype": "float32",
    }
    words = ("--refine", f"cascade-psp:{{model: {refiner}, global_only: true, min_area: 60, stuff: [sky]}}")
    out = ("--split", "val", "--out", tmp_path / "masks", "--device", "cpu", "--json", tmp_path / "p")
    assert run("predict", model, root, *words, *out) == 0
    (recorded,) = json.loads((tmp_path / "p").read_text())["label_steps"]
    assert recorded["model"] == str(refiner) and recorded["global_only"] and recorded["stuff"] == ["sky"]
    step = CascadePSP.from_pretrained(str(refiner), "cpu", global_only=True, min_area=60, stuff=("sky",))
    wanted = VideoSegmenter.from_pretrained(model, "cpu", label_steps=[step]).label_batch(moving_frames(3))
    plain = VideoSegmenter.from_pretrained(model, "cpu").label_batch(moving_frames(3))
    written = [np.array(Image.open(path)) for path in sorted(tmp_path.glob("masks/one/*.png"))]
    assert np.array_equal(written, wanted) and not np.array_equal(wanted, plain)
    capsys.readouterr()
    assert run("evaluate", model, "--data", root, "--refine", f"cascade-psp:{model}", *device) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "--refine cascade-psp:" in message and "model of type 'vss_ocrnet'; expected a 'vss_cascade_psp'" in message
