"""Multi-scale deformable attention (Deformable DETR, Zhu et al. 2021, Eq. 3), after the linear projections.

Shapes: B batch, L levels of h_l x w_l cells, S = sum h_l w_l, Q queries, M heads, D channels a head, P points a level.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def implementation() -> str:
    """Which implementation `ms_deform_attn` runs: "reference", in plain PyTorch."""
    return "reference"


def ms_deform_attn(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sum over levels and points of attention weight x bilinearly sampled value; outside of a level the value is 0.

    Args:
        value: (B, S, M, D), the levels one after the other, each row by row.
        spatial_shapes: (L, 2) int64, h_l and w_l; on the CPU, or it costs a synchronisation.
        sampling_locations: (B, Q, M, L, P, 2), x and y; (0, 0) is the upper left corner of a level, (1, 1) the lower
            right.
        attention_weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M * D).
    """
    batch, _, heads, dim = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    sizes = [(int(h), int(w)) for h, w in spatial_shapes.tolist()]
    grid = (2 * sampling_locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (L, BM, Q, P, 2)
    sampled = []
    for level, level_grid, (h, w) in zip(value.split([h * w for h, w in sizes], dim=1), grid, sizes, strict=True):
        image = level.permute(0, 2, 3, 1).reshape(batch * heads, dim, h, w)
        sampled.append(F.grid_sample(image, level_grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.transpose(1, 2).reshape(batch * heads, 1, queries, len(sizes) * points)
    output = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # (BM, D, Q)
    return output.view(batch, heads * dim, queries).transpose(1, 2).contiguous()
