"""Pooling of boxes from a pyramid, against torchvision's RoIAlign level by level."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import roi_align as reference

from dformer.layers.roi_align import box_levels, pyramid_cells, roi_align
from dformer.ops.dynamic_masks import aligned_upsample


def pyramid(batch, *channels_last):
    torch.manual_seed(0)
    return [torch.randn(batch, 8, 160 // s, 224 // s, requires_grad=True) for s in (4, 8, 16, 32)]


def level_by_level(maps, boxes, resolution):
    batch, count = boxes.shape[:2]
    level = box_levels(boxes, len(maps)).flatten()
    image = torch.arange(batch).repeat_interleave(count)[:, None]
    rois = torch.cat([image, boxes.flatten(0, 1)], dim=1)
    every = [reference(x, rois, resolution, 1 / (4 * 2**k), 2, aligned=True) for k, x in enumerate(maps)]
    chosen = torch.stack(every)[level, torch.arange(len(rois))]  # (B * N, C, R, R)
    return chosen.flatten(2).mT.unflatten(0, (batch, count))


def test_equals_torchvision_level_by_level_with_gradients():
    corner = torch.rand(2, 60, 2) * 300 - 60  # many leave the image
    boxes = torch.cat([corner, corner + torch.rand(2, 60, 2) ** 3 * 900], dim=2)
    boxes[0, 0, 2:] = boxes[0, 0, :2]  # without area
    maps = pyramid(2)
    ours, theirs = roi_align(pyramid_cells(maps), boxes, 7), level_by_level(maps, boxes, 7)
    assert set(box_levels(boxes, 4).flatten().tolist()) == {0, 1, 2, 3}
    assert_close(ours, theirs, rtol=0, atol=1e-4)
    weight = torch.randn_like(ours)
    pairs = zip(*(torch.autograd.grad((x * weight).sum(), maps) for x in (ours, theirs)), strict=True)
    for mine, expected in pairs:
        assert_close(mine, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("side", "level"), [(0, 0), (111, 0), (113, 1), (223, 1), (225, 2), (449, 3), (5000, 3)])
def test_larger_boxes_are_pooled_from_coarser_levels(side, level):
    assert box_levels(torch.tensor([[8.0, 8.0, 8.0 + side, 8.0 + side]]), 4).item() == level


def test_aligned_upsampling_puts_cells_half_a_cell_further():
    up = aligned_upsample(torch.arange(4.0).view(1, 1, 1, 4), 4)[0, 0]
    assert up.shape == (4, 16)
    assert up[0].tolist() == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3, 3]
