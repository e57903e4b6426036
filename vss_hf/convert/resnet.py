"""Names of ResNets in terms of DilatedResNetBackbone, whose own names are torchvision's and timm's."""

from .tables import Rename, Table


OLD_COUNTER = (r"(.*\.)?num_batches_tracked", "a counter that files from before PyTorch 0.4.1 lack")

BLOCKS = Rename(r"(layer\d+\.\d+\.(?:conv\d|bn\d|downsample\.\d)\.\w+)", r"\1")
PLAIN_STEM = Rename(r"((?:conv1|bn1)\.\w+)", r"\1")
CLASSIFIER = Rename(r"fc(_1)?\.(weight|bias)", None, reason="the classifier")

TORCHVISION_RESNET = Table((PLAIN_STEM, BLOCKS, CLASSIFIER), kept=(OLD_COUNTER,))

# The stem of three convolutions is one Sequential: convolution, norm and ReLU at 0 to 2, 3 to 5, and 6, `bn1`.
TIMM_RESNET = Table(
    (Rename(r"(conv1\.[01346]\.\w+)", r"\1"), PLAIN_STEM, BLOCKS, CLASSIFIER),
    kept=(OLD_COUNTER,),
)

# ResNet, ResNetV1c and ResNetV1d of mmsegmentation 0.x and 1.x, and the ImageNet files that they start from
MMSEG_RESNET = Table(
    (
        Rename(r"stem\.([01346])\.(\w+)", r"conv1.\1.\2"),
        Rename(r"stem\.7\.(\w+)", r"bn1.\1"),
        PLAIN_STEM,
        BLOCKS,
        CLASSIFIER,
    ),
    kept=(OLD_COUNTER,),
)

# CSAIL's ResNet, the encoder of VSPW_baseline (there under `encoder.`)
CSAIL_RESNET = Table(
    (
        Rename(r"conv1\.(\w+)", r"conv1.0.\1"),
        Rename(r"bn1\.(\w+)", r"conv1.1.\1"),
        Rename(r"conv2\.(\w+)", r"conv1.3.\1"),
        Rename(r"bn2\.(\w+)", r"conv1.4.\1"),
        Rename(r"conv3\.(\w+)", r"conv1.6.\1"),
        Rename(r"bn3\.(\w+)", r"bn1.\1"),
        BLOCKS,
        CLASSIFIER,
    ),
    kept=(OLD_COUNTER,),
)
