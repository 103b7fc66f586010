"""Large images in tiles that overlap: where tiles are, and how their results become those of the image.

A pixel has the stuff of the tile that it is further inside of. What two tiles show of one object is recognised where
they overlap, by an IoU above 0.5 there. An object that is whole in a tile has the mask of the tile that it is furthest
inside of; only what is whole in none is put together from parts. Results grow on the CPU, tile by tile; nothing else
is as large as the image.

Shapes: an image of H x W, tiles of h x w, all at the size of the result.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dformer.postprocess.queries import InstanceResult, boxes_of
from dformer.postprocess.view import Size

SAME = 0.5  # IoU where tiles overlap, above which two segments are one
EDGE = 1 / 32  # of a tile's side: what comes so near to where the image is cut may go on there
ROWS = 256  # of the image, counted at once


class Tile(NamedTuple):
    """Hold a tile's place in the input, and in the result its place and the part whose results count.

    Each is a pair of slices, of rows and of columns. The parts that count are a partition of the image.
    """

    crop: tuple[slice, slice]
    place: tuple[slice, slice]
    own: tuple[slice, slice]

    @property
    def inside(self) -> tuple[slice, slice]:
        """Return the place of the own part in the tile's result."""
        pairs = zip(self.own, self.place, strict=True)
        rows, columns = (slice(own.start - place.start, own.stop - place.start) for own, place in pairs)
        return rows, columns


def tiles(image: Size, size: Size, side: int, overlap: int) -> Iterator[Tile]:
    """Yield the tiles of an image of `image` pixels, whose result has `size`, row by row.

    Args:
        side: of a tile in the input, in pixels, or that of the image where it is smaller.
        overlap: of neighbours, at least, in pixels of the input; less than `side`.
    """
    rows, columns = (list(_spans(*axis, side, overlap)) for axis in zip(image, size, strict=True))
    for row in rows:
        for column in columns:
            yield Tile(*zip(row, column, strict=True))


