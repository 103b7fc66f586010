"""Many small objects in one block of memory, which processes share."""

import pickle
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class PackedList(Sequence[T], Generic[T]):
    """Hold items pickled one after the other; each access makes a copy.

    Processes cannot share Python's own lists: one that counts a reference to an object writes to its page of memory.

    Args:
        block: uint8, as `pack` makes it: the number of items, where each ends in the rest (int64), the rest.
    """

    def __init__(self, block: NDArray[np.uint8]) -> None:
        count = int(block[:8].view(np.int64)[0])
        self._ends = block[8 : 8 * (count + 1)].view(np.int64)
        self._data = block[8 * (count + 1) :]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> T:  # type: ignore[override]  # no slices
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._data[start : self._ends[index]].data)


def pack(items: Iterable[Any]) -> NDArray[np.uint8]:
    """Return the block of a `PackedList`."""
    data, ends = bytearray(), []
    for item in items:
        data += pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        ends.append(len(data))
    return np.concatenate([np.array([len(ends), *ends], np.int64).view(np.uint8), np.frombuffer(data, np.uint8)])
