"""A function over many items in several processes, and the signals that ask to stop."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")

Map = Callable[..., list]  # of a function over a sequence

# Sent by job systems, the keyboard, and (on request) by SLURM before a time limit or pre-emption.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))

FEW = 32  # for fewer items, starting processes costs more than it saves


def available_cores() -> set[int]:
    """Return the numbers of the cores that this process may run on, where the system tells, else of all."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def parallel_map(
    function: Callable[[T], R], items: Sequence[T], what: str | None = None, workers: int | None = None
) -> list[R]:
    """Compute `[function(item) for item in items]` in several processes.

    Args:
        function: any callable; an exception that it raises is raised here.
        items: its arguments; they and the results must be picklable.
        what: printed before the progress bar; None: no bar.
        workers: number of processes; by default as many as there are cores. 0 and 1: this process.
    """
    bar = partial(tqdm, total=len(items), desc=what, unit="image", disable=what is None)
    workers = min(len(available_cores()) if workers is None else workers, len(items))
    if workers <= 1 or len(items) < FEW or "fork" not in multiprocessing.get_all_start_methods():
        return list(bar(map(function, items)))
    # Forked, as torch's data loaders are: a new Python would import Detectron2 for seconds.
    with multiprocessing.get_context("fork").Pool(workers, _keep, (function,)) as pool:
        return list(bar(pool.imap(_call, items, chunksize=4)))


_function: Callable[[Any], Any]  # of a worker


def _keep(function: Callable[[Any], Any]) -> None:
    # Inherited by fork; a pool's function would be pickled with each chunk.
    global _function
    _function = function


def _call(item: Any) -> Any:
    return _function(item)
