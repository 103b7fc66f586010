"""Pictures of annotations, as training sees them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from numpy.typing import NDArray

from dformer.d2.data.datasets import class_names, get_metadata, num_classes, thing_ids
from dformer.data.annotations import annotation_reader
from dformer.data.images import read_image
from dformer.data.types import Record
from dformer.visualize import UInt8, draw_segments, instance_segments, panoptic_segments

LONG_SIDE = 480  # pixels; below that, names could not be read


def draw_record(record: Record, name: str, task: str, long_side: int = LONG_SIDE) -> UInt8:
    """The image of a record of data set `name`, with its annotation for `task` on top.

    Raises:
        UserError: image or annotation cannot be read.
    """
    image = read_image(record["file_name"])
    height, width = image.shape[:2]
    ignore_label = get_metadata(name).get("ignore_label", 255)
    annotation = annotation_reader(task, num_classes(name, task), ignore_label)(record, (height, width))
    scale = min(1.0, long_side / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    resize = T.ResizeTransform(height, width, *size)
    classes, masks = annotation.targets(T.TransformList([resize]), size)
    return draw_targets(resize.apply_image(image), classes, masks.numpy(), name, task)


def draw_targets(image: UInt8, classes: Sequence[int], masks: NDArray[np.bool_], name: str, task: str) -> UInt8:
    """An RGB image (H, W, 3) with training targets on top: classes (G,) and masks (G, H, W)."""
    names = class_names(name, task)
    if task == "instance":
        return draw_segments(image, instance_segments(masks, classes), names)
    ids = np.zeros(image.shape[:2], np.int64)
    for k, mask in enumerate(masks, start=1):
        ids[mask] = k
    things = thing_ids(name, task) if task == "panoptic" else ()
    segments: list[dict[str, Any]] = [
        {"id": k, "category_id": cls, "isthing": cls in things} for k, cls in enumerate(classes, start=1)
    ]
    return draw_segments(image, panoptic_segments(ids, segments), names)
