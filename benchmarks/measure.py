"""What all benchmarks share: time in turns, peak memory, operations, time by part, the record."""

import argparse
import ctypes
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, TypeVar
from unittest import mock

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dformer.utils.env import cpu_model
from dformer.utils.files import atomic_write

Key = TypeVar("Key")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of a script's arguments, with the options that all have and the script's docstring as help."""
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    return result


def milliseconds(run: Callable[[], Any], flush: Tensor | None = None) -> float:
    """Return the time of one call; on a GPU after overwriting `flush`, which is larger than its cache."""
    if not torch.cuda.is_initialized():
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if flush is not None:
        flush.zero_()  # which takes longer than Python takes to launch the kernels to be timed
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last)


def cpu_milliseconds(run: Callable[[], Any]) -> float:
    """Return the time of one call that all threads of this process compute, whatever else the machine does."""
    start = time.process_time()
    run()
    return 1e3 * (time.process_time() - start)


def medians(timers: Mapping[Key, Callable[[], float]], rounds: int) -> dict[Key, float]:
    """Return the median of each function's values, called in turns (a b c a b c ...): a slow moment hits all."""
    values = [{key: timer() for key, timer in timers.items()} for _ in range(rounds)]
    return {key: median(value[key] for value in values) for key in timers}


def peak_memory(run: Callable[[], Any], device: str) -> float:
    """Return the MiB that two calls hold at most above what is held before. (The first makes the optimizer's state.)

    It is PyTorch's count on a GPU, and on a CPU the process's resident memory, for which the process should be fresh.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free but kept would be taken again unnoticed
    reset_peak()
    start = resident()
    run()
    run()
    return resident("VmHWM") - start


def reset_peak() -> None:
    """Set the high-water mark of resident memory ("VmHWM") to its present value."""
    Path("/proc/self/clear_refs").write_text("5")  # `ru_maxrss` cannot be reset


def resident(field: str = "VmRSS") -> float:
    """Return a line of /proc/self/status, such as this process's resident memory, in MiB."""
    return int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0]) / 1024


class _Flops(TorchDispatchMode):
    """Count by PyTorch's formulas. (Its own FlopCounterMode also follows modules, and fails on views without grad.)"""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=output)
        return output


def count_flops(run: Callable[[], Any]) -> int:
    """Count the additions and multiplications of the matrix products, convolutions and attentions of a call."""
    with _Flops() as counter, sdpa_kernel(SDPBackend.MATH):  # fused attention may have no formula
        run()
    return counter.total


@contextmanager
def timed_parts(
    parts: Mapping[str, tuple[Any, str]], clock: Callable[[], float] = time.perf_counter
) -> Iterator[dict[str, float]]:
    """Measure the seconds spent in each part, a method (object, name) or function (module, name), and in "other".

    The time of a part that another one calls counts for the inner one only.
    """
    seconds = dict.fromkeys((*parts, "other"), 0.0)
    running, since = ["other"], clock()

    def charge() -> None:
        nonlocal since
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = clock()
        seconds[running[-1]] += now - since
        since = now

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            charge()
            running.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                charge()
                running.pop()

        return call

    with ExitStack() as patches:
        for name, (owner, attribute) in parts.items():
            patches.enter_context(mock.patch.object(owner, attribute, timed(getattr(owner, attribute), name)))
        yield seconds
        charge()


def environment(device: str) -> dict[str, Any]:
    """Describe the machine and its load."""
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_model()
    load = round(os.getloadavg()[0], 1)
    return {
        "device": device,
        "name": name,
        "threads": torch.get_num_threads(),
        "load": load,
        "torch": torch.__version__,
    }


def report(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], path: Path | None) -> None:
    """Print results as a table in Markdown; with a path, write them there as JSON, one a line, and the table beside."""
    table = tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".4g")
    text = f"{', '.join(f'{key} {value}' for key, value in about.items())}\n\n{table}\n"
    print(text)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(row) for row in (*rows, about))
        for file, content in ((path, f"[\n{lines}\n]\n"), (path.with_suffix(".md"), text)):
            with atomic_write(file) as partial:
                partial.write_text(content)
