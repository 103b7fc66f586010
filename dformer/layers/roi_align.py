"""RoIAlign over a feature pyramid (He et al. 2017; Lin et al. 2017, Eq. 1), as one gather over the cells of all levels.

Nothing is sorted by level, so a GPU never makes the host wait, and on a CPU it takes less than half the time of
`torchvision.ops.roi_align` level by level, to which it is equal.

Shapes: B images, N boxes, S cells of all levels, C channels, R x R cells of a region.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

FINEST = 4  # stride of the first level; the next ones double it
SAMPLES = 2  # points a cell of a region and axis


class PyramidCells(NamedTuple):
    """Hold a pyramid whose levels begin at stride 4: `values` (B, S, C), and for each level its `start` among the S
    cells, its `height` and its `width`, all int64 (levels,)."""

    values: Tensor
    start: Tensor
    height: Tensor
    width: Tensor


def pyramid_cells(maps: list[Tensor]) -> PyramidCells:
    """Lay the cells of maps (B, C, h, w) of strides 4, 8, ... in one row."""
    values = torch.cat([level.flatten(2).mT for level in maps], dim=1)
    areas = [0, *(level.shape[2] * level.shape[3] for level in maps)]
    table = torch.tensor([[*areas[:-1]], [x.shape[2] for x in maps], [x.shape[3] for x in maps]])
    areas, height, width = table.to(values.device, non_blocking=True)
    return PyramidCells(values, areas.cumsum(0), height, width)


def box_levels(boxes: Tensor, num_levels: int) -> Tensor:
    """Return the level of boxes (..., 4), int64, 0 the finest: a box of 224 x 224 pixels is on the third."""
    size = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).sqrt()
    return (2 + (size / 224 + 1e-8).log2()).floor().clamp(0, num_levels - 1).long()


def roi_align(cells: PyramidCells, boxes: Tensor, resolution: int) -> Tensor:
    """Pool each box from its level.

    Args:
        cells: of the images.
        boxes: (B, N, 4) x0 y0 x1 y1 in pixels, float32; they may leave the image or have no area.
        resolution: R.

    Returns:
        (B, N, R * R, C) row by row, as `torchvision.ops.roi_align(..., sampling_ratio=2, aligned=True)`.
    """
    batch, num_boxes = boxes.shape[:2]
    level = box_levels(boxes, len(cells.start))  # (B, N)
    width = cells.width[level]
    corners = boxes / (FINEST * 2**level)[..., None] - 0.5  # in cells; 0 is a cell's centre
    rows, row_weights = _samples(corners[..., 1], corners[..., 3], cells.height[level], resolution)  # (B, N, R, 2 * 2)
    columns, column_weights = _samples(corners[..., 0], corners[..., 2], width, resolution)
    image = torch.arange(batch, device=boxes.device)[:, None] * cells.values.shape[1]
    first = (cells.start[level] + image)[..., None, None, None, None]
    index = first + rows[:, :, :, None, :, None] * width[..., None, None, None, None] + columns[:, :, None, :, None]
    weights = row_weights[:, :, :, None, :, None] * column_weights[:, :, None, :, None]  # (B, N, R, R, 4, 4)
    bags = (x.flatten(0, 3).flatten(1) for x in (index, weights.to(cells.values.dtype)))  # (B * N * R * R, 16)
    pooled: Tensor = _WeightedSums.apply(cells.values.flatten(0, 1), *bags)
    return pooled.view(batch, num_boxes, resolution**2, -1)


class _WeightedSums(Function):
    """Weighted sums (P, C) of rows of a table (S, C): rows `index` (P, n) with `weights` (P, n), which are constant.

    PyTorch's own gradient of `embedding_bag` sorts the index, and takes twice as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(index, weights)
        ctx.shape = table.shape
        return F.embedding_bag(index, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, weights = ctx.saved_tensors
        exact = grad.to(torch.promote_types(grad.dtype, torch.float32))
        grad_table = exact.new_zeros(ctx.shape)
        for rows, weight in zip(index.unbind(1), weights.unbind(1), strict=True):
            grad_table.index_add_(0, rows, exact * weight[:, None])
        return grad_table.to(grad.dtype), None, None


def _samples(low: Tensor, high: Tensor, size: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Return the cells along an axis that each of R cells of a region is interpolated from, and their weights.

    Args:
        low, high: ends of the regions (B, N).
        size: of their maps (B, N).

    Returns:
        Both (B, N, R, 2 * SAMPLES).
    """
    share = (torch.arange(resolution * SAMPLES, device=low.device) + 0.5) / (resolution * SAMPLES)
    place = low[..., None] + (high - low)[..., None] * share  # (B, N, R * SAMPLES)
    size = size[..., None]
    is_near = (place >= -1) & (place <= size)  # points further outside count as 0
    place = torch.minimum(place.clamp(min=0), size - 1)
    below = place.long()
    cells = torch.stack([below, torch.minimum(below + 1, size - 1)], dim=-1)
    rest = place - below
    weights = torch.stack([1 - rest, rest], dim=-1) * (is_near / SAMPLES)[..., None]
    return (x.unflatten(2, (resolution, SAMPLES)).flatten(3) for x in (cells, weights))  # type: ignore[return-value]
