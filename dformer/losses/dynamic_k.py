"""One-to-many matching of predicted boxes with ground truth (SimOTA of YOLOX, Ge et al. 2021, Sec. 2.3).

Shapes: L stages, B images, N boxes, G_b ground-truth boxes in image b, K classes. Boxes are x0 y0 x1 y1 in pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

MAX_K = 5  # predictions of one ground-truth box
CENTRE_RADIUS = 2.5  # sizes of a ground-truth box around its centre in which a candidate's centre is
OUTSIDE = 100.0  # cost where a centre is outside of the ground-truth box
NO_CANDIDATE = 10_000.0  # cost where it is far from all of them
TAKEN = 100_000.0  # cost of a second ground-truth box


class BoxLossWeights(NamedTuple):
    """Hold the weights of class, L1 and GIoU, in the cost as in the loss, and of dice in the loss."""

    classes: float
    l1: float
    giou: float
    dice: float


class Matches(NamedTuple):
    """Hold M matches by indices (M,): `stage`, `image`, `box` among the N, and `target` among the G of all images, in
    their order. They are sorted by image; `per_image` has B counts, and `counts` (L,) float32 those of the stages."""

    per_image: list[int]
    stage: Tensor
    image: Tensor
    box: Tensor
    target: Tensor
    counts: Tensor


def focal_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute what calling a box `labels` (G,) adds to its focal loss, (..., G), from logits (..., K)."""
    probability = logits.sigmoid()[..., labels]
    positive = 0.25 * (1 - probability) ** 2 * -(probability + 1e-8).log()
    negative = 0.75 * probability**2 * -(1 - probability + 1e-8).log()
    return positive - negative


def matching_cost(
    logits: Tensor, boxes: Tensor, labels: Tensor, gt_boxes: Tensor, extent: Tensor, weights: BoxLossWeights
) -> tuple[Tensor, Tensor]:
    """Compute cost and IoU, both (N, G), of predictions with ground truth.

    Args:
        logits: (N, K), float32.
        boxes: (N, 4), float32.
        labels: (G,) in 0..K-1.
        gt_boxes: (G, 4).
        extent: width, height, width, height of the image (4,).
    """
    centre = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2  # (N, 1, 2)
    is_inside = ((centre > gt_boxes[:, :2]) & (centre < gt_boxes[:, 2:])).all(2)
    reach = CENTRE_RADIUS * (gt_boxes[:, 2:] - gt_boxes[:, :2])
    is_near = ((centre - (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2).abs() < reach).all(2)  # implied by being inside
    cost = weights.classes * focal_cost(logits, labels)
    cost = cost + weights.l1 * torch.cdist(boxes / extent, gt_boxes / extent, p=1)
    cost = cost - weights.giou * generalized_box_iou(boxes, gt_boxes)
    cost = cost + OUTSIDE * ~is_inside + NO_CANDIDATE * ~is_near.any(1, keepdim=True)
    return cost, box_iou(boxes, gt_boxes)


def assign(costs: list[Tensor], ious: list[Tensor]) -> Matches:
    """Match by B costs and IoUs (L, N, G_b), which are copied to the CPU at once; return the matches on their device.

    A cost that is not finite counts as very large, so that the same costs always give the same matches.
    """
    device = costs[0].device
    shapes = [cost.shape for cost in costs]
    flat = torch.stack([torch.cat([x.detach().float().flatten() for x in each]) for each in (costs, ious)]).cpu()
    flat[0].nan_to_num_(nan=1e9, posinf=1e9, neginf=-1e9)
    flat[1].nan_to_num_(nan=0.0)
    parts = zip(*(x.split([shape.numel() for shape in shapes]) for x in flat), strict=True)
    found, first = [], 0
    for b, (shape, (cost, iou)) in enumerate(zip(shapes, parts, strict=True)):
        owners = [dynamic_k(*layer) for layer in zip(cost.view(shape), iou.view(shape), strict=True)]
        stage, box = (torch.stack(owners) >= 0).nonzero(as_tuple=True)
        target = torch.stack(owners)[stage, box] + first
        found.append(torch.stack([stage, torch.full_like(stage, b), box, target]))
        first += shape[2]
    index = torch.cat(found, dim=1)
    counts = torch.bincount(index[0], minlength=shapes[0][0])
    moved = torch.cat([index.flatten(), counts]).to(device, non_blocking=True)  # one copy
    stage, image, box, target = moved[: index.numel()].view(4, -1)
    return Matches([x.shape[1] for x in found], stage, image, box, target, moved[index.numel() :].float())


def dynamic_k(cost: Tensor, iou: Tensor) -> Tensor:
    """Give ground truth its predictions; return the ground-truth box of each prediction (N,) int64, or -1 for none.

    Each ground-truth box takes as many of the cheapest predictions as its MAX_K best IoUs add up to, but at least one;
    a prediction that several take goes to the cheapest of all. Then those that are left without take the cheapest free
    prediction, or where none is free, one from a ground-truth box that has several: with G <= N all have one.
    (The published code can give one prediction to two and so leave one without, or go on for ever.)

    Args:
        cost: (N, G), finite, on the CPU.
        iou: (N, G).
    """
    num_boxes, num_targets = cost.shape
    if num_targets == 0:
        return torch.full((num_boxes,), -1)
    k = iou.topk(min(MAX_K, num_boxes), dim=0).values.sum(0).int().clamp(min=1)  # (G,)
    rank = cost.argsort(dim=0, stable=True).argsort(dim=0)
    taken = rank < k  # (N, G)
    owner = torch.where(taken.any(1), taken.int().argmax(1), -1)
    owner = torch.where(taken.sum(1) > 1, cost.argmin(1), owner)
    while len(needy := (torch.bincount(owner + 1, minlength=num_targets + 1)[1:] == 0).nonzero()[:, 0]):
        several = torch.bincount(owner + 1, minlength=num_targets + 1) > 1
        several[0] = True  # no owner
        available = several[owner + 1].nonzero()[:, 0]
        if len(available) == 0:  # more objects than predictions
            break
        price = cost[available][:, needy] + TAKEN * (owner[available] >= 0)[:, None]
        row, column = divmod(int(price.argmin()), len(needy))
        owner[available[row]] = needy[column]
    return owner
