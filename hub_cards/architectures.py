"""What is published about each architecture: paper, official checkpoints that convert, the papers' results on VSPW.

Nothing here was measured by this package. Checkpoint names are those of the files that the projects offer.
"""

from dataclasses import dataclass


ARCHITECTURES = {  # model type: name, paper
    "vss_ocrnet": (
        "OCRNet (object-contextual representations)",
        'Y. Yuan, X. Chen, J. Wang, "Object-Contextual Representations for Semantic Segmentation", ECCV 2020 (OCRNet)',
    ),
    "vss_upernet": (
        "UperNet",
        'T. Xiao, Y. Liu, B. Zhou, Y. Jiang, J. Sun, "Unified Perceptual Parsing for Scene Understanding", ECCV 2018 '
        "(UperNet)",
    ),
    "vss_maskformer": (
        "MaskFormer",
        'B. Cheng, A. Schwing, A. Kirillov, "Per-Pixel Classification is Not All You Need for Semantic Segmentation", '
        "NeurIPS 2021 (MaskFormer)",
    ),
    "vss_mask2former": (
        "Mask2Former",
        'B. Cheng, I. Misra, A. Schwing, A. Kirillov, R. Girdhar, "Masked-attention Mask Transformer for Universal '
        'Image Segmentation", CVPR 2022 (Mask2Former)',
    ),
    "vss_fcn": (
        "FCN",
        'J. Long, E. Shelhamer, T. Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015 (FCN)',
    ),
    "vss_pspnet": (
        "PSPNet",
        'H. Zhao, J. Shi, X. Qi, X. Wang, J. Jia, "Pyramid Scene Parsing Network", CVPR 2017 (PSPNet)',
    ),
    "vss_deeplabv3": (
        "DeepLabV3",
        'L.-C. Chen, G. Papandreou, F. Schroff, H. Adam, "Rethinking Atrous Convolution for Semantic Image '
        'Segmentation", 2017 (DeepLabV3)',
    ),
    "vss_deeplabv3plus": (
        "DeepLabV3+",
        'L.-C. Chen, Y. Zhu, G. Papandreou, F. Schroff, H. Adam, "Encoder-Decoder with Atrous Separable Convolution '
        'for Semantic Image Segmentation", ECCV 2018 (DeepLabV3+)',
    ),
    "vss_segformer": (
        "SegFormer",
        'E. Xie, W. Wang, Z. Yu, A. Anandkumar, J. Alvarez, P. Luo, "SegFormer: Simple and Efficient Design for '
        'Semantic Segmentation with Transformers", NeurIPS 2021 (SegFormer)',
    ),
    "vss_semantic_fpn": (
        "Semantic FPN",
        'A. Kirillov, R. Girshick, K. He, P. Dollar, "Panoptic Feature Pyramid Networks", CVPR 2019 (Semantic FPN)',
    ),
    "vss_hfgd": (
        "HFGD (high-level feature guided decoder)",
        'Y. Huang, D. Kang, S. Gao, W. Li, L. Duan, "High-level Feature Guided Decoding for Semantic Segmentation", '
        "2023 (HFGD)",
    ),
    "vss_bisenet": (
        "BiSeNet",
        'C. Yu, J. Wang, C. Peng, C. Gao, G. Yu, N. Sang, "BiSeNet: Bilateral Segmentation Network for Real-time '
        'Semantic Segmentation", ECCV 2018 (BiSeNet)',
    ),
    "vss_tbn_vit": (
        "TBN-ViT (temporal bilateral network)",
        'B. Yan, L. Cao, H. Wang, "TBN-ViT: Temporal Bilateral Network with Vision Transformer for Video Scene '
        'Parsing", 2021 (TBN-ViT)',
    ),
    "vss_st_ppm": (
        "ST-PPM (spatial-temporal pyramid pooling)",
        'J. Miao, Y. Wei, Y. Wu, C. Liang, G. Li, Y. Yang, "VSPW: A Large-scale Dataset for Video Scene Parsing in '
        'the Wild", CVPR 2021 (TCB with spatial-temporal PPM)',
    ),
    "vss_tcb_ocr": (
        "TCB-OCR (spatial-temporal object-contextual representations)",
        'J. Miao, Y. Wei, Y. Wu, C. Liang, G. Li, Y. Yang, "VSPW: A Large-scale Dataset for Video Scene Parsing in '
        'the Wild", CVPR 2021 (TCB with spatial-temporal OCR)',
    ),
    "vss_tmanet": (
        "TMANet (temporal memory attention)",
        'H. Wang, W. Wang, J. Liu, "Temporal Memory Attention for Video Semantic Segmentation", ICIP 2021 (TMANet)',
    ),
    "vss_cascade_psp": (
        "CascadePSP",
        'H. K. Cheng, J. Chung, Y.-W. Tai, C.-K. Tang, "CascadePSP: Toward Class-Agnostic and Very High-Resolution '
        'Segmentation via Global and Local Refinement", CVPR 2020 (CascadePSP)',
    ),
    "vss_video_swin": (
        "Video Swin with a segmentation head",
        'Z. Liu et al., "Video Swin Transformer", CVPR 2022, with the head of UperNet or OCRNet',
    ),
}
BACKBONE_PAPERS = {
    "swin": 'Z. Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021 '
    "(backbone)",
    "vss_swin3d": 'Z. Liu et al., "Video Swin Transformer", CVPR 2022 (backbone)',
    "convnext": 'Z. Liu et al., "A ConvNet for the 2020s", CVPR 2022 (backbone)',
    "vss_internimage": 'W. Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable '
    'Convolutions", CVPR 2023 (backbone)',
    "vss_volo": 'L. Yuan, Q. Hou, Z. Jiang, J. Feng, S. Yan, "VOLO: Vision Outlooker for Visual Recognition", TPAMI '
    "2023 (backbone)",
    "vss_hrnet": 'J. Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2021 '
    "(backbone)",
    "vss_resnet": 'K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 '
    "(backbone)",
}


