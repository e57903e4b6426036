"""One of several processes that stream a data set from the Hub that HF_ENDPOINT names, with two workers each.

    streaming.py REPO OUT EPOCHS

It writes down every sample that came (OUT/<rank>.txt), and after each of them where it is (OUT/<rank>.pt); started
again after it was killed, it goes on there.
"""

import os
import sys
import zlib
from pathlib import Path

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from vss_hf.data import load_vspw


def fingerprint(sample) -> int:
    """A number that any change of a sample's pixels or labels changes."""
    return zlib.crc32(sample["labels"].numpy().tobytes(), zlib.crc32(sample["frames"].contiguous().numpy().tobytes()))


def line(epoch: int, sample) -> str:
    """A sample in the notes."""
    return f"{epoch} {sample['video']} {sample['index']} {fingerprint(sample)}\n"


def main(repo: str, out: Path, epochs: int) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    notes, position = out / f"{rank}.txt", out / f"{rank}.pt"
    stream = load_vspw(repo, "train", streaming=True, shuffle_seed=3).shard(world, rank)
    loader = StatefulDataLoader(stream, batch_size=None, num_workers=2)
    first, text = 0, ""
    if position.exists():
        saved = torch.load(position, weights_only=False)
        loader.load_state_dict(saved["loader"])
        first, text = saved["epoch"], notes.read_text()[: saved["length"]]  # the kill may have come between the two
    for epoch in range(first, epochs):
        stream.set_epoch(epoch)
        for sample in loader:
            text += line(epoch, sample)
            notes.write_text(text)
            state = {"loader": loader.state_dict(), "epoch": epoch, "length": len(text)}
            torch.save(state, position.with_suffix(".part"))
            os.replace(position.with_suffix(".part"), position)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
