"""Run by test_trainer.py under torchrun: a few steps in as many processes as there are."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import FrozenNorms, losses, make_trainer, state_of, tiny_model


WEIGHTINGS = {"plain": None, "weighted": torch.tensor([0.5, 2.0, 7.0])}


def run(root: Path, output_dir: Path, batch_size: int, weighting: str):
    """A trainer after a few steps, with `batch_size` samples per process."""
    trainer = make_trainer(
        root,
        output_dir,
        model=tiny_model(root, FrozenNorms),
        class_weights=WEIGHTINGS[weighting],
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        optim="sgd",
        learning_rate=0.1,
        ema_decay=0.5,
    )
    trainer.train()
    return trainer


def main(root: Path, out: Path, batch_size: int) -> None:
    """Rank 0 writes losses, weights and average of both runs."""
    for weighting in WEIGHTINGS:
        trainer = run(root, out / "run", batch_size, weighting)
        if trainer.args.process_index == 0:
            save_file(state_of(trainer.unwrapped()), out / f"{weighting}.safetensors")
            save_file(state_of(trainer.ema), out / f"{weighting}_ema.safetensors")
            (out / f"{weighting}.json").write_text(json.dumps([trainer.args.world_size, losses(trainer)]))
    trainer.accelerator.wait_for_everyone()  # a process that leaves while another still works can abort at exit
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