@dataclass(frozen=True)
class Published:
    """What others published about a preset.

    Args:
        checkpoints: file names; `*` stands for a date and a hash.
        vspw: (paper, setting, val mIoU, test mIoU) in percent; None where the paper gives no number.
    """

    checkpoints: tuple[str, ...] = ()
    vspw: tuple[tuple[str, str, float | None, float | None], ...] = ()


BETTERTHING, USTC, DUT = "BetterThing 2021", "USTC 2021", "DUT 2023"  # VSPW 2021, 3rd and 5th; PVUW 2023, 3rd
TBN_VIT = "TBN-ViT 2021"  # its ablation, crop 479
SWIN_22K = "upernet_swin_base_patch4_window12_512x512_160k_ade20k_pretrain_384x384_22K_*.pth"
PUBLISHED = {
    "ocrnet-resnet101": Published(
        ("ocrnet_r101-d8_512x1024_80k_b16_cityscapes_*.pth",), ((BETTERTHING, "512x512", 36.68, 34.02),)
    ),
    "ocrnet-hrnet-w18": Published(
        ("ocrnet_hr18_512x512_80k_ade20k_*.pth", "ocrnet_hr18_512x1024_160k_cityscapes_*.pth")
    ),
    "ocrnet-hrnet-w48": Published(
        ("ocrnet_hr48_512x512_80k_ade20k_*.pth", "ocrnet_hr48_512x1024_160k_cityscapes_*.pth"),
        ((BETTERTHING, "512x512", None, 37.26),),
    ),
    "ocrnet-swin-large": Published(
        (),
        (
            (BETTERTHING, "512x512", 53.79, 49.47),
            (BETTERTHING, "480x853", 55.70, 51.59),
            (BETTERTHING, "480x853, COCO", 56.80, None),
        ),
    ),
    "ocrnet-volo-d5": Published(
        ("d5_512_87.07.pth.tar (backbone)",),
        ((BETTERTHING, "512x512", None, 48.65), (BETTERTHING, "480x720, multi-scale, averaged", None, 51.29)),
    ),
    "ocrnet-volo-d5-unet": Published(
        ("d5_512_87.07.pth.tar (backbone)",), ((BETTERTHING, "480x720, multi-scale, averaged", None, 51.59),)
    ),
    "upernet-swin-tiny": Published(
        ("upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_*.pth",)
    ),
    "upernet-swin-small": Published(
        ("upernet_swin_small_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_*.pth",)
    ),
    "upernet-swin-base": Published((SWIN_22K,)),
    "upernet-swin-large": Published(
        (),
        (
            (DUT, "480x853, from ADE20K", 56.24, 48.09),
            (USTC, "crop 480", 56.13, 48.63),
            (USTC, "crop 640", 56.48, 49.31),
            (USTC, "crop 640, OHEM", 56.94, 49.73),
        ),
    ),
    "upernet-convnext-tiny": Published(("upernet_convnext_tiny_fp16_512x512_160k_ade20k_*.pth",)),
    "upernet-convnext-base": Published(("upernet_convnext_base_fp16_640x640_160k_ade20k_*.pth",)),
    "upernet-convnext-large": Published(("upernet_convnext_large_fp16_640x640_160k_ade20k_*.pth",)),
    "upernet-convnext-xlarge": Published(
        ("upernet_convnext_xlarge_fp16_640x640_160k_ade20k_*.pth",), ((DUT, "480x853, from ADE20K", 55.50, 47.61),)
    ),
    "upernet-internimage-t": Published(("upernet_internimage_t_512_160k_ade20k.pth",)),
    "upernet-internimage-s": Published(("upernet_internimage_s_512_160k_ade20k.pth",)),
    "upernet-internimage-b": Published(("upernet_internimage_b_512_160k_ade20k.pth",)),
    "upernet-internimage-l": Published(("upernet_internimage_l_640_160k_ade20k.pth",)),
    "upernet-internimage-xl": Published(
        ("upernet_internimage_xl_640_160k_ade20k.pth",), ((DUT, "480x853, from ADE20K", 56.12, 49.24),)
    ),
    "upernet-internimage-h": Published(
        ("upernet_internimage_h_896_160k_ade20k.pth", "internimage_h_jointto22k_384.pth (backbone)"),
        ((DUT, "480x853, from ADE20K", 64.62, 59.15),),
    ),
    "upernet-resnet50": Published(("upernet_r50_512x512_160k_ade20k_*.pth",)),
    "upernet-resnet101": Published(("upernet_r101_512x512_160k_ade20k_*.pth",)),
    "maskformer-swin-large": Published(
        ("Detectron2: maskformer_swin_large_IN21k_384_bs16_160k_res640",), ((USTC, "", 56.52, 53.99),)
    ),
    "mask2former-swin-large": Published(("Detectron2: maskformer2_swin_large_IN21k_384_bs16_160k_res640",)),
    "mask2former-internimage-h": Published(
        (
            "internimage_h_jointto22k_384.pth (backbone)",
            "mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes.pth",
        ),
        ((DUT, "480x853, from Joint-427M", 66.09, 59.69), (DUT, "480x853, from COCO-Stuff", 68.03, 62.31)),
    ),
    "mask2former-internimage-h-wide": Published(
        (
            "mask2former_internimage_h_896_80k_cocostuff164k.pth",
            "mask2former_internimage_h_896_80k_cocostuff2ade20k.pth",
        )
    ),
    "fcn-resnet101": Published(("fcn_r101-d8_512x512_80k_ade20k_*.pth",)),
    "pspnet-resnet50": Published(("pspnet_r50-d8_512x512_80k_ade20k_*.pth",)),
    "pspnet-resnet101": Published(("pspnet_r101-d8_512x512_80k_ade20k_*.pth",)),
    "deeplabv3-resnet50": Published(("deeplabv3_r50-d8_512x512_80k_ade20k_*.pth",)),
    "deeplabv3plus-resnet101": Published(("deeplabv3plus_r101-d8_512x512_80k_ade20k_*.pth",)),
    **{
        f"segformer-b{size}": Published((f"segformer_mit-b{size}_512x512_160k_ade20k_*.pth",)) for size in range(5)
    },
    "segformer-b5": Published(("segformer_mit-b5_640x640_160k_ade20k_*.pth",)),
    "semantic-fpn-resnet50": Published(("fpn_r50_512x512_160k_ade20k_*.pth",)),
    "semantic-fpn-resnet101": Published(("fpn_r101_512x512_160k_ade20k_*.pth",)),
    "bisenet-resnet18": Published(
        (
            "bisenetv1_r18-d32_4x4_1024x1024_160k_cityscapes_*.pth",
            "bisenetv1_r18-d32_in1k-pre_lr5e-3_4x4_512x512_160k_coco-stuff164k_*.pth",
        )
    ),
    "bisenet-resnet50": Published(
        (
            "bisenetv1_r50-d32_4x4_1024x1024_160k_cityscapes_*.pth",
            "bisenetv1_r50-d32_in1k-pre_lr5e-3_4x4_512x512_160k_coco-stuff164k_*.pth",
        )
    ),
    "bisenet-swin-large": Published((), ((TBN_VIT, "bilateral network", None, 45.73),)),
    "tbn-vit-swin-large": Published((), ((TBN_VIT, "", None, 47.17), (TBN_VIT, "OHEM", None, 49.85))),
    "st-ppm-resnet101": Published((), ((TBN_VIT, "baseline", None, 37.46),)),
    "st-ppm-swin-large": Published((), ((TBN_VIT, "baseline on Swin-L", None, 43.63),)),
}
