"""Integers as analog bits (Chen et al. 2022): maps of classes and ids become maps of bits, which can be diffused.

A bit is in [0, 1]; `signals.masks.to_signal` maps it to the signal in [-b, b]. Bits of a map (..., h, w) are
(..., n, h, w), the least significant first.
"""

import torch
from torch import Tensor

ID_ORDERS = ("random", "shuffle", "raster")


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


def draw_ids(panoptic_map: Tensor, count: int, num_ids: int, order: str, generator: torch.Generator) -> Tensor:
    """Draw an id for each of the `count` objects of an image: (count,) int64 on the generator's device.

    Args:
        panoptic_map: (h, w), k + 1 in object k, 0 elsewhere; read by "raster" only.
        num_ids: ids are 0..num_ids - 1; 0 is no object. Of more objects than ids, those left over get 0.
        order: "random": any of the ids, each once. "shuffle": the lowest ids in random order. Not in the paper:
            "raster", the lowest ids in the order of the objects' centres, from top to bottom, so that the image gives
            them.
    """
    device = generator.device
    if order == "raster":
        rows = torch.arange(panoptic_map.shape[0], device=device)[:, None].expand_as(panoptic_map)
        pixels, none = panoptic_map.flatten(), torch.zeros(count + 1, dtype=torch.int64, device=device)
        area = none.index_add(0, pixels, torch.ones_like(pixels))
        centre = none.index_add(0, pixels, rows.flatten()) / area.clamp(min=1)
        ids = centre[1:].argsort().argsort() + 1
    else:
        highest = max(count, num_ids - 1) if order == "random" else count
        ids = torch.randperm(highest, generator=generator, device=device)[:count] + 1
    return torch.where(ids < num_ids, ids, 0)


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
