"""Random numbers that depend on what they are for, not on when they are drawn."""

import hashlib

import torch


def generator(device: torch.device | str, *keys: int | str) -> torch.Generator:
    """A `torch.Generator` on `device`, seeded by `keys`.

    The same keys give the same numbers in any process, batch or order of calls, so that what is drawn for an image
    at an iteration does not change when the image shares its batch with others or a run is resumed.
    """
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
