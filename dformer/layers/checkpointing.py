"""Activation checkpointing (Chen et al. 2016): less memory in training, for a second forward of each block."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

BATCH_NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def checkpoint_activations(model: nn.Module) -> list[str]:
    """Let the blocks of a model keep their inputs alone for the backward pass; return the blocks' names.

    Blocks are the outermost elements of `ModuleList`s and `Sequential`s that have parts of their own, such as the
    residual blocks of a backbone and the layers of a decoder. What they compute, and the gradients, stay the same.
    """
    names = []
    for name, block in _blocks(model):
        block.forward = partial(_forward, block, block.forward)
        names.append(name)
    return names


def _blocks(module: nn.Module, name: str = "", in_list: bool = False) -> Iterator[tuple[str, nn.Module]]:
    is_list = isinstance(module, nn.ModuleList | nn.Sequential)
    if in_list and not is_list:
        if any(module.children()):
            yield name, module
        return
    for child_name, child in module.named_children():
        yield from _blocks(child, f"{name}.{child_name}".lstrip("."), is_list)


def _forward(block: nn.Module, forward: Any, *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=partial(_contexts, block), **options)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the forward and of the second one, in which batch norms do not count the batch again."""
    return nullcontext(), _uncounted(block)


@contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    norms = [module for module in block.modules() if isinstance(module, BATCH_NORMS) and module.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # of this batch in the running statistics
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1
