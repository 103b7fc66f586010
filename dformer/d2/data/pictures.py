"""Pictures of annotations, as they are trained on."""

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T
from numpy.typing import NDArray

from dformer.d2.data.datasets import class_names, get_metadata, num_classes, thing_ids
from dformer.data.annotations import annotation_reader
from dformer.data.images import read_image
from dformer.data.types import Record
from dformer.visualize import DEFAULT_STYLE, Segment, Style, UInt8, draw_segments, fit_size

MAX_SIDE = 480  # pixels; smaller pictures would have no readable names


def draw_record(record: Record, name: str, task: str, max_side: int = MAX_SIDE, style: Style = DEFAULT_STYLE) -> UInt8:
    """Draw the image of a record of data set `name`, at most `max_side` pixels long, with its annotation for `task`.

    Raises:
        UserError: image or annotation cannot be read.
    """
    image = read_image(record["file_name"])
    height, width = image.shape[:2]
    ignore_label = get_metadata(name).get("ignore_label", 255)
    annotation = annotation_reader(task, num_classes(name, task), ignore_label)(record, (height, width))
    size = fit_size(height, width, max_side)
    resize = T.ResizeTransform(height, width, *size)
    classes, masks, _ = annotation.targets(T.TransformList([resize]), size)
    return draw_targets(resize.apply_image(image), classes, masks.numpy(), name, task, style)


def draw_targets(
    image: UInt8, classes: Sequence[int], masks: NDArray[np.bool_], name: str, task: str, style: Style = DEFAULT_STYLE
) -> UInt8:
    """Draw training targets, classes (G,) and masks (G, H, W), on an RGB image (H, W, 3)."""
    things = () if task == "semantic" else thing_ids(name, task)
    segments = (Segment(mask, cls, is_thing=cls in things) for cls, mask in zip(classes, masks, strict=True))
    return draw_segments(image, segments, class_names(name, task), style)
