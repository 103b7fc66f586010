"""Noise schedules alpha_bar(t) of a continuous time t in [0, 1], and their sampling times.

As in Pix2Seq-D (Chen et al. 2023), a schedule is named "cosine", "linear", or with its parameters, such as
"cosine@0.2,1,1" (see `continuous_schedule`).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dformer.diffusion.schedule import Schedule

MIN_ALPHA_BAR = 1e-9  # of the schedules with parameters


def cosine(t: Tensor) -> Tensor:
    """Return the cosine schedule as published, with small offsets at both ends (Pix2Seq-D, Alg. 1)."""
    return ((t.double() + 2e-4) / 1.00025 * math.pi / 2).cos() ** 2


def linear(t: Tensor) -> Tensor:
    """Return 1 - t."""
    return 1 - t.double()


def _stretch(curve: Callable[[Tensor], Tensor], start: float, end: float) -> Schedule:
    """The part start..end of a falling curve, shifted and scaled to fall from 1 to 0."""
    first, last = curve(torch.tensor([start, end], dtype=torch.float64)).tolist()

    def schedule(t: Tensor) -> Tensor:
        value = curve(start + t.double() * (end - start))
        return ((value - last) / (first - last)).clamp(MIN_ALPHA_BAR, 1)

    return schedule


def cosine_part(start: float, end: float, tau: float) -> Schedule:
    """Return the part start..end of cos(pi/2 t)^(2 tau) (Chen 2023, "On the importance of noise scheduling")."""
    return _stretch(lambda u: (u * math.pi / 2).cos() ** (2 * tau), start, end)


def sigmoid_part(start: float, end: float, tau: float) -> Schedule:
    """Return the part start..end of sigmoid(-t / tau) (Chen 2023, "On the importance of noise scheduling")."""
    return _stretch(lambda u: (-u / tau).sigmoid(), start, end)


def log_part(start: float, end: float, reverse: bool) -> Schedule:
    """Return the logarithm's part start..end, which falls fast near the signal, or near the noise if `reverse`."""
    falling = _stretch(torch.log, start, end)
    return (lambda t: 1 - falling(1 - t.double())) if reverse else falling


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "linear": linear}
PARTS: dict[str, Callable[..., Schedule]] = {"cosine": cosine_part, "sigmoid": sigmoid_part, "log": log_part}


def continuous_schedule(name: str) -> Schedule:
    """Return the schedule of that name.

    Args:
        name: "cosine", "linear", "cosine@start,end,tau", "sigmoid@start,end,tau" or "log@start,end,reverse",
            reverse being "true" or "false".

    Raises:
        ValueError: there is no such schedule.
    """
    kind, at, parameters = name.partition("@")
    try:
        return PARTS[kind](*map(_parameter, parameters.split(","))) if at else SCHEDULES[name]
    except (KeyError, TypeError, ValueError) as error:
        known = f"{', '.join(SCHEDULES)} and, with @ and three parameters, {', '.join(PARTS)}"
        raise ValueError(f'there is no continuous schedule "{name}", only {known}') from error


def _parameter(text: str) -> float | bool:
    return text == "true" if text in ("true", "false") else float(text)


def asymmetric_time_pairs(steps: int, time_difference: float = 0.0) -> list[tuple[float, float]]:
    """Return pairs (t, t_next) from 1 down to 0, whose t_next is nearer to the signal (Analog Bits, Alg. 2).

    t_i = 1 - i/S, and t_next = 1 - (i + 1 + td)/S, at least 0, while the next pair begins at t_{i+1}: the denoiser gets
    less noise than its time says, which makes up for the first steps' errors.
    """
    if steps < 1:
        raise ValueError(f"sampling steps must be at least 1, got {steps}")
    return [(1 - i / steps, max(1 - (i + 1 + time_difference) / steps, 0.0)) for i in range(steps)]
