"""`self_distillation` in `training.losses`: the loss, its teacher, and whole runs."""

import json
import shutil

import pytest
import tiny_mask_models
import torch
import yaml
from safetensors.torch import load_file
from tiny import (
    FrozenNorms,
    losses,
    make_default_data,
    make_trainer,
    state_of,
    tiny_clip_model,
    tiny_model,
    training_clips,
    write_recipe,
)
from torch.nn import functional as F

from vss_hf.inference.scores import semantic_scores
from vss_hf.modeling.image_processing_vss import VSSImageProcessor
from vss_hf.modeling.loading import load_segmentation_model
from vss_hf.modeling.outputs import SemanticSegmenterOutput
from vss_hf.training.distillation import Distillation, class_logits, distillation_loss, weights_sha256
from vss_hf.training.run import main


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_default_data(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="module")
def teacher(root, tmp_path_factory):
    """A model folder; the weights are not those that `tiny_model` starts from."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    model = tiny_model(root)
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def with_teacher(teacher, *others, **fields):
    return [*others, {"name": "self_distillation", "teacher": str(teacher), **fields}]


# --- the loss


def naive(logits, teacher, labels, temperature):
    """Pixel by pixel in float64: each reads the logits at the place that its centre lies in."""
    _, _, height, width = logits.shape
    total, count = torch.zeros((), dtype=torch.float64), 0
    for image in range(len(labels)):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                if labels[image, y, x] == 255:
                    continue
                place = (image, slice(None), int((y + 0.5) * height / labels.shape[1]),
                         int((x + 0.5) * width / labels.shape[2]))  # fmt: skip
                p = (teacher[place] / temperature).exp() / (teacher[place] / temperature).exp().sum()
                q = (logits[place] / temperature).exp() / (logits[place] / temperature).exp().sum()
                total, count = total + (p * (p / q).log()).sum(), count + 1
    return temperature**2 * total / max(count, 1)


def example(size=(3, 4), dtype=torch.float32):
    torch.manual_seed(0)
    logits, teacher = (3 * torch.randn(2, 5, *size)).to(dtype), (3 * torch.randn(2, 5, *size)).to(dtype)
    labels = torch.randint(0, 5, (2, 11, 13))
    labels[0, :6], labels[:, :, 3] = 255, 255
    return logits.requires_grad_(), teacher, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("size", [(3, 4), (11, 13), (16, 14)])
def test_value_and_gradient(temperature, size):
    logits, teacher, labels = example(size)
    exact = logits.detach().double().requires_grad_()
    expected = naive(exact, teacher.double(), labels, temperature)
    loss = distillation_loss(logits, teacher, labels, temperature=temperature)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(dtype):
    logits, teacher, labels = example(dtype=dtype)
    loss = distillation_loss(logits, teacher, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(distillation_loss(logits.float(), teacher.float(), labels).item(), rel=1e-6)
    loss.backward()
    assert logits.grad.isfinite().all()


def test_a_student_like_its_teacher_has_nothing_to_learn():
    logits, _, labels = example()
    loss = distillation_loss(logits, logits.detach().clone() + 3.0, labels)  # softmax knows no constant
    loss.backward()
    assert abs(loss.item()) < 1e-6 and logits.grad.abs().max() < 1e-7


def test_places_without_labels_have_no_gradient():
    logits, teacher, labels = example((11, 13))
    distillation_loss(logits, teacher, labels).backward()
    unlabelled = (labels == 255)[:, None].expand_as(logits)
    assert not logits.grad[unlabelled].any() and logits.grad[~unlabelled].any()
    logits.grad = None
    loss = distillation_loss(logits, teacher, torch.full_like(labels, 255))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_parts_of_a_step_add_up():
    logits, teacher, labels = example()
    count = (labels != 255).sum()
    parts = [
        distillation_loss(logits[i, None], teacher[i, None], labels[i, None], num_items_in_batch=count) for i in (0, 1)
    ]
    assert sum(parts).item() == pytest.approx(distillation_loss(logits, teacher, labels).item(), rel=1e-5)


def test_a_teacher_of_another_resolution_is_resized():
    logits, teacher, labels = example((6, 8))
    small = F.avg_pool2d(teacher, 2)
    large = F.interpolate(small, size=(6, 8), mode="bilinear")
    assert distillation_loss(logits, small, labels).item() == distillation_loss(logits, large, labels).item()


@pytest.mark.parametrize("kind", ["maskformer", "mask2former"])
def test_mask_models_are_compared_by_their_normalised_scores(kind):
    torch.manual_seed(0)
    model = tiny_mask_models.make(kind)
    pixels, labels = tiny_mask_models.batch()
    with torch.no_grad():
        outputs = model(pixels)
    logits = class_logits(outputs)
    size = outputs.masks_queries_logits.shape[-2:]
    torch.testing.assert_close(logits.softmax(dim=1), semantic_scores(model, outputs, size), rtol=1e-3, atol=1e-5)
    other = class_logits(model.train()(pixels))
    distillation_loss(other, logits.roll(1, dims=1), labels).backward()
    assert all(p.grad.isfinite().all() for p in model.class_predictor.parameters())
    assert class_logits(SemanticSegmenterOutput(logits=labels)) is labels


# --- the teacher


def test_what_a_teacher_must_have_in_common_with_its_student(root, teacher, tmp_path):
    config = tiny_model(root).config
    frozen = Distillation(str(teacher), config, CPU).teacher
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())

    other = tiny_model(root).config
    other.id2label = {**other.id2label, 2: "meadow"}
    with pytest.raises(
        ValueError, match=r"teacher .*teacher has other classes: label 2 is 'tree' there, here 'meadow'"
    ):
        Distillation(str(teacher), other, CPU)
    other.id2label = {0: config.id2label[0]}
    with pytest.raises(ValueError, match="label 1 is 'sky' there, here none"):
        Distillation(str(teacher), other, CPU)
    with pytest.raises(ValueError, match=r"takes single images, the student clips of \[-2, -1\] \(frame_offsets\)"):
        Distillation(str(teacher), tiny_clip_model(root).config, CPU)
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        Distillation(str(tmp_path / "nothing"), config, CPU)


def test_a_teacher_sees_pixels_as_it_learnt_from_them(root, tmp_path):
    """Its image processor, if its folder has one, must normalise as the student's does."""
    entries = with_teacher(tmp_path)
    tiny_model(root).save_pretrained(tmp_path)
    make_trainer(root, tmp_path / "out", losses=entries)  # nothing is known
    VSSImageProcessor().save_pretrained(tmp_path)
    make_trainer(root, tmp_path / "out", losses=entries)
    VSSImageProcessor(image_std=[0.5, 0.5, 0.5]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the teacher .* has image_std \[0\.5, 0\.5, 0\.5\], the student \[0\.229"):
        make_trainer(root, tmp_path / "out", losses=entries)


def test_the_hash_is_of_the_weights(root, teacher, tmp_path):
    model = tiny_model(root)
    first = weights_sha256(model)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert Distillation(str(tmp_path), model.config, CPU).sha256 == first
    model.decode_head.classifier.bias.data[0] += 1e-3
    assert weights_sha256(model) != first
    half = tiny_model(root).bfloat16()
    assert weights_sha256(half) != first


# --- training


def test_compute_loss_adds_what_the_teacher_says(root, teacher, tmp_path):
    """To the model's own loss, and to others; the teacher's logits are those of its own model."""
    inputs = {"pixel_values": torch.randn(2, 3, 32, 48), "labels": torch.randint(0, 3, (2, 32, 48))}
    values = []
    for entries in ([], with_teacher(teacher, weight=0.5, temperature=2.0)):
        for others in ([], [{"name": "cross_entropy", "weight": 3.0}]):
            trainer = make_trainer(root, tmp_path, model=tiny_model(root, FrozenNorms), losses=[*others, *entries])
            loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
            values.append((loss.item(), outputs.logits.detach()))
    with torch.no_grad():
        theirs = load_segmentation_model(teacher).eval()(inputs["pixel_values"]).logits
    expected = 0.5 * naive(values[0][1].double(), theirs.double(), inputs["labels"], 2.0).item()
    assert expected > 1e-3
    for (without, _), (distilled, _) in zip(values[:2], values[2:], strict=True):
        assert distilled - without == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["maskformer", "mask2former"])
def test_a_mask_model_learns_from_another_beside_its_own_loss(root, tmp_path, kind):
    torch.manual_seed(3)
    tiny_mask_models.make(kind).save_pretrained(tmp_path / "teacher")
    torch.manual_seed(0)
    model, (pixels, labels) = tiny_mask_models.make(kind), tiny_mask_models.batch()
    values = []
    for entries in ([], with_teacher(tmp_path / "teacher", weight=2.0)):
        trainer = make_trainer(root, tmp_path, model=model, losses=entries)
        torch.manual_seed(1)  # Mask2Former draws the points of its losses
        values.append(trainer.compute_loss(model, {"pixel_values": pixels, "labels": labels}))
    with torch.no_grad():
        outputs = [each(pixels) for each in (model, trainer.distillations[0].teacher)]
        size = outputs[0].masks_queries_logits.shape[-2:]
        ours, theirs = (semantic_scores(model, each, size).double().log() for each in outputs)
    assert (values[1] - values[0]).item() == pytest.approx(2 * naive(ours, theirs, labels, 1.0).item(), rel=1e-2)


def test_two_teachers_of_whom_one_is_the_student_itself(root, teacher, tmp_path):
    """The second adds nothing; its entry alone leaves the run as it is without."""
    tiny_model(root).save_pretrained(tmp_path / "same")
    model, inputs = tiny_model(root).eval(), {"pixel_values": torch.randn(1, 3, 32, 48)}
    inputs["labels"] = torch.randint(0, 3, (1, 32, 48))
    both = with_teacher(teacher) + with_teacher(tmp_path / "same")
    one, two, none = (make_trainer(root, tmp_path, model=model, losses=entries).compute_loss(model, inputs).item()
                      for entries in (with_teacher(teacher), both, []))  # fmt: skip
    assert one == pytest.approx(two, rel=1e-5) and one > none


def test_resumed_run_is_the_uninterrupted_one_and_the_teacher_as_before(root, teacher, tmp_path):
    """Bit for bit, with gradient accumulation; checkpoints hold the student alone, and whose student it is."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}

    def run(folder, teacher, resume=None):
        model = tiny_model(root, classifier_dropout=0.1)
        entries = with_teacher(teacher, {"name": "cross_entropy"})
        trainer = make_trainer(root, folder, model=model, losses=entries, gradient_accumulation_steps=2, **settings)
        before = state_of(trainer.distillations[0].teacher)
        trainer.train(resume_from_checkpoint=resume)
        after = trainer.distillations[0].teacher.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        return trainer

    straight = run(tmp_path / "straight", teacher)
    for name in ("resumed", "refused"):
        shutil.copytree(tmp_path / "straight" / "checkpoint-2", tmp_path / name / "checkpoint-2")
    shutil.copytree(teacher, tmp_path / "moved")  # the same weights in another place
    resumed = run(tmp_path / "resumed", tmp_path / "moved", resume=True)
    ours, theirs = (load_file(tmp_path / name / "checkpoint-4/model.safetensors") for name in ("straight", "resumed"))
    assert ours.keys() == theirs.keys() == tiny_model(root).state_dict().keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert losses(straight)[2:] == losses(resumed)[2:]

    tiny_model(root).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"the SHA-256 of the weights of self distillation's teachers was \['"):
        run(tmp_path / "refused", tmp_path / "other", resume=True)


def test_gradient_accumulation_equals_a_large_batch_of_clips(root, tmp_path):
    """Of images: test_processes.py."""
    model = tiny_clip_model(root)
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "teacher")
    runs = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        trainer = make_trainer(
            root,
            tmp_path / f"{accumulation}",
            model=tiny_clip_model(root),
            data=training_clips(root),
            losses=with_teacher(tmp_path / "teacher", {"name": "cross_entropy"}, weight=2.0),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.1,
            max_steps=2,
        )
        trainer.train()
        runs.append((losses(trainer), state_of(trainer.model)))
    (curve, state), (other_curve, other_state) = runs
    assert other_curve == pytest.approx(curve, abs=1e-5)
    for name, tensor in state.items():
        torch.testing.assert_close(other_state[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_a_student_becomes_like_its_teacher(root, teacher, tmp_path):
    trainer = make_trainer(
        root, tmp_path, model=tiny_model(root), losses=with_teacher(teacher, weight=30.0), max_steps=15, bf16=True
    )
    trainer.train()
    curve = losses(trainer)
    assert sum(curve[-5:]) < 0.7 * sum(curve[:5])


def test_a_whole_run_tells_its_teacher(root, teacher, tmp_path):
    path = write_recipe(
        tmp_path / "recipe.yaml",
        root,
        tmp_path / "out",
        training={"losses": with_teacher(teacher, {"name": "cross_entropy"}), "max_steps": 2, "eval_steps": 2},
    )
    folder = main([str(path)])
    results = json.loads((folder / "train_results.json").read_text())
    trained = tiny_model(root)
    trained.load_state_dict(load_file(teacher / "model.safetensors"))
    assert results["teachers_sha256"] == {str(teacher): weights_sha256(trained)}
    recipe = yaml.safe_load((folder / "training_recipe.yaml").read_text())
    assert recipe["training"]["losses"][1] == {"name": "self_distillation", "teacher": str(teacher)}
    assert not any("teacher" in name for name in load_file(folder / "model.safetensors"))
