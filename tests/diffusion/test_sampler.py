"""Sampling steps, and what sampling converges to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dformer.diffusion.sampler import ddim_step, ddpm_step, sample, time_pairs
from dformer.diffusion.schedule import alpha_bar_schedule, q_sample


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_time_pairs_go_down_to_the_signal(timesteps, steps):
    if steps > timesteps:
        with pytest.raises(ValueError, match=f"1..{timesteps}, got {steps}"):
            time_pairs(timesteps, steps)
        return
    pairs = time_pairs(timesteps, steps)
    assert len(pairs) == steps and pairs[0][0] == timesteps - 1 and pairs[-1][1] == -1
    assert all(t > t_next for t, t_next in pairs)
    assert all(a[1] == b[0] for a, b in zip(pairs[:-1], pairs[1:], strict=True))


def test_published_times():
    assert time_pairs(1000, 4) == [(999, 749), (749, 499), (499, 249), (249, -1)]


@given(st.floats(0.05, 0.9), st.floats(0.05, 0.95), st.integers(0, 99))
def test_ddpm_is_ddim_with_eta_1(alpha_bar_t, ratio, seed):
    alpha_bar_next = alpha_bar_t + (1 - alpha_bar_t) * ratio * 0.99
    x_t, x0, noise = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(
        ddpm_step(x_t, x0, alpha_bar_t, alpha_bar_next, noise),
        ddim_step(x_t, x0, alpha_bar_t, alpha_bar_next, 1.0, noise),
    )


def test_deterministic_ddim_stays_on_the_path_of_its_noise():
    x0, eps, noise = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(ddim_step(q_sample(x0, eps, 0.2), x0, 0.2, 0.7, 0.0, noise), q_sample(x0, eps, 0.7))


@pytest.mark.parametrize(("steps", "eta"), [(1, 1.0), (5, 0.0), (5, 1.0), (50, 1.0)])
def test_a_perfect_denoiser_is_found_again(steps, eta):
    x0 = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)

    def draw_noise():
        return torch.randn(2, 3, generator=generator)

    taken = list(sample(lambda x_t, t: (x0, t), draw_noise, alpha_bar_schedule("cosine", 100), steps, eta))
    assert [step.output for step in taken] == [t for t, _ in time_pairs(100, steps)]
    assert torch.equal(taken[-1].x0, x0)
    if steps > 1:  # the nearer the signal, the nearer to x_0
        assert (taken[-1].x_t - x0).abs().mean() < (taken[0].x_t - x0).abs().mean()
