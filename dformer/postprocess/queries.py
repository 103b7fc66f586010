"""Class and mask logits of an image -> semantic, panoptic and instance results (MaskFormer, Cheng et al. 2021, 3.4).

All results come from one pass over strips of rows: `collect([SemanticScores(...), ...], resized_strips(masks, view))`.
How many segments and objects there are decides what is computed, so it is copied to the host: once at the start for
each of these results, and the panoptic map's areas once at the end. Nothing else waits for a GPU.

Shapes: N masks of h x w, results of H x W, strips of R rows, K classes. `logits` are (N, K + 1), the last for "no
object".
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dformer.postprocess.view import Size


class InstanceResult(NamedTuple):
    """Hold n objects by falling score: `masks` (n, H, W) bool, `boxes` (n, 4) x0 y0 x1 y1 in pixels (x1, y1 exclusive),
    `scores` (n,) in [0, 1], `classes` (n,) int64."""

    masks: Tensor
    boxes: Tensor
    scores: Tensor
    classes: Tensor


class Result(Protocol):
    """Accumulate a result: `add` gets the rows of a strip, its mask logits (N, R, W) and their sigmoid."""

    def add(self, rows: slice, masks: Tensor, probability: Tensor) -> None: ...

    def result(self) -> Any: ...


def collect(results: Sequence[Result], strips: Iterable[tuple[slice, Tensor]]) -> list[Any]:
    """Return each of `results`, from one pass over the strips of all rows."""
    for rows, masks in strips if results else ():
        probability = masks.sigmoid()
        for result in results:
            result.add(rows, masks, probability)
    return [result.result() for result in results]


class SemanticScores:
    """Compute class scores (K, H, W): the masks' probabilities, weighted by their class probabilities."""

    def __init__(self, logits: Tensor, size: Size) -> None:
        self.weights = logits.softmax(-1)[:, :-1].T  # (K, N)
        self.scores = logits.new_empty(len(self.weights), *size)

    def add(self, rows: slice, masks: Tensor, probability: Tensor) -> None:
        torch.mm(self.weights, probability.flatten(1), out=self.scores[:, rows].flatten(1))

    def result(self) -> Tensor:
        return self.scores


class PanopticMap:
    """Compute a map (H, W) int32 of segment ids, 0 for none, and its segments in Detectron2's form.

    A segment is a dict of `id` (from 1), `isthing`, `category_id` in 0..K-1, `score` (of the class, in [0, 1]),
    `area` in pixels and, of a thing, `source`, the mask of the N that it is. Segments of a stuff class are merged.

    Args:
        things: (K,) bool on the CPU, which classes are things.
        object_threshold: masks with a class probability of at most this are dropped.
        overlap_threshold: masks that win less than this share of their own area are dropped.
    """

    def __init__(
        self, logits: Tensor, size: Size, things: Tensor, object_threshold: float, overlap_threshold: float
    ) -> None:
        scores, classes = _to_host(*logits.softmax(-1).max(-1))
        kept = ((classes != logits.shape[1] - 1) & (scores > object_threshold)).nonzero()[:, 0]  # n of the N
        scores, classes = scores[kept], classes[kept]
        self.found = list(zip(classes.tolist(), things[classes].tolist(), scores.tolist(), strict=True))
        self.sources = kept.tolist()
        self.kept, self.scores = _to_device(logits.device, kept, scores)
        self.overlap_threshold = overlap_threshold
        self.winner = torch.zeros(size, dtype=torch.int64, device=logits.device)  # of the n, at each pixel
        self.visible = torch.zeros(size, dtype=torch.bool, device=logits.device)  # is the pixel inside its winner
        self.areas = torch.zeros_like(self.kept)

    def add(self, rows: slice, masks: Tensor, probability: Tensor) -> None:
        if len(self.kept) == 0:
            return
        probability = probability[self.kept]  # (n, R, W)
        inside = probability >= 0.5
        self.areas += inside.flatten(1).sum(1)
        self.winner[rows] = (self.scores[:, None, None] * probability).argmax(0)
        self.visible[rows] = inside.gather(0, self.winner[None, rows])[0]

    def result(self) -> tuple[Tensor, list[dict[str, Any]]]:
        if len(self.kept) == 0:
            return self.winner.int(), []
        winner, visible = self.winner.flatten(), self.visible.flatten().long()
        won_areas = torch.zeros_like(self.areas).scatter_add_(0, winner, torch.ones_like(winner))  # bincount would wait
        visible_areas = torch.zeros_like(self.areas).scatter_add_(0, winner, visible)
        areas = torch.stack([won_areas, self.areas, visible_areas], dim=1).cpu()
        segments: list[dict[str, Any]] = []
        stuff: dict[int, dict[str, Any]] = {}  # class -> its segment
        ids = [0] * len(self.kept)  # of the segment that a mask becomes
        rows = zip(areas.tolist(), self.found, strict=True)
        for k, ((won_area, area, visible_area), (category, thing, score)) in enumerate(rows):
            if visible_area == 0 or won_area / area < self.overlap_threshold:
                continue
            segment = None if thing else stuff.get(category)
            if segment is None:
                segment = {"id": len(segments) + 1, "isthing": thing, "category_id": category}
                segment |= {"score": score, "area": 0, **({"source": self.sources[k]} if thing else {})}
                segments.append(segment)
                if not thing:
                    stuff[category] = segment
            segment["score"] = max(segment["score"], score)
            segment["area"] += visible_area
            ids[k] = segment["id"]
        (id_of,) = _to_device(self.winner.device, torch.tensor(ids, dtype=torch.int32))
        return id_of[self.winner] * self.visible, segments


