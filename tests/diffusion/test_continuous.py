"""Continuous schedules and asymmetric steps, against the published Pix2Seq-D too."""

import pytest
import torch
from safetensors.torch import load_file

from dformer.diffusion import prediction
from dformer.diffusion.continuous import asymmetric_time_pairs, continuous_schedule
from dformer.diffusion.sampler import ddim_step, ddpm_step, sample
from dformer.diffusion.schedule import add_noise

NAMES = ["cosine", "linear", "cosine@0.2,1,2", "sigmoid@-3,3,1", "log@1,100,false", "log@1,100,true"]


@pytest.mark.parametrize("name", NAMES)
def test_falls_from_signal_to_noise(name):
    alpha_bar = continuous_schedule(name)(torch.linspace(0, 1, 50).view(5, 10))
    assert alpha_bar.shape == (5, 10) and alpha_bar.dtype == torch.float64
    assert (alpha_bar.flatten().diff() < 0).all()
    assert alpha_bar[0, 0] > 0.999 and 0 <= alpha_bar[-1, -1] < 1e-8


@pytest.mark.parametrize("name", ["cosin", "cosine@1", "sigmoid", "sigmoid@a,b,c", "linear@0,1,1"])
def test_unknown_schedules(name):
    with pytest.raises(ValueError, match=name):
        continuous_schedule(name)


def test_times():
    assert asymmetric_time_pairs(4) == [(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]
    assert asymmetric_time_pairs(4, 1.5) == [(1.0, 0.375), (0.75, 0.125), (0.5, 0.0), (0.25, 0.0)]
    assert asymmetric_time_pairs(1, 2) == [(1.0, 0.0)]
    with pytest.raises(ValueError, match="0"):
        asymmetric_time_pairs(0)


@pytest.mark.golden
def test_golden_schedules(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_schedules.safetensors")
    for key in golden.keys() - {"t"}:
        name = key.removeprefix("gamma.").replace("simple_linear", "linear")
        torch.testing.assert_close(continuous_schedule(name)(golden["t"]).float(), golden[key], rtol=0, atol=1e-6)


@pytest.mark.golden
def test_golden_predictions(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_predictions.safetensors")
    alpha_bar = continuous_schedule("cosine")(golden["forward.t"])
    torch.testing.assert_close(alpha_bar.float(), golden["forward.gamma"].flatten(), rtol=0, atol=1e-6)
    noisy = add_noise(golden["forward.x0"], golden["forward.noise"], alpha_bar)
    close(noisy, golden["forward.x_t"])

    x_t, output, scale = golden["x_t"], golden["denoise_out"], golden["config.b_scale"].item()
    gamma = golden["gamma"].flatten().double()
    to_x0 = {"x": lambda x, out, _: out, "eps": prediction.x0_from_eps, "v": prediction.x0_from_v}
    for kind, convert in to_x0.items():
        for clip in ("clip", "free"):
            x0 = convert(x_t, output, gamma)
            x0 = x0.clamp(-scale, scale) if clip == "clip" else x0
            close(x0, golden[f"{kind}.{clip}.truncate.data_pred"])
            close(prediction.eps_from_x0(x_t, x0, gamma), golden[f"{kind}.{clip}.truncate.noise_pred"])


def close(value, expected, tolerance=1e-4):
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))


@pytest.mark.golden
def test_golden_steps(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_steps.safetensors")
    x_t, x0, noise = golden["x_t"], golden["data_pred"], golden["noise"]
    # float32 says 1.2e-7 for 1 - gamma(0), which is 1e-7, so the published gamma is taken
    now, after = (golden[f"gamma_{which}"].flatten().double() for which in ("now", "next"))
    close(ddim_step(x_t, x0, now, after, lambda: noise), golden["ddim"])
    for name, large in (("ddpm", True), ("ddpm@small", False)):
        value = ddpm_step(x_t, x0, now, after, lambda: noise, large)
        close(value[1:], golden[name][1:])
        close(value[:1], golden[name][:1], 2e-3)  # from t = 1


@pytest.mark.golden
@pytest.mark.parametrize("run", range(10))
def test_golden_sampling(golden_dir, run):
    golden = load_file(golden_dir / "pix2seqd_sampling.safetensors")
    mine = {k.removeprefix(f"run{run}."): v for k, v in golden.items() if k.startswith(f"run{run}.")}
    scale = golden["config.b_scale"].item()
    config = {k.removeprefix("config."): v.item() for k, v in mine.items() if k.startswith("config.")}
    schedule, drawn, seen, before = continuous_schedule("cosine"), iter(range(99)), [], []

    def denoise(x_t, t, x0_before):
        alpha_bar = schedule(t)
        s = torch.zeros_like(x_t)
        if config["self_condition"] and x0_before is not None:
            s = x0_before if config["self_condition"] == 1 else prediction.eps_from_x0(*before[-1])
        y = torch.tanh(5 * x_t + torch.cos(3 * alpha_bar.float()).view(-1, 1, 1, 1) + 2 * s)
        x0 = [
            lambda: 0.15 * y,
            lambda: prediction.x0_from_eps(x_t, x_t + 0.5 * y, alpha_bar),
            lambda: prediction.x0_from_v(x_t, y, alpha_bar),
        ][config["prediction"]]().clamp(-scale, scale)
        seen.append(torch.cat([x_t, s], dim=-1) if config["self_condition"] else x_t)
        before.append((x_t, x0, alpha_bar))
        return x0, None

    def step(*arguments):
        if not config["ddpm"]:
            return ddim_step(*arguments)
        return ddpm_step(*arguments, not config["small_variance"])

    times = asymmetric_time_pairs(config["iterations"], config["td"])
    steps = list(sample(denoise, lambda: mine[f"noise.{next(drawn)}"], times, schedule, step))
    assert len(steps) == config["iterations"]
    tolerance = 2e-3 if config["ddpm"] else 1e-4
    for j, (taken, (t, t_next)) in enumerate(zip(steps, times, strict=True)):
        close(schedule(torch.tensor([t, t_next])).float()[0], mine[f"gamma.{j}"][0], 1e-6)
        close(schedule(torch.tensor(t_next)).float(), mine[f"state.{j}.gamma_next"][0], 1e-6)
        close(seen[j], mine[f"input.{j}"], tolerance)
        close(taken.x0, mine[f"state.{j}.data_pred"], tolerance)
    close(steps[-1].x0, mine["output"], tolerance)
