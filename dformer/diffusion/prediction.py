"""What a denoiser may predict: x_0, the noise eps, or the velocity v; each from the others.

With a = sqrt(alpha_bar_t) and s = sqrt(1 - alpha_bar_t): x_t = a x_0 + s eps, and v = a eps - s x_0 (Salimans and
Ho 2022). All functions take x_t (B, ...), a tensor of its shape, and alpha_bar_t in (0, 1): (B,), or a scalar for all.
"""

from torch import Tensor

from dformer.diffusion.schedule import signal_and_noise_rates


def eps_from_x0(x_t: Tensor, x0: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Return the noise that turns `x0` into `x_t`."""
    a, s = signal_and_noise_rates(alpha_bar_t, x_t)
    return (x_t - a * x0) / s


def x0_from_eps(x_t: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Return the signal from which noise `eps` made `x_t`."""
    a, s = signal_and_noise_rates(alpha_bar_t, x_t)
    return (x_t - s * eps) / a


def v_from_x0(x_t: Tensor, x0: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Return the velocity at `x_t` towards `x0`."""
    a, s = signal_and_noise_rates(alpha_bar_t, x_t)
    return (a * x_t - x0) / s


def x0_from_v(x_t: Tensor, v: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Return the signal that velocity `v` at `x_t` points to."""
    a, s = signal_and_noise_rates(alpha_bar_t, x_t)
    return a * x_t - s * v
