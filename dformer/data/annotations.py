"""Annotation files -> training targets (gt_classes, gt_masks), one reader a task.

Annotations stay small until the transforms of the image are known: masks are made of the pixels that remain.

Shapes: H, W of the annotation, h, w after the transforms, h', w' with padding, G objects.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from panopticapi.utils import id2rgb, rgb2id
from pycocotools import mask as rle

from dformer.data.images import read_labels, read_panoptic_png
from dformer.data.panoptic import paint_classes
from dformer.data.segmentations import compress, decode_rle, fault_of
from dformer.data.types import Record, Size, Transforms
from dformer.utils.errors import UserError

Found = tuple[int, NDArray[Any], int]  # class, mask (h, w), track


class Targets(NamedTuple):
    """Hold of G objects the contiguous classes, the masks (G, h', w') bool, and the tracks, 0 where there is none."""

    classes: list[int]
    masks: torch.Tensor
    tracks: list[int]


@dataclass
class Regions:
    """Hold regions that do not overlap, as a picture of region ids.

    Args:
        picture: uint8 region ids, (H, W) or, where ids exceed 255, (H, W, 3) with id = R + 256 G + 65536 B.
        classes: region id -> contiguous class, for the regions that are targets; all else is void.
        ignore_label: class label of void.
        tracks: region id -> number of the object in its video, for those that have one.
    """

    picture: NDArray[np.uint8]
    classes: Mapping[int, int]
    ignore_label: int
    tracks: Mapping[int, int] = field(default_factory=dict)

    def class_labels(self) -> NDArray[np.integer[Any]]:
        """Return the class of each pixel, (H, W), for the crop that limits the share of one class."""
        return paint_classes(self.picture, self.classes, self.ignore_label)

    def targets(self, transforms: Transforms, size: Size, padded: Size | None = None) -> Targets:
        """Return the regions with at least one pixel left by `transforms`.

        Their masks, of `size` (h, w), are in the upper left corner of `padded` (h', w'), by default `size`.
        """
        # The uint8 picture itself is transformed: Detectron2 resizes uint8 with Pillow, which samples the nearest pixel
        # centre, but other types with a top-left bias that would shift masks against the image.
        picture = np.ascontiguousarray(transforms.apply_segmentation(self.picture))
        ids = rgb2id(picture) if picture.ndim == 3 else picture
        regions = ((cls, ids == region, self.tracks.get(region, 0)) for region, cls in self.classes.items())
        return _gather(regions, len(self.classes), padded or size)


@dataclass
class Objects:
    """Hold objects that may overlap, as polygons or run-length encodings.

    Args:
        segmentations: of each object, polygons [[x0, y0, x1, y1, ...], ...] or a compressed RLE of (H, W).
        classes: of each object, contiguous.
        tracks: of each object, its number in the video, 0 for none.
    """

    segmentations: list[Any]
    classes: list[int]
    tracks: list[int]

    def class_labels(self) -> None:
        """Return None: a pixel may have several classes."""

    def targets(self, transforms: Transforms, size: Size, padded: Size | None = None) -> Targets:
        """Return the objects with at least one pixel left by `transforms`; see `Regions.targets`."""
        return _gather(self._transformed(transforms, size), len(self.classes), padded or size)

    def _transformed(self, transforms: Transforms, size: Size) -> Iterator[Found]:
        for segmentation, cls, track in zip(self.segmentations, self.classes, self.tracks, strict=True):
            read = _transformed_rle if isinstance(segmentation, dict) else _transformed_polygons
            mask = read(segmentation, transforms, size)
            if mask is not None:
                yield cls, mask, track


Annotation = Regions | Objects


def _gather(objects: Iterable[Found], count: int, padded: Size) -> Targets:
    """Targets from at most `count` objects; those with empty masks are dropped."""
    classes: list[int] = []
    tracks: list[int] = []
    masks = np.zeros((count, *padded), bool)
    for cls, mask, track in objects:
        if mask.any():
            masks[len(classes), : mask.shape[0], : mask.shape[1]] = mask
            classes.append(cls)
            tracks.append(track)
    return Targets(classes, torch.from_numpy(masks[: len(classes)]), tracks)


def _transformed_polygons(polygons: list[list[float]], transforms: Transforms, size: Size) -> NDArray[np.uint8] | None:
    moved = [transforms.apply_coords(np.array(p, dtype=np.float64).reshape(-1, 2)) for p in polygons]
    if _outside(np.concatenate(moved), size):
        return None
    return rle.decode(rle.merge(rle.frPyObjects([p.ravel().tolist() for p in moved], *size)))


def _transformed_rle(segmentation: dict[str, Any], transforms: Transforms, size: Size) -> NDArray[np.uint8] | None:
    x, y, width, height = rle.toBbox(segmentation)
    corners = np.array([[x, y], [x + width, y], [x, y + height], [x + width, y + height]])
    if _outside(transforms.apply_coords(corners), size):
        return None
    return transforms.apply_segmentation(decode_rle(segmentation))


def _outside(points: NDArray[np.floating[Any]], size: Size) -> bool:
    """Whether the box around the (x, y) points is outside an image of `size` (h, w)."""
    low, high = points.min(0), points.max(0)
    return bool(high[0] <= 0 or high[1] <= 0 or low[0] >= size[1] or low[1] >= size[0])


def annotation_reader(task: str, num_classes: int, ignore_label: int) -> Callable[[Record, Size], Annotation]:
    """Return a function of a record and the image's (height, width) that reads the annotation for a task.

    It raises UserError if the record has no annotation for the task, if annotation and image differ in size, or if a
    label of semantic segmentation is neither below `num_classes` nor `ignore_label`.
    """
    return partial(_read, task=task, num_classes=num_classes, ignore_label=ignore_label)


def _read(record: Record, size: Size, task: str, num_classes: int, ignore_label: int) -> Annotation:
    if task == "semantic":
        return _read_semantic(record, size, num_classes, ignore_label)
    if task == "instance" and "annotations" in record:
        return _read_objects(record, size)
    segments = [s for s in _segments(record, task) if task == "panoptic" or s["isthing"]]
    return _read_regions(record, size, segments, ignore_label)


def _read_semantic(record: Record, size: Size, num_classes: int, ignore_label: int) -> Annotation:
    if "sem_seg_file_name" in record:
        file_name = record["sem_seg_file_name"]
        labels = read_labels(file_name, record.get("label_map"))
        _check_size(record["file_name"], size, file_name, labels.shape)
    else:  # crowds count as their class here
        classes = {s["id"]: s["category_id"] for s in _segments(record, "semantic")}
        file_name = record["pan_seg_file_name"]
        labels = paint_classes(_panoptic_picture(record, size), classes, ignore_label)
    present = [int(v) for v in np.flatnonzero(np.bincount(labels.ravel())) if v != ignore_label]
    if present and present[-1] >= num_classes:
        raise UserError(
            f"{file_name} holds the label {present[-1]}; labels are the {num_classes} classes 0 to "
            f"{num_classes - 1}, and {ignore_label} for void"
        )
    return Regions(_as_picture(labels), {c: c for c in present}, ignore_label)


def _segments(record: Record, task: str) -> list[dict[str, Any]]:
    if "segments_info" not in record:
        raise UserError(f'the data set has no {task} annotation for {record["file_name"]}, and INPUT.TASK is "{task}"')
    return record["segments_info"]


def _read_regions(record: Record, size: Size, segments: list[dict[str, Any]], ignore_label: int) -> Regions:
    """The segments without crowds, numbered from 1, so that their picture is small and quick to transform."""
    segments = [s for s in segments if not s.get("iscrowd")]
    numbers = {s["id"]: number for number, s in enumerate(segments, start=1)}
    picture = paint_classes(_panoptic_picture(record, size), numbers, ignore_label=0)
    classes = {number: s["category_id"] for number, s in enumerate(segments, start=1)}
    tracks = {number: s["track_id"] for number, s in enumerate(segments, start=1) if "track_id" in s}
    return Regions(_as_picture(picture), classes, ignore_label, tracks)


def _as_picture(numbers: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Numbers (H, W) as the picture of `Regions`."""
    return numbers.astype(np.uint8, copy=False) if numbers.max() < 256 else id2rgb(numbers)


