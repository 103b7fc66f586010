"""How benchmarks measure."""

import subprocess
import sys
import time
from collections.abc import Callable
from types import ModuleType

import torch

from tests.benchmarks.conftest import SCRIPTS

Script = Callable[[str], ModuleType]


def test_functions_are_called_in_turns(script: Script) -> None:
    calls: list[str] = []
    medians = script("measure").in_turns([lambda: calls.append("a") or 1.0, lambda: calls.append("b") or 2.0], rounds=3)
    assert calls == ["a", "b"] * 3 and medians == [1.0, 2.0]


def test_a_part_has_its_own_time(script: Script) -> None:
    class Model:
        def outer(self) -> None:
            time.sleep(0.02)
            self.inner()

        def inner(self) -> None:
            time.sleep(0.06)

    model = Model()
    with script("measure").timed_parts({"outer": (model, "outer"), "inner": (model, "inner")}) as seconds:
        model.outer()
    assert 0.02 <= seconds["outer"] < 0.06 <= seconds["inner"]
    assert vars(model) == {}


def test_flops_of_products_and_attention(script: Script) -> None:
    x = torch.ones(2, 3, 8, 16)  # B, heads, N, C
    weight = torch.ones(16, 32)

    def run() -> None:
        torch.nn.functional.scaled_dot_product_attention(x, x, x) @ weight

    attention = 2 * (2 * 2 * 3 * 8 * 8 * 16)
    assert script("measure").count_flops(run) == attention + 2 * 2 * 3 * 8 * 16 * 32


def test_peak_memory_is_above_what_was_there(script: Script) -> None:
    code = """
import numpy as np
from measure import peak_memory
kept = np.ones(300 * 2**20, np.uint8)  # there before, and a peak of the process: not counted
del kept
def build():
    model = np.ones(100 * 2**20, np.uint8)
    return lambda: (model, np.ones(50 * 2**20, np.uint8))
print(peak_memory(build, "cpu"))
"""
    told = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True).stdout
    assert 49 < float(told) < 60
