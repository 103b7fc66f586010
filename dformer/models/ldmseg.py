"""LDMSeg: panoptic segmentation by diffusion of mask latents (Van Gansbeke and De Brabandere 2024).

Shapes: B images of H x W, n bits and N = 2^n ids, mask latents (B, Z, h, w), image latents (B, C, h, w).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dformer.diffusion.prediction import x0_from_eps
from dformer.diffusion.sampler import SamplingStep, ddim_step, sample, time_pairs
from dformer.diffusion.schedule import Schedule, add_noise, broadcast_to
from dformer.layers.group_norm import GroupNorm
from dformer.models.unet.mask_autoencoder import MaskAutoencoderModel
from dformer.models.unet.unet2d import UNet2DConditionModel


class LatentDiffusion(NamedTuple):
    """Hold the settings of the diffusion process.

    Attributes:
        alpha_bar: the noise schedule over t in 0..timesteps-1.
        timesteps: T.
        scale: by which the mask latents are multiplied.
        prediction: what the U-Net predicts, "eps" or "x0".
        max_snr: the loss of eps is weighted by min(SNR, max_snr) / SNR (min-SNR, Hang et al. 2023); 0: no weights.
        self_condition: share of the training images that are conditioned on a first prediction (Analog Bits). With 0,
            sampling is not, either.
        known_share: share of the training images of which parts are given; not in the paper. Above 0, what is given in
            inpainting is part of the condition from the first step on.
        eta: of sampling, 0 (deterministic after the first noise, as published) to 1 (DDPM).
    """

    alpha_bar: Schedule
    timesteps: int
    scale: float
    prediction: str
    max_snr: float
    self_condition: float
    known_share: float = 0.0
    eta: float = 0.0


class Known(NamedTuple):
    """Hold the given part of mask latents (inpainting): `latents` (B, Z, h, w), and where, `mask` (B, 1, h, w) bool.

    Where nothing is known, they are those of what is known nearest, or 0 in an image of which nothing is.
    """

    latents: Tensor
    mask: Tensor

    @property
    def condition(self) -> Tensor:
        """Return the latents; half of them where they are guesses, so that the U-Net can tell."""
        return torch.where(self.mask, self.latents, self.latents / 2)

    def paste(self, x0: Tensor) -> Tensor:
        """Return `x0` with the known latents in their places."""
        return torch.where(self.mask, self.latents, x0)


def draw_known(x0: Tensor, share: float, generators: Sequence[torch.Generator]) -> Known:
    """Draw what is known of mask latents (B, Z, h, w) in training: random blocks, for a share of the images.

    The blocks of an image are 1, 2 or 4 cells wide, and a random share of them is known. (Not in the paper, whose model
    completes masks without having seen parts of any.)
    """
    height, width = x0.shape[2:]
    rows, columns = (torch.arange(side, device=x0.device) for side in (height, width))
    cells = torch.cartesian_prod(rows, columns).float()
    distance = torch.cdist(cells, cells)  # (h * w, h * w)
    latents, masks = [], []
    for x, generator in zip(x0, generators, strict=True):
        chosen, size, known = torch.rand(3, generator=generator, device=x0.device)
        blocks = torch.rand(height, width, generator=generator, device=x0.device)
        side = 2 ** (3 * size).long()
        mask = (blocks[(rows // side)[:, None], columns // side] < known) & (chosen < share)  # (h, w)
        nearest = distance.masked_fill(~mask.flatten(), torch.inf).argmin(1)
        latents.append(x.flatten(1)[:, nearest].view_as(x) * mask.any())
        masks.append(mask[None])
    return Known(torch.stack(latents), torch.stack(masks))


class LDMSegHead(nn.Module):
    """Denoise mask latents beside image latents; the mask autoencoder is not trained."""

    def __init__(
        self, *, unet: UNet2DConditionModel, mask_autoencoder: MaskAutoencoderModel, diffusion: LatentDiffusion
    ) -> None:
        super().__init__()
        self.unet = unet
        self.mask_autoencoder = mask_autoencoder.requires_grad_(False)
        self.diffusion = diffusion

    @torch.no_grad()
    def encode(self, signal: Tensor) -> Tensor:
        """Return the scaled mask latents (B, Z, h, w), float32, of bits (B, n, H, W) in [-1, 1]."""
        with torch.autocast(signal.device.type, enabled=False):
            return self.mask_autoencoder.encode(signal)[0] * self.diffusion.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Return logits of the ids (B, N, h', w'), float32, of scaled mask latents (B, Z, h, w)."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.mask_autoencoder.decode(latents / self.diffusion.scale)

    def condition(self, before: Tensor | None, known: Known | None, like: Tensor) -> Tensor:
        """Return what the U-Net is conditioned on: x_0 as predicted `before`, with what is known, or zeros."""
        if before is None or self.diffusion.self_condition == 0:
            return torch.zeros_like(like) if known is None or self.diffusion.known_share == 0 else known.condition
        return before if known is None else known.paste(before)

    def predict(self, x_t: Tensor, t: Tensor, image_latents: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Denoise x_t (B, Z, h, w) at t (B,), under a condition like it; return x_0 and the U-Net's output."""
        inputs = torch.cat([x_t, image_latents.to(x_t.dtype), condition], dim=1)  # (B, Z + C + Z, h, w)
        output = self.unet(inputs, t).float()
        if self.diffusion.prediction == "x0":
            return output, output
        return x0_from_eps(x_t, output, self.diffusion.alpha_bar(t)), output

    def training_step(
        self,
        x0: Tensor,
        image_latents: Tensor,
        t: Tensor,
        noise: Tensor,
        conditioned: Tensor,
        known: Known | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Denoise noised latents as in training (Alg. 1).

        Args:
            x0, noise: (B, Z, h, w).
            t: (B,).
            conditioned: (B,) bool, which images get a first prediction as condition.
            known: the parts of x_0 that the condition shows, if any.

        Returns:
            The predicted x_0, and the weighted squared error of the U-Net's output, each (B, Z, h, w).
        """
        alpha_bar_t = self.diffusion.alpha_bar(t)
        x_t = add_noise(x0, noise, alpha_bar_t)
        condition = self.condition(None, known, x_t)
        if self.diffusion.self_condition > 0:
            with torch.no_grad():
                first, _ = self.predict(x_t, t, image_latents, condition)
            first = self.condition(first, known, x_t)
            condition = torch.where(conditioned[:, None, None, None], first, condition)
        predicted, output = self.predict(x_t, t, image_latents, condition)
        target = x0 if self.diffusion.prediction == "x0" else noise
        return predicted, (output - target) ** 2 * broadcast_to(self.loss_weight(t), x0)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Return the weight (B,) of the loss at times t: min-SNR, and for x_0 the same in its units, min(SNR, max)."""
        if self.diffusion.max_snr == 0:
            return torch.ones_like(t, dtype=torch.float64)
        alpha_bar_t = self.diffusion.alpha_bar(t)
        snr = alpha_bar_t / (1 - alpha_bar_t)
        clamped = snr.clamp(max=self.diffusion.max_snr)
        return clamped if self.diffusion.prediction == "x0" else clamped / snr

    def sample(
        self, image_latents: Tensor, draw_noise: Callable[[], Tensor], steps: int, known: Known | None = None
    ) -> Iterator[SamplingStep[Tensor]]:
        """Denoise in `steps` steps by DDIM and yield each step, whose output is x_0 with what is known pasted in.

        With something known this is mask inpainting (Alg. 3): the noise is that of x_0 as predicted, before pasting.
        (The paper does not say what the condition then is; here it is x_0 after pasting.)
        """
        alpha_bar = self.diffusion.alpha_bar

        def denoise(x_t: Tensor, t: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
            x0, _ = self.predict(x_t, t, image_latents, self.condition(before, known, x_t))
            return x0, x0 if known is None else known.paste(x0)

        def paste_known(x_next: Tensor, step: SamplingStep[Tensor], t_next: float) -> Tensor:
            rate = alpha_bar(torch.tensor(int(t_next), device=x_next.device)).sqrt()
            return x_next + broadcast_to(rate, x_next) * (step.output - step.x0)

        times, step = time_pairs(self.diffusion.timesteps, steps), partial(ddim_step, eta=self.diffusion.eta)
        return sample(denoise, draw_noise, times, alpha_bar, step, None if known is None else paste_known)


class FeatureLatents(nn.Module):
    """Compute image latents from a backbone's maps, without a pretrained image autoencoder (not in the paper)."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList([nn.Conv2d(c, channels, 1) for c in in_channels])
        self.norm = GroupNorm(1, channels)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return image latents (B, C, *size) of maps (B, C_i, h_i, w_i)."""
        resized = [F.interpolate(x, size, mode="bilinear") for x in maps]
        return self.norm(sum(project(x) for project, x in zip(self.projections, resized, strict=True)))


class SegmentClassifier(nn.Module):
    """Predict the classes of segments from mean features inside them (the paper's classifier is not public)."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, hidden_dim: int = 256) -> None:
        super().__init__()
        self.linear1 = nn.Linear(sum(in_channels), hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes)

    def forward(self, maps: Sequence[Tensor], masks: Tensor) -> Tensor:
        """Return class logits (..., G, K) of the segments of an image, or of a batch.

        Args:
            maps: features (..., C_i, h_i, w_i) of the image.
            masks: (..., G, H, W) in [0, 1], over the same canvas.
        """
        pooled = []
        for x in maps:
            weights = F.adaptive_avg_pool2d(masks.float(), (x.shape[-2], x.shape[-1])).flatten(-2)  # (..., G, h_i w_i)
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
            pooled.append(weights @ x.float().flatten(-2).mT)
        return self.class_embed(F.relu(self.linear1(torch.cat(pooled, dim=-1))))
