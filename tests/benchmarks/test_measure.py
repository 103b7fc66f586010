"""How benchmarks measure."""

import subprocess
import sys
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

from tests import ROOT, load_script

measure = load_script("benchmarks/measure.py")


def test_functions_are_called_in_turns() -> None:
    calls: list[str] = []
    timers = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert measure.medians(timers, rounds=3) == {"a": 3, "b": 4} and calls == ["a", "b"] * 3


def test_a_part_has_its_own_time() -> None:
    class Model:
        def outer(self) -> None:
            time.sleep(0.02)
            self.inner()

        def inner(self) -> None:
            time.sleep(0.06)

    model = Model()
    with measure.timed_parts({"outer": (model, "outer"), "inner": (model, "inner")}) as seconds:
        model.outer()
        time.sleep(0.1)
    assert 0.02 <= seconds["outer"] < 0.06 <= seconds["inner"] < 0.1 <= seconds["other"]
    assert vars(model) == {}


def test_flops_of_products_and_attention() -> None:
    x = torch.ones(2, 3, 8, 16)  # B, heads, N, C
    flops = measure.count_flops(lambda: scaled_dot_product_attention(x, x, x) @ torch.ones(16, 32))
    assert flops == 2 * (2 * 2 * 3 * 8 * 8 * 16) + 2 * 2 * 3 * 8 * 16 * 32


def test_peak_memory_is_above_what_was_there() -> None:
    code = """
import numpy as np
from measure import peak_memory
kept = np.ones(300 * 2**20, np.uint8)  # there before, and a peak of the process: not counted
del kept
model = np.ones(100 * 2**20, np.uint8)
print(peak_memory(lambda: (model, np.ones(50 * 2**20, np.uint8)), "cpu"))
"""
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT / "benchmarks", text=True)
    assert 49 < float(output) < 60
