"""The losses of boxes with classes and dynamic mask heads (DiffusionInst, Gu et al. 2022, Sec. 3.4).

Shapes: L stages, B images, N boxes, K classes, P numbers of a mask head, M matches of all stages and images, G
ground-truth objects of all images. Boxes are x0 y0 x1 y1 in pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import sigmoid_focal_loss

from dformer.losses.dynamic_k import BoxLossWeights, Matches, assign, matching_cost
from dformer.losses.normalisers import normaliser
from dformer.ops.dynamic_masks import dynamic_masks

MASKS_AT_ONCE = 32  # whose intermediate maps are in memory together
STRIDE = 4  # of the mask features


class BoxTarget(NamedTuple):
    """Hold an image's ground truth: `labels` (G,) int64, `boxes` (G, 4) float32, `masks` (G, H, W) bool, and `extent`
    (4,) float32: width, height, width, height of the image."""

    labels: Tensor
    boxes: Tensor
    masks: Tensor
    extent: Tensor


class BoxCriterion(nn.Module):
    """Compute the matching of every stage and the four losses.

    Args:
        federated_classes: how many classes count in a step's classification loss: those in the batch, and others drawn
            by their frequency (LVIS; Zhou et al. 2021, Sec. 4). 0: all.
        frequencies: weights (K,) by which these others are drawn.
    """

    frequencies: Tensor | None

    def __init__(
        self, *, weights: BoxLossWeights, federated_classes: int = 0, frequencies: Tensor | None = None
    ) -> None:
        super().__init__()
        self.weights = weights
        self.federated_classes = federated_classes
        self.register_buffer("frequencies", frequencies)

    def forward(
        self,
        logits: Tensor,
        boxes: Tensor,
        kernels: Tensor,
        mask_features: Tensor,
        targets: list[BoxTarget],
        generators: list[torch.Generator],
    ) -> dict[str, Tensor]:
        """Compute the weighted losses, to be summed.

        Args:
            logits: (L, B, N, K).
            boxes: (L, B, N, 4).
            kernels: (L, B, N, P).
            mask_features: (B, M, H/4, W/4) of the padded canvas.
            targets: B.
            generators: one an image; the first one draws the classes of a federated loss.

        Returns:
            `loss_ce`, `loss_bbox`, `loss_giou`, `loss_dice` of the last stage, `loss_ce_0`, ... of the ones before: the
            same names for any targets.
        """
        with torch.autocast(logits.device.type, enabled=False):  # exponentials and areas leave float16's range
            logits, boxes, kernels, mask_features = (x.float() for x in (logits, boxes, kernels, mask_features))
            matches = self.match(logits, boxes, targets)
            counted = None
            if self.federated_classes:
                counted = torch.stack([self.draw_classes(targets, generators[0]) for _ in logits])
            # Over all processes together. (The published code takes each by itself.)
            pairs = normaliser(matches.counts.clone(), minimum=1)  # (L,)
            loss_bbox, loss_giou = box_losses(boxes, targets, matches)
            losses = {
                "loss_ce": self.weights.classes * class_loss(logits, targets, matches, counted) / pairs,
                "loss_bbox": self.weights.l1 * loss_bbox / pairs,
                "loss_giou": self.weights.giou * loss_giou / pairs,
                "loss_dice": self.weights.dice * mask_loss(kernels, mask_features, targets, matches) / pairs,
            }
        suffixes = {-1: ""} | {stage: f"_{stage}" for stage in range(len(logits) - 1)}  # as published
        return {key + suffix: loss[stage] for stage, suffix in suffixes.items() for key, loss in losses.items()}

    @torch.no_grad()
    def match(self, logits: Tensor, boxes: Tensor, targets: list[BoxTarget]) -> Matches:
        """Match the predictions of each stage with the ground truth of each image."""
        costs, ious = [], []
        for b, target in enumerate(targets):
            flat = logits[:, b].flatten(0, 1), boxes[:, b].flatten(0, 1)  # (L * N, .)
            pair = matching_cost(*flat, target.labels, target.boxes, target.extent, self.weights)
            cost, iou = (x.unflatten(0, (len(logits), -1)) for x in pair)
            costs.append(cost)
            ious.append(iou)
        return assign(costs, ious)

    def draw_classes(self, targets: list[BoxTarget], generator: torch.Generator) -> Tensor:
        """Choose the classes that count (K,), bool: those in the batch, filled up without repetition by frequency.

        (In the published code, "no object" takes the place of one of them.)
        """
        assert self.frequencies is not None
        # The largest of weight / exponential noise: draws without replacement, and no copy to the host.
        noise = torch.empty_like(self.frequencies).exponential_(generator=generator)
        priority = self.frequencies / noise
        present = torch.zeros_like(priority, dtype=torch.bool)
        present[torch.cat([target.labels for target in targets])] = True
        chosen = priority.masked_fill(present, torch.inf).topk(min(self.federated_classes, len(priority))).indices
        return present.index_fill(0, chosen, True)


def class_loss(logits: Tensor, targets: list[BoxTarget], matches: Matches, counted: Tensor | None = None) -> Tensor:
    """Compute the sum of the focal losses (L,) of all boxes, or of those of the classes `counted` (L, K) bool."""
    labels = torch.cat([target.labels for target in targets])
    truth = torch.zeros_like(logits)
    truth[matches.stage, matches.image, matches.box, labels[matches.target]] = 1
    losses = sigmoid_focal_loss(logits, truth, alpha=0.25, gamma=2)  # (L, B, N, K)
    return (losses if counted is None else losses * counted[:, None, None]).sum((1, 2, 3))


def box_losses(boxes: Tensor, targets: list[BoxTarget], matches: Matches) -> tuple[Tensor, Tensor]:
    """Compute the sums (L,) over the matches of L1, in shares of the image, and of 1 - GIoU."""
    predicted = boxes[matches.stage, matches.image, matches.box]  # (M, 4)
    truth = torch.cat([target.boxes for target in targets])[matches.target]
    extent = torch.stack([target.extent for target in targets])[matches.image]
    l1 = ((predicted - truth) / extent).abs().sum(1)
    return _per_stage(l1, matches), _per_stage(giou_loss(predicted, truth), matches)


def giou_loss(boxes: Tensor, truth: Tensor) -> Tensor:
    """Compute 1 - GIoU (M,) of pairs of boxes (Rezatofighi et al. 2019); torchvision's waits for a GPU."""
    both = torch.stack([boxes, truth])  # (2, M, 4)
    low, high = both[..., :2], both[..., 2:]
    union = (high - low).prod(2).sum(0)
    overlap = (high.amin(0) - low.amax(0)).clamp(min=0).prod(1)  # (M,)
    union = union - overlap
    hull = (high.amax(0) - low.amin(0)).prod(1)
    return 1 - overlap / (union + 1e-7) + (hull - union) / (hull + 1e-7)


