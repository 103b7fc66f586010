"""COCO's segmentations: masks, polygons and run-length encodings (RLE).

pycocotools trusts the numbers that it gets, and crashes on wrong ones: `fault_of` checks them first.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from dformer.data.types import Size
from dformer.utils.errors import UserError

REACH = 100  # image sides by which a polygon may reach beyond the image


def fault_of(segmentation: Any, size: Size) -> str:
    """Say what is wrong with the polygons or the RLE of an object in an image of `size`: a clause, empty if nothing."""
    if isinstance(segmentation, list):
        return _fault_of_polygons(segmentation, size)
    if not isinstance(segmentation, dict) or not {"counts", "size"} <= segmentation.keys():
        return "is neither polygons nor an RLE of counts and size"
    stated, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(stated, list | tuple) or list(stated) != list(size):
        return f"is an RLE of size {str(stated)[:40]} (height, width), its image is {list(size)}"
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
        if not np.all((coordinates >= low) & (coordinates <= high)):  # False for NaN
            return "has a polygon with a coordinate far outside the image"
    return ""


def compress(segmentation: Any, size: Size) -> dict[str, Any]:
    """Return polygons, or an RLE of either kind, as a compressed RLE; raise UserError for a fault."""
    if fault := fault_of(segmentation, size):
        raise UserError(fault)
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, *size))
    return rle.frPyObjects(segmentation, *size) if isinstance(segmentation["counts"], list) else segmentation


def encode_mask(mask: NDArray[Any]) -> dict[str, Any]:
    """Encode a mask (H, W) as a compressed RLE."""
    return rle.encode(np.asfortranarray(mask, dtype=np.uint8))


def decode_rle(segmentation: dict[str, Any]) -> NDArray[np.uint8]:
    """Decode a compressed RLE to a mask (H, W); raise UserError if its counts do not match its size."""
    try:
        return rle.decode(segmentation)
    except ValueError as error:
        raise UserError(f"an RLE of size {segmentation['size']} cannot be decoded: {error}") from error


def area_and_box(encoded: dict[str, Any]) -> dict[str, Any]:
    """Return the "area" and "bbox" (x, y, width, height) of a compressed RLE, in pixels."""
    return {"area": int(rle.area(encoded)), "bbox": [int(side) for side in rle.toBbox(encoded)]}


def json_rle(encoded: dict[str, Any]) -> dict[str, Any]:
    """Return a compressed RLE as json holds it, with its counts as text."""
    counts = encoded["counts"]
    text = counts if isinstance(counts, str) else counts.decode("ascii")
    return {"size": [int(side) for side in encoded["size"]], "counts": text}
