"""Maps of classes and ids -> panoptic segments and instances (Pix2Seq-D, Sec. 3.4).

Classes and ids are maps (H, W) int64; 0 is none, class k is k + 1.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


def majority_vote(classes: Tensor, ids: Tensor, min_pixels: int = 0) -> tuple[Tensor, Tensor]:
    """Give each id the class that most of its pixels have, the lowest of equals; return classes and ids.

    Ids of fewer than `min_pixels` pixels are removed; where the class is 0 so is the id. As published, the id 0 votes
    as others do, so its pixels keep a class where there are no segments.
    """
    num_classes, num_ids = int(classes.max()) + 1, int(ids.max()) + 1
    votes = torch.bincount((ids * num_classes + classes).flatten(), minlength=num_ids * num_classes)
    votes = votes.view(num_ids, num_classes)
    winner = torch.where(votes.sum(1) < min_pixels, 0, votes.argmax(1))
    classes = winner[ids]
    return classes, torch.where(classes == 0, 0, ids)


class Segments(NamedTuple):
    """Hold S segments: the map (H, W) int32 of their numbers 1..S, 0 elsewhere; for each its class from 0, its mean
    score, its area in pixels, and its id in the map of ids, whose meaning is that of things alone."""

    map: Tensor
    classes: list[int]
    scores: list[float]
    areas: list[int]
    ids: list[int]

    def info(self, things: Tensor) -> list[dict[str, Any]]:
        """Return Detectron2's `segments_info`, of things with the id as `source`; `things` (K,) bool says which are."""
        is_thing = things.tolist()
        return [
            {"id": number, "isthing": is_thing[k], "category_id": k, "score": score, "area": area}
            | ({"source": source} if is_thing[k] else {})
            for number, (k, score, area, source) in enumerate(zip(*self[1:], strict=True), start=1)
        ]


def find_segments(classes: Tensor, ids: Tensor, confidence: Tensor, things: Tensor, min_score: float = 0.0) -> Segments:
    """Return the segments of maps in which all pixels of an id have one class, as after `majority_vote`.

    Stuff of one class is one segment, whatever its ids. Segments of a lower mean score than `min_score` are dropped.

    Args:
        confidence: (H, W), the score of each pixel.
        things: (K,) bool.
    """
    is_stuff = torch.cat([things.new_zeros(1), ~things])[classes]
    # Stuff is numbered after all ids.
    keys = torch.where(is_stuff, int(ids.max()) + classes, ids) * ((ids > 0) & (classes > 0))
    found, numbers = keys.unique(return_inverse=True)  # sorted: 0 comes first, if anywhere
    areas = torch.bincount(numbers.flatten(), minlength=len(found))
    scores = torch.bincount(numbers.flatten(), confidence.double().flatten(), minlength=len(found)) / areas
    first = torch.zeros_like(found).scatter_(0, numbers.flatten(), classes.flatten())  # all of one segment are equal
    kept = (found > 0) & (scores >= min_score)
    renumbered = torch.where(kept, kept.cumsum(0), 0)
    lists = (first[kept] - 1).tolist(), scores[kept].tolist(), areas[kept].tolist(), found[kept].tolist()
    return Segments(renumbered[numbers].int(), *lists)
