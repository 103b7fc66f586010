"""Types of what goes in and out, and where a mask is not empty."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Color = tuple[int, int, int]  # red, green, blue, 0 to 255
Box = tuple[slice, slice]  # rows, columns


def tight_box(mask: Bools) -> Box | None:
    """The smallest box that holds all of a mask (H, W), or None where it is empty."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(ys):
        return None
    return slice(int(ys[0]), int(ys[-1]) + 1), slice(int(xs[0]), int(xs[-1]) + 1)
