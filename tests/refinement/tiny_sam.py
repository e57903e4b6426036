"""Small SAM, SAM-HQ, SAM 2 and SAM 3 models with random weights, as folders: transformers' own classes."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskGeneration,
    Sam2ImageProcessor,
    Sam3ImageProcessor,
    SamImageProcessor,
)


KINDS = ("sam", "sam_hq", "sam2", "sam3_tracker")
SIZE = 64  # of the models' input
PROMPT = dict(hidden_size=32, image_size=SIZE, patch_size=8, mask_input_channels=4)
DECODER = dict(hidden_size=32, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16)
SAM_VISION = dict(
    hidden_size=16,
    output_channels=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=SIZE,
    patch_size=8,
    window_size=2,
    global_attn_indexes=[1],
    num_pos_feats=16,
    initializer_range=0.02,
)
HIERA = dict(
    model_type="sam2_hiera_det_model",
    hidden_size=8,
    image_size=[SIZE, SIZE],
    blocks_per_stage=[1, 1, 2, 1],
    embed_dim_per_stage=[8, 16, 32, 64],
    num_attention_heads_per_stage=[1, 1, 1, 1],
    patch_stride=[2, 2],
    window_size_per_stage=[4, 4, 4, 4],
    global_attention_blocks=[3],
)
SAM2_VISION = dict(
    model_type="sam2_vision_model",
    backbone_config=HIERA,
    backbone_channel_list=[64, 32, 16, 8],
    backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    fpn_hidden_size=32,
)
VIT = dict(
    model_type="sam3_vit_model",
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=SIZE,
    pretrain_image_size=SIZE,
    patch_size=8,
    window_size=2,
    global_attn_indexes=[1],
)
SAM3_VISION = dict(
    model_type="sam3_vision_model",
    backbone_config=VIT,
    fpn_hidden_size=32,
    backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
)
MEMORY = dict(
    image_size=SIZE,
    memory_attention_hidden_size=32,
    memory_attention_feed_forward_hidden_size=32,
    memory_attention_rope_feat_sizes=[8, 8],
    memory_encoder_hidden_size=32,
    memory_encoder_output_channels=8,
    memory_fuser_embed_dim=32,
    memory_fuser_intermediate_dim=32,
    mask_downsampler_embed_dim=32,
)
LAYERS = dict(hidden_size=32, num_layers=1, num_attention_heads=2, intermediate_size=32)
TEXT = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, projection_dim=32)
DETECTOR = dict(
    vision_config=SAM3_VISION,
    text_config={**TEXT, "vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1},
    geometry_encoder_config=LAYERS,
    detr_encoder_config=LAYERS,
    detr_decoder_config={**LAYERS, "num_queries": 4},
    mask_decoder_config=dict(hidden_size=32, num_attention_heads=2),
)
VISION = {"sam": SAM_VISION, "sam_hq": SAM_VISION, "sam2": SAM2_VISION, "sam3_tracker": SAM3_VISION}


@torch.no_grad()
def save_sam(folder: Path, kind: str) -> Path:
    """A model of one of `KINDS`. Its masks are some blobs, others for every point; its IoUs are nothing."""
    torch.manual_seed(0)
    decoder = {**DECODER, "vit_dim": 16} if kind == "sam_hq" else DECODER
    config = AutoConfig.for_model(
        kind, vision_config=VISION[kind], prompt_encoder_config=PROMPT, mask_decoder_config=decoder
    )
    model = AutoModelForMaskGeneration.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3 if "mask_decoder" in name else 0.1)
    make_blobs(model)
    model.save_pretrained(folder)
    save_processor(folder, kind)
    return folder


def save_processor(folder: Path, kind: str) -> None:
    """The image processor of a kind of model."""
    square = {"height": SIZE, "width": SIZE}
    if kind in ("sam", "sam_hq"):
        processor = SamImageProcessor(size={"longest_edge": SIZE}, pad_size=square)
    else:
        processor = (Sam2ImageProcessor if kind.startswith("sam2") else Sam3ImageProcessor)(size=square)
    processor.save_pretrained(folder)


def save_video_sam(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """A `sam2_video` or `sam3_video` model, as those of SAM 2 and 3 are published; its weights."""
    torch.manual_seed(0)
    sam2 = kind == "sam2_video"
    tracker = dict(prompt_encoder_config=PROMPT, mask_decoder_config=DECODER, **MEMORY)
    tracker["vision_config"] = SAM2_VISION if sam2 else SAM3_VISION
    fields = tracker if sam2 else dict(tracker_config=tracker, detector_config=DETECTOR)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **fields))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # Not `save_pretrained`: that of transformers 5.23 writes the prefix `tracker_model.` of SAM 3 twice.
    model.config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_processor(folder, kind)
    return weights


def make_blobs(model) -> None:
    """Weights of the decoder for masks that are smooth and small, and differ from point to point."""
    decoder = model.mask_decoder
    for embedding in (model.shared_image_embedding, model.prompt_encoder.shared_embedding):
        embedding.positional_embedding.copy_(torch.randn(2, 16, generator=torch.Generator().manual_seed(1)))
    for module in decoder.modules():
        if isinstance(module, torch.nn.ConvTranspose2d):  # what makes the masks larger: no pattern within its kernel
            module.weight.copy_(module.weight[..., :1, :1].expand_as(module.weight))
    for name in ("conv_s0", "conv_s1"):  # SAM 2 and 3: features of higher resolution
        if hasattr(decoder, name):
            getattr(decoder, name).weight.mul_(0.1)
            getattr(decoder, name).bias.zero_()
    # A channel that is the same everywhere, for a bias of the masks.
    decoder.upscale_conv2.weight[:, 0] = 0
    decoder.upscale_conv2.bias[0] = 10
    outputs = [mlp.proj_out for mlp in decoder.output_hypernetworks_mlps]
    for output in outputs:
        output.weight[0], output.bias[0] = 0, 0
    points, labels = torch.rand(1, 32, 1, 2) * SIZE, torch.ones(1, 32, 1, dtype=torch.int64)
    logits = model(pixel_values=torch.randn(1, 3, SIZE, SIZE), input_points=points, input_labels=labels).pred_masks
    for output in outputs:
        output.weight.mul_(4 / logits.std())
        output.bias.mul_(4 / logits.std())
        output.bias[0] = -0.4 * logits.quantile(0.8) / logits.std()
