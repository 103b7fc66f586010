"""The diffusion against tensors of the published implementation."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dformer.diffusion.sampler import ddim_step, sample, time_pairs
from dformer.diffusion.schedule import alpha_bar_table, cosine_betas, table_schedule
from dformer.signals.masks import to_signal, to_unit

pytestmark = pytest.mark.golden


def test_cosine_schedule(golden_dir):
    golden = load_file(golden_dir / "cosine_schedule.safetensors")
    timesteps = len(golden["betas"])
    torch.testing.assert_close(cosine_betas(timesteps), golden["betas"], rtol=0, atol=1e-12)
    torch.testing.assert_close(alpha_bar_table("cosine", timesteps), golden["alphas_cumprod"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 4])
def test_ddim(golden_dir, steps):
    golden = load_file(golden_dir / f"ddim_{steps}_step.safetensors")
    scale = 0.1
    drawn = iter(range(steps))
    seen = []

    def denoise(x_t, t, x0_before):
        unit = to_unit(x_t, scale)
        seen.append((unit, t))
        size = [side // 4 for side in unit.shape[-2:]]
        quarter = F.interpolate(unit, size, mode="bilinear", align_corners=False)
        logits = 6 * (quarter - 0.5) + (t / 1000).cos().view(-1, 1, 1, 1)
        x0 = F.interpolate(logits.sigmoid(), unit.shape[-2:], mode="bilinear", align_corners=False)
        return to_signal(x0, scale), logits

    *_, last = sample(
        denoise,
        lambda: golden[f"noise.{next(drawn)}"],
        time_pairs(1000, steps),
        table_schedule(alpha_bar_table("cosine", 1000)),
        partial(ddim_step, eta=1.0),
    )
    for i, (unit, t) in enumerate(seen):
        assert torch.equal(golden[f"timestep.{i}"].to(t.dtype), t)
        torch.testing.assert_close(unit, golden[f"decoder_input.{i}"], rtol=0, atol=1e-4)
    torch.testing.assert_close(last.output, golden["pred_masks"], rtol=0, atol=1e-4)
    assert len(seen) == steps
