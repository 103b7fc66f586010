"""Large images in tiles that overlap: where tiles are, and how their results become those of the image.

A pixel has the result of the tile that it is further inside of. What two tiles show of one thing is recognised where
they overlap, by an IoU above 0.5 there. Results grow on the CPU, tile by tile; nothing else is as large as the image.

Shapes: an image of H x W, tiles of h x w, all at the size of the result.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dformer.postprocess.queries import InstanceResult, boxes_of
from dformer.postprocess.view import Size

SAME = 0.5  # IoU where tiles overlap, above which two segments are one
ROWS = 256  # of the image, counted at once


class Tile(NamedTuple):
    """Hold a tile's place in the input, and in the result its place and the part whose results count.

    Each is a pair of slices, of rows and of columns. A later tile's own part covers those of earlier ones.
    """

    crop: tuple[slice, slice]
    place: tuple[slice, slice]
    own: tuple[slice, slice]

    @property
    def inside(self) -> tuple[slice, slice]:
        """Return the place of the own part in the tile's result."""
        rows, columns = (slice(own.start - place.start, None) for own, place in zip(self.own, self.place, strict=True))
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
    end = 0  # of the one before, in the result
    for k in range(count):
        start = k * (length - side) // max(count - 1, 1)
        place = slice(*(round(x * size / length) for x in (start, start + side)))
        own = slice((place.start + end) // 2 if k else 0, size)
        yield slice(start, start + side), place, slice(own.start, place.stop)
        end = place.stop


class PanopticMosaic:
    """Merge panoptic maps: segments of one stuff class into one, parts of one thing by their overlap.

    Of a thing's parts, the largest tells class and score.
    """

    def __init__(self, size: Size) -> None:
        self.map = torch.full(size, -1, dtype=torch.int32)  # -1: in no tile yet
        self.segments: list[dict[str, Any]] = []  # with their `area` in one tile

    def add(self, tile: Tile, result: tuple[Tensor, list[dict[str, Any]]]) -> None:
        found, segments = result[0].cpu(), result[1]
        before = self.map[tile.place]
        ids = torch.zeros(len(segments) + 1, dtype=torch.int32)  # of the image's segment, by that of the tile
        parts = self._parts(before, found, len(segments))
        for segment in segments:
            thing = segment["isthing"]
            number = parts.get(segment["id"], 0) if thing else self._stuff(segment["category_id"])
            if not number or self.segments[number - 1]["isthing"] != thing:
                self.segments.append(segment)
                number = len(self.segments)
            elif segment["area"] > self.segments[number - 1]["area"]:
                self.segments[number - 1] = segment
            ids[segment["id"]] = number
        self.map[tile.own] = ids[found[tile.inside].long()]

    def result(self) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return the map (H, W) int32 and the segments that have a pixel, in Detectron2's form."""
        areas = torch.zeros(len(self.segments) + 1, dtype=torch.int64)
        for rows in self.map.split(ROWS):
            areas += torch.bincount(rows.flatten(), minlength=len(areas))
        kept = areas[1:].nonzero()[:, 0].tolist()
        ids = torch.zeros(len(areas), dtype=torch.int32)
        ids[torch.tensor(kept, dtype=torch.int64) + 1] = torch.arange(1, len(kept) + 1, dtype=torch.int32)
        for rows in self.map.split(ROWS):
            rows.copy_(ids[rows.long()])
        return self.map, [
            {**self.segments[k], "id": number, "area": int(areas[k + 1])} for number, k in enumerate(kept, start=1)
        ]

    def _parts(self, before: Tensor, found: Tensor, count: int) -> dict[int, int]:
        """Segment of the tile -> the image's segment that it is a part of, by their pixels in earlier tiles."""
        seen = before >= 0
        old, new = before[seen].long(), found[seen].long()
        width = count + 1
        pairs, shared = (old * width + new).unique(return_counts=True)
        olds, news = pairs // width, pairs % width
        union = torch.bincount(old)[olds] + torch.bincount(new)[news] - shared
        same = (olds > 0) & (news > 0) & (shared > SAME * union)
        return dict(zip(news[same].tolist(), olds[same].tolist(), strict=True))

    def _stuff(self, category: int) -> int:
        matches = (k for k, s in enumerate(self.segments, start=1) if s["category_id"] == category and not s["isthing"])
        return next(matches, 0)


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


class _Part(NamedTuple):
    """Hold what a tile shows of an object: a mask (h', w') bool at `top`, `left` of the image."""

    mask: Tensor
    top: int
    left: int

    def cut(self, rows: slice, columns: slice) -> Tensor:
        """Return the mask in a part of the image."""
        cut = torch.zeros(rows.stop - rows.start, columns.stop - columns.start, dtype=torch.bool)
        self.paint(cut, rows.start, columns.start)
        return cut

    def paint(self, canvas: Tensor, top: int = 0, left: int = 0) -> None:
        """Add the mask to a canvas whose first pixel is at `top`, `left` of the image."""
        height, width = self.mask.shape
        y, x = self.top - top, self.left - left
        rows, columns = slice(max(y, 0), max(y + height, 0)), slice(max(x, 0), max(x + width, 0))
        target = canvas[rows, columns]
        target |= self.mask[max(-y, 0) :, max(-x, 0) :][: target.shape[0], : target.shape[1]]


class InstanceMosaic:
    """Merge objects of one class by their overlap; keep the `top_k` of the highest scores.

    An object's score is that of its best part. Objects without a pixel in the part of a tile that counts are dropped.
    """

    def __init__(self, size: Size, top_k: int) -> None:
        self.size, self.top_k = size, top_k
        self.objects: list[tuple[list[_Part], float, int]] = []  # parts, score, class
        self.counts: list[bool] = []  # whether an object has a pixel that counts
        self.before: list[tuple[Tile, list[tuple[int, _Part]]]] = []  # tiles, with the objects of their parts

    def add(self, tile: Tile, result: InstanceResult) -> None:
        """Add a tile's objects."""
        rows, columns = tile.place
        # Rows of tiles that are done with overlap no more.
        self.before = [(old, parts) for old, parts in self.before if old.place[0].stop > rows.start]
        boxes, shown = result.boxes.long().tolist(), []
        for mask, (x0, y0, x1, y1) in zip(result.masks, boxes, strict=True):
            shown.append(_Part(mask[y0:y1, x0:x1].clone(), rows.start + y0, columns.start + x0))
        scores, classes = result.scores.tolist(), result.classes.tolist()
        numbers = self._same(tile, shown, classes)
        for k, part in enumerate(shown):
            if part.mask.numel() == 0:
                continue
            is_own = bool(part.cut(*tile.own).any())
            if numbers[k] < 0:
                numbers[k] = len(self.objects)
                self.objects.append(([part], scores[k], classes[k]))
                self.counts.append(is_own)
                continue
            parts, score, _ = self.objects[numbers[k]]
            self.objects[numbers[k]] = [*parts, part], max(score, scores[k]), classes[k]
            self.counts[numbers[k]] |= is_own
        self.before.append((tile, [(n, part) for n, part in zip(numbers, shown, strict=True) if n >= 0]))

    def result(self) -> InstanceResult:
        """Return the objects of the image, by falling score."""
        kept = [found for found, is_own in zip(self.objects, self.counts, strict=True) if is_own]
        kept = sorted(kept, key=lambda found: -found[1])[: self.top_k]
        masks = torch.zeros(len(kept), *self.size, dtype=torch.bool)
        for mask, (parts, _, _) in zip(masks, kept, strict=True):
            for part in parts:
                part.paint(mask)
        boxes = torch.stack([boxes_of(mask[None])[0] for mask in masks]) if kept else torch.zeros(0, 4)
        scores = torch.tensor([score for _, score, _ in kept])
        return InstanceResult(masks, boxes, scores, torch.tensor([c for _, _, c in kept], dtype=torch.int64))

    def _same(self, tile: Tile, shown: list[_Part], classes: list[int]) -> list[int]:
        """Return the object that each part shows, too, or -1."""
        numbers = [-1] * len(shown)
        for old, parts in self.before:
            pairs = zip(old.place, tile.place, strict=True)
            rows, columns = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in pairs)
            if rows.start >= rows.stop or columns.start >= columns.stop or not parts or not shown:
                continue
            ours, theirs = (
                torch.stack([part.cut(rows, columns).flatten() for part in each]).float()
                for each in (shown, [part for _, part in parts])
            )
            shared = ours @ theirs.T
            iou = shared / (ours.sum(1)[:, None] + theirs.sum(1) - shared).clamp(min=1)
            alike = torch.tensor(classes)[:, None] == torch.tensor([self.objects[n][2] for n, _ in parts])
            iou = iou * alike
            while iou.max() > SAME:  # each is a part of one object, the best pairs first
                k, j = divmod(int(iou.argmax()), iou.shape[1])
                iou[k], iou[:, j] = 0, 0
                if numbers[k] < 0:
                    numbers[k] = parts[j][0]
        return numbers
