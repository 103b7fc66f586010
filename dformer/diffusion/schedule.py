"""Noise schedules t -> alpha_bar, and the forward process q(x_t | x_0).

Symbols: T timesteps; t in 0..T-1, 0 the least noise; beta_t the variance added at t;
alpha_bar_t = prod_{s<=t} (1 - beta_s).
Schedules are float64 vectors on the CPU; what is computed from them for a tensor takes that tensor's dtype.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def cosine_betas(timesteps: int, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Betas (T,) of the cosine schedule (Nichol and Dhariwal 2021, Eq. 17): alpha_bar ~ cos^2, offset s near t = 0."""
    u = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    f = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(0, max_beta)


def linear_betas(timesteps: int, start: float = 1e-4, end: float = 2e-2) -> Tensor:
    """Betas (T,) growing linearly (Ho et al. 2020, Sec. 4); the ends are for T = 1000 and scale with 1000 / T."""
    return torch.linspace(start, end, timesteps, dtype=torch.float64).mul(1000 / timesteps).clamp(0, 0.999)


def scaled_linear_betas(timesteps: int, start: float = 8.5e-4, end: float = 1.2e-2) -> Tensor:
    """Betas (T,) whose square roots grow linearly, as in latent diffusion (Rombach et al. 2022)."""
    root = torch.linspace(math.sqrt(start), math.sqrt(end), timesteps, dtype=torch.float64)
    return root.square().mul(1000 / timesteps).clamp(0, 0.999)


SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "cosine": cosine_betas,
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
}


def alpha_bar_schedule(name: str, timesteps: int) -> Tensor:
    """alpha_bar (T,), float64, decreasing from about 1 to about 0, of a schedule in `SCHEDULES`."""
    return torch.cumprod(1 - SCHEDULES[name](timesteps), dim=0)


def q_sample(x0: Tensor, noise: Tensor, alpha_bar_t: float | Tensor) -> Tensor:
    """x_t ~ q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I), `noise` standard normal (DFormer, Eq. 1)."""
    return alpha_bar_t**0.5 * x0 + (1 - alpha_bar_t) ** 0.5 * noise
