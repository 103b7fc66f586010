"""Sinusoidal embeddings of positions and times."""

import math

import torch
from torch import Tensor, nn


def sine_position(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Compute the position embedding of a feature map (DETR, App. A.4): y in the first dim/2 channels, x in the others.

    Coordinates are normalised by the map's size, so that maps of different strides agree.

    Returns:
        (dim, height, width) float32; `dim` must divide by 4.
    """
    index = torch.arange(dim // 4, device=device, dtype=torch.float32)
    frequency = 10000 ** (-4 * index / dim)

    def encode(size: int) -> Tensor:
        coordinate = torch.arange(1, size + 1, device=device, dtype=torch.float32) / (size + 1e-6) * 2 * math.pi
        angle = coordinate[:, None] * frequency
        return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).T  # (dim/2, size)

    y, x = encode(height), encode(width)
    return torch.cat([y[:, :, None].expand(-1, -1, width), x[:, None, :].expand(-1, height, -1)])


def sine_time(t: Tensor, dim: int) -> Tensor:
    """Compute the embedding (..., dim) of timesteps (...): sines, then cosines, of geometrically spaced frequencies."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1)))
    angle = t[..., None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class TimeEmbedding(nn.Sequential):
    """Embed timesteps by sines and an MLP, as DDPM does."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 4 * dim))
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        """Return the embedding (..., 4 * dim) of timesteps (...)."""
        return super().forward(sine_time(t, self.dim).to(next(self.parameters()).dtype))


class TimeProjection(nn.Sequential):
    """Project the embedding of a timestep to a scale and a shift of queries."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(4 * dim, 2 * dim))

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift, each (B, N, dim), of embeddings (B, N, 4 * dim); N is 1 for those (B, 4 * dim).

        They are applied as x * (1 + scale) + shift.
        """
        embedding = embedding if embedding.ndim == 3 else embedding[:, None]
        scale, shift = super().forward(embedding).chunk(2, dim=2)
        return scale, shift


def sine_encoding(values: Tensor, dim: int) -> Tensor:
    """Compute the codes (..., dim) of numbers (...): sines, then cosines, of frequencies 10000^(-2k/dim) (Pix2Seq)."""
    frequency = 10000 ** (-2 * torch.arange(dim // 2, device=values.device) / dim)
    angle = values[..., None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def sine_token_position(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Compute the position embedding (height * width, dim) of a map's cells as of Pix2Seq: y first, then x.

    Coordinates run from 0 to 2 pi, whatever the size; a map of one row or column is encoded as a sequence.
    """

    def encode(size: int, channels: int) -> Tensor:
        coordinate = torch.arange(size, device=device) / max(size - 1, 1) * 2 * math.pi
        return sine_encoding(coordinate, channels)

    if 1 in (height, width):
        return encode(height * width, dim)
    y, x = encode(height, dim // 2), encode(width, dim // 2)
    return torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], dim=2).flatten(0, 1)


class TimeModulation(nn.Module):
    """Compute from a timestep the scale and shift of every query in every decoder layer, by the published MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = TimeEmbedding(dim)
        self.project = TimeProjection(dim)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift as of `TimeProjection`, for timesteps (B,), or (B, N) with one a query."""
        return self.project(self.embed(t))
