"""Sampling steps, and what sampling converges to."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dformer.diffusion.sampler import ddim_step, ddpm_step, sample, time_pairs
from dformer.diffusion.schedule import add_noise, alpha_bar_table, table_schedule

COSINE = table_schedule(alpha_bar_table("cosine", 100))


def normal(*shape, seed=0, **kwargs):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kwargs)


def drawing(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(*shape, generator=generator)


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_time_pairs_go_down_to_the_signal(timesteps, steps):
    if steps > timesteps:
        with pytest.raises(ValueError, match=f"1..{timesteps}.* {steps}"):
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
    alpha_bar_t = torch.tensor([alpha_bar_t, 0.5, 0.1], dtype=torch.float64)  # one time an image
    alpha_bar_next = alpha_bar_t + (1 - alpha_bar_t) * ratio * 0.99
    x_t, x0, noise = normal(3, 3, 40, seed=seed, dtype=torch.float64)
    torch.testing.assert_close(
        ddpm_step(x_t, x0, alpha_bar_t, alpha_bar_next, lambda: noise),
        ddim_step(x_t, x0, alpha_bar_t, alpha_bar_next, lambda: noise, eta=1.0),
    )


def test_deterministic_ddim_stays_on_the_path_of_its_noise():
    x0, eps = normal(2, 3, 40, dtype=torch.float64)
    t, t_next = torch.tensor([0.2, 0.1, 0.5]).double(), torch.tensor([0.7, 0.2, 0.6]).double()
    stepped = ddim_step(add_noise(x0, eps, t), x0, t, t_next, draw_noise=None)
    torch.testing.assert_close(stepped, add_noise(x0, eps, t_next))


@pytest.mark.parametrize(("steps", "eta"), [(1, 1.0), (5, 0.0), (5, 1.0), (50, 1.0)])
def test_a_perfect_denoiser_is_found_again(steps, eta):
    x0 = normal(2, 3)
    times = time_pairs(100, steps)
    step = partial(ddim_step, eta=eta)
    taken = list(sample(lambda x_t, t, before: (x0, t.tolist()), drawing(2, 3), times, COSINE, step))
    assert [(step.t, step.output) for step in taken] == [(t, [t, t]) for t, _ in times]
    assert torch.equal(taken[-1].x0, x0)
    if steps > 1:  # the nearer the signal, the nearer to x_0
        assert (taken[-1].x_t - x0).abs().mean() < (taken[0].x_t - x0).abs().mean()


def test_the_denoiser_gets_its_last_prediction():
    before = []

    def denoise(x_t, t, x0_before):
        before.append(x0_before)
        return x_t + 1, None

    taken = list(sample(denoise, drawing(2, 3), time_pairs(100, 3), COSINE))
    assert before[0] is None and all(x is step.x0 for x, step in zip(before[1:], taken[:-1], strict=True))


def test_continuous_and_asymmetric_times():
    """With a continuous schedule; a step may go further than to where the next one begins."""

    def alpha_bar(t):
        return (t.double() * math.pi / 2).cos() ** 2

    x0 = normal(1, 500)
    steps = list(sample(lambda x_t, t, _: (x0, None), drawing(1, 500), [(0.9, 0.5), (0.7, 0.1), (0.2, 0.0)], alpha_bar))
    assert [step.t for step in steps] == [0.9, 0.7, 0.2]
    # With eta 0 the noise is that of the first step.
    first = alpha_bar(torch.tensor(0.9))
    noise = (normal(1, 500, seed=1) - first.sqrt() * x0) / (1 - first).sqrt()
    second = add_noise(x0, noise, alpha_bar(torch.tensor([0.5])))
    torch.testing.assert_close(steps[1].x_t, second.float(), rtol=1e-4, atol=1e-4)


def test_rows_are_renewed_and_known_parts_pasted():
    known = normal(2, 4, seed=7)
    renewed = []

    def renew(x_next, step, t_next):
        renewed.append((step.t, t_next))
        return torch.where(torch.tensor([True, False, False, True]), known, x_next)

    steps = list(sample(lambda x_t, t, _: (0 * x_t, None), drawing(2, 4), time_pairs(100, 3), COSINE, renew=renew))
    assert renewed == time_pairs(100, 3)[:-1]
    assert all(torch.equal(step.x_t[:, [0, 3]], known[:, [0, 3]]) for step in steps[1:])
    assert not torch.equal(steps[0].x_t[:, [0, 3]], known[:, [0, 3]])
