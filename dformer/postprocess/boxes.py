"""Scored boxes with mask heads -> instance results (DiffusionInst, Gu et al. 2022, Sec. 3.3).

Masks are computed only inside their boxes and never as floats of n x H x W: a few at once, whose window is all that is
upsampled.

Shapes: N boxes, K classes, P numbers of a mask head, n detections, masks of h x w cells of stride 4, results of H x W.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from dformer.ops.dynamic_masks import dynamic_masks
from dformer.postprocess.queries import InstanceResult
from dformer.postprocess.view import MAX_ELEMENTS, View

STRIDE = 4  # of the mask features


class Detections(NamedTuple):
    """Hold n detections: `boxes` (n, 4) x0 y0 x1 y1 in pixels of the image that the model saw, `scores` (n,) in [0, 1],
    `classes` (n,) int64, and mask heads, `kernels` (n, P)."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    kernels: Tensor


def top_detections(logits: Tensor, boxes: Tensor, kernels: Tensor, count: int) -> Detections:
    """Choose the pairs of box and class with the highest sigmoid scores; a box may come with several classes.

    Args:
        logits: (..., N, K), of an image or of a batch.
        boxes: (..., N, 4).
        kernels: (..., N, P).
        count: how many pairs of each image.
    """
    num_boxes, num_classes = logits.shape[-2:]
    scores, index = logits.sigmoid().flatten(-2).topk(min(count, num_boxes * num_classes))  # (..., n)
    box = (index // num_classes)[..., None]
    boxes, kernels = (x.gather(-2, box.expand(*index.shape, x.shape[-1])) for x in (boxes, kernels))
    return Detections(boxes, scores, index % num_classes, kernels)


def suppress(detections: Sequence[Detections], threshold: float, count: int) -> Detections:
    """Join the detections of several steps, and leave out those whose IoU with a better one of their class is larger
    than `threshold`; return at most `count`, by falling score.

    How many are left is known on the host only: all but the mask heads is copied there, at once, and stays there.
    """
    boxes, scores, classes, kernels = (torch.cat(parts) for parts in zip(*detections, strict=True))
    table = torch.cat([boxes, scores[:, None], classes[:, None].to(boxes.dtype)], dim=1).cpu()
    boxes, scores, classes = table[:, :4], table[:, 4], table[:, 5].long()
    kept = batched_nms(boxes, scores, classes, threshold)[:count]
    return Detections(boxes[kept], scores[kept], classes[kept], kernels[_moved(kept, kernels.device)])


def instances(detections: Detections, mask_features: Tensor, view: View) -> InstanceResult:
    """Return the detections at the size of the result; those whose box is empty there are left out.

    Args:
        detections: as `suppress` returns them.
        mask_features: (C, h, w) of the canvas, on the device of the result.
    """
    (image_height, image_width), (height, width) = view.image, view.size
    ends = detections.boxes.new_tensor([width, height, width, height])
    scale = ends / detections.boxes.new_tensor([image_width, image_height, image_width, image_height])
    boxes = torch.minimum((detections.boxes * scale).clamp(min=0), ends)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero()[:, 0]
    device = mask_features.device
    masks = masks_in_boxes(detections.kernels[_moved(kept, device)], mask_features, boxes[kept], view)
    others = boxes[kept], detections.scores[kept], detections.classes[kept]
    return InstanceResult(masks, *(_moved(x, device) for x in others))


@torch.no_grad()
def masks_in_boxes(kernels: Tensor, mask_features: Tensor, boxes: Tensor, view: View) -> Tensor:
    """Run mask heads (n, P) and return their masks (n, H, W) bool, cleared outside of their boxes.

    As published, probabilities are upsampled, in two steps: to the canvas as `aligned_upsample` does, and from the
    image to the result. Both are linear and separable, so that they are one matrix an axis.

    Args:
        mask_features: (C, h, w) of the canvas.
        boxes: (n, 4) in pixels of the result, within it, on the CPU; their corners are rounded down.
    """
    height, width = view.size
    result = _cleared((len(kernels), height, width), kernels.device)
    down, across = (_interpolation(mask_features.shape[1 + k], view.image[k], view.size[k]) for k in range(2))
    rows, columns = (_moved(x.weights, kernels.device) for x in (down, across))  # (H, h), (W, w)
    corners = boxes.int()
    at_once = max(1, MAX_ELEMENTS.get(kernels.device.type, MAX_ELEMENTS["cpu"]) // (height * width))
    with torch.autocast(kernels.device.type, enabled=False):
        for first in range(0, len(kernels), at_once):
            few = slice(first, first + at_once)
            (left, top), (right, bottom) = corners[few, :2].amin(0).tolist(), corners[few, 2:].amax(0).tolist()
            if left >= right or top >= bottom:
                continue
            y, x = slice(top, bottom), slice(left, right)
            cell_y, cell_x = down.cells(y), across.cells(x)
            masks = dynamic_masks(kernels[few].float(), mask_features[:, cell_y, cell_x].float()).sigmoid()
            masks = rows[y, cell_y] @ masks @ columns[x, cell_x].T  # (few, bottom - top, right - left)
            result[few, y, x] = (masks > 0.5) & _inside(_moved(corners[few], masks.device), y, x)
    return result


def _cleared(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A bool tensor of zeros. NumPy's, unlike PyTorch's, takes no memory where nothing is written."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, bool))
    return torch.zeros(shape, dtype=torch.bool, device=device)


def _moved(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, non_blocking=True)


class _Interpolation(NamedTuple):
    """Linear interpolation of pixels from cells: weights (pixels, cells), and the first and last cell of a pixel."""

    weights: Tensor
    first: Tensor
    last: Tensor

    def cells(self, pixels: slice) -> slice:
        """Return the cells that so many pixels need."""
        return slice(int(self.first[pixels.start]), int(self.last[pixels.stop - 1]) + 1)


def _interpolation(cells: int, image: int, size: int) -> _Interpolation:
    """Compute, on the CPU, how `size` pixels of the result depend on cells, by way of `image` pixels between them."""
    place = ((torch.arange(size) + 0.5) * (image / size) - 0.5).clamp(min=0)  # as of align_corners=False
    below = place.long().clamp(max=image - 1)
    above = (below + 1).clamp(max=image - 1)
    weights = torch.zeros(size, cells)
    for pixel, share in ((below, 1 - (place - below)), (above, place - below)):
        at = (pixel - STRIDE // 2).clamp(min=0) / STRIDE
        low = at.long().clamp(max=cells - 1)
        high = (low + 1).clamp(max=cells - 1)
        weights.scatter_add_(1, low[:, None], (share * (1 - (at - low)))[:, None])
        weights.scatter_add_(1, high[:, None], (share * (at - low))[:, None])
    return _Interpolation(weights, (weights > 0).int().argmax(1), cells - 1 - (weights > 0).flip(1).int().argmax(1))


def _inside(corners: Tensor, y: slice, x: slice) -> Tensor:
    """Tell which pixels of a window are inside of each box: (n, height, width) bool."""
    left, top, right, bottom = corners[:, :, None].unbind(1)  # (n, 1)
    row, column = (torch.arange(s.start, s.stop, device=corners.device) for s in (y, x))
    in_rows, in_columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    return in_rows[:, :, None] & in_columns[:, None]