def _panoptic_picture(record: Record, size: Size) -> NDArray[np.uint8]:
    picture = read_panoptic_png(record["pan_seg_file_name"])
    _check_size(record["file_name"], size, record["pan_seg_file_name"], picture.shape[:2])
    return picture


def _read_objects(record: Record, size: Size) -> Objects:
    segmentations, classes, tracks = [], [], []
    for annotation in record["annotations"]:
        if annotation.get("iscrowd"):
            continue
        segmentation = annotation.get("segmentation")
        if not segmentation:
            raise UserError(f'an object of {record["file_name"]} has no "segmentation"; masks are trained with masks')
        if fault := fault_of(segmentation, size):
            raise UserError(f"an object of {record['file_name']} {fault}")
        segmentations.append(compress(segmentation, size) if isinstance(segmentation, dict) else segmentation)
        classes.append(annotation["category_id"])
        tracks.append(annotation.get("track_id", 0))
    return Objects(segmentations, classes, tracks)


def _check_size(image_file: str, image: Size, annotation_file: str, annotation: tuple[int, ...]) -> None:
    if image != tuple(annotation):
        raise UserError(
            f"image {image_file} is {image[1]} x {image[0]} pixels (its EXIF orientation applied), but "
            f"{annotation_file} is {annotation[1]} x {annotation[0]}; annotation and image must have the same size"
        )
