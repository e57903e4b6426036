"""Under which terms the known data sets may be passed on, as far as a card and a push must know, and their papers.

A short form for people who are about to publish frames or models. Where no terms were found it says so. The terms
themselves stand behind each link, and only they count.
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
        link: where the terms stand, or may be asked for.
        notice: what a reader must know before passing the frames on.
        of_models: what a reader must know before using a model that was trained on them.
        may_be_public: False: the frames may not be put where everybody can fetch them.
        paper: to be cited.
    """

    name: str
    licence: str
    link: str
    notice: str
    of_models: str
    may_be_public: bool
    paper: str


# By a part of the name of the layout or of the folder. The first that fits counts, so that camvid_vspw, CamVid in
# VSPW's layout, is CamVid.
TERMS = {
    "vipseg": Terms(
        "VIPSeg",
        "vipseg-research-only",
        "https://github.com/VIPSeg-Dataset/VIPSeg-Dataset",
        "VIPSeg's videos are VSPW's, so VSPW's terms are taken to hold: for non-commercial research, and not to be "
        "re-hosted publicly. Whether it has terms of its own, check at its page.",
        "VIPSeg's videos are VSPW's, licensed for non-commercial research only; check the terms of both before any "
        "other use of models made from it.",
        False,
        'J. Miao, X. Wang, Y. Wu, W. Li, X. Zhang, Y. Wei, Y. Yang, "Large-Scale Video Panoptic Segmentation in the '
        'Wild: A Benchmark", CVPR 2022 (VIPSeg)',
    ),
    "cityscapes": Terms(
        "Cityscapes",
        "cityscapes-terms",
        "https://www.cityscapes-dataset.com/license/",
        "Cityscapes is offered for non-commercial use, and neither it nor changed versions may be distributed.",
        "Cityscapes is offered for non-commercial use only, and its terms extend that to models made from it.",
        False,
        'M. Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016',
    ),
    "ade20k": Terms(
        "ADE20K",
        "ade20k-terms",
        "https://groups.csail.mit.edu/vision/datasets/ADE20K/terms/",
        "ADE20K's images are offered for non-commercial research and education, and may only be passed on to "
        "colleagues who accept its terms first: not publicly.",
        "ADE20K's images are offered for non-commercial research and education; check its terms before any other use "
        "of models made from them.",
        False,
        'B. Zhou, H. Zhao, X. Puig, S. Fidler, A. Barriuso, A. Torralba, "Scene Parsing through ADE20K Dataset", '
        "CVPR 2017",
    ),
    "coco_stuff": Terms(
        "COCO-Stuff",
        "coco-terms",
        "https://cocodataset.org/#termsofuse",
        "COCO does not own its images: Flickr's terms and each picture's own licence hold, and many of those exclude "
        "commercial use. The annotations of COCO and COCO-Stuff are under CC BY 4.0.",
        "COCO does not own its images: each has a licence of its own, and many of those exclude commercial use.",
        True,
        'H. Caesar, J. Uijlings, V. Ferrari, "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018',
    ),
    "pascal_context": Terms(
        "Pascal Context",
        "pascal-voc-terms",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/",
        "The images are those of Pascal VOC, which come from Flickr: its terms hold for each of them. No terms of the "
        "annotations are known here.",
        "Pascal Context's images come from Flickr, whose terms hold for each of them.",
        True,
        'R. Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the Wild", CVPR '
        "2014 (Pascal Context)",
    ),
    "camvid": Terms(
        "CamVid",
        "camvid-research",
        "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
        "CamVid was made for research, and no licence of it is known here; ask its authors before publishing it.",
        "CamVid was made for research, and no licence of it is known here; ask its authors before any other use of it "
        "or of models made from it.",
        True,
        'G. Brostow, J. Fauqueur, R. Cipolla, "Semantic Object Classes in Video: A High-Definition Ground Truth '
        'Database", Pattern Recognition Letters 30(2), 2009 (CamVid)',
    ),
    "vspw": Terms(
        "VSPW",
        "vspw-research-only",
        "https://www.vspwdataset.com/",
        "VSPW frames are under a non-commercial research licence and may not be re-hosted publicly.",
        "VSPW is licensed for non-commercial research only; check its terms before any other use of models made from "
        "it.",
        False,
        'J. Miao, Y. Wei, Y. Wu, C. Liang, G. Li, Y. Yang, "VSPW: A Large-scale Dataset for Video Scene Parsing in '
        'the Wild", CVPR 2021 (data set and video consistency)',
    ),
}
# SHA-256 of VSPW's 124 class names in their order, one a line: the list itself is in a part of the package that cards
# do not read, and a data set with just these classes holds VSPW's frames unless something else is said of it.
VSPW_CLASSES = "d0043b0f717864c1af67e2f67327d8b8feb501df7e70901e7d4fdd6c81266b15"


def licence_of(seen: Sequence[Terms]) -> dict[str, str]:
    """What weights may be licensed under at most, by all the data that they have seen; arguments of `render_card`.

    None of these terms contains another one, so all of them are named. The Hub has room for one link: the first one's.
    """
    if not seen:  # drawn by this package
        return {"license": "apache-2.0"}
    return {
        "license": "other",
        "license_name": "-and-".join(terms.licence for terms in seen),
        "license_link": seen[0].link,
    }


def terms_of(source: str, name: str, classes: Sequence[str] = ()) -> Terms | None:
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
