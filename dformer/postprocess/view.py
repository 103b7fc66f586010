"""From maps over the padded canvas that a model saw to the size of the result.

Masks at the size of the result are the largest tensors of all, so `resized_strips` yields a strip of rows at a time.

Shapes: N masks of h x w, results of H x W, strips of R rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # height, width

# Numbers in a strip: 8 MB, which the caches of a CPU hold; a GPU, with few launches, takes 32 times that.
MAX_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}


class View(NamedTuple):
    """Hold three sizes: the padded canvas, the image in its upper left corner, and the result."""

    canvas: Size
    image: Size
    size: Size

    def resize(self, maps: Tensor, mode: str = "nearest") -> Tensor:
        """Resize maps (N, h, w) to the canvas, cut them to the image, and return them at the result's size, float32."""
        whole = F.interpolate(maps[None].float(), self.canvas, mode=mode)
        return F.interpolate(whole[..., : self.image[0], : self.image[1]], self.size, mode=mode)[0]


def resized_strips(masks: Tensor, view: View, max_elements: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of masks (N, h, w) at the size of the result, a few at a time: slices of 0..H, logits (N, R, W).

    As published, masks are resized to the canvas, cut to the image and resized to the result, bilinearly each time.
    """
    canvas, image, size = view
    max_elements = max_elements or MAX_ELEMENTS.get(masks.device.type, 2**21)
    height = max(1, max_elements // max(1, len(masks) * size[1]))
    to_canvas, to_size = _row_weights(masks.shape[1], canvas[0]), _row_weights(image[0], size[0])
    for top in range(0, size[0], height):
        rows = slice(top, min(top + height, size[0]))
        low, high, weight = (x[rows] for x in to_size)
        first, last = int(low[0]), int(high[-1])  # rows of the canvas
        part = _lerp_rows(masks, *(x[first : last + 1] for x in to_canvas))
        strip = _lerp_rows(part, low - first, high - first, weight)  # (N, R, w)
        yield rows, _widen(_widen(strip, canvas[1])[..., : image[1]], size[1])


def _row_weights(source: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each of `target` rows, the two rows of `source` to interpolate and the weight of the second."""
    place = ((torch.arange(target) + 0.5) * (source / target) - 0.5).clamp(min=0)
    low = place.long().clamp(max=source - 1)
    return low, (low + 1).clamp(max=source - 1), place - low


def _lerp_rows(maps: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    low, high, weight = (x.to(maps.device, non_blocking=True) for x in (low, high, weight))
    return torch.lerp(maps[:, low], maps[:, high], weight.to(maps.dtype)[:, None])


def _widen(strip: Tensor, width: int) -> Tensor:
    """Resize (N, R, w) to (N, R, width) bilinearly."""
    if strip.shape[2] == width:
        return strip
    return F.interpolate(strip[None], (strip.shape[1], width), mode="bilinear", align_corners=False)[0]
