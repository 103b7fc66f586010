"""Weights of published models under our names, and ours under theirs.

The maths is the same; only names differ, and that attention's query, key and value projections are one tensor there.
"""

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from dformer.utils.errors import UserError
from dformer.weights.names import rename
from dformer.weights.published.dformer import DFORMER
from dformer.weights.published.diffusioninst import DIFFUSIONINST
from dformer.weights.published.ldmseg import LDMSEG, MASK_AUTOENCODER
from dformer.weights.published.mask2former import MASK2FORMER
from dformer.weights.published.pix2seqd import PIX2SEQD
from dformer.weights.published.system import PublishedSystem

SYSTEMS = (DFORMER, MASK2FORMER, DIFFUSIONINST, PIX2SEQD, LDMSEG, MASK_AUTOENCODER)  # the first that matches counts

MERGED = re.compile(r"(.*\.attention)\.in_proj_(weight|bias)")
SPLIT = re.compile(r"(.*\.attention)\.([qkv])_proj\.(weight|bias)")
PARTS = ("q", "k", "v")


def published_system(names: Collection[str]) -> PublishedSystem | None:
    """Find the system that has these parameters under its published names; None if there is none."""
    return next((s for s in SYSTEMS if any(n.removeprefix("module.").startswith(s.theirs) for n in names)), None)


def our_system(names: Collection[str]) -> PublishedSystem | None:
    """Find the system that has these parameters under our names; None if there is none."""
    return next((s for s in SYSTEMS if any(name.startswith(s.ours) for name in names)), None)


def from_published(weights: Mapping[str, Tensor], system: PublishedSystem) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename a published checkpoint of a whole model of `system`.

    Returns:
        The weights under our names, and for each name that was dropped the reason. An unknown name is kept.
    """
    converted: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for wrapped_name, tensor in weights.items():
        name = wrapped_name.removeprefix("module.")  # of DistributedDataParallel
        reason = next((reason for pattern, reason in system.dropped if re.fullmatch(pattern, name)), None)
        if reason:
            dropped[name] = reason
            continue
        if system.layout:
            name, tensor = system.layout.to_torch(name, tensor)
        ours = rename(name, system.names) or name
        if merged := MERGED.fullmatch(ours):
            attention, kind = merged.groups()
            parts = zip(PARTS, tensor.chunk(3), strict=True)
            converted |= {f"{attention}.{part}_proj.{kind}": x for part, x in parts}
        else:
            converted[ours] = tensor
    return converted, dropped


def to_published(weights: Mapping[str, Tensor], left_out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Rename our weights to a state dict that the published code loads.

    Args:
        weights: of a whole model of ours.
        left_out: what `from_published` dropped, where the weights come from there. Otherwise it is computed anew.

    Raises:
        UserError: the published code has no place for a part of this model.
    """
    system = our_system(weights)
    if system is None:
        known = ", ".join(system.name for system in SYSTEMS)
        raise UserError(f"there is no published model with {next(iter(weights))}, ...: only {known} are known")
    merged: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        part = SPLIT.fullmatch(name)
        if part is None:
            merged[name] = tensor
        elif part[2] == PARTS[0]:
            parts = [weights[f"{part[1]}.{p}_proj.{part[3]}"] for p in PARTS]
            merged[f"{part[1]}.in_proj_{part[3]}"] = torch.cat(parts)
    backwards = [(ours, theirs) for theirs, ours in system.names]
    names = {name: rename(name, backwards) for name in merged}
    if unknown := [name for name, theirs in names.items() if theirs is None]:
        raise UserError(
            f"the published {system.name} has no place for {len(unknown)} parameters of this model "
            f"({', '.join(unknown[:3])}, ...): use the backbone and the pixel decoder of its published configs"
        )
    published = {str(names[name]): tensor for name, tensor in merged.items()}
    if system.layout:
        published = dict(system.layout.from_torch(name, tensor) for name, tensor in published.items())
    return published | system.buffers(published) | dict(left_out or {})