def mask_loss(kernels: Tensor, mask_features: Tensor, targets: list[BoxTarget], matches: Matches) -> Tensor:
    """Compute the sum (L,) over the matches of the dice losses of the mask heads' masks."""
    chosen = kernels[matches.stage, matches.image, matches.box].split(matches.per_image)  # B times (M_b, P)
    index = matches.target.split(matches.per_image)
    losses, first = [], 0
    for features, target, *pairs in zip(mask_features, targets, chosen, index, strict=True):
        truth = at_cell_centres(target.masks, features.shape[1:])  # (G_b, h, w)
        for k in range(0, max(1, len(pairs[0])), MASKS_AT_ONCE):  # once without any: all parameters get a gradient
            heads, rows = (x[k : k + MASKS_AT_ONCE] for x in pairs)
            # The maps between the layers of a head, 2 M h w numbers for each, are made again for the gradient.
            losses.append(checkpoint(_dice_of_heads, heads, features, truth, rows - first, use_reentrant=False))
        first += len(target.labels)
    return _per_stage(torch.cat(losses), matches)


def _dice_of_heads(kernels: Tensor, features: Tensor, masks: Tensor, rows: Tensor) -> Tensor:
    return dice_loss(dynamic_masks(kernels, features), masks[rows])


def at_cell_centres(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Sample masks (G, H, W) bool where cells of stride 4 have their centres (see `aligned_upsample`): (G, *size)."""
    samples = masks[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    return F.pad(samples, (0, size[1] - samples.shape[2], 0, size[0] - samples.shape[1]))


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Compute 1 - dice coefficient (n,) of masks (n, h, w), with squares in the denominator (V-Net, Milletari 2016)."""
    probability, truth = logits.sigmoid().flatten(1), masks.flatten(1).to(logits.dtype)
    total = probability.square().sum(1) + truth.sum(1)
    return 1 - 2 * (probability * truth).sum(1) / (total + 1e-5)


def _per_stage(losses: Tensor, matches: Matches) -> Tensor:
    """Add up losses (M,) to (L,)."""
    return losses.new_zeros(len(matches.counts)).index_add(0, matches.stage, losses)
