"""From noise to signal in few steps: DDIM (Song et al. 2021), DDPM (Ho et al. 2020); the denoiser predicts x_0."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from dformer.diffusion.prediction import eps_from_x0

Output = TypeVar("Output")


@dataclass(frozen=True)
class SamplingStep(Generic[Output]):
    """One step of `sample`: the noisy signal x_t at timestep t, the predicted x_0, and the denoiser's own output."""

    t: int
    x_t: Tensor
    x0: Tensor
    output: Output


def time_pairs(timesteps: int, steps: int) -> list[tuple[int, int]]:
    """Pairs (t, t_next) from T-1 down to -1, which stands for the clean signal (DFormer, Alg. 2).

    The times are linspace(-1, T-1, steps + 1) in reverse, truncated to integers as published.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"sampling steps must be in 1..{timesteps}, got {steps}")
    times = torch.linspace(-1, timesteps - 1, steps + 1).int().tolist()[::-1]
    return list(zip(times[:-1], times[1:], strict=True))


def ddim_step(x_t: Tensor, x0: Tensor, alpha_bar_t: float, alpha_bar_next: float, eta: float, noise: Tensor) -> Tensor:
    """x at the next, less noisy time (DDIM, Eq. 12 with Eq. 16); `eta` 0: deterministic, 1: as DDPM."""
    sigma = eta * math.sqrt((1 - alpha_bar_next) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_next))
    direction = math.sqrt(1 - alpha_bar_next - sigma**2)
    return math.sqrt(alpha_bar_next) * x0 + direction * eps_from_x0(x_t, x0, alpha_bar_t) + sigma * noise


def ddpm_step(x_t: Tensor, x0: Tensor, alpha_bar_t: float, alpha_bar_next: float, noise: Tensor) -> Tensor:
    """x at the next time by the posterior q(x_next | x_t, x_0) (DDPM, Eq. 6 and 7), for any two times."""
    alpha = alpha_bar_t / alpha_bar_next
    mean = math.sqrt(alpha_bar_next) * (1 - alpha) * x0 + math.sqrt(alpha) * (1 - alpha_bar_next) * x_t
    variance = (1 - alpha_bar_next) / (1 - alpha_bar_t) * (1 - alpha)
    return mean / (1 - alpha_bar_t) + math.sqrt(variance) * noise


def sample(
    denoise: Callable[[Tensor, int], tuple[Tensor, Output]],
    draw_noise: Callable[[], Tensor],
    alpha_bar: Tensor,
    steps: int,
    eta: float,
) -> Iterator[SamplingStep[Output]]:
    """Denoise from pure noise in `steps` DDIM steps; the last item holds the result.

    Args:
        denoise: (x_t, t) -> (predicted x_0 of x_t's shape, anything else that the caller wants back).
        draw_noise: standard normal noise of the signal's shape, new at each call.
        alpha_bar: the schedule (T,).
        steps: 1..T.
        eta: 0 (deterministic after the first noise) to 1 (DDPM).
    """
    x_t = draw_noise()
    for t, t_next in time_pairs(len(alpha_bar), steps):
        x0, output = denoise(x_t, t)
        yield SamplingStep(t, x_t, x0, output)
        if t_next >= 0:
            noise = draw_noise() if eta > 0 else torch.zeros_like(x_t)
            x_t = ddim_step(x_t, x0, float(alpha_bar[t]), float(alpha_bar[t_next]), eta, noise)
