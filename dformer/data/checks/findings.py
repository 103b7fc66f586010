"""The kinds of faults and oddities that the checks look for."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from dformer.data.types import Size

FATAL, WARNING, NOTE = "fatal", "warning", "note"  # training cannot start; it can, but not as meant; odd, and no error
LEVELS = (FATAL, WARNING, NOTE)
# Kind of a finding: its level, and what to do.
KINDS = {
    "cannot be loaded": (FATAL, "correct it, and check again"),
    # json files
    "json unreadable": (FATAL, "write it in COCO's format"),
    "wrong entry": (FATAL, "correct it"),
    "duplicate id": (FATAL, "give each its own"),
    "unknown category": (FATAL, "add the category, or correct the id"),
    # files
    "file missing": (FATAL, "restore it, or remove its image from the data set"),
    "file unreadable": (FATAL, "replace it, or remove its image from the data set"),
    "size": (FATAL, "replace the one that is wrong; do not resize annotations"),
    "image without annotation": (WARNING, "annotate it, or remove it from the data set"),
    "annotation without image": (WARNING, "add the image, or remove its annotation"),
    # annotations
    "unknown segment": (WARNING, "add the segment to the json, or make it void, 0"),
    "unknown label": (FATAL, "if these pixels are not annotated, declare `void`; else name the class"),
    "mask broken": (FATAL, "encode the mask again, at the image's size"),
    "soft edges": (WARNING, "save ids without anti-aliasing, lossless, and resize them by nearest neighbours"),
    "empty mask": (WARNING, "draw or remove it"),
    # data sets
    "nothing annotated": (FATAL, "are these the annotations of these images?"),
    "more objects than queries": (
        WARNING,
        "raise MODEL.MASK_DECODER.NUM_QUERIES (DiffusionInst: MODEL.ROI_DECODER.NUM_PROPOSALS)",
    ),
    "class without example": (WARNING, "annotate examples, correct the values in `classes`, or remove the class"),
    "class not tested": (NOTE, "its metrics are not measured here"),
    "undeclared void": (
        WARNING,
        "is it foreground? Name it: `classes: {0: background, 255: foreground}`. Is it void? Say so: `void: 255`",
    ),
    "image without objects": (NOTE, "DATALOADER.FILTER_EMPTY_ANNOTATIONS True skips such images of instance sets"),
    "duplicate image": (WARNING, "keep one"),
    "other classes": (FATAL, "give both sets the same classes in the same order"),
    "image in training and test": (WARNING, "remove it from one of the sets"),
    # videos
    "gap in frames": (WARNING, "restore the frames, or cut the video there"),
    "duplicate frame": (WARNING, "give each frame its own number"),
    "size changes": (WARNING, "cut the video there: objects are not followed from one size to another"),
    "id jumps": (WARNING, "give an object one id in all frames"),
    "track of several classes": (WARNING, "give an object one class in all frames"),
}


class Finding(NamedTuple):
    """Describe one fault, or one oddity.

    Attributes:
        kind: a key of `KINDS`.
        file: where it is.
        what: what is wrong there, a clause.
    """

    kind: str
    file: str
    what: str

    @property
    def level(self) -> str:
        """Return "fatal", "warning" or "note"."""
        return KINDS[self.kind][0]

    @property
    def remedy(self) -> str:
        """Return what to do."""
        return KINDS[self.kind][1]


Findings = Iterator[Finding]


@dataclass
class CheckedImage:
    """Hold what was found in an image and its annotation.

    Attributes:
        size: height and width of the image; None: it cannot be read.
        digest: of the file; images with the same digest are the same.
        classes: of each object or region, without crowds.
        sides: of squares of the objects' areas, in pixels.
        void: share of the pixels of a label map that are void, 0 to 1.
    """

    file: str
    size: Size | None = None
    digest: str = ""
    classes: list[int] = field(default_factory=list)
    sides: list[float] = field(default_factory=list)
    void: float = 0.0
    findings: list[Finding] = field(default_factory=list)
