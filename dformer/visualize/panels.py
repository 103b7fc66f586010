"""Pictures side by side."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dformer.visualize.arrays import UInt8
from dformer.visualize.labels import font

GAP = 6  # pixels between pictures, and around them


def draw_panels(pictures: Sequence[UInt8], captions: Sequence[str], columns: int | None = None) -> UInt8:
    """Lay pictures out in rows, from left to right, each under its caption.

    Args:
        pictures: each (h, w, 3) RGB, of any sizes; all cells are as large as the largest.
        captions: one each; what is too long for its picture is cut off with an ellipsis.
        columns: pictures a row; by default all.

    Returns:
        The sheet, white where nothing lies.

    Raises:
        ValueError: there is no picture, or another number of captions.
    """
    if not pictures or len(captions) != len(pictures):
        raise ValueError(
            f"each of one picture or more needs a caption: {len(pictures)} pictures, {len(captions)} captions"
        )
    columns = min(columns or len(pictures), len(pictures))
    height, width = (max(picture.shape[side] for picture in pictures) for side in (0, 1))
    size = min(24, max(11, width // 30))  # of the letters
    line = size + size // 2
    cell_height, cell_width = line + height + GAP, width + GAP
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (GAP + columns * cell_width, rows * cell_height), "white")
    painter = ImageDraw.Draw(sheet)
    for k, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = GAP + k % columns * cell_width, k // columns * cell_height
        painter.text((left, top + line // 2), shortened(caption, size, width), "black", font(size), anchor="lm")
        sheet.paste(Image.fromarray(picture), (left, top + line))
    return np.array(sheet)


def shortened(text: str, size: int, width: int) -> str:
    """`text`, its end replaced by an ellipsis where letters of `size` would be wider than `width` pixels."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
