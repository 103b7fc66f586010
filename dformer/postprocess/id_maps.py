"""Logits of ids -> segments (LDMSeg, Sec. 3.5; its published evaluation).

Shapes: N ids, logits of h x w, results of H x W. Id 0 is void.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dformer.postprocess.view import View, resized_strips


class SegmentThresholds(NamedTuple):
    """Hold what a segment needs to be kept.

    Attributes:
        probability: of the most probable id; pixels with less are void.
        overlap: share of its own mask that a segment keeps against the others.
        area: pixels of the result.
        logit: from which on a pixel belongs to a segment's own mask.
        margin: by which the most probable id exceeds the next; pixels with less are void.
    """

    probability: float
    overlap: float
    area: int
    logit: float
    margin: float = 0.0


class SegmentMap(NamedTuple):
    """Hold G segments: `numbers` (H, W) int64, k + 1 in segment k and 0 elsewhere; by segment its `ids` (G,), its
    `areas` (G,) in pixels, and its `scores` (G,), the mean probability of its pixels."""

    numbers: Tensor
    ids: Tensor
    areas: Tensor
    scores: Tensor


def segment_map(logits: Tensor, view: View, thresholds: SegmentThresholds) -> SegmentMap:
    """Return the segments of logits (N, h, w) at the size of the result, in the order of their ids."""
    count = len(logits)
    ids = torch.zeros(view.size, dtype=torch.int64, device=logits.device)
    inside = torch.zeros(count, dtype=torch.int64, device=logits.device)
    total = torch.zeros(count, device=logits.device)
    for rows, strip in resized_strips(logits, view):  # (N, R, W)
        (probability, second), (best, _) = strip.softmax(0).topk(2, dim=0)
        is_void = (probability < thresholds.probability) | (probability - second < thresholds.margin)
        best = torch.where(is_void, 0, best)
        ids[rows] = best
        inside += (strip >= thresholds.logit).flatten(1).sum(1)
        total.index_add_(0, best.flatten(), probability.flatten())
    areas = torch.bincount(ids.flatten(), minlength=count)
    kept = (areas >= max(thresholds.area, 1)) & (areas >= thresholds.overlap * inside)
    kept[0] = False
    numbers = torch.where(kept, kept.cumsum(0), 0)[ids]
    found = kept.nonzero()[:, 0]
    return SegmentMap(numbers, found, areas[found], total[found] / areas[found])
