"""Bounds of reading one input: it ends soon, needs little memory, and runs nothing."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dformer.utils.errors import UserError

SECONDS = 10.0  # of CPU
MEMORY = 3 << 29  # bytes, resident, in addition: an image of 100 megapixels takes 1.1 GiB
ADDRESSES = 8 << 30  # bytes, in addition: far less than a header can claim
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.remove", "os.rename", "os.chmod", "subprocess")
FORBIDDEN += ("pty.", "shutil.", "socket.connect", "webbrowser.", "ctypes.dlopen", "ftplib", "urllib")

_events: list[str] | None = None


def _audit(event: str, _: object) -> None:
    if _events is not None and event.startswith(FORBIDDEN):
        _events.append(event)


sys.addaudithook(_audit)


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@contextmanager
def address_space() -> Iterator[None]:
    """Limit the memory that can be requested."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESSES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def bounded() -> Iterator[None]:
    """Let an input raise nothing but `UserError`, and check time, memory and audit events."""
    global _events
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start, _events = _peak(), time.process_time(), []
    try:
        yield
    except UserError as error:
        assert 0 < len(str(error)) < 20_000
    finally:
        events, _events = _events, None
    assert not events, events
    assert time.process_time() - start < SECONDS
    assert _peak() - before < MEMORY
