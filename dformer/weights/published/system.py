"""What the conversion of a published system's checkpoints has to know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from dformer.weights.names import Table

Dropped = list[tuple[str, str]]  # a pattern for published names -> why nothing of ours needs them


@dataclass(frozen=True)
class PublishedSystem:
    """Hold the names that a system's parameters have in its published checkpoints.

    Attributes:
        name: of the meta-architecture; in lower case, of its configs.
        theirs: how the names begin that identify a published checkpoint of it.
        ours: how the names begin that identify a checkpoint of ours.
        names: published name -> our name.
        dropped: entries of a published checkpoint that are not converted.
        buffers: computes, from a checkpoint under published names, what is saved there although it follows from
            settings.
    """

    name: str
    theirs: str
    ours: str
    names: Table
    dropped: Dropped
    buffers: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
