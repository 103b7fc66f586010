"""Class labels from panoptic annotations."""

from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dformer.data.types import Metadata
from dformer.utils.errors import UserError


def semantic_from_panoptic(
    segment_ids: NDArray[np.integer[Any]],
    segments_info: Iterable[Mapping[str, Any]],
    metadata: Metadata,
) -> NDArray[np.integer[Any]]:
    """Return the class labels (H, W) of a panoptic annotation, `metadata.ignore_label` (255) without a segment.

    As in Detectron2 and the COCO panoptic API, crowd segments count as their class.

    Args:
        segment_ids: (H, W) integers, or (H, W, 3) uint8 as in the PNG (id = R + 256 G + 65536 B).
        segments_info: {"id", "category_id"} of each segment, category ids as in the json file (not contiguous).
        metadata: of the data set.

    Raises:
        UserError: a category id is not one of the data set's.
    """
    contiguous = {**metadata.stuff_dataset_id_to_contiguous_id, **metadata.thing_dataset_id_to_contiguous_id}
    classes = {}
    for segment in segments_info:
        if segment["category_id"] not in contiguous:
            raise UserError(
                f"segment {segment['id']} has category id {segment['category_id']}, which is not one of the "
                f'{len(contiguous)} categories of data set "{metadata.name}"'
            )
        classes[segment["id"]] = contiguous[segment["category_id"]]
    return paint_classes(segment_ids, classes, metadata.get("ignore_label", 255))


def paint_classes(
    segment_ids: NDArray[np.integer[Any]], classes: Mapping[int, int], ignore_label: int
) -> NDArray[np.integer[Any]]:
    """Paint the class of each pixel's segment, (H, W), `ignore_label` on segments that `classes` does not have.

    `segment_ids` are as in `semantic_from_panoptic`. The result is uint8 if it fits, else int32.
    """
    if segment_ids.ndim == 3:  # with a fourth byte, each pixel is an integer: several times as fast as `rgb2id`
        segment_ids = cv2.cvtColor(segment_ids, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0] & 0xFFFFFF
    largest = max(ignore_label, *classes.values(), 0)
    dtype: type[np.integer[Any]] = np.uint8 if largest < 256 else np.int32
    # Looked up once for each run of equal ids in a row: there are few.
    ids = segment_ids.ravel()
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])[: ids.size])
    found = np.unique(ids[starts])
    labels = np.array([classes.get(i, ignore_label) for i in found.tolist()], dtype)
    of_runs = labels[np.searchsorted(found, ids[starts])]
    return np.repeat(of_runs, np.diff(starts, append=ids.size)).reshape(segment_ids.shape)


def paint_masks(masks: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Paint masks (G, H, W) on one map, smaller over larger ones.

    Returns:
        (H, W): 0 where there is no mask, k + 1 on the k-th visible one.
        (V,): indices of the visible masks, in their order.
    """
    numbers = np.zeros(masks.shape[1:], np.int64)
    for k in np.argsort(-masks.sum((1, 2)), kind="stable").tolist():
        numbers[masks[k]] = k + 1
    visible = np.unique(numbers[numbers > 0]) - 1
    renumbered = np.zeros(len(masks) + 1, np.int64)
    renumbered[visible + 1] = np.arange(1, len(visible) + 1)
    return renumbered[numbers], visible
