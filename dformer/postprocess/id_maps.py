"""Logits of ids -> segments (LDMSeg, Sec. 3.5; its published evaluation).

Shapes: N ids, logits of h x w, results of H x W, G segments, K classes. Id 0 is void.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dformer.postprocess.queries import InstanceResult, boxes_of
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
    """Hold G segments: `numbers` (H, W) int64, k + 1 in segment k and 0 elsewhere; on the CPU, by segment, its `ids`
    (G,), its `areas` (G,) in pixels, and its `scores` (G,), the mean probability of its pixels."""

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
    areas = torch.zeros_like(inside).scatter_add_(0, ids.flatten(), torch.ones_like(ids.flatten()))
    kept = (areas >= max(thresholds.area, 1)) & (areas >= thresholds.overlap * inside)
    kept = kept & (torch.arange(count, device=logits.device) > 0)
    numbers = torch.where(kept, kept.cumsum(0), 0)[ids]
    kept, areas, total = torch.stack([kept.double(), areas.double(), total.double()]).cpu()
    found = kept.nonzero()[:, 0]
    return SegmentMap(numbers, found, areas[found].long(), (total[found] / areas[found]).float())


def semantic_scores(found: SegmentMap, classes: Tensor) -> Tensor:
    """Return class scores (K, H, W): at each pixel those of its segment (G, K); 0 where there is none."""
    table = _to(found.numbers, torch.cat([classes.new_zeros(1, classes.shape[1]), classes]))  # (G + 1, K)
    return table.T[:, found.numbers]


def panoptic_segments(found: SegmentMap, classes: Tensor, things: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return a map (H, W) int32 and its segments in Detectron2's form, as `queries.PanopticMap` does.

    Segments of a stuff class are merged. A segment's score is the mean probability of its pixels.

    Args:
        classes: (G, K) scores, on the CPU as `things`.
        things: (K,) bool.
    """
    best = classes.argmax(1)
    rows = torch.stack([best, things[best].long(), found.areas], dim=1).tolist()
    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}  # class -> its segment
    ids = [0]
    for (category, thing, area), score in zip(rows, found.scores.tolist(), strict=True):
        segment = None if thing else stuff.get(category)
        if segment is None:
            segment = {"id": len(segments) + 1, "isthing": bool(thing), "category_id": category}
            segment |= {"score": score, "area": 0}
            segments.append(segment)
            if not thing:
                stuff[category] = segment
        segment["score"] = max(segment["score"], score)
        segment["area"] += area
        ids.append(segment["id"])
    return _to(found.numbers, torch.tensor(ids, dtype=torch.int32))[found.numbers], segments


def thing_instances(found: SegmentMap, classes: Tensor, things: Tensor) -> InstanceResult:
    """Return the segments whose class is a thing, by falling score: mean probability x class score.

    Arguments as of `panoptic_segments`; the result is on the device of the map.
    """
    certainty, best = classes.max(1)
    scores, order = (found.scores * certainty).sort(descending=True)
    order, scores = (x[things[best[order]]] for x in (order, scores))
    masks = found.numbers == _to(found.numbers, order + 1)[:, None, None]
    return InstanceResult(masks, boxes_of(masks), _to(masks, scores), _to(masks, best[order]))


def _to(x: Tensor, of_segments: Tensor) -> Tensor:
    return of_segments.to(x.device, non_blocking=True)
