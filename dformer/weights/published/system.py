"""What the conversion of a published system's checkpoints has to know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dformer.weights.names import Table


@dataclass(frozen=True)
class Layout:
    """Hold how a parameter, by name and tensor, gets from another framework's layout to PyTorch's, and back."""

    to_torch: Callable[[str, Tensor], tuple[str, Tensor]]
    from_torch: Callable[[str, Tensor], tuple[str, Tensor]]


@dataclass(frozen=True)
class PublishedSystem:
    """Hold what is particular to the published checkpoints of a system."""

    name: str  # of the meta-architecture here
    theirs: str  # a published checkpoint has names that begin so
    ours: str  # a checkpoint under our names has names that begin so
    names: Table  # published name, our name
    dropped: list[tuple[str, str]]  # pattern for published names without a counterpart here, why
    # From the weights under published names: what is saved with them, but follows from settings.
    buffers: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    # From the weights under our names: the configs of the published models that have such, relative to configs/.
    configs: Callable[[Mapping[str, Tensor]], list[str]]
    settings: Mapping[str, Any]  # keys of the config that are constants in the published code -> their values
    layout: Layout | None = None  # of their tensors, if it is not PyTorch's
    # From the weights under published names: what a published file holds.
    content: Callable[[dict[str, Tensor]], dict[str, Any]] = lambda weights: {"model": weights}
