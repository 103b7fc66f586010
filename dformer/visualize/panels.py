"""Pictures side by side."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dformer.visualize.arrays import Floats, UInt8
from dformer.visualize.labels import font

GAP = 6  # pixels between pictures, and around them


def draw_panels(pictures: Sequence[UInt8], captions: Sequence[str], columns: int | None = None) -> UInt8:
    """Lay out pictures in rows, each below its caption, on a white sheet.

    Args:
        pictures: at least one, (h, w, 3) RGB of any sizes.
        captions: one for each picture; shortened if wider than the widest picture.
        columns: pictures in a row; by default all.
    """
    columns = min(columns or len(pictures), len(pictures))
    width = max(picture.shape[1] for picture in pictures)
    size = min(24, max(11, width // 30))  # of the font
    line = size + size // 2
    heights = [max(p.shape[0] for p in pictures[k : k + columns]) for k in range(0, len(pictures), columns)]  # of rows
    tops = [0, *np.cumsum([line + height + GAP for height in heights]).tolist()]
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), tops[-1]), "white")
    painter = ImageDraw.Draw(sheet)
    for k, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = GAP + k % columns * (width + GAP), tops[k // columns]
        painter.text((left, top + line // 2), _shorten(caption, size, width), "black", font(size), anchor="lm")
        sheet.paste(Image.fromarray(picture), (left, top + line))
    return np.array(sheet)


def _shorten(text: str, size: int, width: int) -> str:
    """Return `text`, its end replaced by an ellipsis if it is wider than `width` pixels in font size `size`."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def draw_grid(masks: Floats, min_side: int = 96) -> UInt8:
    """Draw masks (R, C, h, w) in [0, 1] in grey, in a grid of R rows and C columns with a gap between them.

    Masks with a side shorter than `min_side` pixels are enlarged by an integer.
    """
    s, gap = math.ceil(min_side / min(masks.shape[2:])), 2
    grey = np.rint(255 * masks).astype(np.uint8).repeat(s, axis=2).repeat(s, axis=3)
    framed = np.pad(grey, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=128)
    rows, columns, height, width = framed.shape
    return framed.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)[..., None].repeat(3, axis=2)
