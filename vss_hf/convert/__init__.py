"""Official checkpoints of other projects, filled into this package's models.

Whose names a checkpoint has, as `load_reference_state_dict` and `vss-hf convert` call the source, and what it fills:

    mmseg          mmsegmentation 0.x and 1.x: OCRNet, UperNet, FCN, PSPNet, DeepLabV3, DeepLabV3+, SegFormer,
                   Semantic FPN, BiSeNet, Mask2Former; on Swin, ConvNeXt, ResNet, HRNet, MiT, InternImage
    detectron2     Facebook's MaskFormer and Mask2Former, on Swin and ResNet
    vspw_baseline  VSPW's own baselines: PSPNet, OCRNet, ST-PPM, TCB-OCR, on ResNet
    tmanet         TMANet on ResNet; its names are mmsegmentation's, so mmseg does as well
    cascadepsp     CascadePSP's refinement network, `--arch cascade-psp`
    internimage, volo, microsoft (Swin), facebook (ConvNeXt), torchvision (ResNet, Video Swin),
    video_swin (the original Video-Swin-Transformer), timm (ResNet, HRNet, VOLO)
                   classifiers, of which the backbone is taken

`convert_checkpoint` in checkpoint.py goes from a file to a model folder; tables.py tells how the renaming works.
"""

from .state_dict import ConversionReport, load_reference_state_dict, read_reference_file


__all__ = ["ConversionReport", "load_reference_state_dict", "read_reference_file"]
