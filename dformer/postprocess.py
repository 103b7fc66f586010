"""Predictions of one image -> semantic, panoptic and instance results (MaskFormer, Cheng et al. 2021, Sec. 3.4).

Shapes: N masks of H x W, K classes. `logits` are (N, K + 1), the last for "no object"; `masks` are (N, H, W) logits.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ELEMENTS = 2**21  # of a strip: 8 MB, about what a core's cache holds


class Segment(NamedTuple):
    """A segment of a panoptic map: its value there (from 1), class in 0..K-1, class score in [0, 1], pixels."""

    id: int
    category: int
    score: float
    area: int


class InstanceResult(NamedTuple):
    """n objects, the surest first: `masks` (n, H, W) bool, `boxes` (n, 4) x0 y0 x1 y1 in pixels, x1 and y1 exclusive,
    `scores` (n,) in [0, 1], `classes` (n,) int64."""

    masks: Tensor
    boxes: Tensor
    scores: Tensor
    classes: Tensor


def semantic(logits: Tensor, masks: Tensor) -> Tensor:
    """Class scores (K, H, W): the masks' probabilities, weighted by their class probabilities."""
    weights = logits.softmax(-1)[:, :-1].T  # (K, N)
    scores = masks.new_empty(len(weights), *masks.shape[1:])
    for rows in strips(masks):
        scores[:, rows] = torch.einsum("kn,nhw->khw", weights, masks[:, rows].sigmoid())
    return scores


def panoptic(
    logits: Tensor, masks: Tensor, things: Tensor, object_threshold: float, overlap_threshold: float
) -> tuple[Tensor, list[Segment]]:
    """A map (H, W) int32 of segment ids, 0 for none, and its segments. Segments of a stuff class are merged.

    Args:
        things: (K,) bool, which classes are things.
        object_threshold: masks with a class probability of at most this are dropped.
        overlap_threshold: masks that win less than this share of their own area are dropped.
    """
    num_classes = logits.shape[1] - 1
    scores, classes = logits.softmax(-1).max(-1)
    kept = ((classes != num_classes) & (scores > object_threshold)).nonzero()[:, 0]
    scores, classes = scores[kept], classes[kept]
    if len(kept) == 0:
        return torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device), []
    winner = torch.empty(masks.shape[1:], dtype=torch.int64, device=masks.device)  # of the kept masks, at each pixel
    visible = torch.empty_like(winner, dtype=torch.bool)  # is the pixel inside its winner
    areas = torch.zeros_like(kept)
    for rows in strips(masks):
        probability = masks[kept, rows].sigmoid()  # (n, h, W)
        inside = probability >= 0.5
        areas += inside.flatten(1).sum(1)
        winner[rows] = (scores[:, None, None] * probability).argmax(0)
        visible[rows] = inside.gather(0, winner[None, rows])[0]
    won_areas = torch.bincount(winner.flatten(), minlength=len(kept))
    visible_areas = torch.bincount(winner[visible], minlength=len(kept))
    statistics = torch.stack([won_areas, areas, visible_areas, classes, things[classes].long()], dim=1)
    segments: list[Segment] = []
    stuff: dict[int, int] = {}  # class -> position in `segments`
    ids = [0] * len(kept)  # of the segment that a mask becomes
    for k, ((won_area, area, visible_area, category, thing), score) in enumerate(
        zip(statistics.tolist(), scores.tolist(), strict=True)
    ):
        if visible_area == 0 or won_area / area < overlap_threshold:
            continue
        if not thing and category in stuff:
            first = segments[stuff[category]]
            segments[stuff[category]] = first._replace(score=max(first.score, score), area=first.area + visible_area)
            ids[k] = first.id
            continue
        if not thing:
            stuff[category] = len(segments)
        segments.append(Segment(len(segments) + 1, category, score, visible_area))
        ids[k] = segments[-1].id
    return torch.tensor(ids, dtype=torch.int32, device=masks.device)[winner] * visible, segments


def instances(logits: Tensor, masks: Tensor, things: Tensor, top_k: int) -> InstanceResult:
    """The `top_k` surest pairs of mask and class, things only.

    The score is the class probability x the mean mask probability inside. As published, the `top_k` are taken among
    all classes, and what is not a thing is then dropped.
    """
    num_classes = logits.shape[1] - 1
    probability = logits.softmax(-1)[:, :-1].flatten()
    scores, index = probability.topk(min(top_k, len(probability)))
    classes = index % num_classes
    keep = things[classes]
    scores, classes, source = scores[keep], classes[keep], (index // num_classes)[keep]
    unique, position = source.unique(return_inverse=True)
    inside = torch.empty(len(unique), *masks.shape[1:], dtype=torch.bool, device=masks.device)
    total, area = torch.zeros(2, len(unique), device=masks.device)  # of the probabilities inside; pixels
    for rows in strips(masks):
        logits_here = masks[unique, rows]
        inside[:, rows] = logits_here > 0
        total += (logits_here.sigmoid() * inside[:, rows]).flatten(1).sum(1)
        area += inside[:, rows].flatten(1).sum(1)
    certainty = total / (area + 1e-6)
    scores, order = (scores * certainty[position]).sort(descending=True)
    position = position[order]
    return InstanceResult(inside[position], boxes_of(inside)[position], scores, classes[order])


def strips(masks: Tensor) -> Iterator[slice]:
    """Rows of masks (N, H, W), a few at a time: what is computed from them need not exist for all at once."""
    height = max(1, ELEMENTS // max(1, masks.shape[0] * masks.shape[2]))
    return (slice(top, top + height) for top in range(0, masks.shape[1], height))


def boxes_of(masks: Tensor) -> Tensor:
    """The tightest boxes (n, 4) float32, x0 y0 x1 y1, of masks (n, H, W) bool; empty ones give zeros."""
    ends = []
    for dim in (1, 2):  # is any pixel set in a column, in a row
        occupied = masks.any(dim)
        size = occupied.shape[1]
        index = torch.arange(size, device=masks.device)
        low = torch.where(occupied, index, size).amin(1) if size else index.new_zeros(len(masks))
        high = torch.where(occupied, index + 1, 0).amax(1) if size else index.new_zeros(len(masks))
        ends.append((low, high))
    (x0, x1), (y0, y1) = ends
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return boxes * masks.flatten(1).any(1)[:, None]
