"""TransUNet of Pix2Seq-D: a U-Net with a transformer decoder in its middle (Chen et al. 2023, Sec. 3.3).

Shapes: B images, maps of h x w, C_i = dim * multiplier_i channels at level i, whose maps are h/2^i x w/2^i; E = 4 * dim
channels of the time embedding; S image tokens of D channels.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dformer.layers.attention import Memory
from dformer.layers.embedding import sine_encoding, sine_token_position
from dformer.layers.group_norm import GroupNorm
from dformer.layers.mlp import xavier_linear
from dformer.layers.pre_norm import PreNormLayer


def group_norm(channels: int, max_groups: int | None = None) -> GroupNorm:
    """Build a group norm of four channels a group, or more: at most 32 groups, and those that divide the channels."""
    groups = max_groups or min(max(channels // 4, 1), 32)
    return GroupNorm(next(g for g in range(groups, 0, -1) if channels % g == 0), channels, eps=1e-5)


def xavier_conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int | None = None
) -> nn.Conv2d:
    """Build a convolution, by default one that keeps the size, initialised as TensorFlow's."""
    padding = kernel_size // 2 if padding is None else padding
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class ResBlock(nn.Module):
    """Transform a map by two convolutions, which the time embedding modulates in between."""

    def __init__(self, in_channels: int, channels: int, emb_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = xavier_conv(in_channels, channels, 3)
        self.emb_proj = xavier_linear(emb_channels, 2 * channels)
        self.norm2 = group_norm(channels)
        self.conv2 = xavier_conv(channels, channels, 3)
        self.shortcut = xavier_conv(in_channels, channels, 1) if in_channels != channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Transform (B, C_in, h, w) into (B, C, h, w) at times embedded as (B, E)."""
        scale, shift = self.emb_proj(emb)[:, :, None, None].chunk(2, dim=1)
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))
        return (self.shortcut(x) + y) / math.sqrt(2)


class DownBlock(nn.Module):
    """Transform a map by residual blocks, and halve its sides if `downsample`."""

    def __init__(
        self, in_channels: int, channels: int, emb_channels: int, num_blocks: int, *, downsample: bool
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [channels] * (num_blocks - 1)
        self.blocks = nn.ModuleList(ResBlock(c, channels, emb_channels) for c in inputs)
        self.downsample = xavier_conv(channels, channels, 3, stride=2, padding=0) if downsample else None

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Return what each block makes of (B, C_in, h, w), and the halved map if there is one."""
        maps = []
        for block in self.blocks:
            x = block(x, emb)
            maps.append(x)
        if self.downsample:
            maps.append(self.downsample(F.pad(maps[-1], (0, 1, 0, 1))))  # TensorFlow pads even sides at their end
        return maps


class UpBlock(nn.Module):
    """Transform a map and those of the way down by residual blocks, and double its sides if `upsample`."""

    def __init__(
        self, in_channels: int, laterals: Sequence[int], channels: int, emb_channels: int, *, upsample: bool
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [channels] * (len(laterals) - 1)
        self.blocks = nn.ModuleList(
            ResBlock(c + lateral, channels, emb_channels) for c, lateral in zip(inputs, laterals, strict=True)
        )
        self.upsample = xavier_conv(channels, channels, 3) if upsample else None

    def forward(self, x: Tensor, laterals: list[Tensor], emb: Tensor) -> Tensor:
        """Transform (B, C_in, h, w); `laterals` are one a block, the last one for the first."""
        for block, lateral in zip(self.blocks, reversed(laterals), strict=True):
            x = block(torch.cat([x, lateral], dim=1), emb)
        return self.upsample(F.interpolate(x, scale_factor=2, mode="nearest")) if self.upsample else x


class MiddleTransformer(nn.Module):
    """Let the cells of a map attend to each other, to the time, and to the image's tokens."""

    def __init__(
        self, channels: int, dim: int, emb_channels: int, num_layers: int, num_heads: int, *, cross_attention: bool
    ) -> None:
        super().__init__()
        self.dim = dim
        groups = min(dim // 4, 32)
        self.norm_in, self.conv_in = group_norm(channels, groups), xavier_conv(channels, dim, 1)
        self.emb_proj = xavier_linear(emb_channels, dim)
        self.layers = nn.ModuleList(
            PreNormLayer(dim, num_heads, 4 * dim, cross_attention=cross_attention) for _ in range(num_layers)
        )
        self.norm_out, self.conv_out = group_norm(dim, groups), xavier_conv(dim, dim, 1)

    def forward(self, x: Tensor, emb: Tensor, memories: Sequence[Memory | None]) -> Tensor:
        """Transform (B, C, h, w) into (B, D, h, w); `memories` are those of each layer."""
        height, width = x.shape[-2:]
        tokens = self.conv_in(self.norm_in(x)).flatten(2).mT  # (B, h w, D)
        tokens = tokens + sine_token_position(height, width, self.dim, x.device).to(tokens.dtype)
        tokens = torch.cat([tokens, self.emb_proj(emb)[:, None]], dim=1)  # the time is one token more
        for layer, memory in zip(self.layers, memories, strict=True):
            tokens = layer(tokens, memory)
        x = tokens[:, :-1].mT.unflatten(2, (height, width))
        return self.conv_out(self.norm_out(x))


class TransUNet(nn.Module):
    """Predict a map from a noisy one and the noise level, given the image's tokens.

    Args:
        in_channels, out_channels: of the maps.
        dim: channels of the first level.
        multipliers: channels of each level / dim; the sides of a map must divide by 2^(levels - 1).
        num_blocks: residual blocks a level on the way down, one more on the way up.
        transformer_dim: D.
        time_scaling: factor on the noise level before it is encoded.
        cross_attention: whether there are image tokens.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        dim: int,
        multipliers: Sequence[int],
        num_blocks: int,
        transformer_dim: int,
        num_layers: int,
        num_heads: int,
        time_scaling: float,
        cross_attention: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.time_scaling = dim, time_scaling
        emb_channels = 4 * dim
        self.time_embed = nn.Sequential(
            xavier_linear(dim, emb_channels), nn.SiLU(), xavier_linear(emb_channels, emb_channels), nn.SiLU()
        )
        self.conv_in, self.norm_in = xavier_conv(in_channels, dim, 1), group_norm(dim)

        channels, laterals, last = dim, [dim], len(multipliers) - 1
        self.down, self.up = nn.ModuleList(), nn.ModuleList()  # one a level
        for level, multiplier in enumerate(multipliers):
            before, channels = channels, dim * multiplier
            down = DownBlock(before, channels, emb_channels, num_blocks, downsample=level < last)
            self.down.append(down)
            laterals += [channels] * (num_blocks + (level < last))
        self.transformer = MiddleTransformer(
            channels, transformer_dim, emb_channels, num_layers, num_heads, cross_attention=cross_attention
        )
        channels = transformer_dim
        for level, multiplier in reversed(list(enumerate(multipliers))):
            before, channels = channels, dim * multiplier
            taken = [laterals.pop() for _ in range(num_blocks + 1)]
            self.up.insert(0, UpBlock(before, taken, channels, emb_channels, upsample=level > 0))
        self.norm_out, self.conv_out = group_norm(dim), xavier_conv(channels, out_channels, 1)
        nn.init.zeros_(self.conv_out.weight)

    def encode_memory(self, tokens: Tensor) -> list[Memory]:
        """Project the image's tokens (B, S, D) to what all steps share: keys and values of each layer."""
        return [cast(PreNormLayer, layer).encode_memory(tokens) for layer in self.transformer.layers]

    def forward(self, x: Tensor, alpha_bar: Tensor, memories: Sequence[Memory | None]) -> Tensor:
        """Predict (B, C_out, h, w) from (B, C_in, h, w) at the noise levels (B,)."""
        code = sine_encoding(alpha_bar * self.time_scaling, self.dim)
        emb = self.time_embed(code.to(self.conv_in.weight.dtype))  # (B, E)
        x = self.norm_in(self.conv_in(x))
        laterals = [x]
        for down in self.down:
            laterals += down(laterals[-1], emb)
        x = self.transformer(laterals[-1], emb, memories)
        for up in reversed(self.up):
            count = len(cast(UpBlock, up).blocks)
            laterals, taken = laterals[:-count], laterals[-count:]
            x = up(x, taken, emb)
        return self.conv_out(F.silu(self.norm_out(x)))  # (B, C_out, h, w)
