"""Signals that ask a training to stop: it ends after the step that is under way, with a checkpoint."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from dformer.utils.processes import SIGNALS

RESUME_ME = 75  # exit code: EX_TEMPFAIL of sysexits.h, "try again later"

# Launchers hand on to their processes what the terminal or SLURM has sent to all of them already: for so many seconds,
# another signal is the same wish.
SAME_WISH = 1.0


class Interruption:
    """Within it as a context, the first signal is kept as a wish, for whoever asks; the second one ends the process.

    Attributes:
        wish: name of the signal that came, None before.
    """

    def __init__(self) -> None:
        self.wish: str | None = None
        self._time = 0.0
        self._is_at_once = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        self._process = os.getpid()
        self._former = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, a wish is granted by leaving with `RESUME_ME`: for what can be done again, with all else saved."""
        if self.wish:
            sys.exit(RESUME_ME)
        self._is_at_once = True
        try:
            yield
        finally:
            self._is_at_once = False

    def _receive(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that was forked: its parent decides
            return
        if self.wish is None:
            self.wish, self._time = signal.Signals(number).name, time.monotonic()
            if self._is_at_once:
                sys.exit(RESUME_ME)
            # Not print: the signal may have come in the middle of another one.
            os.write(2, f"{self.wish}: stopping after this step; once more: stopping at once\n".encode())
        elif time.monotonic() - self._time > SAME_WISH:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
