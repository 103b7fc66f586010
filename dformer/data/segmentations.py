"""COCO's segmentations from outside: pycocotools trusts the numbers that it is given, and crashes on wrong ones."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from dformer.data.types import Size
from dformer.utils.errors import UserError

REACH = 100  # sides of the image that a polygon may lie outside of it


def fault_of(segmentation: Any, size: Size) -> str:
    """What is wrong with the polygons or the RLE of an object in an image of `size`, a clause; empty: nothing."""
    if isinstance(segmentation, list):
        return _fault_of_polygons(segmentation, size)
    if not isinstance(segmentation, dict) or not {"counts", "size"} <= segmentation.keys():
        return "is neither polygons nor an RLE of counts and size"
    stated = segmentation["size"]
    if not isinstance(stated, list | tuple) or list(stated) != list(size):
        return f"is an RLE of size {str(stated)[:40]} (height, width), its image is {list(size)}"
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
            return f"is an RLE whose counts are not {size[0] * size[1]} pixels"
    elif not isinstance(counts, str | bytes):
        return "is an RLE whose counts are neither a list nor a string"
    return ""


def _fault_of_polygons(polygons: list[Any], size: Size) -> str:
    low, high = -REACH * max(size), (REACH + 1) * max(size)
    for polygon in polygons:
        try:
            coordinates = np.asarray(polygon)
        except ValueError:  # lists of different lengths
            return "has a polygon that is not a list of numbers"
        if coordinates.ndim != 1 or coordinates.dtype.kind not in "iuf":
            return "has a polygon that is not a list of numbers"
        if not np.all((coordinates >= low) & (coordinates <= high)):  # which NaN is not
            return "has a polygon with a coordinate far outside the image"
    return ""


def decode_rle(segmentation: dict[str, Any]) -> NDArray[np.uint8]:
    """(H, W) of an RLE without a fault.

    Raises:
        UserError: its counts are not of its size.
    """
    try:
        return rle.decode(segmentation)
    except ValueError as error:
        raise UserError(f"an RLE of size {segmentation['size']} cannot be decoded: {error}") from error
