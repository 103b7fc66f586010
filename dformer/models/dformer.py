"""DFormer (Wang et al. 2023): segmentation as denoising of N masks.

Shapes: B images of H x W (padded), N masks, noise h x w = H/stride x W/stride, C channels.
Units: the diffusion runs on the signal in [-b, b]; only `DFormerHead.denoise` maps it to [0, 1], as published.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dformer.diffusion.sampler import SamplingStep, ddim_step, sample, time_pairs
from dformer.diffusion.schedule import Schedule, add_noise, alpha_bar_table, table_schedule
from dformer.layers.embedding import TimeModulation, sine_position
from dformer.layers.resize import resize
from dformer.models.mask_decoder import ImageMemory, MaskDecoder, Prediction
from dformer.models.pixel_decoder import PixelDecoder
from dformer.signals.hints import FREE, NO_OBJECT, Hints, has_better_duplicate, own_hints, true_hints
from dformer.signals.masks import downsample, log_odds, noise_masks, pad_and_shuffle, to_signal, to_unit

# What a slot has to answer with in training: any mask ("free", as published), or the one that it was noised from.
ASSIGNMENTS = ("free", "denoising")
OWN_TIMES = (0.15, 0.85)  # parts of T
MAX_LOG_ODDS = 4.0  # given masks may be coarse: no cell is certain
WINDOW = 5  # noise cells
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
        """Return the predictions after each layer, for an encoded image; other arguments as of `forward`.

        With denoising assignment, each slot has its own time, t (B, N): T - 1 for one that is noise alone.
        """
        noisy_masks = to_unit(x_t, self.diffusion.scale)  # (B, N, h, w) in [0, 1]
        if self.diffusion.assignment == "free":
            queries = pool_queries(memory.mask_features, noisy_masks)  # (B, N, C)
            return self.mask_decoder(queries, memory, to_signal(noisy_masks, 1.0), self.time_modulation(t))
        cells = log_odds(x_t, self.diffusion.alpha_bar(t), self.diffusion.scale)  # (B, N, h, w)
        areas = WINDOW**2 * F.avg_pool2d(cells, WINDOW, stride=1, padding=WINDOW // 2)  # as if a mask were even in each
        evidence = torch.cat([cells, areas], dim=1).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)  # (B, 2N, h, w)
        _, channels, height, width = memory.mask_features.shape
        position = sine_position(height, width, channels, x_t.device)
        features = memory.mask_features + position  # so that a query knows where its mask is
        queries = pool_queries(features, noisy_masks * areas.sigmoid())  # (B, N, C)
        is_free = t == self.diffusion.timesteps - 1  # what a slot has learned to look for is nothing to a hint in it
        masks, modulation = to_signal(noisy_masks, 1.0), self.time_modulation(t)
        return self.mask_decoder(queries, memory, masks, modulation, evidence, is_free)

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
        self, prediction: Prediction, gt_masks: list[Tensor], own_share: float, generators: list[torch.Generator]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the noisy signal (B, N, h, w) of hints, their times (B, N), and their owners, B times (N,).

        At random, the hints of an image are true masks, or those that the model has predicted itself, with its errors.
        All hints of an image have one random time; free slots have T - 1, at which nothing but noise is left.

        Args:
            prediction: the model's own, from noise.
            gt_masks: B times (G, H, W) bool, on the padded canvas.
            own_share: of the images whose hints are the model's own.
            generators: one an image.
        """
        alpha_bar, timesteps, scale, encoding, stride, _ = self.diffusion
        height, width = gt_masks[0].shape[1:]
        probability = resize(prediction.masks.float().sigmoid(), self.noise_shape(height, width)[1:])  # (B, N, h, w)
        noisy, times, owners = [], [], []
        for b, (masks, generator) in enumerate(zip(gt_masks, generators, strict=True)):
            truth = downsample(masks, stride)
            is_own, threshold, t = torch.rand(3, generator=generator, device=masks.device)
            own = own_hints(probability[b], class_scores(prediction.logits[b]), truth, 0.3 + 0.6 * threshold)
            true = true_hints(truth, len(own.owner), generator)
            hints = Hints(*(torch.where(is_own < own_share, *pair) for pair in zip(own, true, strict=True)))
            first, last = OWN_TIMES
            t = timesteps * torch.where(is_own < own_share, first + (last - first) * t, t)
            times.append(self.slot_times(hints.owner, t.long()))
            alpha_bar_t = alpha_bar(times[-1])
            noisy.append(
                noise_masks(hints.masks, alpha_bar_t=alpha_bar_t, scale=scale, encoding=encoding, generator=generator)
            )
            owners.append(hints.owner)
        return torch.stack(noisy), torch.stack(times), owners

    def slot_times(self, owner: Tensor, t: Tensor | int) -> Tensor:
        """Return the time of each slot, of `owner`'s shape: t with a hint, T - 1 if free."""
        return torch.where(owner == FREE, self.diffusion.timesteps - 1, t)

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
        """
        memory = self.encode(features)
        alpha_bar, timesteps, scale, *_ = self.diffusion

        def denoise(x_t: Tensor, t: Tensor, _: Tensor | None) -> tuple[Tensor, list[Prediction]]:
            predictions = self.denoise(memory, x_t, t)
            return to_signal(found_masks(predictions, x_t), scale), predictions

        step = partial(ddim_step, eta=eta)
        return sample(denoise, draw_noise, time_pairs(timesteps, steps), alpha_bar, step)

    def sample_hints(
        self,
        memory: ImageMemory,
        hints: Hints,
        draw_noise: Callable[[], Tensor],
        times: Sequence[int],
        eta: float,
        known_time: int | None = None,
    ) -> Iterator[SamplingStep[list[Prediction]]]:
        """Yield the sampling steps from hints, for denoising assignment; their slots answer for them.

        The masks found in a step, binarised as the hints of training are, are the hints of the next one, less noisy;
        slots that show nothing, or what a better one shows, are noise again.

        Args:
            memory: the encoded images.
            hints: (B, N, ...), to begin with; all free: from noise alone.
            draw_noise: as of `sample`.
            times: of the hints in each step, falling.
            eta: 0: a slot's noise is the same in all steps; 1: fresh noise.
            known_time: the hints to begin with stay as they are, at this time. None: they are made better.
        """
        given, is_given = hints, hints.owner >= 0
        noise = draw_noise()
        for t in times:
            slot_times = self.slot_times(hints.owner, t)  # (B, N)
            if known_time is not None:
                slot_times = torch.where(is_given, known_time, slot_times)
            alpha_bar_t = self.diffusion.alpha_bar(slot_times)
            x_t = add_noise(to_signal(hints.masks, self.diffusion.scale), noise, alpha_bar_t)  # (B, N, h, w)
            predictions = self.denoise(memory, x_t, slot_times)
            masks = (found_masks(predictions, x_t) > 0.5).float()
            yield SamplingStep(t, x_t, to_signal(masks, self.diffusion.scale), predictions)
            if known_time is not None:
                masks = torch.where(is_given[..., None, None], given.masks, masks)
            scores = class_scores(predictions[-1].logits) + is_given  # (B, N); given ones come first
            duplicate = torch.stack([has_better_duplicate(*pair) for pair in zip(masks, scores, strict=True)])
            owner = torch.where((scores > MIN_SCORE) & ~duplicate, NO_OBJECT, FREE)
            hints = Hints(masks, torch.where(is_given, given.owner, owner))
            noise = (1 - eta**2) ** 0.5 * noise + eta * draw_noise()


def found_masks(predictions: list[Prediction], x_t: Tensor) -> Tensor:
    """Return the last predicted masks (B, N, h, w) in [0, 1], of the size of x_t."""
    return resize(predictions[-1].masks.float().sigmoid(), x_t.shape[-2:])


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
