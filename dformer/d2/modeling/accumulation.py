"""Gradient accumulation: the losses and gradients of a batch, computed in parts, one after the other."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dformer.losses.normalisers import counted, joint

Batch = Sequence[dict[str, Any]]


def accumulate_gradients(
    model: nn.Module,
    replica: nn.Module,
    batch: Batch,
    parts: int,
    statistics: Sequence[Tensor],
    autocast: Any,
    backward: Callable[[Tensor], None],
) -> dict[str, Tensor]:
    """Add the gradients of the joint batch's losses to those of the parameters, and return the losses.

    What losses are divided by, such as the number of masks, is that of the joint batch: it is counted first, in a
    forward of each part without gradients. Images are padded as in the joint batch. Only batch norms, dropout, and the
    classes that a federated loss draws, see a part by itself, as they see a process by itself.

    Args:
        model: a `Segmenter`, whose `iteration` is that of the step.
        replica: the model, or a DistributedDataParallel around it.
        parts: a divisor of the number of images; with 1 nothing is counted first.
        statistics: running means and variances of norms, which count each part once.
        autocast: a context of the forwards.
        backward: is called with the loss of each part.
    """
    if parts == 1:
        with autocast:
            losses = replica(batch)
        backward(sum(losses.values()))
        return losses
    iteration: Any = model.iteration
    height, width = (max(item["image"].shape[axis] for item in batch) for axis in (1, 2))
    split = [batch[k : k + len(batch) // parts] for k in range(0, len(batch), len(batch) // parts)]
    sums: list[Tensor] = []
    before = [x.clone() for x in statistics]
    device = next(model.parameters()).device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        for part in split:
            model.iteration = iteration
            with autocast, counted(sums):
                model(part, (height, width))
    for x, value in zip(statistics, before, strict=True):
        x.copy_(value)
    total: dict[str, Tensor] = {}
    for k, part in enumerate(split, start=1):
        model.iteration = iteration
        is_last = k == parts  # all processes then share their gradients
        with replica.no_sync() if isinstance(replica, DistributedDataParallel) and not is_last else nullcontext():
            with autocast, joint(sums, parts):
                losses = {name: loss / parts for name, loss in replica(part, (height, width)).items()}
            backward(sum(losses.values()))
        total = {name: loss.detach() + total.get(name, 0) for name, loss in losses.items()}
    return total
