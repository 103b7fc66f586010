"""Segments that are given: their masks, and a panoptic map that keeps them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from dformer.utils.errors import UserError

Segments = list[dict[str, Any]]


def coarse_masks(masks: ArrayLike | None, boxes: ArrayLike | None, size: tuple[int, int]) -> Tensor:
    """Return masks (M, H, W) bool of an image of this size, from masks, or from boxes (M, 4).

    Raises:
        UserError: both or none of them are given, their shape is another, or one of them is empty.
    """
    if (masks is None) == (boxes is None):
        raise UserError("masks, boxes: give one of them")
    height, width = size
    if boxes is not None:
        corners = np.asarray(boxes, float).reshape(-1, 4)
        y, x = np.arange(height)[:, None], np.arange(width)
        left, top, right, bottom = corners.T[:, :, None, None]
        given = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    else:
        given = np.asarray(masks) > 0
        if given.ndim != 3 or given.shape[1:] != size:
            raise UserError(f"masks: they are {given.shape}, but the image {size}; give (M, {height}, {width})")
    for index in np.flatnonzero(~given.any((1, 2))):
        raise UserError(f"{'masks' if boxes is None else 'boxes'}: number {index} covers no pixel; leave it out")
    return torch.from_numpy(given)


def fill_unknown(known: Tensor) -> Tensor:
    """Return a map of ids (h, w), on the CPU, whose unknown pixels, the 0s, have the id of the nearest known one."""
    if not known.any():
        return known
    y, x = distance_transform_edt(known.numpy() == 0, return_distances=False, return_indices=True)
    return known[y, x]


def split_known(known: Tensor) -> tuple[list[int], Tensor]:
    """Return the ids in a map (h, w), 0 for what is unknown, by rising id, and their masks (M, h, w) bool."""
    ids = known.unique()
    ids = ids[ids > 0]
    return ids.tolist(), known == ids[:, None, None]


def paste_known(found: Tensor, segments: Segments, known: Tensor, given: Segments) -> tuple[Tensor, Segments]:
    """Return a panoptic map and its segments (see `PanopticMap`) in which given segments keep their pixels and ids.

    Found ones get the ids after those. One that loses more than half of its pixels is dropped: it is a given one.

    Args:
        found, segments: the model's map (H, W), and its segments.
        known: ids of given segments (H, W), 0 for what is unknown.
        given: a dict a given segment, as in `segments`, with the id of `known`.
    """
    ids = {segment["id"]: {**segment, "area": int((known == segment["id"]).sum())} for segment in given}
    result, merged = known.to(found.dtype), list(ids.values())
    for segment in segments:
        left = (found == segment["id"]) & (known == 0)
        area = int(left.sum())
        if 2 * area < segment["area"] or area == 0:
            continue
        merged.append({**segment, "id": max((s["id"] for s in merged), default=0) + 1, "area": area})
        result = torch.where(left, merged[-1]["id"], result)
    return result, merged
