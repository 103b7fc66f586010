"""Random numbers that depend on keys, such as seed, iteration and image, not on the order of draws."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# All of torch.nn.init and timm draw by these; the first three are seen in place of the methods that they call.
DRAWS = {nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, Tensor.uniform_, Tensor.normal_}


def seed(*keys: int | str) -> int:
    """Return the seed of `keys`, in 0..2^63-1."""
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, *keys: int | str) -> torch.Generator:
    """Return a `torch.Generator` on `device`, seeded by `keys`.

    The same keys give the same numbers in any process, batch or order of calls: the draws for an image at an iteration
    do not change with the rest of its batch or when a run is resumed.
    """
    return torch.Generator(device).manual_seed(seed(*keys))


def normal(generators: Sequence[torch.Generator], shape: Sequence[int]) -> torch.Tensor:
    """Draw standard normal noise (B, *shape), that of each image from a generator of its own."""
    return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators])


def seed_all(*keys: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch, including those of GPUs, by `keys`."""
    number = seed(*keys)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


@contextmanager
def seeded(*keys: int | str) -> Iterator[None]:
    """Seed the global CPU generators of Python, NumPy and torch by `keys` within this context; restore them after."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=()):
        random.seed(seed(*keys))
        np.random.seed(seed(*keys) % 2**32)
        torch.default_generator.manual_seed(seed(*keys))
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class SkipInit(TorchFunctionMode):
    """Fill parameters with zeros within this context where their initialisation would draw.

    For a process that gets its parameters and buffers from another one. Constants stay. Tensors that are no parameters
    are drawn, but get other numbers than they would without this context.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        # Other tensors may be a loop's that draws again what is out of bounds, as that of `trunc_normal_`.
        if func in DRAWS and isinstance(tensor, nn.Parameter):
            tensor.detach().zero_()
            return tensor
        return func(*args, **kwargs)
