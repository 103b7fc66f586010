"""The shallow autoencoder of label maps (LDMSeg, Van Gansbeke and De Brabandere 2024, Sec. 3.2 and App.).

Shapes: B maps of H x W, n bits, N = 2^n ids, Z latent channels, h x w = H / f x W / f, with f = 2^levels.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from dformer.layers.group_norm import GroupNorm


class LayerNorm2d(nn.LayerNorm):
    """Normalise the channels of each cell of a map (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of `x`."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MaskAutoencoderModel(nn.Module):
    """Encode maps of bits to a normal distribution of latents, and decode latents to logits of ids.

    Parameters have their published places: the modules of `encoder` and `decoder` are numbered.

    Args:
        num_bits: n of the input.
        channels: of the levels of the encoder; each but the first halves the map.
        latent_channels: Z.
        hidden_channels: at the latents' resolution, in encoder and decoder.
        upscale_channels: of the decoder where it enlarges.
        upscalers: how often the decoder doubles the map.
        groups: of the group norms.
    """

    def __init__(
        self,
        *,
        num_bits: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        latent_channels: int = 4,
        hidden_channels: int = 256,
        upscale_channels: int = 256,
        upscalers: int = 2,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.num_bits, self.num_ids, self.latent_channels = num_bits, 2**num_bits, latent_channels
        self.stride = 2 ** (len(channels) - 1)
        encoder: list[nn.Module] = [_conv(num_bits, channels[0]), nn.SiLU()]
        for a, b in pairwise(channels):
            encoder += [_conv(a, a), _conv(a, b, stride=2), nn.SiLU()]
        encoder += [_conv(channels[-1], hidden_channels), nn.Identity()]
        encoder += [GroupNorm(groups, hidden_channels, 1e-6), nn.SiLU(), _conv(hidden_channels, 2 * latent_channels)]
        decoder: list[nn.Module] = [_conv(latent_channels, hidden_channels), nn.Identity()]
        for a in [hidden_channels] + [upscale_channels] * (upscalers - 1) if upscalers else []:
            decoder += [nn.ConvTranspose2d(a, upscale_channels, 2, stride=2), LayerNorm2d(upscale_channels, 1e-6)]
            decoder += [nn.SiLU()]
        last = upscale_channels if upscalers else hidden_channels
        decoder += [GroupNorm(groups, last, 1e-5), nn.SiLU(), _conv(last, self.num_ids)]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def encode(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance, in [-30, 20], of the latents (B, Z, h, w) of a signal.

        Args:
            signal: bits (B, n, H, W) in [-1, 1]; 0 where nothing is known.
        """
        mean, logvar = self.encoder(signal).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, latents: Tensor) -> Tensor:
        """Return logits of the ids (B, N, h', w') of latents (B, Z, h, w); h' = 2^upscalers h."""
        return self.decoder(latents)

    def decode_at(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits of the ids (B, N, *size), enlarged bilinearly as published."""
        return F.interpolate(self.decode(latents), size, mode="bilinear")


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return the divergence (B,) of latents (B, ...) from the standard normal distribution, summed over all of them."""
    return (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
