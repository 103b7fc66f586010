"""Random numbers that depend on what they are for, not on when they are drawn."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed(*keys: int | str) -> int:
    """A seed in 0..2^63-1 of its own for each `keys`."""
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, *keys: int | str) -> torch.Generator:
    """A `torch.Generator` on `device`, seeded by `keys`.

    The same keys give the same numbers in any process, batch or order of calls, so that what is drawn for an image
    at an iteration does not change when the image shares its batch with others or a run is resumed.
    """
    return torch.Generator(device).manual_seed(seed(*keys))


def seed_all(*keys: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch, those of GPUs included, by `keys`."""
    number = seed(*keys)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


@contextmanager
def seeded(*keys: int | str) -> Iterator[None]:
    """Within, the global generators of Python, NumPy and torch on the CPU are seeded by `keys`; after, as before."""
    number = seed(*keys)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
