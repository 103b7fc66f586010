"""The set-prediction loss: match, classify every prediction, shape the matched ones (DFormer, Eq. 4).

Shapes: L supervised predictions (one per decoder layer), B images, N masks each, G_b ground-truth masks of H x W in
image b, K classes, P points.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dformer.losses.matcher import LossWeights, Pairs, assign, matching_cost, tie_cost
from dformer.losses.normalisers import normaliser
from dformer.losses.points import (
    MASKS_AT_ONCE,
    random_points,
    sample_logits,
    sample_map,
    sample_targets,
    uncertain_points,
)


class Target(NamedTuple):
    """Hold an image's ground truth: `labels` (G,) int64 in 0..K-1, `masks` (G, H, W) bool on the padded canvas.

    With denoising assignment also `owner` (N,), the object that each query has to answer with (`signals/hints.py`).
    """

    labels: Tensor
    masks: Tensor
    owner: Tensor | None = None


class MaskProducts(NamedTuple):
    """Hold the mask logits of L layers and B images as factors; only the products that are used are computed."""

    queries: Tensor  # (L, B, N, E)
    pixels: tuple[Tensor, ...]  # B times (h, w, E)

    def of_queries(self, image: int, rows: Tensor) -> Tensor:
        """Compute masks (L * M, h, w), float32, of the queries `rows` (L, M) of an image."""
        layer = torch.arange(len(rows), device=rows.device)[:, None]
        queries = self.queries[layer, image, rows].flatten(0, 1)
        height, width, _ = self.pixels[image].shape
        return (queries @ self.pixels[image].flatten(0, 1).T).float().unflatten(1, (height, width))

    def at_points(self, image: int, points: Tensor) -> Tensor:
        """Compute the logits (L, N, P), float32, of all queries of an image at points (P, 2), bilinearly.

        That is the product with the sampled embedding, since both operations are linear.
        """
        pixels = sample_map(self.pixels[image], points)  # (E, P)
        return self.queries[:, image].float() @ pixels


class Criterion(nn.Module):
    """Compute the Hungarian matching and the three losses, for all layers at once."""

    class_weight: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        weights: LossWeights,
        cost_weights: LossWeights,
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        class_weights: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.weights = weights
        self.cost_weights = cost_weights
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        class_weight = torch.ones(num_classes + 1)
        class_weight[: len(class_weights)] = torch.tensor(class_weights)
        class_weight[-1] = no_object_weight
        self.register_buffer("class_weight", class_weight, persistent=False)

    def forward(
        self,
        logits: Tensor,
        masks: MaskProducts,
        targets: list[Target],
        generators: list[torch.Generator],
    ) -> dict[str, Tensor]:
        """Compute the weighted losses, to be summed.

        Args:
            logits: (L, B, N, K + 1).
            masks: of L layers and B images.
            targets: B.
            generators: of the points, one per image.

        Returns:
            `loss_ce`, `loss_mask`, `loss_dice` of the last layer, `loss_ce_0`, ... of the ones before: the same names
            for any targets. Where a matching cost is not finite, the `loss_ce` of that layer is NaN.
        """
        # Sums over thousands of points leave float16's range, and bfloat16's precision changes matches.
        with torch.autocast(logits.device.type, enabled=False):
            return self._losses(logits, masks, targets, generators)

    def _losses(
        self, logits: Tensor, masks: MaskProducts, targets: list[Target], generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        class_logits = logits.float()
        matches, bad_layers = self.match(class_logits, masks, targets, generators)
        classes = classification_targets(class_logits, targets, matches)  # (L, B, N)
        class_weight = self.class_weight[classes]
        count = sum(len(target.labels) for target in targets)
        # Several processes get the same loss as one with the joint batch. (In the published code only for the masks.)
        weight_sums = normaliser(class_weight.sum(dim=(1, 2)))
        num_masks = normaliser(weight_sums.new_full((), count), minimum=1)
        nll = F.cross_entropy(class_logits.flatten(0, 2), classes.flatten(), reduction="none").view_as(class_weight)
        loss_ce = (class_weight * nll).sum(dim=(1, 2)) / weight_sums
        if bad_layers:  # their pairs are meaningless and must not be learned
            loss_ce[bad_layers] = torch.nan
        loss_mask, loss_dice = self._mask_losses(masks, targets, matches, generators)
        losses = {
            "loss_ce": self.weights.classes * loss_ce,
            "loss_mask": self.weights.mask * loss_mask / num_masks,
            "loss_dice": self.weights.dice * loss_dice / num_masks,
        }
        suffixes = {-1: ""} | {layer: f"_{layer}" for layer in range(len(class_logits) - 1)}  # as published
        return {key + suffix: loss[layer] for layer, suffix in suffixes.items() for key, loss in losses.items()}

    @torch.no_grad()
    def match(
        self, logits: Tensor, masks: MaskProducts, targets: list[Target], generators: list[torch.Generator]
    ) -> tuple[Pairs, list[int]]:
        """Match the predictions of each layer with the ground truth of each image; return what `assign` returns."""
        return assign(self.costs(logits, masks, targets, generators))

    @torch.no_grad()
    def costs(
        self, logits: Tensor, masks: MaskProducts, targets: list[Target], generators: list[torch.Generator]
    ) -> list[Tensor]:
        """Compute the cost (L, N, G_b) of matching predictions and ground truth of each image, at random points."""
        costs = []
        for b, (target, generator) in enumerate(zip(targets, generators, strict=True)):
            if len(target.labels) == 0:
                costs.append(logits.new_zeros(len(logits), logits.shape[2], 0))
                continue
            points = random_points((1, self.num_points), generator)
            index = torch.arange(len(target.masks), device=logits.device)
            truth = sample_targets(target.masks, index, points.expand(len(index), -1, -1))
            cost = matching_cost(logits[:, b], masks.at_points(b, points[0]), target.labels, truth, self.cost_weights)
            costs.append(cost if target.owner is None else cost + tie_cost(target.owner, len(index)))
        return costs

    def _mask_losses(
        self, masks: MaskProducts, targets: list[Target], matches: Pairs, generators: list[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and dice (L,), each the sum over the matched masks of a layer."""
        if all(rows.shape[1] == 0 for rows, _ in matches):
            # Every parameter must get a gradient, or processes would wait for each other forever.
            zero = 0 * (masks.queries.float().sum((1, 2, 3)) + sum(pixels.float().sum() for pixels in masks.pixels))
            return zero, zero
        loss_mask = loss_dice = torch.zeros(len(masks.queries), device=masks.queries.device)
        for b, (target, (rows, columns), generator) in enumerate(zip(targets, matches, generators, strict=True)):
            layers, matched = rows.shape
            if matched == 0:
                continue
            predicted = masks.of_queries(b, rows)  # (L * matched, h, w)
            points = self._draw_points(predicted.detach(), generator)
            truth = sample_targets(target.masks, columns.flatten(), points)
            logits = sample_logits(predicted, points)
            loss_mask = loss_mask + mask_bce(logits, truth).view(layers, matched).sum(1)
            loss_dice = loss_dice + dice_loss(logits, truth).view(layers, matched).sum(1)
        return loss_mask, loss_dice

    @torch.no_grad()
    def _draw_points(self, predicted: Tensor, generator: torch.Generator) -> Tensor:
        """Points (M, P, 2) for predicted masks (M, h, w)."""
        settings = (self.num_points, self.oversample_ratio, self.importance_sample_ratio, generator)
        parts = predicted.split(MASKS_AT_ONCE)
        return torch.cat([uncertain_points(partial(sample_logits, x), len(x), *settings) for x in parts])


def classification_targets(logits: Tensor, targets: list[Target], matches: Pairs) -> Tensor:
    """Return the target class (L, B, N) of each prediction: its match's, or K for "no object"."""
    classes = torch.full(logits.shape[:3], logits.shape[3] - 1, device=logits.device)
    index = torch.arange(len(logits), device=logits.device)[:, None]
    for b, (target, (rows, columns)) in enumerate(zip(targets, matches, strict=True)):
        classes[index, b, rows] = target.labels[columns]
    return classes


def mask_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean binary cross-entropy (M,) over points: logits (M, P), targets (M, P) in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute 1 - dice coefficient (M,) over points, smoothed by 1: logits (M, P), targets (M, P) in [0, 1]."""
    probability = logits.sigmoid()
    return 1 - (2 * (probability * targets).sum(1) + 1) / (probability.sum(1) + targets.sum(1) + 1)
