"""Residual attention and feed-forward blocks, normalised after the sum, as in DETR and Mask2Former."""

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention whose mask is shared by the heads."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))
        for linear in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Queries (B, N, C) attend to keys and values (B, S, C) where `mask` (B, N, S) is True -> (B, N, C).

        A row of `mask` that is False everywhere gives NaN.
        """
        q, k, v = (
            linear(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N or S, C / heads)
            for linear, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        attended = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None])
        return self.output(attended.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Queries look at the image."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, x_pos: Tensor, memory: Tensor, memory_pos: Tensor, mask: Tensor) -> Tensor:
        """`x` (B, N, C), `memory` (B, S, C), positions that broadcast to them, `mask` (B, N, S) -> (B, N, C)."""
        return self.norm(x + self.attention(x + x_pos, memory + memory_pos, memory, mask))


class SelfAttention(nn.Module):
    """Queries look at each other."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """`x` (B, N, C), `pos` that broadcasts to it -> (B, N, C)."""
        return self.norm(x + self.attention(x + pos, x + pos, x))


class FeedForward(nn.Module):
    """Two linear layers with ReLU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden_dim)
        self.reduce = nn.Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)
        for linear in (self.expand, self.reduce):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.norm(x + self.reduce(F.relu(self.expand(x))))