def _spans(length: int, size: int, side: int, overlap: int) -> Iterator[tuple[slice, slice, slice]]:
    side = min(side, length)
    count = 1 + -(-(length - side) // (side - min(overlap, side - 1)))
    crops = [slice(start, start + side) for start in (k * (length - side) // max(count - 1, 1) for k in range(count))]
    places = [slice(*(round(x * size / length) for x in (crop.start, crop.stop))) for crop in crops]
    middles = [(after.start + before.stop) // 2 for before, after in zip(places, places[1:], strict=False)]
    for crop, place, start, stop in zip(crops, places, [0, *middles], [*middles, size], strict=True):
        yield crop, place, slice(start, stop)


@dataclass(eq=False)
class _Part:
    """Hold what a tile shows of an object: a mask (h', w') bool at `top`, `left` of the image, its score and class.

    `margin` is the distance in pixels to where the image was cut, 0 if the object may go on there.
    """

    mask: Tensor
    top: int
    left: int
    margin: float
    score: float
    category: int

    @cached_property
    def area(self) -> int:
        return int(self.mask.sum())

    def within(self, rows: slice, columns: slice) -> "_Part":
        """Return what of it is in a part of the image."""
        height, width = self.mask.shape
        y0, y1 = (min(max(y, self.top), self.top + height) for y in (rows.start, rows.stop))
        x0, x1 = (min(max(x, self.left), self.left + width) for x in (columns.start, columns.stop))
        mask = self.mask[y0 - self.top : y1 - self.top, x0 - self.left : x1 - self.left].clone()
        return replace(self, mask=mask, top=y0, left=x0)

    def view(self, canvas: Tensor, top: int = 0, left: int = 0) -> Tensor:
        """Return its place (h', w') in a canvas that has all of it, whose first pixel is at `top`, `left`."""
        (height, width), y, x = self.mask.shape, self.top - top, self.left - left
        return canvas[y : y + height, x : x + width]


class _Object:
    """Hold the parts that make an object's mask, the best first.

    Of an object that is whole in a tile, that is the part of the largest margin, and the object counts if its middle is
    in the own part of a tile that shows it. Otherwise all parts make the mask, each where it is in its tile's own part;
    then the object counts unless most of its `area`, in all tiles, is `explained`: of objects that are whole elsewhere.
    """

    def __init__(self, part: _Part, tile: Tile) -> None:
        self.is_whole, self.area, self.explained = part.margin > 0, part.area, 0
        if self.is_whole:
            y, x = part.top + part.mask.shape[0] // 2, part.left + part.mask.shape[1] // 2
            self.parts = [part]
            self.is_own = all(side.start <= at < side.stop for side, at in zip(tile.own, (y, x), strict=True))
        else:
            own = part.within(*tile.own)
            self.is_own = own.area > 0
            self.parts = [own] if self.is_own else []

    def absorb(self, other: "_Object") -> None:
        """Add an object that is the same, whole or not as this one."""
        parts = self.parts + other.parts
        best = sorted(parts, key=lambda part: -(part.margin if self.is_whole else part.area))
        self.parts = best[:1] if self.is_whole else best
        self.is_own |= other.is_own
        self.area += other.area
        self.explained += other.explained

    @property
    def counts(self) -> bool:
        return self.is_own and 2 * self.explained <= self.area


class _Objects:
    """Recognise what several tiles show of one object, of one class if `alike`."""

    def __init__(self, size: Size, alike: bool) -> None:
        self.size, self.alike = size, alike
        self.found: dict[int, _Object] = {}
        self.same: list[int] = []  # by an object's number, that of the one that it turned out to be
        self.explained: set[int] = set()  # numbers of parts that are pieces of what is whole in another tile
        self.before: list[tuple[Tile, dict[int, _Part]]] = []  # tiles, with their parts by the number of their object

    def add(self, tile: Tile, result: InstanceResult) -> None:
        """Add a tile's objects."""
        self._forget(tile.place[0].start)
        parts = dict(enumerate(self._parts(tile, result), start=len(self.same)))
        self.same.extend(parts)
        self.found |= {number: _Object(part, tile) for number, part in parts.items()}
        for old, others in self.before:
            pairs = zip(old.place, tile.place, strict=True)
            rows, columns = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in pairs)
            if rows.start < rows.stop and columns.start < columns.stop and parts and others:
                self._compare(parts, others, rows, columns)
        self.before.append((tile, parts))

    def masks(self) -> list[list[_Part]]:
        """Return the parts of each object's mask."""
        return [x.parts for x in self.found.values() if x.counts]

    def _forget(self, top: int) -> None:
        """Drop tiles that end above a row, which no other will overlap, and their objects that do not count."""
        before = [(tile, parts) for tile, parts in self.before if tile.place[0].stop > top]
        if len(before) < len(self.before):
            open_ones = {self._number(number) for _, parts in before for number in parts}
            self.found = {k: found for k, found in self.found.items() if k in open_ones or found.counts}
        self.before = before

    def _parts(self, tile: Tile, result: InstanceResult) -> Iterator[_Part]:
        cuts = [  # sides of the tile where the image goes on, by the least distance of what is whole
            (place.start > 0, place.stop < size, EDGE * (place.stop - place.start))
            for place, size in zip(tile.place, self.size, strict=True)
        ]
        rows, columns = tile.place
        fields = (result.masks, boxes_of(result.masks).long(), result.scores, result.classes)
        for mask, box, score, category in zip(fields[0], *(x.tolist() for x in fields[1:]), strict=True):
            x0, y0, x1, y1 = box
            if x1 == x0:
                continue
            margin = math.inf
            for (before, after, edge), start, stop, length in zip(cuts, (y0, x0), (y1, x1), mask.shape, strict=True):
                for is_cut, distance in ((before, start), (after, length - stop)):
                    if is_cut:
                        margin = min(margin, distance if distance > edge else 0)
            yield _Part(mask[y0:y1, x0:x1].clone(), rows.start + y0, columns.start + x0, margin, score, category)

    def _compare(self, ours: dict[int, _Part], theirs: dict[int, _Part], rows: slice, columns: slice) -> None:
        """Join the objects of two tiles that are the same where these overlap, and note which parts are explained."""
        numbers, others = list(ours), list(theirs)
        shared, union = _overlaps(ours.values(), theirs.values(), rows, columns)
        area, area_there = (torch.tensor([x.area for x in parts.values()]) for parts in (ours, theirs))
        whole, whole_there = (torch.tensor([x.margin > 0 for x in parts.values()]) for parts in (ours, theirs))
        seen = shared / union.clamp(min=1)  # IoU where the tiles overlap
        if self.alike:
            seen *= torch.tensor([[x.category == y.category for y in theirs.values()] for x in ours.values()])
        # Pieces of two objects may be alike there; but what is whole in both tiles is seen as a whole.
        full = shared / (area[:, None] + area_there - shared)
        same = torch.where(whole[:, None] & whole_there, full * (seen > SAME), seen) * (whole[:, None] == whole_there)
        while same.max() > SAME:  # the best pairs first
            k, j = divmod(int(same.argmax()), same.shape[1])
            same[k], same[:, j] = 0, 0
            self._join(numbers[k], others[j])
        piece = torch.where(whole[:, None], area_there, area[:, None])
        explained = (whole[:, None] != whole_there) & (seen > SAME) & (shared > SAME * piece)
        for k, j in explained.nonzero().tolist():
            number, part = (others[j], theirs[others[j]]) if whole[k] else (numbers[k], ours[numbers[k]])
            if number not in self.explained:
                self.explained.add(number)
                self.found[self._number(number)].explained += part.area

    def _join(self, one: int, other: int) -> None:
        one, other = self._number(one), self._number(other)
        if one != other:
            self.found[one].absorb(self.found.pop(other))
            self.same[other] = one

    def _number(self, number: int) -> int:
        while self.same[number] != number:
            number = self.same[number]
        return number


def _overlaps(ours: Iterable[_Part], theirs: Iterable[_Part], rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """Return the pixels (n, m) that two parts share, and that one of them has, in a part of the image."""
    stacks = []
    for parts in (ours, theirs):
        planes = []
        for part in (part.within(rows, columns) for part in parts):
            plane = torch.zeros(rows.stop - rows.start, columns.stop - columns.start)
            part.view(plane, rows.start, columns.start).copy_(part.mask)
            planes.append(plane.flatten())
        stacks.append(torch.stack(planes))
    shared = stacks[0] @ stacks[1].T
    return shared, stacks[0].sum(1)[:, None] + stacks[1].sum(1) - shared


class InstanceMosaic:
    """Merge objects of one class by their overlap; keep the `top_k` of the highest scores."""

    def __init__(self, size: Size, top_k: int) -> None:
        self.size, self.top_k = size, top_k
        self.objects = _Objects(size, alike=True)

    def add(self, tile: Tile, result: InstanceResult) -> None:
        """Add a tile's objects."""
        self.objects.add(tile, result)

    def result(self) -> InstanceResult:
        """Return the objects of the image, by falling score."""
        kept = sorted(self.objects.masks(), key=lambda parts: -parts[0].score)[: self.top_k]
        masks = torch.zeros(len(kept), *self.size, dtype=torch.bool)
        for mask, parts in zip(masks, kept, strict=True):
            for part in parts:
                place = part.view(mask)
                place |= part.mask
        boxes = torch.stack([boxes_of(mask[None])[0] for mask in masks]) if kept else torch.zeros(0, 4)
        scores = torch.tensor([parts[0].score for parts in kept])
        return InstanceResult(masks, boxes, scores, torch.tensor([p[0].category for p in kept], dtype=torch.int64))


class PanopticMosaic:
    """Merge panoptic maps: segments of one stuff class into one, and things by their overlap.

    Things cover stuff, those that are whole in a tile those that are not, and then the more certain the less; what is
    hidden for the most part is dropped.
    """

    def __init__(self, size: Size) -> None:
        self.map = torch.zeros(size, dtype=torch.int32)  # of stuff, until the result
        self.stuff: list[dict[str, Any]] = []
        self.things = _Objects(size, alike=False)

    def add(self, tile: Tile, result: tuple[Tensor, list[dict[str, Any]]]) -> None:
        """Add a tile's map (h, w) and segments."""
        found, segments = result[0].cpu(), result[1]
        ids = torch.zeros(len(segments) + 1, dtype=torch.int32)  # of the image's segment, by that of the tile
        for segment in segments:
            if not segment["isthing"]:
                ids[segment["id"]] = self._number(segment)
        self.map[tile.own] = ids[found[tile.inside].long()]
        things = [s for s in segments if s["isthing"]]
        masks = torch.stack([found == s["id"] for s in things]) if things else torch.zeros(0, *found.shape) > 0
        scores = torch.tensor([s["score"] for s in things])
        classes = torch.tensor([s["category_id"] for s in things], dtype=torch.int64)
        self.things.add(tile, InstanceResult(masks, boxes_of(masks), scores, classes))

    def _number(self, segment: dict[str, Any]) -> int:
        """Return the number of the image's segment of a stuff class, from 1; its score is the best one's."""
        for number, known in enumerate(self.stuff, start=1):
            if known["category_id"] == segment["category_id"]:
                known["score"] = max(known["score"], segment["score"])
                return number
        self.stuff.append(dict(segment))
        return len(self.stuff)

    def result(self) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return the map (H, W) int32 and the segments that have a pixel, in Detectron2's form."""
        segments, lowest = list(self.stuff), len(self.stuff)
        for parts in sorted(self.things.masks(), key=lambda parts: (parts[0].margin == 0, -parts[0].score)):
            free = [part.mask & (part.view(self.map) <= lowest) for part in parts]
            if sum(int(x.sum()) for x in free) <= sum(part.area for part in parts) / 2:
                continue
            segments.append({"isthing": True, "category_id": parts[0].category, "score": parts[0].score})
            for part, mask in zip(parts, free, strict=True):
                part.view(self.map)[mask] = len(segments)
        areas = torch.zeros(len(segments) + 1, dtype=torch.int64)
        for rows in self.map.split(ROWS):
            areas += torch.bincount(rows.flatten(), minlength=len(areas))
        seen = areas[1:].nonzero()[:, 0].tolist()
        ids = torch.zeros(len(areas), dtype=torch.int32)
        ids[torch.tensor(seen, dtype=torch.int64) + 1] = torch.arange(1, len(seen) + 1, dtype=torch.int32)
        for rows in self.map.split(ROWS):
            rows.copy_(ids[rows.long()])
        return self.map, [
            {**segments[k], "id": number, "area": int(areas[k + 1])} for number, k in enumerate(seen, start=1)
        ]


class SemanticMosaic:
    """Put class scores (K, h, w) beside each other."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.scores = torch.zeros(0, *size)

    def add(self, tile: Tile, result: Tensor) -> None:
        if len(self.scores) != len(result):
            self.scores = torch.zeros(len(result), *self.size)
        (rows, columns), (y, x) = tile.own, tile.inside
        self.scores[:, rows, columns] = result[:, y, x].float().cpu()

    def result(self) -> Tensor:
        return self.scores
