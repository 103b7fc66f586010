"""Memory of the process: pages of tensors, collection of garbage."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MIB = 2**20


def keep_pages() -> None:
    """Keep the pages of freed CPU tensors in this process, and use huge pages for large ones.

    Otherwise each large tensor gets new pages from the system, which zeroes them first: a tenth of a training step.
    On other systems than Linux, this does nothing. Environment variables of malloc have priority. Call it before the
    first tensors are created.
    """
    if sys.platform != "linux":
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it when it first allocates
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        # 32 MiB is the maximum of older ones.
        libc.mallopt(M_MMAP_THRESHOLD, 64 * MIB) or libc.mallopt(M_MMAP_THRESHOLD, 32 * MIB)
        libc.mallopt(M_TRIM_THRESHOLD, 256 * MIB)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Keep garbage from being collected in this context: where millions of objects are made, it halves the speed."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
