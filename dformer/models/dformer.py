"""DFormer (Wang et al. 2023): segmentation as denoising of N masks.

Shapes: B images of H x W (padded), N masks, noise h x w = H/stride x W/stride, C channels.
Units: the diffusion runs on the signal in [-b, b]; only `DFormerHead.denoise` maps it to [0, 1], as published.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dformer.diffusion.sampler import SamplingStep, Time, ddim_step, sample, time_pairs
from dformer.diffusion.schedule import Schedule, alpha_bar_table, table_schedule
from dformer.layers.embedding import TimeModulation
from dformer.layers.resize import resize
from dformer.models.mask_decoder import ImageMemory, MaskDecoder, Prediction
from dformer.models.pixel_decoder import PixelDecoder
from dformer.signals.hints import FREE, Hints, has_better_duplicate, own_hints, true_hints
from dformer.signals.masks import downsample, noise_masks, pad_and_shuffle, to_signal, to_unit

# What a slot has to answer with in training: any mask ("free", as published), or the one that it was noised from.
ASSIGNMENTS = ("free", "denoising")
OWN_SHARE = 0.5  # of the images whose hints are the model's own
OWN_TIMES = (0.15, 0.85)  # parts of T
MIN_SCORE = 0.5  # of the masks that are hints for the next sampling step


class MaskDiffusion(NamedTuple):
    """Hold the settings of the diffusion: the schedule over 0..T-1 and T, the signal scale b, the encoding of masks
    ("binary" or "random"), how many image pixels wide a noise pixel is, and one of `ASSIGNMENTS`."""

    alpha_bar: Schedule
    timesteps: int
    scale: float
    encoding: str
    stride: int
    assignment: str = "free"

    @classmethod
    def create(
        cls, schedule: str, timesteps: int, scale: float, encoding: str, stride: int, assignment: str = "free"
    ) -> "MaskDiffusion":
        """Return the settings with the schedule of that name."""
        alpha_bar = table_schedule(alpha_bar_table(schedule, timesteps))
        return cls(alpha_bar, timesteps, scale, encoding, stride, assignment)


class DFormerHead(nn.Module):
    """Predict masks and classes from backbone features and noisy masks."""

    def __init__(self, *, pixel_decoder: PixelDecoder, mask_decoder: MaskDecoder, diffusion: MaskDiffusion) -> None:
        super().__init__()
        mask_dim, hidden_dim = pixel_decoder.mask_features.out_channels, mask_decoder.hidden_dim
        if mask_dim != hidden_dim:
            raise ValueError(f"queries are means of the mask features, so {mask_dim=} must equal {hidden_dim=}")
        self.pixel_decoder = pixel_decoder
        self.mask_decoder = mask_decoder
        self.time_modulation = TimeModulation(mask_decoder.hidden_dim)
        self.diffusion = diffusion

    def forward(self, features: list[Tensor], x_t: Tensor, t: Tensor) -> list[Prediction]:
        """Return the predictions after each layer for a noisy signal (B, N, h, w) at times t (B,), 0..T-1."""
        return self.denoise(self.encode(features), x_t, t)

    def encode(self, features: list[Tensor]) -> ImageMemory:
        """Return what all sampling steps share, from maps of strides 4, 8, 16, 32."""
        return self.mask_decoder.encode_memory(self.pixel_decoder(features))

    def denoise(self, memory: ImageMemory, x_t: Tensor, t: Tensor) -> list[Prediction]:
        """Return the predictions after each layer, for an encoded image; other arguments as of `forward`."""
        noisy_masks = to_unit(x_t, self.diffusion.scale)  # (B, N, h, w) in [0, 1]
        queries = pool_queries(memory.mask_features, noisy_masks)  # (B, N, C)
        return self.mask_decoder(queries, memory, to_signal(noisy_masks, 1.0), self.time_modulation(t))

    def corrupt(self, gt_masks: list[Tensor], generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Return the noisy signal (B, N, h, w) for training and its random times t (B,), one an image (Alg. 1).

        Args:
            gt_masks: B times (G, H, W) bool, on the padded canvas. With G > N a random subset of N is noised.
            generators: one an image.
        """
        alpha_bar, timesteps, scale, encoding, stride, _ = self.diffusion
        noisy, times = [], []
        for masks, generator in zip(gt_masks, generators, strict=True):
            t = torch.randint(timesteps, (), generator=generator, device=masks.device)
            padded = pad_and_shuffle(downsample(masks, stride), len(self.mask_decoder.query_embed), generator)
            noisy.append(
                noise_masks(padded, alpha_bar_t=alpha_bar(t), scale=scale, encoding=encoding, generator=generator)
            )
            times.append(t)
        return torch.stack(noisy), torch.stack(times)

    @torch.no_grad()
    def corrupt_hints(
        self, prediction: Prediction, gt_masks: list[Tensor], generators: list[torch.Generator]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the noisy signal (B, N, h, w) of hints, random times t (B,), and their owners, B times (N,).

        At random, the hints of an image are true masks, or those that the model has predicted itself, with its errors.

        Args:
            prediction: the model's own, from noise.
            gt_masks: B times (G, H, W) bool, on the padded canvas.
            generators: one an image.
        """
        height, width = gt_masks[0].shape[1:]
        probability = resize(prediction.masks.float().sigmoid(), self.noise_shape(height, width)[1:])  # (B, N, h, w)
        noisy, times, owners = [], [], []
        for b, (masks, generator) in enumerate(zip(gt_masks, generators, strict=True)):
            truth = downsample(masks, self.diffusion.stride)
            is_own, threshold, t = torch.rand(3, generator=generator, device=masks.device)
            own = own_hints(probability[b], class_scores(prediction.logits[b]), truth, 0.3 + 0.6 * threshold)
            true = true_hints(truth, len(own.owner), generator)
            hints = Hints(*(torch.where(is_own < OWN_SHARE, *pair) for pair in zip(own, true, strict=True)))
            first, last = OWN_TIMES
            t = torch.where(is_own < OWN_SHARE, first + (last - first) * t, t)
            times.append((self.diffusion.timesteps * t).long())
            noisy.append(self.noise_hints(hints, times[-1], generator))
            owners.append(hints.owner)
        return torch.stack(noisy), torch.stack(times), owners

    def noise_hints(self, hints: Hints, t: Tensor, generator: torch.Generator) -> Tensor:
        """Return the noisy signal (N, h, w) of hints at a time, a scalar tensor; free slots are noise alone."""
        alpha_bar, _, scale, encoding, _, _ = self.diffusion
        noise = torch.randn(hints.masks.shape, generator=generator, device=hints.masks.device)
        noisy = noise_masks(hints.masks, alpha_bar_t=alpha_bar(t), scale=scale, encoding=encoding, generator=generator)
        return torch.where((hints.owner == FREE)[:, None, None], noise, noisy)

    def noise_shape(self, height: int, width: int, num_masks: int | None = None) -> tuple[int, int, int]:
        """Return (N, h, w) of the noise for a padded image of that size; `num_masks` may be fewer than in training."""
        stride = self.diffusion.stride
        return num_masks or len(self.mask_decoder.query_embed), -(-height // stride), -(-width // stride)

    def sample(
        self, features: list[Tensor], draw_noise: Callable[[], Tensor], steps: int, eta: float
    ) -> Iterator[SamplingStep[list[Prediction]]]:
        """Yield the sampling steps from noise alone (Alg. 2); the last one's last prediction is the result.

        Args:
            features: maps of strides 4, 8, 16, 32.
            draw_noise: standard normal noise (B, N, h, w), new at each call.
            steps: 1..T.
            eta: 0 (deterministic after the first noise) to 1 (DDPM).

        With denoising assignment, the masks found are binarised, as the hints of training are, and all slots but those
        that show something are renewed.
        """
        memory = self.encode(features)
        alpha_bar, timesteps, scale, _, _, assignment = self.diffusion
        step = partial(ddim_step, eta=eta)
        renew = partial(renew_masks, draw_noise=draw_noise) if assignment == "denoising" else None

        def denoise(x_t: Tensor, t: Tensor, _: Tensor | None) -> tuple[Tensor, list[Prediction]]:
            predictions = self.denoise(memory, x_t, t)
            probability = predictions[-1].masks.float().sigmoid()  # (B, N, H/4, W/4)
            x0 = resize(probability, x_t.shape[-2:])  # (B, N, h, w)
            return to_signal((x0 > 0.5).float() if renew else x0, scale), predictions

        return sample(denoise, draw_noise, time_pairs(timesteps, steps), alpha_bar, step, renew)


def renew_masks(x_t: Tensor, step: SamplingStep[list[Prediction]], t: Time, draw_noise: Callable[[], Tensor]) -> Tensor:
    """Put fresh noise in the place of masks that are no hints: of low scores, or duplicates of better ones."""
    keep = []
    for x0, logits in zip(step.x0, step.output[-1].logits, strict=True):
        scores = class_scores(logits)
        keep.append((scores > MIN_SCORE) & ~has_better_duplicate(x0 > 0, scores))
    return torch.where(torch.stack(keep)[:, :, None, None], x_t, draw_noise())


def class_scores(logits: Tensor) -> Tensor:
    """Return the probability (..., N) of the best class, from class logits (..., N, K + 1)."""
    return logits.float().softmax(-1)[..., :-1].amax(-1)


def pool_queries(mask_features: Tensor, masks: Tensor) -> Tensor:
    """Average the mask features over each mask (DFormer, Eq. 3): queries (B, N, C).

    Args:
        mask_features: (B, C, h, w).
        masks: (B, N, h', w'), non-negative weights; an empty one gives zeros.
    """
    weights = resize(masks, mask_features.shape[-2:]).flatten(2)
    total = weights.sum(dim=2, keepdim=True)
    weights = weights / torch.where(total == 0, 1, total)
    return torch.bmm(weights.to(mask_features.dtype), mask_features.flatten(2).mT)
