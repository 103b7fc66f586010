"""Labels, placed where they hide little.

R, C: rows and columns of a grid of cells over the picture; candidate places of labels are cells of this grid.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dformer.visualize.arrays import Bools, Box, Color, Floats
from dformer.visualize.color import lighten


class Patch(NamedTuple):
    """Hold a `Region` at the scale of the picture, cropped to the bounding box of its mask."""

    box: Box
    mask: Bools  # of the size of `box`
    area: int
    text: str
    color: Color
    is_thing: bool
    slope: int


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of that size in pixels."""
    return ImageFont.load_default(size)


def _label(text: str, size: int, color: Color) -> Image.Image:
    """Draw `text` in black on a box of `color` with round corners, RGBA."""
    scale = 4  # supersampling: small letters on whole pixels would be spaced unevenly
    face, pad = font(scale * size), scale * max(2, size // 5)
    width, height = math.ceil(face.getlength(text) / scale) * scale + 2 * pad, scale * size + 2 * pad
    label = Image.new("RGBA", (width, height), (*color, 0))
    painter = ImageDraw.Draw(label)
    painter.rounded_rectangle((0, 0, width - 1, height - 1), pad, fill=color)
    painter.text((pad, height // 2), text, font=face, fill=(0, 0, 0), anchor="lm")
    return label.resize((width // scale, height // scale), Image.Resampling.BOX)


def draw_labels(picture: Image.Image, patches: Sequence[Patch], font_size: int) -> None:
    """Draw the label of each patch where it hides little.

    Labels stay inside the picture and do not overlap. A place in the middle of the label's own patch is preferred, if
    enough of the patch stays visible; else one beside the patch, and not on other things. A patch of a few pixels, or
    without such a place, gets no label.
    """
    cell = max(1, font_size // 4)
    rows, columns = picture.height // cell, picture.width // cell
    grids = [_on_grid(patch, cell, rows, columns) for patch in patches]
    things = np.zeros((rows, columns), np.float32)
    for patch, grid in zip(patches, grids, strict=True):
        things += grid * patch.is_thing
    taken = np.zeros((rows, columns), np.float32)
    # Things first: stuff is larger and offers more places.
    labelled = [pair for pair in zip(patches, grids, strict=True) if pair[0].text]
    for patch, grid in sorted(labelled, key=lambda pair: not pair[0].is_thing):
        size = font_size if patch.area > 30 * font_size**2 else max(9, round(0.8 * font_size))
        label = _label(patch.text, size, lighten(patch.color))
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
    """Return (rows, columns): 1 where the middle of the cell is inside the patch, else 0."""
    grid = np.zeros((rows, columns), np.float32)
    (top, left), middle = (side.start for side in patch.box), cell // 2
    row, column = (max(0, math.ceil((start - middle) / cell)) for start in (top, left))
    sampled = patch.mask[row * cell + middle - top :: cell, column * cell + middle - left :: cell]
    target = grid[row : row + sampled.shape[0], column : column + sampled.shape[1]]
    target[:] = sampled[: target.shape[0], : target.shape[1]]
    return grid


def _box_mean(grid: Floats, height: int, width: int) -> Floats:
    """Return the mean of `grid` (R, C) over each box of `height` x `width` cells: (R - height + 1, C - width + 1)."""
    total = np.pad(grid, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    rows = total[height:] - total[:-height]
    return (rows[:, width:] - rows[:, :-width]) / (height * width)


def _around(box: Box, cell: int, size: tuple[int, int], shape: tuple[int, ...]) -> Box:
    """Return the part of a grid of `shape` where a label of `size`, in cells, would be near `box`, in pixels."""
    margin = 2 * size[0]
    rows, columns = (
        slice(max(0, side.start // cell - length - margin), min(count, side.stop // cell + length + margin))
        for side, length, count in zip(box, size, shape, strict=True)
    )
    return rows, columns


def _distances(box: Box, cell: int, near: Box, size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Return, for a label of `size` at each place in `near`, its distance from `box` (pixels) and of their centres.

    Sizes and distances are in cells.
    """
    gaps, shifts = [], []
    for side, part, length in zip(box, near, size, strict=True):
        start = np.arange(part.start, part.stop - length + 1)
        gaps.append(np.maximum(0, np.maximum(side.start / cell - (start + length), start - side.stop / cell)))
        shifts.append(start + length / 2 - (side.start + side.stop) / (2 * cell))
    return np.hypot(*np.ix_(*gaps)), np.hypot(*np.ix_(*shifts))
