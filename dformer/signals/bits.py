"""Integers as analog bits (Chen et al. 2022): maps of classes and ids become maps of bits, which can be diffused.

A bit is in [0, 1]; `signals.masks.to_signal` maps it to the signal in [-b, b]. Bits of a map (..., h, w) are
(..., n, h, w), the least significant first.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ID_ORDERS = ("random", "shuffle", "grid")


def int_to_bits(values: Tensor, num_bits: int, void: int | None = None) -> Tensor:
    """Return the bits (..., n, h, w), float32, of integers (..., h, w) in 0..2^n - 1.

    All bits of a pixel whose value is `void` are 0.5, as a signal 0: as far from one integer as from any other.
    """
    places = torch.arange(num_bits, device=values.device)[:, None, None]
    bits = ((values[..., None, :, :] >> places) & 1).float()
    return bits if void is None else torch.where(values[..., None, :, :] == void, 0.5, bits)


def bits_to_int(bits: Tensor) -> Tensor:
    """Return the integers (..., h, w), int64, of bits (..., n, h, w) bool: of a signal, where it is above 0."""
    places = torch.arange(bits.shape[-3], device=bits.device)[:, None, None]
    return (bits.long() << places).sum(dim=-3)


def expected_bits(probability: Tensor) -> Tensor:
    """Return the mean bits (..., n, h, w) under a distribution (..., 2^n, h, w) over the integers."""
    table = _bit_table((probability.shape[-3] - 1).bit_length(), probability)
    return torch.einsum("...vhw,vn->...nhw", probability, table)


def value_probability(bits: Tensor) -> Tensor:
    """Return the probability (..., 2^n, h, w) of each integer, if bits (..., n, h, w) are independent probabilities."""
    table = _bit_table(bits.shape[-3], bits)
    one, zero = (x.clamp(min=1e-6).log() for x in (bits, 1 - bits))
    log = torch.einsum("...nhw,vn->...vhw", one, table) + torch.einsum("...nhw,vn->...vhw", zero, 1 - table)
    return log.exp()


def _bit_table(num_bits: int, like: Tensor) -> Tensor:
    """Bits (2^n, n) of 0..2^n - 1, as a tensor like another."""
    return int_to_bits(torch.arange(2**num_bits, device=like.device)[:, None, None], num_bits)[..., 0, 0].to(like.dtype)


def draw_ids(
    panoptic_map: Tensor,
    count: int,
    num_ids: int,
    order: str,
    generator: torch.Generator,
    stuff: Tensor | None = None,
) -> Tensor:
    """Draw an id for each of the `count` objects of an image: (count,) int64 on the generator's device.

    Args:
        panoptic_map: (h, w), k + 1 in object k, 0 elsewhere; read by "grid" only.
        num_ids: ids are 0..num_ids - 1; 0 is no object. Of more objects than ids, those left over get 0.
        order: "random": any of the ids, each once. "shuffle": the lowest ids in random order. Not in the papers:
            "grid", so that the image gives the ids: those of things number the cells of a grid, of which the nearest to
            the object's centre that is free is taken (as in SOLO, Wang et al. 2020); those of stuff follow, by class.
        stuff: for "grid", which stuff class each object is of (count, S), float32 0 or 1; a row of zeros: a thing.
    """
    device = generator.device
    if order == "grid":
        centres = _centres(panoptic_map.to(device), count)
        return _grid_ids(
            centres, centres.new_zeros(count, 0) if stuff is None else stuff.to(device, non_blocking=True), num_ids - 1
        )
    highest = max(count, num_ids - 1) if order == "random" else count
    ids = torch.randperm(highest, generator=generator, device=device)[:count] + 1
    return torch.where(ids < num_ids, ids, 0)


def stuff_classes(things: list[bool]) -> Tensor:
    """Return which stuff class each class is (K, S), float32 0 or 1, from which of the K classes are things."""
    return torch.eye(len(things))[:, [k for k, is_thing in enumerate(things) if not is_thing]]


def _centres(panoptic_map: Tensor, count: int) -> Tensor:
    """Centres (G, 2) of the objects, y and x as shares of the map."""
    pixels, sides = panoptic_map.flatten(), panoptic_map.shape
    grid = torch.cartesian_prod(*((torch.arange(side, device=pixels.device) + 0.5) / side for side in sides))
    ones = torch.ones_like(pixels, dtype=grid.dtype)
    area = ones.new_zeros(count + 1).index_add(0, pixels, ones)
    return (grid.new_zeros(count + 1, 2).index_add(0, pixels, grid) / area.clamp(min=1)[:, None])[1:]


def _grid_ids(centres: Tensor, stuff: Tensor, num_ids: int) -> Tensor:
    """Ids (G,) 1..num_ids of objects with centres (G, 2) and stuff classes (G, S), each once; 0 where none is left."""
    num_stuff = min(stuff.shape[1], num_ids // 2)  # ids
    num_cells = num_ids - num_stuff
    rows = math.isqrt(num_cells)
    sides = rows, math.ceil(num_cells / rows)
    cells = torch.cartesian_prod(*((torch.arange(side, device=centres.device) + 0.5) / side for side in sides))
    far = len(cells)  # things take stuff's ids last
    distance = F.pad(torch.cdist(centres, cells[:num_cells]), (0, num_stuff), value=far)  # (G, num_ids)
    if num_stuff:
        preferred = num_cells + stuff.argmax(1) % num_stuff
        of_stuff = (torch.arange(num_ids, device=centres.device) - preferred[:, None]).abs().to(distance)
        distance = torch.where(stuff.any(1)[:, None], of_stuff, distance)
    ids = centres.new_zeros(len(centres), dtype=torch.int64)
    for k in range(min(len(centres), num_ids)):
        nearest = distance[k].argmin()
        ids[k] = nearest + 1
        distance = distance.index_fill(1, nearest, torch.inf)
    return ids


def label_map(panoptic_map: Tensor, classes: Tensor, ids: Tensor) -> Tensor:
    """Return class and id of each pixel (2, h, w) int64: class k as k + 1, and 0 for both where nothing is annotated.

    Args:
        panoptic_map: (h, w), k + 1 in object k, 0 elsewhere.
        classes: (G,) of the objects, from 0.
        ids: (G,) of the objects; an object with id 0 is left out.
    """
    classes = torch.where(ids > 0, classes + 1, 0)
    table = torch.stack([classes, ids])  # (2, G)
    return torch.cat([table.new_zeros(2, 1), table], dim=1)[:, panoptic_map]
