"""CAR's losses against their formulas, place by place in float64; in two processes; and what gets a gradient."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_dense import LargestTensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from vss_hf.modeling.car import car_loss, labels_of_places


K = 5
EACH = {"intra": (1, 0, 0), "inter_c2c": (0, 1, 0), "inter_c2p": (0, 0, 1), "all": (1.0, 0.5, 3.0)}
each_loss = pytest.mark.parametrize("rates", EACH.values(), ids=list(EACH))
both_modes = pytest.mark.parametrize("faithful", [False, True])


def weights(rates):
    return dict(zip(("intra", "inter_c2c", "inter_c2p"), rates, strict=True))


def example(size=(4, 5), label_size=(11, 13), dtype=torch.float64, images=2):
    """Features, and labels with void parts in which class 3 does not occur."""
    torch.manual_seed(0)
    labels = torch.randint(0, K, (images, *label_size))
    labels[labels == 3] = 255
    labels[0, : label_size[0] // 3] = 255
    features = 2 * torch.randn(images, 6, *size, dtype=torch.float64)
    places = F.interpolate(labels[:, None].double(), size=size, mode="nearest-exact")[:, 0]
    features += places.sin()[:, None]  # so that classes have something in common
    return features.to(dtype).requires_grad_(), labels


def formulas(x, labels, rates, faithful, num_labels=K, frozen=None):
    """The three losses as they are written, with Python's loops; `frozen`: centres that get no gradient."""
    (_, channels, h, w), (height, width) = x.shape, labels.shape[1:]
    places = [
        (x[n, :, i, j], int(labels[n, int((i + 0.5) * height / h), int((j + 0.5) * width / w)]))
        for n in range(len(x)) for i in range(h) for j in range(w)
    ]  # fmt: skip
    centers = {k: [value for value, y in places if y == k] for k in range(num_labels)}
    centers = {k: sum(values) / len(values) if values else 0 * x[0, :, 0, 0] for k, values in centers.items()}
    fixed = {k: center.detach() for k, center in centers.items()} if frozen is None else frozen
    classes = [k for k in range(num_labels) if faithful or any(y == k for _, y in places)]
    counted = [(value, y) for value, y in places if faithful or y != 255]
    least = 1 / max(len(classes) - 1, 1)

    distance = sum((fixed[y] - value).abs().sum() for value, y in places if y != 255)
    intra = (distance / (len(counted) * channels)) ** 2
    if faithful and intra < 1e-5:
        intra = torch.tensor(1e-5, dtype=x.dtype)

    def others(products, own, threshold):
        """Σ over other classes of what their softmax has above the threshold; products {class: number}."""
        total = sum(value.exp() for value in products.values())
        excess = [(value.exp() / total - threshold).clamp(min=0) for k, value in products.items() if k != own]
        total = sum(excess, torch.zeros((), dtype=x.dtype))
        return total.clamp(1e-7, 1 - 1e-7) if faithful else total

    of_classes = [
        others({j: centers[k] @ fixed[j] / math.sqrt(channels) for j in classes}, k, 0.5 * least) for k in classes
    ]
    of_places = [
        others({j: (fixed[j] if j == y else value) @ fixed[j] / math.sqrt(channels) for j in classes}, y, 0.25 * least)
        for value, y in counted
    ]
    losses = (intra, (sum(of_classes) / len(of_classes)) ** 2, (sum(of_places) / len(of_places)) ** 2)
    return sum(rate * loss for rate, loss in zip(rates, losses, strict=True)), centers


# --- value and gradient


@both_modes
@each_loss
@pytest.mark.parametrize("size", [(4, 5), (11, 13), (1, 1)])
def test_value_and_gradient_are_those_of_the_formulas(rates, faithful, size):
    features, labels = example(size, images=2 if size != (1, 1) else 3)
    exact = features.detach().clone().requires_grad_()
    expected, _ = formulas(exact, labels, rates, faithful)
    loss = car_loss(features, labels, num_labels=K, faithful=faithful, **weights(rates))
    exactness = 1e-5 if faithful else 1e-9  # not so faithful that a sum is at least 1e-7
    assert loss.item() == pytest.approx(expected.item(), rel=exactness, abs=1e-12)
    if expected.requires_grad:
        expected.backward()
        loss.backward()
        torch.testing.assert_close(features.grad, exact.grad, rtol=exactness, atol=exactness / 100)
    if size == (4, 5):
        assert loss > 1e-3 and features.grad.abs().max() > 1e-4  # something was compared
        single = features.detach().float()
        assert car_loss(single, labels, num_labels=K, faithful=faithful, **weights(rates)).item() == pytest.approx(
            loss.item(), rel=1e-5
        )


