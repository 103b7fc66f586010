"""Residual attention blocks, normalised after the sum, as in DETR and Mask2Former."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Memory(NamedTuple):
    """Hold what queries attend to: projected `keys` and `values` (B, heads, S, C / heads)."""

    keys: Tensor
    values: Tensor


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute attention (B, heads, N, C / heads), as PyTorch's function of this name does."""
    if query.device.type != "cpu" or not torch.is_grad_enabled() or query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query, key, value, mask)
    # PyTorch 2.12's backward on a CPU takes 5 to 7 times as long in half precision.
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), mask).to(query.dtype)


class Attention(nn.Module):
    """Attend with several heads that share a mask."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, memory: Memory, mask: Tensor | None = None) -> Tensor:
        """Attend from queries (B, N, C) to the S cells of `memory` where `mask` (B, N, S) is True -> (B, N, C).

        A row of `mask` that is False everywhere gives NaN.
        """
        attended = scaled_dot_product_attention(
            self._split(self.q_proj(query)), memory.keys, memory.values, None if mask is None else mask[:, None]
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def encode_memory(self, key: Tensor, value: Tensor) -> Memory:
        """Project keys and values (B, S, C) to a memory that any number of forwards can use."""
        return Memory(self._split(self.k_proj(key)), self._split(self.v_proj(value)))

    def _split(self, x: Tensor) -> Tensor:
        """Split (B, N, C) into heads (B, heads, N, C / heads)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class AttentionBlock(nn.Module):
    """Attend from queries to the image, or to each other."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, pos: Tensor, memory: Memory | None = None, mask: Tensor | None = None) -> Tensor:
        """Update queries `x` (B, N, C) with position `pos`, (N, C) or (B, N, C), from `memory` or from themselves."""
        query = x + pos
        return self.norm(x + self.attention(query, memory or self.attention.encode_memory(query, x), mask))
