"""Interruptions of a training in the tests' own process."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from dformer.d2.engine.trainer import Trainer


@contextmanager
def signalled(iteration: int | None, number: int = signal.SIGTERM) -> Iterator[None]:
    """Send this process a signal at the beginning of an iteration within this context."""
    step = Trainer.run_step

    def run_step(trainer: Trainer) -> None:
        if trainer.iter == iteration:
            os.kill(os.getpid(), number)
        step(trainer)

    with patch.object(Trainer, "run_step", run_step):
        yield


def damage(path: Path) -> None:
    """Change a KiB in the middle of a file; a single byte may lie in the padding between two tensors."""
    content = bytearray(path.read_bytes())
    middle = slice(len(content) // 2, len(content) // 2 + 1024)
    content[middle] = bytes((byte + 1) % 256 for byte in content[middle])
    path.write_bytes(content)