class Instances:
    """Compute the `top_k` most certain pairs of mask and class, things only: an `InstanceResult`.

    The score is the class probability x the mean mask probability inside. As published, the `top_k` are taken among
    all classes, and what is not a thing is then dropped. `things` is (K,) bool on the CPU. With the result,
    `sources` (n,) int64 says which mask of the N each is.
    """

    def __init__(self, logits: Tensor, size: Size, things: Tensor, top_k: int) -> None:
        num_classes = logits.shape[1] - 1
        probability = logits.softmax(-1)[:, :-1].flatten()
        scores, index = _to_host(*probability.topk(min(top_k, len(probability))))
        classes = index % num_classes
        keep = things[classes]
        source, position = (index // num_classes)[keep].unique(return_inverse=True)  # u of the N; (n,)
        chosen = source, position, scores[keep], classes[keep]
        self.source, self.position, self.scores, self.classes = _to_device(logits.device, *chosen)
        self.inside = torch.empty(len(self.source), *size, dtype=torch.bool, device=logits.device)
        self.total, self.area = torch.zeros(2, len(self.source), device=logits.device)  # of probability; pixels

    def add(self, rows: slice, masks: Tensor, probability: Tensor) -> None:
        inside = masks[self.source] > 0  # (u, R, W)
        self.inside[:, rows] = inside
        self.total += (probability[self.source] * inside).flatten(1).sum(1)
        self.area += inside.flatten(1).sum(1)

    def result(self) -> InstanceResult:
        certainty = self.total / (self.area + 1e-6)
        scores, order = (self.scores * certainty[self.position]).sort(descending=True)
        position = self.position[order]
        self.sources = self.source[position]
        return InstanceResult(self.inside[position], boxes_of(self.inside)[position], scores, self.classes[order])


def boxes_of(masks: Tensor) -> Tensor:
    """Return the tightest boxes (n, 4) float32, x0 y0 x1 y1, of masks (n, H, W) bool; empty masks give zeros."""
    lows, highs = [], []
    for dim in (1, 2):  # is any pixel set in a column, in a row
        occupied = masks.any(dim)
        index = torch.arange(occupied.shape[1], device=masks.device)
        lows.append(torch.where(occupied, index, occupied.shape[1]).amin(1))
        highs.append(torch.where(occupied, index + 1, 0).amax(1))
    return torch.stack(lows + highs, dim=1).float() * masks.flatten(1).any(1)[:, None]


def _to_host(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return floats and integers below 2^53, both (n,), on the CPU, by one copy."""
    values, numbers = torch.stack([x.double(), index.double()]).cpu()
    return values.to(x.dtype), numbers.long()


def _to_device(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    return [x.to(device, non_blocking=True) for x in tensors]
