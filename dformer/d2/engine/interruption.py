"""Signals that ask a training to stop: it ends after the current step, with a checkpoint."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from dformer.utils.processes import SIGNALS

RESUME_ME = 75  # exit code: EX_TEMPFAIL of sysexits.h, "try again later"

# Launchers forward what the terminal or SLURM has already sent to all processes: so soon, a signal is the first again.
SAME_SIGNAL_SECONDS = 1.0


class Interruption:
    """Hold the first signal that arrives within this context; the second one ends the process."""

    def __init__(self) -> None:
        self.received: str | None = None  # name of the signal
        self._time = 0.0
        self._exits_immediately = False

    def __enter__(self) -> "Interruption":
        self._process = os.getpid()
        self._handlers: dict[int, Any] = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def exit_immediately(self) -> Iterator[None]:
        """Exit with `RESUME_ME` at a signal within this context: for work that a resumed run can repeat."""
        if self.received:
            sys.exit(RESUME_ME)
        self._exits_immediately = True
        try:
            yield
        finally:
            self._exits_immediately = False

    def _receive(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked process leaves it to its parent
            return
        if self.received is None:
            self.received, self._time = signal.Signals(number).name, time.monotonic()
            if self._exits_immediately:
                sys.exit(RESUME_ME)
            # Not print, which the signal may have interrupted.
            os.write(2, f"{self.received}: stopping after this step; send it again to stop immediately\n".encode())
        elif time.monotonic() - self._time > SAME_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