@both_modes
@pytest.mark.parametrize("name", ["intra", "inter_c2c", "inter_c2p"])
def test_centres_are_constants_where_the_paper_stops_the_gradient(name, faithful):
    """The gradient is the slope of the formulas with those centres held fast: by finite differences."""
    rates = EACH[name]
    features, labels = example((2, 3))
    features = (0.3 * features).detach().requires_grad_()  # softmaxes that are not all at one class
    car_loss(features, labels, num_labels=K, faithful=faithful, **weights(rates)).backward()
    with torch.no_grad():
        x = features.detach().clone()
        _, frozen = formulas(x, labels, rates, faithful)
        slopes = torch.zeros_like(x)
        for place in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
            values = []
            for step in (1e-6, -1e-6):
                moved = x.clone()
                moved[tuple(place)] += step
                values.append(formulas(moved, labels, rates, faithful, frozen=frozen)[0])
            slopes[tuple(place)] = (values[0] - values[1]) / 2e-6
    torch.testing.assert_close(features.grad, slopes, rtol=1e-5, atol=1e-7)
    assert slopes.abs().max() > 1e-3


@both_modes
def test_classes_have_no_order(faithful):
    features, labels = example()
    results = []
    for order in (torch.arange(256), torch.cat([torch.tensor([2, 0, 4, 1, 3]), torch.arange(K, 256)])):
        features.grad = None
        loss = car_loss(features, order[labels], num_labels=K, faithful=faithful)
        loss.backward()
        results.append((loss.item(), features.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-12)


def test_classes_that_do_not_occur_change_nothing():
    """Nor do images without a label, unless the authors' code is asked for."""
    features, labels = example()
    loss = car_loss(features, labels, num_labels=K)
    assert car_loss(features, labels, num_labels=150).item() == pytest.approx(loss.item(), rel=1e-12)
    more = torch.cat([features, 9 * torch.ones_like(features[:1])])
    void = torch.cat([labels, torch.full_like(labels[:1], 255)])
    assert car_loss(more, void, num_labels=K).item() == pytest.approx(loss.item(), rel=1e-12)
    faithful = car_loss(features, labels, num_labels=K, faithful=True).item()
    assert abs(car_loss(features, labels, num_labels=150, faithful=True).item() - faithful) > 1e-3
    assert abs(car_loss(more, void, num_labels=K, faithful=True).item() - faithful) > 1e-3


@each_loss
def test_places_without_labels_have_no_gradient(rates):
    features, labels = example((11, 13))
    void = (labels == 255)[:, None].expand_as(features)
    car_loss(features, labels, num_labels=K, **weights(rates)).backward()
    assert not features.grad[void].any() and features.grad[~void].any()
    features.grad = None
    car_loss(features, labels, num_labels=K, faithful=True, **weights(rates)).backward()
    assert bool(features.grad[void].any()) == bool(rates[2])  # there `inter_c2p` counts them


@both_modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_labelled(faithful, dtype):
    features, labels = example(dtype=dtype)
    loss = car_loss(features, torch.full_like(labels, 255), num_labels=K, faithful=faithful, inter_c2p=not faithful)
    loss.backward()
    assert loss.isfinite() and (faithful or loss == 0) and not features.grad.any()


# --- dtypes and shapes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(dtype):
    features, labels = example(dtype=dtype)
    same = features.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = car_loss(features, labels, num_labels=K)
    expected = car_loss(same, labels, num_labels=K)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(features.grad, same.grad.to(dtype), rtol=1e-2, atol=1e-6)
    with torch.no_grad():
        assert car_loss(features * 1000, labels, num_labels=K).isfinite()  # their products are no half numbers


def test_label_dtypes_and_ignored_values():
    features, labels = example()
    loss = car_loss(features, labels, num_labels=K)
    assert torch.equal(car_loss(features, labels.to(torch.uint8), num_labels=K), loss)
    moved = labels.where(labels != 255, -100)
    assert torch.equal(car_loss(features, moved, num_labels=K, ignore_index=-100), loss)
    swapped = labels.where(labels != 255, 3)  # a class can be the ignored one
    assert car_loss(features, swapped, num_labels=K, ignore_index=3).item() == pytest.approx(loss.item(), rel=1e-12)
    with pytest.raises(ValueError, match=r"expected features \(N, C, h, w\) and labels .*; got \(2, 6, 4, 5\), \(1, "):
        car_loss(features, labels[:1], num_labels=K)


@pytest.mark.parametrize("num_labels", [1, 2])
def test_few_classes(num_labels):
    """One class has no others; it is pulled together all the same."""
    features, labels = example()
    labels = labels.where(labels == 255, labels % num_labels)
    inter = car_loss(features, labels, num_labels=num_labels, intra=0)
    assert (inter > 0) == (num_labels == 2)
    expected, _ = formulas(features.detach(), labels, (1, 1, 1), False, num_labels)
    assert car_loss(features, labels, num_labels=num_labels).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (11, 13), (20, 14), (6, 13)])
