"""What a denoiser may predict: x_0, the noise eps, or the velocity v; each from the others.

With a = sqrt(alpha_bar_t) and s = sqrt(1 - alpha_bar_t): x_t = a x_0 + s eps, and v = a eps - s x_0 (Salimans and
Ho 2022). All take x_t and a tensor of its shape, and alpha_bar_t in (0, 1).
"""

import math

from torch import Tensor


def eps_from_x0(x_t: Tensor, x0: Tensor, alpha_bar_t: float) -> Tensor:
    """The noise that turns `x0` into `x_t`."""
    return (x_t - math.sqrt(alpha_bar_t) * x0) / math.sqrt(1 - alpha_bar_t)


def x0_from_eps(x_t: Tensor, eps: Tensor, alpha_bar_t: float) -> Tensor:
    """The signal of which noise `eps` made `x_t`."""
    return (x_t - math.sqrt(1 - alpha_bar_t) * eps) / math.sqrt(alpha_bar_t)


def v_from_x0(x_t: Tensor, x0: Tensor, alpha_bar_t: float) -> Tensor:
    """The velocity at `x_t` towards `x0`."""
    return (math.sqrt(alpha_bar_t) * x_t - x0) / math.sqrt(1 - alpha_bar_t)


def x0_from_v(x_t: Tensor, v: Tensor, alpha_bar_t: float) -> Tensor:
    """The signal that velocity `v` at `x_t` points to."""
    return math.sqrt(alpha_bar_t) * x_t - math.sqrt(1 - alpha_bar_t) * v
