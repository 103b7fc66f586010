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

_events: list[str] = []
sys.addaudithook(lambda event, _: _events.append(event) if event.startswith(FORBIDDEN) else None)


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@contextmanager
def bounded() -> Iterator[None]:
    """Let an input raise nothing but `UserError`, and check time, memory and audit events."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESSES, hard))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start, earlier = _peak(), time.process_time(), len(_events)
    try:
        yield
    except UserError as error:
        assert 0 < len(str(error)) < 20_000
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert not _events[earlier:]
    assert time.process_time() - start < SECONDS
    assert _peak() - before < MEMORY
