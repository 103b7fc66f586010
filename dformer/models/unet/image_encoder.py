"""What Pix2Seq-D's decoder sees of an image: tokens of stride 16, and a map of all strides (Chen et al. 2023).

Shapes: B images of H x W, feature maps of strides 4, 8, 16 with C4, C8, C16 channels, D channels of the tokens.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dformer.layers.embedding import sine_token_position
from dformer.layers.mlp import xavier_linear
from dformer.layers.pre_norm import PreNormLayer
from dformer.models.unet.transunet import group_norm, xavier_conv


class TokenEncoder(nn.Module):
    """Encode a feature map's cells by a transformer."""

    def __init__(
        self,
        in_channels: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        *,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.proj = xavier_linear(in_channels, dim)
        self.norm_in = nn.LayerNorm(dim, eps=1e-6)
        self.layers = nn.ModuleList(
            PreNormLayer(dim, num_heads, ffn_dim, dropout=dropout, drop_path=drop_path) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a map (B, C16, h, w) into another (B, D, h, w)."""
        height, width = x.shape[-2:]
        tokens = self.norm_in(self.proj(x.flatten(2).mT))  # (B, h w, D)
        tokens = tokens + sine_token_position(height, width, self.dim, x.device).to(tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm_out(tokens).mT.unflatten(2, (height, width))


class MergeBlock(nn.Module):
    """Enlarge a map to the size of a finer one and add it to that."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = xavier_conv(in_channels, channels, 1), group_norm(channels)
        self.conv2, self.norm2 = xavier_conv(channels, channels, 3), group_norm(channels)

    def forward(self, low: Tensor, high: Tensor | None, size: tuple[int, int] | None = None) -> Tensor:
        """Return a map (B, C, h', w') of `low` (B, C_in, h, w) and of `high`, or of that `size` without one."""
        x = F.silu(self.norm1(self.conv1(low)))
        x = F.interpolate(x, size if high is None else high.shape[-2:], mode="nearest-exact")
        x = x if high is None else x + high
        return F.silu(self.norm2(self.conv2(x)))


class FeaturePyramidMerge(nn.Module):
    """Merge maps from the coarsest to the finest.

    Args:
        in_channels, strides: of the maps, the finest first. Maps finer than the result are not used.
        out_stride: of the result.
        dim: channels of the result; those of the finest map if that has the result's stride, as published.
    """

    def __init__(self, in_channels: Sequence[int], strides: Sequence[int], out_stride: int, dim: int) -> None:
        super().__init__()
        self.out_stride = out_stride
        self.used = [i for i, stride in enumerate(strides) if stride >= out_stride]
        self.strides = strides
        first, *others = self.used
        outputs = [in_channels[i - 1] for i in others]
        self.blocks = nn.ModuleDict()  # by the number of the map that a block enlarges
        if strides[first] > out_stride:
            self.blocks[str(first)] = MergeBlock(in_channels[first], dim)
        for i, out in zip(others, outputs, strict=True):
            self.blocks[str(i)] = MergeBlock(in_channels[i], out)
        self.out_channels = dim if str(first) in self.blocks else in_channels[first]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Merge maps (B, C_i, h_i, w_i) into (B, out_channels, H / out_stride, W / out_stride)."""
        first, *others = self.used
        x = maps[self.used[-1]]
        for i in reversed(others):
            x = self.blocks[str(i)](x, maps[i - 1])
        if str(first) in self.blocks:
            height, width = (side * self.strides[first] // self.out_stride for side in x.shape[-2:])
            x = self.blocks[str(first)](x, None, (height, width))
        return x
