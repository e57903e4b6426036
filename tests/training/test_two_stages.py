"""TBN-ViT's two stages, with a small network on small data."""

import pytest
import yaml
from tiny import make_default_data, state_of
from transformers import AutoModel

from vss_hf.training import run
from vss_hf.training.loss_terms import ohem_cross_entropy
from vss_hf.training.stages import load_stages
from vss_hf.training.trainer import VSSTrainer


SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 1, 1],
    "window_size": 4,
    "out_features": ["stage3", "stage4"],
}
TINY = [
    f"--model.config.backbone_config={SWIN}",
    "--model.config.spatial_channels=[8, 8, 8]",
    "--model.config.context_channels=8",
    "--model.config.fusion_channels=8",
    "--model.config.channels=8",
    "--model.config.auxiliary_channels=8",
    "--model.config.frame_offsets=[-2, -1]",
    "--model.backbone_weights=null",
]
SHORT = (
    "--crop_size=[32, 48] --max_steps=3 --eval_steps=3 --save_steps=3 --logging_steps=1 --bf16=false --use_cpu=true"
    " --global_batch_size=1"
)
SHORT = [*SHORT.replace("[32, 48]", "[32,48]").split(), "--dataloader_num_workers=0", "--report_to=none"]


class Watched(VSSTrainer):
    """Notes what a run starts from, and its optimizer."""

    seen: list["Watched"] = []

    def train(self, *args, **kwargs):
        self.start = state_of(self.model)
        self.seen.append(self)
        return super().train(*args, **kwargs)


@pytest.mark.filterwarnings("ignore:--sync_batchnorm changes nothing")
def test_stages_of_tbn_vit(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "VSSTrainer", Watched)
    monkeypatch.setattr(Watched, "seen", [])
    root = make_default_data(tmp_path / "videos")
    run.main(["tbn-vit/tbn-swin-large-ohem", f"--data.root={root}", *SHORT, *TINY, f"--output_dir={tmp_path}"])
    one, two = (tmp_path / name / "model" for name in ("stage1", "stage2"))
    first, second = Watched.seen

    # The second stage starts where the first one ended, and moves on.
    left, result = (AutoModel.from_pretrained(folder).state_dict() for folder in (one, two))
    assert left.keys() == second.start.keys() == result.keys()
    assert all(second.start[name].equal(tensor) for name, tensor in left.items())
    moved = {name.split(".")[0] for name, tensor in left.items() if not tensor.equal(result[name])}
    assert moved == {"backbone", "spatial_path", "context_path", "fusion", "decode_head", "auxiliary_heads"}

    assert first.pixel_loss is None  # the model's own cross entropy
    ((weight, loss),) = second.pixel_loss.terms
    assert weight == 1 and loss.func is ohem_cross_entropy
    settings = {"threshold": 0.7, "min_kept": 100_000, "reduction": "kept"}
    assert loss.keywords == {**settings, "class_weights": None}
    saved = yaml.safe_load((two / "training_recipe.yaml").read_text())
    assert saved["training"]["losses"] == [{"name": "ohem", **settings}]

    for trainer, of_context, of_others in ((first, 2e-3, 2e-3), (second, 2e-4, 5e-4)):
        names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
        groups = trainer.optimizer.param_groups
        assert {names[id(p)] for group in groups for p in group["params"]} == set(names.values())
        for group in groups:
            assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.9, False, 0)
            for parameter in group["params"]:
                name = names[id(parameter)]
                in_context = name.split(".")[0] in ("backbone", "context_path")
                assert group["initial_lr"] == (of_context if in_context else of_others), name
                assert group["weight_decay"] == (1e-4 if group["name"] in ("heads", "backbone") else 0)
        logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        assert logged == pytest.approx([of_others * (1 - step / 3) ** 0.9 for step in range(3)], rel=1e-9)


def test_both_stages_train_on_the_same_samples():
    one, two = (stage.recipe for stage in load_stages("tbn-vit/tbn-swin-large-ohem", ["--data.root", "videos"]))
    assert one.augmentation == two.augmentation and one.augmentation.crop_size == (479, 479)
    assert one.training.max_grad_norm == two.training.max_grad_norm == 0
    for recipe in (one, two):
        assert recipe.training.global_batch_size == 8 and recipe.training.sync_batchnorm
