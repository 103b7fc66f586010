"""Checks of an image and its annotation."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from panopticapi.utils import rgb2id
from pycocotools import mask as rle

from dformer.data.checks.findings import Finding, Findings, ImageStats
from dformer.data.coco_format import as_rle
from dformer.data.images import read_image, read_labels, read_panoptic_png
from dformer.data.segmentations import decode_rle
from dformer.data.types import Record
from dformer.utils.errors import UserError

OUTSIDE = 2  # pixels that a polygon may reach over the image's border
MIN_AREA_RATIO, MIN_AREA_DIFFERENCE = 1.5, 100  # areas of polygons are not those of their pixels
MAX_BOX_DIFFERENCE, MAX_BOX_SHARE = 5, 0.1  # pixels; of the box's sides


def check_image(record: Record, task: str, ignore_label: int) -> ImageStats:
    """Check an image and its annotation.

    Args:
        record: with everything that the json files say; of semantic annotations, with a `label_map`.
        task: of the annotation.
        ignore_label: label of void.

    Returns:
        Their statistics, with the findings.
    """
    stats = ImageStats(str(record["file_name"]))
    stats.findings += _check_file(record, stats)
    if task == "panoptic":
        stats.findings += _check_panoptic(record, stats)
    elif task == "semantic":
        stats.findings += _check_semantic(record, stats, ignore_label)
    else:
        stats.findings += _check_instances(record, stats)
    return stats


def _check_file(record: Record, stats: ImageStats) -> Findings:
    try:
        height, width, _ = read_image(stats.file).shape
    except UserError as error:
        yield _unreadable(stats.file, error)
        return
    stats.size = height, width
    stats.digest = hashlib.sha1(Path(stats.file).read_bytes()).hexdigest()
    stated = record.get("height", height), record.get("width", width)
    if stated != stats.size:
        what = f"is {width} x {height} pixels, with its EXIF orientation applied; its annotation is {_wxh(stated)}"
        yield Finding("size", stats.file, what)


def _check_panoptic(record: Record, stats: ImageStats) -> Findings:
    file = record["pan_seg_file_name"]
    try:
        ids = rgb2id(read_panoptic_png(file))
    except UserError as error:
        yield _unreadable(file, error)
        return
    yield from _check_size(file, ids, stats)
    values, counts = np.unique(ids, return_counts=True)
    areas = dict(zip(values.tolist(), counts.tolist(), strict=True))
    stats.void = areas.pop(0, 0)
    segments = {s["id"]: s for s in record["segments_info"]}
    for i in areas.keys() - segments.keys():
        what = f"{areas[i]} pixels have the id {i}, which is not in its json; they are void"
        yield Finding("unknown segment", file, what)
    for i, segment in segments.items():
        if i not in areas:
            yield Finding("empty mask", file, f"no pixel has the id {i}, which its json names")
            continue
        stats.objects.append((segment["category_id"], areas[i], bool(segment.get("iscrowd"))))
        mask = rle.encode(np.asfortranarray(ids == i, dtype=np.uint8))
        yield from _check_area_and_box(segment, mask, file, f"segment {i}")


def _check_semantic(record: Record, stats: ImageStats, ignore_label: int) -> Findings:
    file, mapping = record["sem_seg_file_name"], record["label_map"]
    try:
        labels = read_labels(file)
    except UserError as error:
        yield _unreadable(file, error)
        return
    yield from _check_size(file, labels, stats)
    values, counts = np.unique(labels, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value not in mapping:
            what = f"{count} pixels have the value {value}, which is neither a class nor void"
            yield Finding("unknown label", file, what)
        elif mapping[value] == ignore_label:
            stats.void += count
        else:
            stats.objects.append((mapping[value], count, False))
    if stats.void == labels.size:
        yield Finding("all void", file, "no pixel is annotated")


def _check_instances(record: Record, stats: ImageStats) -> Findings:
    for k, annotation in enumerate(record["annotations"]):
        file, name = stats.file, f"object {annotation.get('id', k)}"
        stats.ids.append(annotation.get("id"))
        segmentation = annotation.get("segmentation")
        if not segmentation:
            continue
        try:
            mask = as_rle(segmentation, record)
            decode_rle(mask)
        except UserError as error:
            yield Finding("mask broken", file, f"{name}: {error}")
            continue
        area = int(rle.area(mask))
        stats.objects.append((annotation["category_id"], area, bool(annotation.get("iscrowd"))))
        if isinstance(segmentation, list):
            points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
            low, high = points.min(0), points.max(0) - mask["size"][::-1]
            if low.min() < -OUTSIDE or high.max() > OUTSIDE:
                what = f"{name}: its polygon reaches from {low.tolist()} to {points.max(0).tolist()}"
                yield Finding("mask outside the image", file, f"{what}, the image is {_wxh(mask['size'])}")
        if area:
            yield from _check_area_and_box(annotation, mask, file, name)
        else:
            yield Finding("empty mask", file, f"{name}: its mask has no pixel; it is not trained on")


def _check_size(file: str, annotation: np.ndarray, stats: ImageStats) -> Findings:
    if stats.size and stats.size != annotation.shape:
        what = f"is {_wxh(annotation.shape)} pixels, its image {stats.file} {_wxh(stats.size)}"
        yield Finding("size", file, what)


def _check_area_and_box(entry: Mapping[str, Any], mask: Mapping[str, Any], file: str, name: str) -> Findings:
    area, (x, y, width, height) = int(rle.area(mask)), rle.toBbox(mask).tolist()
    stated = entry.get("area", area)
    if abs(stated - area) > MIN_AREA_DIFFERENCE and max(stated, area) > MIN_AREA_RATIO * min(stated, area):
        yield Finding("area", file, f"{name}: its area is {stated:g} in the json, its mask has {area} pixels")
    left, top, w, h = entry.get("bbox", (x, y, width, height))
    difference = max(abs(left - x), abs(top - y), abs(left + w - x - width), abs(top + h - y - height))
    if difference > max(MAX_BOX_DIFFERENCE, MAX_BOX_SHARE * max(width, height)):
        what = f"{name}: its box is {[left, top, w, h]} in the json, its mask's is {[x, y, width, height]}"
        yield Finding("box", file, what)


def _unreadable(file: str, error: UserError) -> Finding:
    kind = "file unreadable" if Path(file).is_file() else "file missing"
    return Finding(kind, file, str(error))


def _wxh(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]}"
