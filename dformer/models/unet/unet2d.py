"""The U-Net of Stable Diffusion (Rombach et al. 2022) with diffusers' parameter names, with or without a context.

Shapes: B images, maps of h x w cells, C_i channels at level i, a context of L tokens of D channels.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dformer.layers.group_norm import GroupNorm
from dformer.models.unet.blocks import Downsample2D, ResnetBlock2D, TimestepEmbedding, Transformer2DModel, Upsample2D

Maps = list[Tensor]


class Stage(nn.Module):
    """Hold the resnet blocks of a level, each followed by attention where the level has it, and what resizes after.

    Args:
        in_channels: of each resnet block.
        heads: of the attention; None: there is none.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        time_channels: int,
        groups: int,
        heads: int | None,
        context_channels: int | None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResnetBlock2D(c, channels, groups, time_channels=time_channels) for c in in_channels]
        )
        attended = in_channels if heads else []
        self.attentions = nn.ModuleList(
            [Transformer2DModel(channels, heads or 1, groups, context_channels) for _ in attended]
        )
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()

    def block(self, index: int, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """Return the map after block `index`."""
        x = self.resnets[index](x, time)
        return self.attentions[index](x, context) if self.attentions else x


class DownBlock(Stage):
    """Compute a level on the way down."""

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Maps:
        """Return the maps after each block and after the downsampling, all of which are skips to the way up."""
        maps = []
        for index in range(len(self.resnets)):
            maps.append(x := self.block(index, x, time, context))  # (B, C_i, h, w)
        if self.downsamplers:
            maps.append(self.downsamplers[0](x))  # (B, C_i, h / 2, w / 2)
        return maps


class UpBlock(Stage):
    """Compute a level on the way up."""

    def forward(self, x: Tensor, skips: Maps, size: torch.Size, time: Tensor, context: Tensor | None) -> Tensor:
        """Return the map after all blocks and the upsampling to `size`; the last of `skips` is for the first block."""
        for index, skip in enumerate(reversed(skips)):
            x = self.block(index, torch.cat([x, skip], dim=1), time, context)  # (B, C_i, h, w)
        return self.upsamplers[0](x, size) if self.upsamplers else x  # (B, C_i, 2 h, 2 w)


class MidBlock(nn.Module):
    """Compute two resnet blocks with attention between them."""

    def __init__(
        self, channels: int, *, time_channels: int, groups: int, heads: int, context_channels: int | None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResnetBlock2D(channels, channels, groups, time_channels=time_channels) for _ in range(2)]
        )
        self.attentions = nn.ModuleList([Transformer2DModel(channels, heads, groups, context_channels)])

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """Return a map of the shape of `x`."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time), context), time)


class UNet2DConditionModel(nn.Module):
    """Denoise maps at a time: resnet and attention blocks down and up again, with skips.

    Args:
        in_channels, out_channels: of the maps.
        channels: of each level, the finest first.
        attention: which levels have attention; the middle has it.
        layers: resnet blocks a level on the way down; one more on the way up.
        heads: of the attention.
        groups: of the group norms.
        context_channels: D of a context that is attended to; None: there is none.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        attention: Sequence[bool],
        layers: int,
        heads: int,
        groups: int = 32,
        context_channels: int | None = None,
    ) -> None:
        super().__init__()
        time_channels = 4 * channels[0]
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], time_channels)

        def settings(level: int) -> dict[str, Any]:
            attended = heads if attention[level] else None
            sizes = {"channels": channels[level], "time_channels": time_channels, "groups": groups}
            return {**sizes, "heads": attended, "context_channels": context_channels}

        last = len(channels) - 1
        below = [channels[0], *channels]  # of the input of each level
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(channels):
            down = DownBlock([below[level]] + [width] * (layers - 1), **settings(level))
            if level < last:
                down.downsamplers.append(Downsample2D(width))
            self.down_blocks.append(down)
        self.mid_block = MidBlock(
            channels[-1], time_channels=time_channels, groups=groups, heads=heads, context_channels=context_channels
        )
        for level, width in reversed(list(enumerate(channels))):
            before = [channels[min(level + 1, last)]] + [width] * layers
            skips = [width] * layers + [below[level]]
            up = UpBlock([a + b for a, b in zip(before, skips, strict=True)], **settings(level))
            if level > 0:
                up.upsamplers.append(Upsample2D(width))
            self.up_blocks.append(up)
        self.conv_norm_out = GroupNorm(groups, channels[0], 1e-5)
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Return maps (B, out_channels, h, w).

        Args:
            x: (B, in_channels, h, w), of any size.
            t: times (B,).
            context: (B, L, D).
        """
        time = self.time_embedding(t)  # (B, 4 C_0)
        x = self.conv_in(x)
        skips = [x]  # (B, C_0, h, w)
        for down in self.down_blocks:
            skips += down(x, time, context)
            x = skips[-1]
        x = self.mid_block(x, time, context)
        for up in self.up_blocks:
            count = len(cast(UpBlock, up).resnets)
            skips, taken = skips[:-count], skips[-count:]
            x = up(x, taken, (skips or taken)[-1].shape[-2:], time, context)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def widen_conv_in(weight: Tensor, parts: Sequence[str]) -> Tensor:
    """Extend the weight (C, Z, 3, 3) of a pretrained first convolution to several inputs of Z channels each.

    Args:
        parts: for each input "copy", "zero" (it begins without influence) or "mean" (over the old channels).

    Returns:
        (C, len(parts) * Z, 3, 3).
    """
    made = {"copy": weight, "zero": torch.zeros_like(weight), "mean": weight.mean(1, keepdim=True).expand_as(weight)}
    return torch.cat([made[part] for part in parts], dim=1)
