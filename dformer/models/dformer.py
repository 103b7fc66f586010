"""DFormer (Wang et al. 2023): segmentation as denoising of N masks.

Shapes: B images of H x W (padded), N masks, noise h x w = H/stride x W/stride, C channels.
Units: noisy masks given to the decoder are in [0, 1], as published; the diffusion itself runs on the signal in [-b, b].
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dformer.diffusion.sampler import SamplingStep, sample
from dformer.diffusion.schedule import alpha_bar_schedule
from dformer.layers.embedding import TimeModulation
from dformer.layers.resize import resize
from dformer.models.mask_decoder import ImageMemory, MaskDecoder, Prediction
from dformer.models.pixel_decoder import PixelDecoder
from dformer.signals.masks import corrupt, to_signal, to_unit


class MaskDiffusion(NamedTuple):
    """The settings: alpha_bar (T,), signal scale b, encoding "binary" or "random", image pixels a noise pixel."""

    alpha_bar: Tensor
    scale: float
    encoding: str
    stride: int

    @classmethod
    def create(cls, schedule: str, timesteps: int, scale: float, encoding: str, stride: int) -> "MaskDiffusion":
        """With the noise schedule of that name."""
        return cls(alpha_bar_schedule(schedule, timesteps), scale, encoding, stride)


class DFormerHead(nn.Module):
    """Backbone features and noisy masks -> predictions."""

    def __init__(self, *, pixel_decoder: PixelDecoder, mask_decoder: MaskDecoder, diffusion: MaskDiffusion) -> None:
        super().__init__()
        mask_dim, hidden_dim = pixel_decoder.mask_features.out_channels, mask_decoder.hidden_dim
        if mask_dim != hidden_dim:
            raise ValueError(f"queries are means of the mask features, so {mask_dim=} must equal {hidden_dim=}")
        self.pixel_decoder = pixel_decoder
        self.mask_decoder = mask_decoder
        self.time_modulation = TimeModulation(mask_decoder.hidden_dim)
        self.diffusion = diffusion

    def forward(self, features: list[Tensor], noisy_masks: Tensor, t: Tensor) -> list[Prediction]:
        """Maps of strides 4, 8, 16, 32, noisy masks (B, N, h, w) in [0, 1], t (B,) -> predictions after each layer."""
        return self.denoise(self.encode(features), noisy_masks, t)

    def encode(self, features: list[Tensor]) -> ImageMemory:
        """Maps of strides 4, 8, 16, 32 -> what is the same for all sampling steps."""
        return self.mask_decoder.encode_memory(self.pixel_decoder(features))

    def denoise(self, image: ImageMemory, noisy_masks: Tensor, t: Tensor) -> list[Prediction]:
        """As `forward`, for an encoded image."""
        queries = pool_queries(image.mask_features, noisy_masks)
        return self.mask_decoder(queries, image, to_signal(noisy_masks, 1.0), self.time_modulation(t))

    def corrupt(self, gt_masks: list[Tensor], generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Noisy masks (B, N, h, w) in [0, 1] and t (B,) for training, one t an image (Alg. 1).

        Args:
            gt_masks: B times (G, H, W) bool, on the padded canvas.
            generators: one an image.
        """
        _, scale, encoding, stride = self.diffusion
        alpha_bar = self.diffusion.alpha_bar.to(gt_masks[0].device)
        noisy, times = [], []
        for masks, generator in zip(gt_masks, generators, strict=True):
            t = torch.randint(len(alpha_bar), (), generator=generator, device=masks.device)
            times.append(t)
            noisy.append(
                corrupt(
                    masks,
                    num_masks=len(self.mask_decoder.query_embed),
                    alpha_bar_t=alpha_bar[t],
                    scale=scale,
                    encoding=encoding,
                    stride=stride,
                    generator=generator,
                )
            )
        return torch.stack(noisy), torch.stack(times)

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(N, h, w) of the noise for a padded image of that size."""
        stride = self.diffusion.stride
        return len(self.mask_decoder.query_embed), -(-height // stride), -(-width // stride)

    def sample(
        self, features: list[Tensor], draw_noise: Callable[[], Tensor], steps: int, eta: float
    ) -> Iterator[SamplingStep[list[Prediction]]]:
        """Predictions from noise alone (Alg. 2), a step at a time; the last step's last prediction is the result.

        Args:
            features: maps of strides 4, 8, 16, 32.
            draw_noise: standard normal noise (B, N, h, w), new at each call.
            steps, eta: see `dformer.diffusion.sampler.sample`.
        """
        image = self.encode(features)
        alpha_bar, scale, _, _ = self.diffusion

        def denoise(x_t: Tensor, t: int) -> tuple[Tensor, list[Prediction]]:
            times = torch.full((len(x_t),), t, device=x_t.device)
            predictions = self.denoise(image, to_unit(x_t, scale), times)
            probability = predictions[-1].masks.float().sigmoid()
            return to_signal(resize(probability, x_t.shape[-2:]), scale), predictions

        return sample(denoise, draw_noise, alpha_bar, steps, eta)


def pool_queries(mask_features: Tensor, masks: Tensor) -> Tensor:
    """The mean of the mask features weighted by each mask (DFormer, Eq. 3).

    Args:
        mask_features: (B, C, h, w).
        masks: (B, N, h', w'), non-negative weights; an empty one gives zeros.

    Returns:
        (B, N, C).
    """
    weights = resize(masks, mask_features.shape[-2:]).flatten(2)
    total = weights.sum(dim=2, keepdim=True)
    weights = weights / torch.where(total == 0, 1, total)
    return torch.bmm(weights.to(mask_features.dtype), mask_features.flatten(2).mT)
