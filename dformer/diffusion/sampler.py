"""From noise to signal in few steps: DDIM (Song et al. 2021), DDPM (Ho et al. 2020). The denoiser predicts x_0."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from dformer.diffusion.prediction import eps_from_x0
from dformer.diffusion.schedule import Schedule, broadcast_to

Output = TypeVar("Output")
Time = float | int
DrawNoise = Callable[[], Tensor]  # standard normal noise of the signal's shape, new at each call


@dataclass(frozen=True)
class SamplingStep(Generic[Output]):
    """Hold one step of `sample`: the noisy signal x_t at time t, the predicted x_0, and the denoiser's own output."""

    t: Time
    x_t: Tensor
    x0: Tensor
    output: Output


def last_step(steps: Iterator[SamplingStep[Output]]) -> SamplingStep[Output]:
    """Return the last of the steps; those before are not kept."""
    return deque(steps, maxlen=1).pop()


def time_pairs(timesteps: int, steps: int) -> list[tuple[int, int]]:
    """Return pairs (t, t_next) from T-1 down to -1, the clean signal (DFormer, Alg. 2).

    The times are linspace(-1, T-1, steps + 1) in reverse, rounded down. (The published code computes them in float32,
    where for 84 of the 1000 numbers of steps, of which 26 is the first, a time is too low by one.)
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"sampling steps must be in 1..{timesteps}, got {steps}")
    times = [k * timesteps // steps - 1 for k in range(steps, -1, -1)]
    return list(zip(times[:-1], times[1:], strict=True))


def ddim_step(
    x_t: Tensor, x0: Tensor, alpha_bar_t: Tensor, alpha_bar_next: Tensor, draw_noise: DrawNoise, eta: float = 0.0
) -> Tensor:
    """Return x at the next, less noisy time (DDIM, Eq. 12 with Eq. 16); `eta` 0: deterministic, 1: as DDPM."""
    sigma = eta * ((1 - alpha_bar_next) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_next)).sqrt()
    direction = broadcast_to((1 - alpha_bar_next - sigma**2).sqrt(), x_t)
    x_next = broadcast_to(alpha_bar_next.sqrt(), x_t) * x0 + direction * eps_from_x0(x_t, x0, alpha_bar_t)
    return x_next + broadcast_to(sigma, x_t) * draw_noise() if eta > 0 else x_next


def ddpm_step(
    x_t: Tensor,
    x0: Tensor,
    alpha_bar_t: Tensor,
    alpha_bar_next: Tensor,
    draw_noise: DrawNoise,
    large_variance: bool = False,
) -> Tensor:
    """Return x at the next time by the posterior q(x_next | x_t, x_0) (DDPM, Eq. 6 and 7), for any two times.

    The variance is the posterior's, or beta if large (DDPM, Sec. 3.2).
    """
    alpha = alpha_bar_t / alpha_bar_next
    x0_weight = alpha_bar_next.sqrt() * (1 - alpha) / (1 - alpha_bar_t)
    x_t_weight = alpha.sqrt() * (1 - alpha_bar_next) / (1 - alpha_bar_t)
    variance = (1 - alpha) * (1 if large_variance else (1 - alpha_bar_next) / (1 - alpha_bar_t))
    mean = broadcast_to(x0_weight, x_t) * x0 + broadcast_to(x_t_weight, x_t) * x_t
    return mean + broadcast_to(variance.sqrt(), x_t) * draw_noise()


def sample(
    denoise: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Output]],
    draw_noise: DrawNoise,
    times: Sequence[tuple[Time, Time]],
    alpha_bar: Schedule,
    step: Callable[[Tensor, Tensor, Tensor, Tensor, DrawNoise], Tensor] = ddim_step,
    renew: Callable[[Tensor, SamplingStep[Output], Time], Tensor] | None = None,
) -> Iterator[SamplingStep[Output]]:
    """Denoise from pure noise and yield each step; the last one has the result.

    Args:
        denoise: (x_t (B, ...), t (B,), the x_0 predicted before or None) -> (predicted x_0, of x_t's shape; anything
            else that the caller wants back).
        draw_noise: of the first x_t and of stochastic steps.
        times: pairs (t, t_next). At t the signal is denoised, to t_next it is stepped; nothing follows the last t.
            The next pair may begin elsewhere than at t_next (asymmetric steps).
        alpha_bar: the schedule.
        step: (x_t, x_0, alpha_bar at t, alpha_bar at t_next, draw_noise) -> x at t_next.
        renew: (x at t_next, the step before, t_next) -> x at t_next, with rows renewed or known parts pasted in.
    """
    x_t, x0 = draw_noise(), None

    def at(t: Time) -> Tensor:
        return torch.full(x_t.shape[:1], t, device=x_t.device)

    for k, (t, t_next) in enumerate(times, start=1):
        x0, output = denoise(x_t, at(t), x0)
        taken = SamplingStep(t, x_t, x0, output)
        yield taken
        if k < len(times):
            x_t = step(x_t, x0, alpha_bar(at(t)), alpha_bar(at(t_next)), draw_noise)
            x_t = renew(x_t, taken, t_next) if renew else x_t
