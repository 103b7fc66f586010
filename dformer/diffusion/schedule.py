"""Noise schedules alpha_bar(t), and the forward process q(x_t | x_0).

A schedule is a function of the time: a tensor t of any shape -> alpha_bar, float64, of that shape and device. It falls
from about 1 (signal) to about 0 (noise). It looks t up in a table (`table_schedule`, t in 0..T-1, 0 the least noise),
or computes alpha_bar from a continuous t.

Symbols: T timesteps; beta_t the variance added at t; alpha_bar_t = prod_{s<=t} (1 - beta_s).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Schedule = Callable[[Tensor], Tensor]


def cosine_betas(timesteps: int, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Return the cosine schedule's betas (T,), float64 (Nichol and Dhariwal 2021, Eq. 17; `s`: offset near t = 0)."""
    u = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    f = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(0, max_beta)


def linear_betas(timesteps: int, start: float = 1e-4, end: float = 2e-2) -> Tensor:
    """Return betas (T,), float64, that grow linearly (Ho et al. 2020, Sec. 4); both ends scale with 1000 / T."""
    return torch.linspace(start, end, timesteps, dtype=torch.float64).mul(1000 / timesteps).clamp(0, 0.999)


def scaled_linear_betas(timesteps: int, start: float = 8.5e-4, end: float = 1.2e-2) -> Tensor:
    """Return betas (T,), float64, whose square roots grow linearly (latent diffusion, Rombach et al. 2022)."""
    root = torch.linspace(math.sqrt(start), math.sqrt(end), timesteps, dtype=torch.float64)
    return root.square().mul(1000 / timesteps).clamp(0, 0.999)


BETAS: dict[str, Callable[[int], Tensor]] = {
    "cosine": cosine_betas,
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
}


def alpha_bar_table(name: str, timesteps: int) -> Tensor:
    """Return alpha_bar (T,), float64, decreasing, of a schedule in `BETAS`."""
    return torch.cumprod(1 - BETAS[name](timesteps), dim=0)


def table_schedule(alpha_bar: Tensor) -> Schedule:
    """Return the schedule that looks integer times up in `alpha_bar` (T,)."""
    copies = {alpha_bar.device: alpha_bar}  # one a device: a copy at each look-up would make the host wait

    def schedule(t: Tensor) -> Tensor:
        if t.device not in copies:
            copies[t.device] = alpha_bar.to(t.device, non_blocking=True)
        return copies[t.device].take(t)

    return schedule


def add_noise(x0: Tensor, noise: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Return x_t ~ q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I) (DFormer, Eq. 1).

    `x0` and the standard normal `noise` are (B, ...), `alpha_bar_t` is (B,), or (B, N), ..., or a scalar for all.
    """
    a, s = signal_and_noise_rates(alpha_bar_t, x0)
    return a * x0 + s * noise


def signal_and_noise_rates(alpha_bar_t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), (B,) or scalars, as `broadcast_to` does for `x` (B, ...).

    In float64, 1 - alpha_bar_t is exact near the signal.
    """
    return broadcast_to(alpha_bar_t.sqrt(), x), broadcast_to((1 - alpha_bar_t).sqrt(), x)


def broadcast_to(factor: Tensor, x: Tensor) -> Tensor:
    """Return `factor`, of the first dimensions of `x` or a scalar, with all dimensions of `x` and in its dtype."""
    return (
        factor.to(x.dtype).reshape(*factor.shape, *[1] * (x.ndim - factor.ndim)) if factor.ndim else factor.to(x.dtype)
    )
