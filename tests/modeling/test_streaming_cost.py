"""What a step of TBN-ViT costs in multiply-accumulates; the times are for benchmarks/streaming.py."""

import torch

from benchmarks.streaming import measure_times


def test_a_step_costs_hardly_more_than_an_image():
    """At most 1.15 times the model without time, and less than a third of whole clips, with three earlier frames."""
    with torch.inference_mode():
        found = measure_times("tbn-vit-swin-tiny", (128, 224), runs=1, device="cpu")
    gmac = found["gmac"]
    assert 1 < gmac["step"] / gmac["image"] < 1.15
    assert 3 < gmac["clip"] / gmac["step"] < 4
    # The nine fused maps of stride 8 that frame_offsets=[-9, -6, -3] looks back to, 256 channels in fp32.
    assert found["state_mib"] == 9 * 256 * 16 * 28 * 4 / 2**20
