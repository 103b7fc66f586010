"""Noise schedules, the forward process and the parameterisations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dformer.diffusion import prediction
from dformer.diffusion.schedule import SCHEDULES, alpha_bar_schedule, q_sample

ALPHA_BAR = st.floats(1e-4, 1 - 1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("timesteps", [10, 1000])
def test_alpha_bar_falls_from_signal_to_noise(name, timesteps):
    alpha_bar = alpha_bar_schedule(name, timesteps)
    assert alpha_bar.shape == (timesteps,) and alpha_bar.dtype == torch.float64
    assert (alpha_bar.diff() < 0).all()
    assert alpha_bar[0] > 0.8 and 0 < alpha_bar[-1] < 0.02


@given(ALPHA_BAR, st.integers(0, 99))
def test_q_sample_has_the_moments_of_eq_1(alpha_bar, seed):
    generator = torch.Generator().manual_seed(seed)
    x_t = q_sample(torch.full((20000,), 2.0), torch.randn(20000, generator=generator), alpha_bar)
    assert abs(x_t.mean().item() - 2 * alpha_bar**0.5) < 0.05
    assert abs(x_t.var().item() - (1 - alpha_bar)) < 0.05


@given(ALPHA_BAR, st.integers(0, 99))
def test_parameterisations_agree(alpha_bar, seed):
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    x_t = q_sample(x0, eps, alpha_bar)
    v = alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x0
    for value, expected in (
        (prediction.eps_from_x0(x_t, x0, alpha_bar), eps),
        (prediction.x0_from_eps(x_t, eps, alpha_bar), x0),
        (prediction.v_from_x0(x_t, x0, alpha_bar), v),
        (prediction.x0_from_v(x_t, v, alpha_bar), x0),
    ):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
