"""Losses over each pixel of a map of classes and ids that is diffused as bits (Pix2Seq-D, Sec. 3.4).

Shapes: B maps of h x w, n bits; labels (B, 2, h, w) int64 are class and id.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def instance_weights(ids: Tensor, num_ids: int, power: float) -> Tensor:
    """Return weights (B, h, w) of the pixels, with mean 1 an image, which grow as the pixel's instance gets smaller.

    A pixel of an instance with c pixels gets (1 / (c + 1))^power; the published code adds the 1, the paper does not.

    Args:
        ids: (B, h, w) int64 in 0..num_ids - 1; 0, no instance, counts as one.
        power: 0 (all pixels alike) to 1 (all instances alike).
    """
    pixels = ids.flatten(1)
    counts = torch.zeros(len(ids), num_ids, dtype=torch.int64, device=ids.device)
    counts.scatter_add_(1, pixels, torch.ones_like(pixels))
    weights = (1 / (counts.gather(1, pixels) + 1)) ** power
    return (weights / weights.mean(dim=1, keepdim=True)).view_as(ids)


def softmax_loss(logits: Sequence[Tensor], labels: Tensor, weights: Tensor) -> Tensor:
    """Return the mean cross-entropy of class and id, each (B, values, h, w), over pixels with `weights` (B, h, w)."""
    losses = [F.cross_entropy(x.float(), labels[:, i], reduction="none") for i, x in enumerate(logits)]
    return (torch.stack(losses, dim=1) * weights[:, None]).mean()


def sigmoid_loss(logits: Tensor, bits: Tensor, weights: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of logits and bits in {0, 1}, both (B, n, h, w)."""
    return (F.binary_cross_entropy_with_logits(logits.float(), bits, reduction="none") * weights[:, None]).mean()


def l2_loss(predicted: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of a signal, or without weights of noise, (B, n, h, w)."""
    squares = (predicted.float() - target) ** 2
    return (squares if weights is None else squares * weights[:, None]).mean()
