"""Pixel decoders: backbone features -> multi-scale features and mask features (Mask2Former, Sec. 3.1).

Both take features of strides 4, 8, 16, 32 and return `PixelFeatures`, of C and E channels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dformer.layers.convolution import convolution, convolution_norm
from dformer.layers.deformable_attention import DeformableEncoderLayer, Size
from dformer.layers.embedding import sine_position
from dformer.layers.resize import resize

STRIDES = (4, 8, 16, 32)


class PixelFeatures(NamedTuple):
    """Hold `multi_scale_features`: three maps (B, C, h, w) of strides 32, 16, 8; `mask_features`: (B, E, H/4, W/4)."""

    multi_scale_features: list[Tensor]
    mask_features: Tensor


class MSDeformAttnPixelDecoder(nn.Module):
    """Run a deformable transformer encoder over strides 32, 16, 8, and one top-down step to stride 4 (Mask2Former)."""

    def __init__(
        self,
        *,
        in_channels: tuple[int, int, int, int],
        conv_dim: int,
        mask_dim: int,
        num_layers: int,
        num_heads: int,
        num_points: int,
        ffn_dim: int,
    ) -> None:
        super().__init__()
        self.input_proj = nn.ModuleList(convolution_norm(c, conv_dim, 1, bias=True) for c in in_channels[:0:-1])
        self.level_embed = nn.Parameter(torch.randn(3, conv_dim))
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(conv_dim, num_heads, 3, num_points, ffn_dim) for _ in range(num_layers)
        )
        self.lateral = convolution_norm(in_channels[0], conv_dim, 1)
        self.smooth = convolution_norm(conv_dim, conv_dim, 3)
        self.mask_features = convolution(conv_dim, mask_dim, 1)

    def forward(self, features: list[Tensor]) -> PixelFeatures:
        """Compute `PixelFeatures` from four maps (B, c_i, h_i, w_i) of strides 4, 8, 16, 32."""
        levels = [project(x) for project, x in zip(self.input_proj, features[:0:-1], strict=True)]
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        x = torch.cat([level.flatten(2).mT for level in levels], dim=1)  # (B, S, C)
        pos = self._position(sizes, x)  # (S, C)
        reference = torch.cat([_cell_centres(h, w, x.device) for h, w in sizes])  # (S, 2)
        extent = torch.tensor([[[w, h]] for h, w in sizes]).to(reference, non_blocking=True)  # (L, 1, 2)
        for layer in self.layers:
            x = layer(x, pos, reference, extent, sizes)
        maps = [
            level.unflatten(1, size).permute(0, 3, 1, 2)  # (B, C, h, w)
            for level, size in zip(x.split([h * w for h, w in sizes], dim=1), sizes, strict=True)
        ]
        finest = self.lateral(features[0])
        finest += resize(maps[-1], finest.shape[-2:])
        return PixelFeatures(maps, self.mask_features(F.relu_(self.smooth(finest))))

    def _position(self, sizes: list[Size], x: Tensor) -> Tensor:
        """Embedding of the cells' positions and levels: (S, C) in the dtype of `x`."""
        levels = [sine_position(h, w, x.shape[2], x.device).flatten(1).T.to(x.dtype) for h, w in sizes]
        return torch.cat([p + e for p, e in zip(levels, self.level_embed, strict=True)])


def _cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Centres (height * width, 2) of a map's cells, x and y in [0, 1], row by row."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=2).flatten(0, 1)


class FPNPixelDecoder(nn.Module):
    """Run a feature pyramid network (Lin et al. 2017): lateral 1x1 convolutions, top-down sums, 3x3 convolutions."""

    def __init__(self, *, in_channels: tuple[int, int, int, int], conv_dim: int, mask_dim: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(convolution_norm(c, conv_dim, 1) for c in in_channels[::-1])
        self.smooths = nn.ModuleList(convolution_norm(conv_dim, conv_dim, 3) for _ in in_channels)
        self.mask_features = convolution(conv_dim, mask_dim, 3)

    def forward(self, features: list[Tensor]) -> PixelFeatures:
        """Compute `PixelFeatures` from four maps (B, c_i, h_i, w_i) of strides 4, 8, 16, 32."""
        maps: list[Tensor] = []
        for lateral, smooth, x in zip(self.laterals, self.smooths, reversed(features), strict=True):
            x = lateral(x)
            if maps:
                x = x + F.interpolate(maps[-1], x.shape[-2:], mode="nearest")
            maps.append(F.relu_(smooth(x)))
        return PixelFeatures(maps[:3], self.mask_features(maps[3]))


PixelDecoder = MSDeformAttnPixelDecoder | FPNPixelDecoder
