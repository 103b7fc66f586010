"""Objects exchanged between the processes of a group, and waiting for each other, over gloo whatever the backend.

This has a group of its own: NCCL's aborts a process that has waited for too long, without a word on whom it waited for,
and Detectron2's for objects gives up after half an hour, which an evaluation may take.
"""

import socket
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from functools import cache
from itertools import chain
from typing import Any, TypeVar

import torch.distributed as dist

from dformer.utils.errors import UserError
from dformer.utils.processes import available_cores

T = TypeVar("T")

# Data checks and evaluations of one process take as long as they take. (A process that ends ends the waiting at once.)
PATIENCE = timedelta(days=7)


def all_gather(value: T) -> list[T]:
    """Return the value of each process, by rank. As all functions here, all processes have to call it together."""
    if not _is_group():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_group())
    return values


def gather(value: T) -> list[T]:
    """Return the value of each process, by rank, in the first process; an empty list in the others."""
    if not _is_group():
        return [value]
    values: list[Any] = [None] * dist.get_world_size() if dist.get_rank() == 0 else []
    dist.gather_object(value, values or None, group=_group())
    return values


def wait_for_all(timeout: timedelta = PATIENCE) -> None:
    """Wait until all processes are here.

    Raises:
        RuntimeError: some are not within `timeout`; in the first process it names their ranks.
    """
    if _is_group():
        group, for_names = _group(), _group("for names")  # made by all processes together
        try:
            dist.barrier(group, async_op=True).wait(timeout)
        except RuntimeError:
            # This one names ranks, but polls, and would cost each training step 10 ms.
            dist.monitored_barrier(for_names, timeout, wait_all_ranks=True)
            raise


def once_a_node(function: Callable[[], T]) -> T:
    """Call `function` in the first process of each node, and return what it returns in all processes of that node.

    Raises:
        UserError: that of `function` on any of the nodes, in all processes.
    """
    if not _is_group():
        return function()
    hosts = all_gather(socket.gethostname())
    first = hosts.index(hosts[dist.get_rank()])
    value, error = None, None
    if dist.get_rank() == first:
        try:
            value = function()
        except UserError as refusal:
            error = str(refusal)
    values, errors = zip(*all_gather((value, error)), strict=True)
    if refused := [error for error in errors if error]:
        raise UserError(refused[0])
    return values[first]


def share_of_cores() -> int:
    """Return how many cores this process has if those who may run on a core share it evenly; at least 1."""
    mine = {(socket.gethostname(), core) for core in available_cores()}
    users = Counter(chain.from_iterable(all_gather(mine)))
    return max(1, int(sum(Fraction(1, users[core]) for core in mine)))


def close_group() -> None:
    """Forget the group, before `torch.distributed.destroy_process_group`."""
    _group.cache_clear()


def _is_group() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@cache
def _group(purpose: str = "") -> "dist.ProcessGroup":
    return dist.new_group(backend="gloo", timeout=PATIENCE)
