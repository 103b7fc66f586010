"""Normalisers of losses: numbers of masks, pairs or points of all of a step's batch, wherever its parts are computed.

A loss is a sum over a part of the batch, divided by `normaliser` of the part's own count. The mean of this loss over
all parts is then that of the joint batch. Parts are the processes, and what one process computes in turn.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count

import torch.distributed as dist
from torch import Tensor

Share = Callable[[Tensor, float], Tensor]  # a part's count and the minimum of the mean -> its normaliser

_share: ContextVar[Share] = ContextVar("share", default=lambda x, minimum: x.clamp(min=minimum))


def normaliser(x: Tensor, minimum: float = 0.0) -> Tensor:
    """Return the mean of a part's counts `x` over all processes and parts of the batch, at least `minimum`.

    Within a process `minimum` is that of the parts' sum.
    """
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
        x = x / dist.get_world_size()
    return _share.get()(x, minimum)


@contextmanager
def counted(sums: list[Tensor]) -> Iterator[None]:
    """Add the counts of a part's losses, computed within this context, to `sums`; one entry a call of `normaliser`."""
    calls = count()

    def add(x: Tensor, minimum: float) -> Tensor:
        i = next(calls)
        sums[i : i + 1] = [x + sums[i] if i < len(sums) else x]
        return x.clamp(min=minimum)

    with _shared(add):
        yield


@contextmanager
def joint(sums: list[Tensor], parts: int) -> Iterator[None]:
    """Let `normaliser` return the means of `sums`, which `counted` has made of all parts, within this context."""
    calls = iter(sums)
    with _shared(lambda _, minimum: next(calls).clamp(min=minimum) / parts):
        yield


@contextmanager
def _shared(share: Share) -> Iterator[None]:
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)
