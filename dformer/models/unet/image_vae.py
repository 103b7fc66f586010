"""The image encoder of Stable Diffusion's autoencoder (Rombach et al. 2022), with diffusers' parameter names.

Shapes: B images of H x W, Z latent channels, h x w = H / 8 x W / 8 with four levels.
"""

from collections.abc import Sequence
from itertools import chain, pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from dformer.layers.group_norm import GroupNorm
from dformer.models.unet.blocks import Attention, Downsample2D, ResnetBlock2D

EPS = 1e-6  # of the group norms


class AttentionBlock(nn.Module):
    """Compute attention among the cells of a map by one head, with a residual connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        attention = Attention(channels, 1, bias=True)
        self.group_norm = GroupNorm(groups, channels, EPS)
        self.to_q, self.to_k, self.to_v, self.to_out = attention.to_q, attention.to_k, attention.to_v, attention.to_out

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of `x` (B, C, h, w)."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1, h w, C)
        attended = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))[:, 0]
        return x + self.to_out[0](attended).transpose(1, 2).unflatten(2, x.shape[-2:])


class EncoderLevel(nn.Module):
    """Compute the resnet blocks of a level, and halve the map after them but at the last one."""

    def __init__(self, in_channels: int, channels: int, layers: int, groups: int, is_last: bool) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * layers
        self.resnets = nn.ModuleList([ResnetBlock2D(a, b, groups, eps=EPS) for a, b in pairwise(widths)])
        self.downsamplers = nn.ModuleList([] if is_last else [Downsample2D(channels, padding=0)])

    def forward(self, x: Tensor) -> Tensor:
        """Return a map (B, C', h / 2, w / 2) of a map (B, C, h, w)."""
        for block in chain(self.resnets, self.downsamplers):
            x = block(x)
        return x


class EncoderMid(nn.Module):
    """Compute two resnet blocks with attention between them."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock2D(channels, channels, groups, eps=EPS) for _ in range(2)])
        self.attentions = nn.ModuleList([AttentionBlock(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of `x`."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    """Compute moments of latents: resnet blocks with downsampling, and attention at the coarsest level."""

    def __init__(self, channels: Sequence[int], layers: int, latent_channels: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        levels = enumerate(pairwise([channels[0], *channels]))
        self.down_blocks = nn.ModuleList(
            [EncoderLevel(a, b, layers, groups, i == len(channels) - 1) for i, (a, b) in levels]
        )
        self.mid_block = EncoderMid(channels[-1], groups)
        self.conv_norm_out = GroupNorm(groups, channels[-1], EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return moments (B, 2 Z, h, w), and the normed map (B, C, h, w) that they are computed from."""
        x = self.conv_in(images)
        for level in self.down_blocks:
            x = level(x)
        x = self.mid_block(x)
        x = F.silu(self.conv_norm_out(x))
        return self.conv_out(x), x


class ImageVAE(nn.Module):
    """Encode images to the latents of Stable Diffusion; the decoder is not needed here."""

    def __init__(
        self,
        *,
        channels: Sequence[int] = (128, 256, 512, 512),
        layers: int = 2,
        latent_channels: int = 4,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, layers, latent_channels, groups)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images (B, 3, H, W) in [-1, 1].

        Returns:
            The mean and, clamped to [-30, 20], the logarithm of the variance of the latents, each (B, Z, h, w), and
            the encoder's last map (B, C, h, w).
        """
        moments, features = self.encoder(images)
        mean, logvar = self.quant_conv(moments).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20), features