def test_labels_of_places(size):
    labels = torch.randint(0, 99, (2, 11, 13))
    expected = F.interpolate(labels[:, None].double(), size=size, mode="nearest-exact")[:, 0].long()
    assert torch.equal(labels_of_places(labels, size), expected)


def test_labels_of_places_with_aligned_corners():
    labels = torch.arange(13 * 9).view(1, 13, 9)
    assert torch.equal(labels_of_places(labels, (4, 3), True), labels[:, ::4, ::4])
    features, _ = example((4, 3))
    shifted = torch.randint(0, K, (2, 13, 9))
    loss = car_loss(features, shifted, num_labels=K, align_corners=True)
    assert torch.equal(loss, car_loss(features, shifted[:, ::4, ::4], num_labels=K))
    assert loss.item() != pytest.approx(car_loss(features, shifted, num_labels=K).item(), rel=1e-3)


def test_nothing_is_larger_than_the_features_or_a_map_of_classes():
    features, labels = example((9, 8), (72, 64), torch.float32)
    for num_labels, largest in ((5, features.numel()), (50, 2 * 50 * 9 * 8)):
        with LargestTensor() as mode:
            car_loss(features, labels, num_labels=num_labels).backward()
        assert mode.elements == max(largest, features.numel())


@both_modes
def test_nothing_waits_for_a_number_of_the_device(faithful):
    """Fake tensors have no numbers: whatever asks for one, an `item()` or an `if`, fails."""
    with FakeTensorMode():
        features = torch.randn(2, 8, 5, 6, requires_grad=True)
        labels = torch.zeros(2, 20, 24, dtype=torch.int64)
        car_loss(features, labels, num_labels=K, faithful=faithful).backward()


# --- several processes


def parts(case):
    """What two processes have: batches of 2 and 1 images, of different sizes; in "void" the second has no label."""
    features, labels = example(images=3)
    if case == "void":
        labels[2] = 255
    return [(features.detach()[:2], labels[:2]), (features.detach()[2:, :, :3], labels[2:])]


def process(rank, folder):
    """Value and gradient of one process, for both cases and modes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for case in ("labelled", "void"):
        for faithful in (False, True):
            features, labels = parts(case)[rank]
            features.requires_grad_()
            loss = car_loss(features, labels, num_labels=K, faithful=faithful)
            loss.backward()
            found[case, faithful] = (loss.detach(), features.grad)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@both_modes
@pytest.mark.parametrize("case", ["labelled", "void"])
def test_two_processes_are_one(processes, case, faithful):
    """Both have the loss of all places together; the sum of their losses has twice its gradient."""
    (first, labels), (second, more_labels) = parts(case)
    leaves = [first.clone().requires_grad_(), second.clone().requires_grad_()]
    # All places of both in one row, with the label that each has.
    features = torch.cat([leaf.transpose(0, 1).flatten(1) for leaf in leaves], dim=1)[None, :, None]
    places = [labels_of_places(y, tuple(x.shape[2:])).flatten() for x, y in ((first, labels), (second, more_labels))]
    loss = car_loss(features, torch.cat(places)[None, None], num_labels=K, faithful=faithful)
    loss.backward()
    for leaf, found in zip(leaves, processes, strict=True):
        value, gradient = found[case, faithful]
        assert value.item() == pytest.approx(loss.item(), rel=1e-12)
        torch.testing.assert_close(gradient / 2, leaf.grad, rtol=1e-9, atol=1e-13)
