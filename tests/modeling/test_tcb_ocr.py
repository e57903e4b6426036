"""TCB-OCR: its regions over frames by formula, and what it shares with OCRNet."""

import torch
from tiny_video_models import TINY, build

from vss_hf.modeling.configuration_ocrnet import OCRNetConfig
from vss_hf.modeling.modeling_ocrnet import OCRNetForSemanticSegmentation


def test_regions_by_definition():
    """In float64: softmax of the coarse logits over positions, weighted sum of pixels, mean over frames."""
    model, video = build("vss_tcb_ocr").double(), torch.randn(2, 3, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        logits = model.float()(video.float()).logits
        model.double()
        regions = []
        for frame in range(3):
            maps = model.backbone(video[:, frame]).feature_maps
            size = maps[1].shape[-2:]
            resized = [torch.nn.functional.interpolate(maps[i], size, mode="bilinear") for i in (1, 2, 3)]
            features = torch.cat(resized, dim=1)
            shares = model.coarse_head(features).flatten(2).softmax(dim=2)
            pixels = model.decode_head.pixel_conv(features)
            regions.append(torch.einsum("bkn,bcn->bck", shares, pixels.flatten(2)))
        mean = torch.stack(regions).mean(dim=0)
        expected = model.decode_head.classify(pixels, mean.unsqueeze(3))
    torch.testing.assert_close(logits, expected.float(), rtol=1e-4, atol=5e-5)


def test_one_frame_is_ocrnet():
    """OCRNet's tensors fit, and a clip of one frame gives its logits."""
    image_model = OCRNetForSemanticSegmentation(OCRNetConfig(**TINY["vss_tcb_ocr"], num_labels=5)).eval()
    video_model = build("vss_tcb_ocr")
    video_model.load_state_dict(image_model.state_dict())
    frames = torch.randn(2, 3, 33, 47)
    with torch.no_grad():
        expected = image_model(frames, output_auxiliary_logits=True)
        output = video_model(frames.unsqueeze(1), output_auxiliary_logits=True)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.auxiliary_logits[0][:, 0], expected.auxiliary_logits[0])


def test_a_memory_of_eight_frames_is_a_choice_of_offsets():
    """The paper's evaluation memory: the mean of the regions of the last 8 frames and the current one."""
    model, video = build("vss_tcb_ocr", frame_offsets=list(range(-8, 0))), torch.randn(1, 12, 3, 33, 47)
    state, regions = model.init_state(), []
    with torch.no_grad():
        for index in range(12):
            output, state = model.step(video[:, index], state)
            frame = model.describe(list(model.encode(video[:, index]).feature_maps))
            regions.append(frame.memory[0])
        expected = model.decode_head.classify(frame.current[0], torch.stack(regions[-9:]).mean(dim=0))
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)


def test_a_neck_reads_every_frame():
    """What OCRNet can do with the maps, TCB-OCR can too."""
    volo = {
        "model_type": "vss_volo",
        "depths": [1, 1],
        "hidden_sizes": [16, 24],
        "num_heads": [1, 2],
        "mlp_ratios": [2, 2],
        "stem_channels": 8,
        "image_size": 64,
        "out_features": ["stem", "stage1", "stage2"],
    }
    model = build("vss_tcb_ocr", backbone_config=volo, neck="unet", neck_channels=[16, 8, 8], in_indices=[0, 1, 2])
    with torch.no_grad():
        output = model(torch.randn(1, 2, 3, 48, 64), output_auxiliary_logits=True)
    assert output.logits.shape == (1, 5, 24, 32) and output.auxiliary_logits[0].shape == (1, 2, 5, 24, 32)
