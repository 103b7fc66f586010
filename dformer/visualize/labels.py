"""Labels: what they look like, and where they hide least.

R, C: rows and columns of a grid of cells over the picture, on which places are compared.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dformer.visualize.arrays import Bools, Box, Color, Floats
from dformer.visualize.color import lighter


class Patch(NamedTuple):
    """A region of the picture: where it is, its colour, what is written on it, and its stripes (see `Region`)."""

    box: Box
    mask: Bools  # of the size of `box`
    area: int
    color: Color
    text: str
    is_thing: bool
    slope: int


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _label(text: str, size: int, color: Color) -> Image.Image:
    """`text` in black on a box of `color` with round corners, RGBA. Drawn four times as large: letters of this size
    are unevenly spaced where they are set pixel by pixel."""
    fine = 4
    face, pad = font(fine * size), fine * max(2, size // 5)
    width, height = math.ceil(face.getlength(text) / fine) * fine + 2 * pad, fine * size + 2 * pad
    label = Image.new("RGBA", (width, height), (*color, 0))
    painter = ImageDraw.Draw(label)
    painter.rounded_rectangle((0, 0, width - 1, height - 1), pad, fill=color)
    painter.text((pad, height // 2), text, font=face, fill=(0, 0, 0), anchor="lm")
    return label.resize((width // fine, height // fine), Image.Resampling.BOX)


def draw_labels(picture: Image.Image, patches: Sequence[Patch], font_size: int) -> None:
    """Write on each region what it is, where it hides least.

    Places are compared on a grid of cells. A label never leaves the picture nor covers another label; it likes to lie
    on its own patch, if that stays visible, and away from its rim, else beside it and not on other things. A region
    for which no such place is left, or that is only a few pixels large, gets no label.
    """
    cell = max(1, font_size // 4)
    rows, columns = picture.height // cell, picture.width // cell
    grids = [_on_grid(patch, cell, rows, columns) for patch in patches]
    things = np.zeros((rows, columns), np.float32)
    for patch, grid in zip(patches, grids, strict=True):
        things += grid * patch.is_thing
    taken = np.zeros((rows, columns), np.float32)
    # Things first: stuff has more places to choose from.
    labelled = [pair for pair in zip(patches, grids, strict=True) if pair[0].text]
    for patch, grid in sorted(labelled, key=lambda pair: not pair[0].is_thing):
        size = font_size if patch.area > 30 * font_size**2 else max(9, round(0.8 * font_size))
        label = _label(patch.text, size, lighter(patch.color))
        h, w = math.ceil(label.height / cell), math.ceil(label.width / cell)
        if patch.area < size**2 / 4 or h > rows or w > columns:
            continue
        near = _around(patch.box, cell, (h, w), grid.shape)
        own = _box_mean(grid[near], h, w)
        centred = _box_mean(np.pad(grid[near], ((h, h), (w // 2, w - w // 2))), 3 * h, 2 * w)
        others = _box_mean(things[near] - grid[near] * patch.is_thing, h, w)
        away, off_centre = _distances(patch.box, cell, near, (h, w))
        hidden = own * label.width * label.height / patch.area
        score = own + centred - 2 * np.maximum(0, hidden - 0.3) - 0.5 * away / h - 0.5 * others
        score -= 0.3 * off_centre / (rows + columns)
        hides_too_much = (hidden > 0.6) | (others * label.width * label.height > 2 * patch.area)
        score[(_box_mean(taken[near], h, w) > 0) | (away > 1.5 * h) | hides_too_much] = -np.inf
        best = np.unravel_index(np.argmax(score), score.shape)
        if score[best] == -np.inf:
            continue
        row, column = (int(start) + side.start for start, side in zip(best, near, strict=True))
        taken[row : row + h, column : column + w] = 1
        picture.paste(label, (column * cell, row * cell), label)


def _on_grid(patch: Patch, cell: int, rows: int, columns: int) -> Floats:
    """(rows, columns): 1 where the middle of the cell lies on the patch, else 0."""
    grid = np.zeros((rows, columns), np.float32)
    (top, left), middle = (side.start for side in patch.box), cell // 2
    row, column = (max(0, math.ceil((start - middle) / cell)) for start in (top, left))
    sampled = patch.mask[row * cell + middle - top :: cell, column * cell + middle - left :: cell]
    target = grid[row : row + sampled.shape[0], column : column + sampled.shape[1]]
    target[:] = sampled[: target.shape[0], : target.shape[1]]
    return grid


def _box_mean(grid: Floats, height: int, width: int) -> Floats:
    """Mean of `grid` (R, C) over each box of `height` x `width` cells: (R - height + 1, C - width + 1)."""
    total = np.pad(grid, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    rows = total[height:] - total[:-height]
    return (rows[:, width:] - rows[:, :-width]) / (height * width)


def _around(box: Box, cell: int, size: tuple[int, int], shape: tuple[int, ...]) -> Box:
    """The part of a grid of `shape` where a label of `size`, in cells, may lie and is not far from `box`, in pixels."""
    margin = 2 * size[0]
    rows, columns = (
        slice(max(0, side.start // cell - length - margin), min(count, side.stop // cell + length + margin))
        for side, length, count in zip(box, size, shape, strict=True)
    )
    return rows, columns


def _distances(box: Box, cell: int, near: Box, size: tuple[int, int]) -> tuple[Floats, Floats]:
    """In cells, for all places of a label of `size` in `near`: from its rim to `box` (pixels), and between middles."""
    gaps, shifts = [], []
    for side, part, length in zip(box, near, size, strict=True):
        start = np.arange(part.start, part.stop - length + 1)
        gaps.append(np.maximum(0, np.maximum(side.start / cell - (start + length), start - side.stop / cell)))
        shifts.append(start + length / 2 - (side.start + side.stop) / (2 * cell))
    return np.hypot(*np.ix_(*gaps)), np.hypot(*np.ix_(*shifts))
