"""Predictions of one image -> semantic, panoptic and instance results (MaskFormer, Cheng et al. 2021, Sec. 3.4).

Masks at the size of the result are the largest tensors of all. So they are resized a strip of rows at a time, and each
result takes from a strip what it needs: `collect([SemanticScores(...), ...], resized_strips(masks, ...))`.

Shapes: N masks of h x w, results of H x W, strips of R rows, K classes. `logits` are (N, K + 1), the last for "no
object".
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]

ELEMENTS = (
    2**21
)  # numbers in a strip: 8 MB, which the caches of a CPU hold; a GPU, with few launches, takes 32 times that


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


class Result(Protocol):
    """What `collect` fills: `add` gets the rows of a strip, its mask logits (N, R, W) and their sigmoid."""

    def add(self, rows: slice, masks: Tensor, probability: Tensor) -> None: ...

    def result(self) -> Any: ...


def collect(results: Sequence[Result], strips: Iterator[tuple[slice, Tensor]]) -> list[Any]:
    """Each of `results` from one pass over the strips of all rows."""
    for rows, masks in strips:
        probability = masks.sigmoid()
        for result in results:
            result.add(rows, masks, probability)
    return [result.result() for result in results]


class SemanticScores:
    """Class scores (K, H, W): the masks' probabilities, weighted by their class probabilities."""

    def __init__(self, logits: Tensor, size: Size) -> None:
        self.weights = logits.softmax(-1)[:, :-1].T  # (K, N)
        self.scores = logits.new_empty(len(self.weights), *size)

    def add(self, rows: slice, masks: Tensor, probability: Tensor) -> None:
        torch.mm(self.weights, probability.flatten(1), out=self.scores[:, rows].flatten(1))

    def result(self) -> Tensor:
        return self.scores


class PanopticMap:
    """A map (H, W) int32 of segment ids, 0 for none, and its segments. Segments of a stuff class are merged.

    Args:
        things: (K,) bool, which classes are things.
        object_threshold: masks with a class probability of at most this are dropped.
        overlap_threshold: masks that win less than this share of their own area are dropped.
    """

    def __init__(
        self, logits: Tensor, size: Size, things: Tensor, object_threshold: float, overlap_threshold: float
    ) -> None:
        scores, classes = logits.softmax(-1).max(-1)
        self.kept = ((classes != logits.shape[1] - 1) & (scores > object_threshold)).nonzero()[:, 0]  # n of the N
        self.scores, self.classes = scores[self.kept], classes[self.kept]
        self.things = things
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

    def result(self) -> tuple[Tensor, list[Segment]]:
        if len(self.kept) == 0:
            return self.winner.int(), []
        won_areas = torch.bincount(self.winner.flatten(), minlength=len(self.kept))
        visible_areas = torch.bincount(self.winner[self.visible], minlength=len(self.kept))
        is_thing = self.things[self.classes].long()
        statistics = torch.stack([won_areas, self.areas, visible_areas, self.classes, is_thing], dim=1)
        segments: list[Segment] = []
        stuff: dict[int, int] = {}  # class -> position in `segments`
        ids = [0] * len(self.kept)  # of the segment that a mask becomes
        rows = zip(statistics.tolist(), self.scores.tolist(), strict=True)
        for k, ((won_area, area, visible_area, category, thing), score) in enumerate(rows):
            if visible_area == 0 or won_area / area < self.overlap_threshold:
                continue
            if not thing and category in stuff:
                first = segments[stuff[category]]
                merged = first._replace(score=max(first.score, score), area=first.area + visible_area)
                segments[stuff[category]] = merged
                ids[k] = first.id
                continue
            if not thing:
                stuff[category] = len(segments)
            segments.append(Segment(len(segments) + 1, category, score, visible_area))
            ids[k] = segments[-1].id
        return torch.tensor(ids, dtype=torch.int32, device=self.winner.device)[self.winner] * self.visible, segments


class Instances:
    """The `top_k` surest pairs of mask and class, things only: an `InstanceResult`.

    The score is the class probability x the mean mask probability inside. As published, the `top_k` are taken among
    all classes, and what is not a thing is then dropped.
    """

    def __init__(self, logits: Tensor, size: Size, things: Tensor, top_k: int) -> None:
        num_classes = logits.shape[1] - 1
        probability = logits.softmax(-1)[:, :-1].flatten()
        scores, index = probability.topk(min(top_k, len(probability)))
        classes = index % num_classes
        keep = things[classes]
        self.scores, self.classes = scores[keep], classes[keep]
        self.source, self.position = (index // num_classes)[keep].unique(return_inverse=True)  # u of the N; (n,)
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
        return InstanceResult(self.inside[position], boxes_of(self.inside)[position], scores, self.classes[order])


def resized_strips(masks: Tensor, canvas: Size, image: Size, size: Size) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the masks (N, h, w) at the size of the result, a few at a time: slices of 0..H, and logits (N, R, W).

    As published, they are resized to the `canvas` that the model saw, cut to the `image` in its upper left corner, and
    resized to `size`, bilinearly each time.
    """
    elements = ELEMENTS if masks.device.type == "cpu" else 32 * ELEMENTS
    height = max(1, elements // max(1, len(masks) * size[1]))
    to_canvas, to_size = Rows.between(masks.shape[1], canvas[0]), Rows.between(image[0], size[0])
    for top in range(0, size[0], height):
        rows = slice(top, min(top + height, size[0]))
        wanted = to_size.some(rows)
        seen = slice(int(wanted.low[0]), int(wanted.high[-1]) + 1)  # rows of the canvas
        strip = wanted.of(to_canvas.some(seen).of(masks), first=seen.start)  # (N, R, w)
        yield rows, widen(widen(strip, canvas[1])[..., : image[1]], size[1])


class Rows(NamedTuple):
    """Rows between two rows of a map: (1 - weight) x row `low` + weight x row `high`, each (R,)."""

    low: Tensor
    high: Tensor
    weight: Tensor

    @classmethod
    def between(cls, source: int, target: int) -> "Rows":
        """Those that a map of `source` rows has when it is resized to `target` rows."""
        place = ((torch.arange(target) + 0.5) * (source / target) - 0.5).clamp(min=0)
        low = place.long().clamp(max=source - 1)
        return cls(low, (low + 1).clamp(max=source - 1), place - low)

    def some(self, rows: slice) -> "Rows":
        """Of these, the ones at `rows`."""
        return Rows(self.low[rows], self.high[rows], self.weight[rows])

    def of(self, maps: Tensor, first: int = 0) -> Tensor:
        """These rows of maps (N, h, w) that begin with row `first`."""
        low, high, weight = (x.to(maps.device) for x in (self.low - first, self.high - first, self.weight))
        return torch.lerp(maps[:, low], maps[:, high], weight.to(maps.dtype)[:, None])


def widen(strip: Tensor, width: int) -> Tensor:
    """(N, R, w) -> (N, R, width), bilinearly."""
    if strip.shape[2] == width:
        return strip
    return F.interpolate(strip[None], (strip.shape[1], width), mode="bilinear", align_corners=False)[0]


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
