"""How benchmarks measure: time in turns, memory, operations, time by part; and how they write it down."""

import ctypes
import gc
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

MIB = 2**20


def synchronize() -> None:
    """Wait for the GPU, where one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], Any]) -> float:
    """Of one call."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def in_turns(runs: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """The median of what each function returns, called in turns (a b c a b c ...): a slow moment meets all of them."""
    measured: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, values in zip(runs, measured, strict=True):
            values.append(run())
    return [median(values) for values in measured]


def peak_memory(build: Callable[[], Callable[[], Any]], device: str) -> float:
    """MiB that `build()()` holds at most, above what is held once it is built.

    On a GPU, PyTorch's own count of allocated memory. On a CPU, the process's resident memory as Linux counts it, for
    which the process should be a fresh one. (Its high-water mark is set back first; `ru_maxrss` cannot be, and starts
    at that of the parent process.)
    """
    run = build()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _twice(run)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    reset_peak()
    before = resident()
    _twice(run)
    return peak() - before


def resident() -> float:
    """MiB that this process holds."""
    return _status("VmRSS")


def peak() -> float:
    """MiB that it held at most since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Set the most that this process held back to what it holds, which is brought down to what it uses."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free but kept would be taken again unseen
    Path("/proc/self/clear_refs").write_text("5")


def _twice(run: Callable[[], Any]) -> None:
    """In the second training step the optimiser has its state."""
    run()
    run()


def _status(key: str) -> float:
    """MiB of a line of /proc/self/status."""
    found = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


class _Flops(TorchDispatchMode):
    """Counts by PyTorch's formulas. (Its own FlopCounterMode also follows modules, and fails on views without grad.)"""

    total: float = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=output)
        return output


def count_flops(run: Callable[[], Any]) -> float:
    """Additions and multiplications of the matrix products, convolutions and attentions in `run()`."""
    # Attention by matrix products: there are fused kernels without a formula.
    with _Flops() as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.total


@contextmanager
def timed_parts(
    parts: Mapping[str, tuple[Any, str]], clock: Callable[[], float] = time.perf_counter
) -> Iterator[dict[str, float]]:
    """While open, the time spent in each part, in seconds; what one part spends in another counts for that one.

    Args:
        parts: the object and the name of its method, by the name of the part.
        clock: seconds.
    """
    seconds: dict[str, float] = defaultdict(float)
    inner: list[float] = []  # of each running part, the time spent in parts that it called

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            synchronize()
            start = clock()
            inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                synchronize()
                elapsed = clock() - start
                seconds[name] += elapsed - inner.pop()
                if inner:
                    inner[-1] += elapsed

        return call

    with ExitStack() as patches:
        for name, (owner, attribute) in parts.items():
            patches.enter_context(mock.patch.object(owner, attribute, timed(getattr(owner, attribute), name)))
        yield seconds


def write(path: Path, content: str | bytes) -> None:
    """All of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)
