"""Checks of an image and its annotation."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from panopticapi.utils import rgb2id
from pycocotools import mask as rle

from dformer.data.checks.findings import CheckedImage, Finding, Findings
from dformer.data.coco_format import as_rle
from dformer.data.images import read_image, read_labels, read_panoptic_png
from dformer.data.segmentations import decode_rle
from dformer.data.types import Record
from dformer.utils.errors import UserError

Reader = Callable[[str], NDArray[Any]]


def check_image(record: Record, task: str, ignore_label: int) -> CheckedImage:
    """Check an image and its annotation for `task`; return what was found.

    Records of semantic annotations need a `label_map`.
    """
    image = CheckedImage(str(record["file_name"]))
    pixels = _read(read_image, image.file, image)
    if pixels is not None:
        image.digest = hashlib.sha1(Path(image.file).read_bytes()).hexdigest()
        height, width = pixels.shape[:2]
        image.size = height, width
        stated = record.get("height", height), record.get("width", width)
        if stated != image.size:
            what = f"is {_wxh(image.size)} pixels, with its EXIF orientation applied; its annotation is {_wxh(stated)}"
            image.findings.append(Finding("size", image.file, what))
    if task == "panoptic":
        image.findings += _check_panoptic(record, image)
    elif task == "semantic":
        image.findings += _check_semantic(record, image, ignore_label)
    else:
        image.findings += _check_instances(record, image)
    return image


def _check_panoptic(record: Record, image: CheckedImage) -> Findings:
    file = record["pan_seg_file_name"]
    areas = _areas(lambda png: rgb2id(read_panoptic_png(png)), file, image)
    segments = {s["id"]: s for s in record["segments_info"]} if areas else {}
    for i in areas.keys() - segments.keys() - {0, *record.get("void_ids", ())}:
        what = f"{areas[i]} pixels have the id {i}, which its annotation does not list; they are void"
        yield Finding("unknown segment", file, what)
    for i, segment in segments.items():
        if i not in areas:
            yield Finding("empty mask", file, f"no pixel has the id {i}, which its annotation lists")
        elif not segment.get("iscrowd"):
            image.classes.append(segment["category_id"])
            if segment.get("isthing", True):
                image.sides.append(areas[i] ** 0.5)


def _check_semantic(record: Record, image: CheckedImage, ignore_label: int) -> Findings:
    file, label_map = record["sem_seg_file_name"], record["label_map"]
    areas = _areas(read_labels, file, image)
    for value, count in areas.items():
        if value not in label_map:
            what = f"{count} pixels have the value {value}, which is neither a class nor void"
            yield Finding("unknown label", file, what)
        elif label_map[value] == ignore_label:
            image.void += count / sum(areas.values())
        else:
            image.classes.append(label_map[value])


def _check_instances(record: Record, image: CheckedImage) -> Findings:
    if "ids_file_name" in record:
        yield from _check_ids(record["ids_file_name"], image)
    for k, annotation in enumerate(record["annotations"]):
        name = f"object {annotation.get('id', k)}"
        if not annotation.get("segmentation"):
            continue
        try:
            mask = as_rle(annotation["segmentation"], record)
            decode_rle(mask)
        except UserError as error:
            yield Finding("mask broken", image.file, f"{name}: {error}")
            continue
        if not rle.area(mask):
            yield Finding("empty mask", image.file, f"{name}: its mask has no pixel; it is not trained on")
        elif not annotation.get("iscrowd"):
            image.classes.append(annotation["category_id"])
            image.sides.append(float(rle.area(mask)) ** 0.5)


def _check_ids(file: str, image: CheckedImage) -> Findings:
    """Check that most ids are not what anti-aliasing draws around an object.

    Such an id has no pixel inside, with the same id on all four sides, and touches another id. Small objects apart from
    each other touch none, and of those that touch, 3 x 3 pixels are enough for one inside.
    """
    ids = _read(read_labels, file, image)
    if ids is None:
        return
    padded = np.pad(ids, 1, mode="edge")
    around = [padded[1 + y : -1 + y or None, 1 + x : -1 + x or None] for y, x in ((-1, 0), (1, 0), (0, -1), (0, 1))]
    inside = np.logical_and.reduce([side == ids for side in around])
    touches = np.logical_or.reduce([(side != ids) & (side != 0) for side in around]) & (ids != 0)
    total, rims = len(np.setdiff1d(ids, 0)), len(np.setdiff1d(ids[touches], ids[inside]))
    if rims > total / 2:
        what = f"{rims} of {total} ids are mere rims of others, with no pixel inside: are there {total - rims} objects?"
        yield Finding("soft edges", file, what)


def _areas(read: Reader, file: str, image: CheckedImage) -> dict[int, int]:
    """Value -> number of pixels of an annotation's file; empty where it cannot be read."""
    values = _read(read, file, image)
    if values is None:
        return {}
    if image.size and image.size != values.shape:
        what = f"is {_wxh(values.shape)} pixels, its image {image.file} {_wxh(image.size)}"
        image.findings.append(Finding("size", file, what))
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _read(read: Reader, file: str, image: CheckedImage) -> NDArray[Any] | None:
    try:
        return read(file)
    except UserError as error:
        kind = "file unreadable" if Path(file).is_file() else "file missing"
        image.findings.append(Finding(kind, file, str(error)))
        return None


def _wxh(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]}"
