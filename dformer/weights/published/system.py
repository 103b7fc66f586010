"""What the conversion of a published system's checkpoints has to know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dformer.weights.names import Table


@dataclass(frozen=True)
class PublishedSystem:
    """Hold what is particular to the published checkpoints of a system.

    Attributes:
        name: of its meta-architecture here.
        theirs: beginning of the parameters' names by which a published checkpoint is identified.
        ours: the same for a checkpoint under our names.
        names: published name -> our name.
        dropped: pattern for published names that have no counterpart here -> why.
        buffers: computes from the weights under published names what is saved with them, but follows from settings.
        config: finds the config, relative to configs/, of the published model with these weights (under our names).
        settings: keys of the config that are constants in the published code -> their values there.
    """

    name: str
    theirs: str
    ours: str
    names: Table
    dropped: list[tuple[str, str]]
    buffers: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    config: Callable[[Mapping[str, Tensor]], str | None]
    settings: Mapping[str, Any]
