"""Multi-scale deformable attention in plain PyTorch: the definition, and the fallback where there is no kernel.

Symbols as in `dformer.ops.ms_deform_attn`. Here sizes come in one row, h_1, w_1, h_2, w_2, ..., and the precision of
all arithmetic is that of the locations and weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """Compute `dformer.ops.ms_deform_attn`."""
    batch, _, heads, dim = value.shape
    queries, levels, points = locations.shape[1], *locations.shape[3:5]
    images = _split(value.to(locations.dtype), spatial_shapes)
    sampled = [_sample(image, grid) for image, grid in zip(images, _grids(locations), strict=True)]
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # (BM, D, Q)
    return output.view(batch, heads * dim, queries).transpose(1, 2).to(value.dtype).contiguous()


def ms_deform_attn_backward(
    grad_output: Tensor, value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients by value, locations and weights; written out, since kernels run below autograd."""
    batch, _, heads, dim = value.shape
    dtype, queries = locations.dtype, locations.shape[1]
    grad = grad_output.to(dtype).view(batch, queries, heads, dim).permute(0, 2, 3, 1).reshape(-1, dim, queries, 1)
    weights = weights.permute(3, 0, 2, 1, 4).flatten(1, 2)[:, :, None]  # (L, BM, 1, Q, P)
    grad_images, grad_grids, grad_weights = [], [], []
    images = _split(value.to(dtype), spatial_shapes)
    for image, grid, weight in zip(images, _grids(locations), weights, strict=True):
        grad_weights.append((grad * _sample(image, grid)).sum(1))  # (BM, Q, P)
        bilinear, zeros, align_corners = 0, 0, False
        grad_image, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * weight, image, grid, bilinear, zeros, align_corners, [True, True]
        )
        grad_images.append(grad_image.view(batch, heads, dim, -1))
        grad_grids.append(grad_grid)
    grad_value = torch.cat(grad_images, dim=3).permute(0, 3, 1, 2)  # (B, S, M, D)
    return (
        grad_value.to(value.dtype).contiguous(),
        2 * torch.stack(grad_grids).unflatten(1, (batch, heads)).permute(1, 3, 2, 0, 4, 5).contiguous(),
        torch.stack(grad_weights).unflatten(1, (batch, heads)).permute(1, 3, 2, 0, 4).contiguous(),
    )


def _split(value: Tensor, spatial_shapes: list[int]) -> list[Tensor]:
    """Split `value` into its levels, images (BM, D, h_l, w_l)."""
    sizes = list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))
    levels = value.split([h * w for h, w in sizes], dim=1)
    return [x.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, size) for x, size in zip(levels, sizes, strict=True)]


def _grids(locations: Tensor) -> Tensor:
    """Convert the locations to grid_sample's range, [-1, 1]: (L, BM, Q, P, 2)."""
    return (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)


def _sample(image: Tensor, grid: Tensor) -> Tensor:
    """Sample an image (BM, D, h, w) bilinearly -> (BM, D, Q, P)."""
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
