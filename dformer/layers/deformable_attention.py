"""Multi-scale deformable self-attention over a feature pyramid (Deformable DETR, Zhu et al. 2021, Sec. 4.1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dformer.layers.feed_forward import FeedForward
from dformer.ops import ms_deform_attn

Size = tuple[int, int]  # height, width


class DeformableAttention(nn.Module):
    """Attend from each cell to `num_points` sampled points per head and level around the cell.

    L levels, P points, M heads.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Each head has a direction, its p-th point is p cells away, and all weights are equal."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=1)
        direction = direction / direction.abs().amax(dim=1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1)[:, None]
        points = (direction[:, None, None] * distance).expand(-1, self.num_levels, -1, -1)  # (M, L, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(points.flatten())
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
        for linear in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor, pos: Tensor, reference: Tensor, extent: Tensor, sizes: list[Size]) -> Tensor:
        """Attend within a pyramid.

        Args:
            x: (B, S, C), the cells of all levels.
            pos: their position embedding (S, C).
            reference: their centres (S, 2), in [0, 1].
            extent: width and height of the levels (L, 1, 2), float32 on the device of `x`.
            sizes: height and width of the levels.

        Returns:
            (B, S, C).
        """
        query = x + pos
        weights = softmax(self.attention_weights(query).unflatten(2, (self.num_heads, -1)))  # (B, S, M, L * P)
        weights = weights.unflatten(3, (self.num_levels, self.num_points))
        value = self.value_proj(x).unflatten(2, (self.num_heads, -1))  # (B, S, M, C / M)
        locations = self.sampling_locations(query, reference, extent)
        return self.output_proj(ms_deform_attn(value, sizes, locations, weights))

    def sampling_locations(self, query: Tensor, reference: Tensor, extent: Tensor) -> Tensor:
        """Return where each query (B, S, C) samples (B, S, M, L, P, 2), x and y in [0, 1], float32 also under autocast.

        Offsets are in cells of their level. It is cheaper to scale the weights than the offsets, but then they are too
        small for float16. (The published pixel decoder is in float32 altogether; ours in coordinates and sums.)
        """
        grid = (self.num_heads, self.num_levels, self.num_points, 2)
        scale = (1 / extent).expand(grid).flatten()  # (M * L * P * 2,)
        with torch.autocast(query.device.type, enabled=False):
            weight, bias = self.sampling_offsets.weight * scale[:, None], self.sampling_offsets.bias * scale
            offsets = F.linear(query.to(weight.dtype), weight, bias)
        return reference[:, None, None, None] + offsets.unflatten(2, grid)


def softmax(x: Tensor) -> Tensor:
    """Compute the softmax over the last dimension in float32.

    Where that is short, PyTorch's own takes five times as long on a CPU: 5 % of a training step.
    """
    x = x.float()
    exponential = (x - x.detach().amax(-1, keepdim=True)).exp()
    return exponential / exponential.sum(-1, keepdim=True)


class DeformableEncoderLayer(nn.Module):
    """Apply deformable self-attention, then feed-forward; both residual, normalised after the sum."""

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(dim, num_heads, num_levels, num_points)
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ffn_dim)

    def forward(self, x: Tensor, pos: Tensor, reference: Tensor, extent: Tensor, sizes: list[Size]) -> Tensor:
        """Transform a pyramid (B, S, C); arguments as of `DeformableAttention`."""
        return self.feed_forward(self.norm(x + self.attention(x, pos, reference, extent, sizes)))
