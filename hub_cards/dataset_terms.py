"""Under which terms the known data sets may be passed on, as far as a card and a push must know.

A short form for people who are about to publish frames. The terms themselves stand behind each link.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """Terms of a data set.

    Args:
        name: what the data set is called.
        licence: a name for the Hub's `license_name`, as none of the Hub's own list fits.
        link: where the terms stand.
        notice: what a reader of the card must know.
        may_be_public: False: the frames may not be put where everybody can fetch them.
    """

    name: str
    licence: str
    link: str
    notice: str
    may_be_public: bool


# By a part of the name of the layout or of the folder. The first that fits counts, so that camvid_vspw, CamVid in
# VSPW's layout, is CamVid.
TERMS = {
    "vipseg": Terms(
        "VIPSeg",
        "vipseg-research-only",
        "https://github.com/VIPSeg-Dataset/VIPSeg-Dataset",
        "VIPSeg's frames are VSPW's: they are under a non-commercial research licence and may not be re-hosted "
        "publicly.",
        False,
    ),
    "cityscapes": Terms(
        "Cityscapes",
        "cityscapes-terms",
        "https://www.cityscapes-dataset.com/license/",
        "Cityscapes is offered to registered users for non-commercial use, and its frames may not be distributed.",
        False,
    ),
    "ade20k": Terms(
        "ADE20K",
        "ade20k-terms",
        "https://groups.csail.mit.edu/vision/datasets/ADE20K/terms/",
        "ADE20K's images are offered to people who accept its terms, for non-commercial research and education; they "
        "may not be re-hosted publicly.",
        False,
    ),
    "coco_stuff": Terms(
        "COCO-Stuff",
        "coco-terms",
        "https://cocodataset.org/#termsofuse",
        "COCO does not own its images: Flickr's terms and each picture's own licence hold. The annotations of "
        "COCO-Stuff are under CC BY 4.0.",
        True,
    ),
    "pascal_context": Terms(
        "Pascal Context",
        "pascal-voc-terms",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/",
        "The images are those of Pascal VOC: Flickr's terms hold for each of them.",
        True,
    ),
    "camvid": Terms(
        "CamVid",
        "camvid-research",
        "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
        "CamVid is offered for research; ask its authors before any other use.",
        True,
    ),
    "vspw": Terms(
        "VSPW",
        "vspw-research-only",
        "https://www.vspwdataset.com/",
        "VSPW frames are under a non-commercial research licence and may not be re-hosted publicly.",
        False,
    ),
}
# SHA-256 of VSPW's 124 class names in their order, one a line: the list itself is in a part of the package that cards
# do not read, and a data set with just these classes holds VSPW's frames unless something else is said of it.
VSPW_CLASSES = "d0043b0f717864c1af67e2f67327d8b8feb501df7e70901e7d4fdd6c81266b15"


def terms_of(source: str, name: str, classes: Sequence[str]) -> Terms | None:
    """The terms of a data set, as far as it can be told which one it is; None: it cannot.

    Args:
        source: the layout that it was read from, which many data sets have if it is VSPW's.
        name: of the folder that it lies in.
        classes: class names in order.
    """
    words = f"{source.lower().removeprefix('vspw')} {name.lower()}".replace("-", "_")
    for key, terms in TERMS.items():
        if key in words:
            return terms
    listed = hashlib.sha256("\n".join(classes).encode()).hexdigest()
    return TERMS["vspw"] if listed == VSPW_CLASSES else None
