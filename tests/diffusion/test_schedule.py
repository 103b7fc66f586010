"""Noise schedules, the forward process and the parameterisations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dformer.diffusion import prediction
from dformer.diffusion.prediction import x0_from_eps, x0_from_v
from dformer.diffusion.sampler import ddim_step, time_pairs
from dformer.diffusion.schedule import BETAS, add_noise, alpha_bar_table, scaled_linear_betas, table_schedule

ALPHA_BAR = st.floats(1e-4, 1 - 1e-4)


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("timesteps", [10, 1000])
def test_alpha_bar_falls_from_signal_to_noise(name, timesteps):
    alpha_bar = alpha_bar_table(name, timesteps)
    assert alpha_bar.shape == (timesteps,) and alpha_bar.dtype == torch.float64
    assert (alpha_bar.diff() < 0).all()
    assert alpha_bar[0] > 0.8 and 0 < alpha_bar[-1] < 0.02


def test_a_table_is_looked_up_for_times_of_any_shape():
    table = alpha_bar_table("cosine", 10)
    schedule = table_schedule(table)
    assert torch.equal(schedule(torch.tensor([[3, 9], [0, 3]])), table[[3, 9, 0, 3]].view(2, 2))
    assert schedule(torch.tensor(4)) == table[4]


@given(ALPHA_BAR, st.integers(0, 99))
def test_noise_has_the_moments_of_eq_1(alpha_bar, seed):
    noise = torch.randn(2, 20000, generator=torch.Generator().manual_seed(seed))
    x_t = add_noise(torch.full((2, 20000), 2.0), noise, torch.tensor([alpha_bar, 0.5]))
    for x, a in zip(x_t, (alpha_bar, 0.5), strict=True):
        assert abs(x.mean().item() - 2 * a**0.5) < 0.05
        assert abs(x.var().item() - (1 - a)) < 0.05


@given(ALPHA_BAR, st.integers(0, 99))
def test_parameterisations_agree(alpha_bar, seed):
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 2, 50, generator=generator, dtype=torch.float64)
    alpha_bar = torch.tensor([alpha_bar, 0.3], dtype=torch.float64)  # one time an image
    x_t = add_noise(x0, eps, alpha_bar)
    v = alpha_bar.sqrt()[:, None] * eps - (1 - alpha_bar).sqrt()[:, None] * x0
    for value, expected in (
        (prediction.eps_from_x0(x_t, x0, alpha_bar), eps),
        (prediction.x0_from_eps(x_t, eps, alpha_bar), x0),
        (prediction.v_from_x0(x_t, x0, alpha_bar), v),
        (prediction.x0_from_v(x_t, v, alpha_bar), x0),
    ):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.golden
def test_golden_ldmseg_schedule(golden_dir):
    golden = load_file(golden_dir / "ldmseg_schedule.safetensors")
    alpha_bar = alpha_bar_table("scaled_linear", 1000)

    def close(actual, expected, atol=1e-6):
        torch.testing.assert_close(actual.float(), expected, rtol=0, atol=atol)

    close(scaled_linear_betas(1000), golden["betas"])
    close(alpha_bar, golden["alphas_cumprod"])
    close(alpha_bar_table("linear", 1000), golden["other.linear"])
    close(alpha_bar_table("cosine", 1000), golden["other.squaredcos_cap_v2"])
    for steps in sorted(int(key.split(".")[1]) for key in golden if key.startswith("timesteps.")):
        times = [t for t, _ in time_pairs(1000, steps)]
        if 1000 % steps == 0:
            assert times == golden[f"timesteps.{steps}"].tolist()
        else:  # published times then begin below 999; ours with pure noise
            assert times[0] == 999
    t, x0, noise = (golden[f"noise.{key}"] for key in ("t", "x0", "noise"))
    noisy = add_noise(x0, noise, alpha_bar[t])
    close(noisy, golden["noise.noisy"], 1e-5)
    close(x0_from_eps(golden["noise.noisy"], noise, alpha_bar[t]), golden["noise.removed"], 1e-4)
    conversions = {"epsilon": x0_from_eps, "sample": lambda x_t, x0, _: x0, "v_prediction": x0_from_v}
    for name, to_x0 in conversions.items():
        for t in (999, 749, 499, 249):
            step = {key: golden[f"step.{name}.{t}.{key}"] for key in ("sample", "output", "x0", "prev_sample")}
            x0 = to_x0(step["sample"], step["output"], alpha_bar[t])
            torch.testing.assert_close(x0, step["x0"], rtol=1e-5, atol=1e-4)
            if t > 249:
                after = ddim_step(step["sample"], step["x0"], alpha_bar[t], alpha_bar[t - 250], torch.rand)
                torch.testing.assert_close(after, step["prev_sample"], rtol=1e-5, atol=1e-4)
