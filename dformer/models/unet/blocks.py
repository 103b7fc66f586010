"""Blocks of Stable Diffusion's networks, with the parameter names of diffusers.

Shapes: B images, C channels, h x w cells, T channels of the time embedding, D channels of a context of L tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dformer.layers.attention import scaled_dot_product_attention
from dformer.layers.group_norm import GroupNorm


class ResnetBlock2D(nn.Module):
    """Compute a residual block of two convolutions; `time_channels` T: the time embedding is added between them."""

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, *, eps: float = 1e-5, time_channels: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, out_channels) if time_channels else None
        self.norm2 = GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """Return a map (B, C', h, w) of maps (B, C, h, w) and a time embedding (B, T)."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None and time is not None:
            h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Compute multi-head attention of tokens (B, N, C) to a context (B, L, D), by default to themselves."""

    def __init__(self, channels: int, heads: int, *, context_channels: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=bias)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return tokens (B, N, C)."""
        context = x if context is None else context
        q, k, v = (
            tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N or L, C / heads)
            for tokens in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out[0](scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """Compute a linear layer gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., hidden) of (..., channels)."""
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """Compute the feed-forward part of a transformer block: GEGLU to four times the width, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the shape of `x`."""
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(nn.Module):
    """Compute self-attention, attention to a context if there is one, and the feed-forward part, pre-normed."""

    def __init__(self, channels: int, heads: int, context_channels: int | None) -> None:
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(channels), Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels) if context_channels else None
        self.attn2 = Attention(channels, heads, context_channels=context_channels) if context_channels else None
        self.norm3, self.ff = nn.LayerNorm(channels), FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Return tokens (B, N, C)."""
        x = x + self.attn1(self.norm1(x))
        if self.norm2 is not None and self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nn.Module):
    """Compute a transformer block over the cells of a map, with a residual connection."""

    def __init__(self, channels: int, heads: int, groups: int, context_channels: int | None = None) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, 1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(channels, heads, context_channels)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return a map of the shape of `x` (B, C, h, w)."""
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, h w, C)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[-2:]))


class Downsample2D(nn.Module):
    """Downsample a map by two; `padding` 0: at the bottom and the right only, as in image autoencoders."""

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map (B, C, h / 2, w / 2), rounded up for padding 1."""
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


class Upsample2D(nn.Module):
    """Enlarge a map to a size, by its nearest cells, and smooth it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """Return a map (B, C, *size)."""
        return self.conv(F.interpolate(x, size=size))


def timestep_embedding(t: Tensor, channels: int) -> Tensor:
    """Return cosines, then sines, of times t (B,): (B, channels) float32 (DDPM; diffusers with `flip_sin_to_cos`)."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedding(nn.Module):
    """Compute an MLP over `timestep_embedding`."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, channels)
        self.linear_2 = nn.Linear(channels, channels)

    def forward(self, t: Tensor) -> Tensor:
        """Return the embedding (B, channels) of times (B,)."""
        return self.linear_2(F.silu(self.linear_1(timestep_embedding(t, self.linear_1.in_features))))
