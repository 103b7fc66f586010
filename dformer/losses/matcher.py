"""Bipartite matching of predicted to ground-truth masks (DETR, Carion et al. 2020; Mask2Former, Sec. 3.3).

Shapes: N predictions, G ground-truth masks, K classes, P points; leading dimensions (...) are free.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dformer.signals.hints import FREE

TIED = 1e5  # far above any cost
Pairs = list[tuple[Tensor, Tensor]]  # for each image: indices (L, min(N, G_b)) of predictions and of ground truth


class LossWeights(NamedTuple):
    """Hold the weights of class cross-entropy, mask binary cross-entropy and dice, of the loss or of the cost."""

    classes: float
    mask: float
    dice: float


def matching_cost(
    logits: Tensor, mask_logits: Tensor, labels: Tensor, target_masks: Tensor, weights: LossWeights
) -> Tensor:
    """Compute the cost (..., N, G) of matching prediction n with ground truth g.

    Args:
        logits: (..., N, K + 1) of the classes.
        mask_logits: (..., N, P) at points shared by all masks.
        labels: (G,) in 0..K-1.
        target_masks: (G, P) in [0, 1] at the same points.
    """
    cost_class = -logits.softmax(-1)[..., labels]
    # BCE(x, 1) = softplus(-x) and BCE(x, 0) = softplus(x) = softplus(-x) + x
    outside = F.softplus(mask_logits)
    cost_mask = (outside.sum(-1, keepdim=True) - mask_logits @ target_masks.T) / mask_logits.shape[-1]
    probability = mask_logits.sigmoid()
    overlap = probability @ target_masks.T
    cost_dice = 1 - (2 * overlap + 1) / (probability.sum(-1, keepdim=True) + target_masks.sum(-1) + 1)
    return weights.classes * cost_class + weights.mask * cost_mask + weights.dice * cost_dice


def tie_cost(owner: Tensor, num_objects: int) -> Tensor:
    """Compute what to add to a cost (..., N, G) so that slots with an owner are matched with it, and with no other.

    Args:
        owner: (N,) object of each slot, NO_OBJECT or FREE (`dformer.signals.hints`). Free slots are matched with the
            objects that nobody owns.
        num_objects: G.
    """
    objects = torch.arange(num_objects, device=owner.device)
    is_owner = owner[:, None] == objects  # (N, G)
    is_tied = (owner != FREE)[:, None] | is_owner.any(0)
    return TIED * (is_tied.float() - 2 * is_owner.float())


def assign(costs: list[Tensor]) -> tuple[Pairs, list[int]]:
    """Find the optimal assignments for B cost tensors (L, N, G_b); return also the layers with a cost not finite.

    All costs are copied to the CPU at once, which waits for them, and all pairs back at once. A cost that is not finite
    counts as very large or small, so that the same costs always give the same pairs.
    """
    flat = torch.cat([cost.detach().float().flatten() for cost in costs]).cpu().numpy()
    finite = np.nan_to_num(flat, nan=1e9, posinf=1e9, neginf=-1e9)
    ends = np.cumsum([cost.numel() for cost in costs])[:-1]
    found_pairs, bad_layers = [], set()
    for cost, values, raw in zip(costs, np.split(finite, ends), np.split(flat, ends), strict=True):
        found = [linear_sum_assignment(layer) for layer in values.reshape(cost.shape)]
        found_pairs.append(np.stack(found, axis=1))  # (2, L, min(N, G_b))
        bad_layers.update(np.flatnonzero(~np.isfinite(raw.reshape(cost.shape)).all((1, 2))).tolist())
    joint = torch.from_numpy(np.concatenate([x.ravel() for x in found_pairs]))
    parts = joint.to(costs[0].device, non_blocking=True).split([x.size for x in found_pairs])
    pairs = [part.view(x.shape).unbind() for part, x in zip(parts, found_pairs, strict=True)]
    return pairs, sorted(bad_layers)
