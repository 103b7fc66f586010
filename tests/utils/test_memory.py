"""Pages of freed tensors are kept."""

import subprocess
import sys

import pytest

PROGRAM = """
from pathlib import Path
from dformer.utils.memory import keep_pages
{call}
import torch

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

before = resident()
x = torch.ones(2**23)
del x
print(resident() - before)
"""


@pytest.mark.parametrize(
    ("call", "environment", "kept"),
    [("keep_pages()", {}, True), ("", {}, False), ("keep_pages()", {"MALLOC_TRIM_THRESHOLD_": "1000000"}, False)],
    ids=["kept", "as usual", "set by the user"],
)
def test_freed_pages(call: str, environment: dict[str, str], kept: bool) -> None:
    """Of a tensor of 32 MiB."""
    program = PROGRAM.format(call=call)
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert float(found.stdout) > 25 if kept else float(found.stdout) < 20
