"""Types of arrays, and sizes and boxes of pictures."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

UInt8 = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Color = tuple[int, int, int]  # red, green, blue, 0 to 255
Box = tuple[slice, slice]  # rows, columns


def fit_size(height: int, width: int, max_side: float = math.inf, max_pixels: float = math.inf) -> tuple[int, int]:
    """Return height and width reduced, in proportion, to a long side and an area (but for rounding) in pixels."""
    scale = min(1.0, max_side / max(height, width), math.sqrt(max_pixels / (height * width)))
    return max(1, round(height * scale)), max(1, round(width * scale))


def tight_box(mask: Bools) -> Box | None:
    """Return the smallest box that contains a mask (H, W), or None if the mask is empty."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(ys):
        return None
    return slice(int(ys[0]), int(ys[-1]) + 1), slice(int(xs[0]), int(xs[-1]) + 1)


def resize(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return an image (H, W, 3) uint8, or a mask (H, W) bool, at another size, height and width."""
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize(size[::-1]))  # nearest for masks, else bicubic
