"""Names of the published DFormer: Mask2Former's, and the time embedding and the noise schedule."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from dformer.diffusion.schedule import cosine_betas
from dformer.weights.names import Table
from dformer.weights.published import mask2former
from dformer.weights.published.system import PublishedSystem

NAMES: Table = [
    ("sem_seg_head.predictor.time_mlp.1", "head.time_modulation.embed.0"),
    ("sem_seg_head.predictor.time_mlp.3", "head.time_modulation.embed.2"),
    ("sem_seg_head.predictor.block_time_mlp.1", "head.time_modulation.project.1"),
    *mask2former.NAMES,
]


def buffers(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute Mask2Former's buffers, and the forms of the cosine schedule that are saved (DDPM, Eq. 6 and 7)."""
    beta = cosine_betas(1000)
    alpha_bar = torch.cumprod(1 - beta, dim=0)
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    variance = beta * (1 - before) / (1 - alpha_bar)
    return mask2former.window_indices(published) | {
        "betas": beta,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alpha_bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alpha_bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / alpha_bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alpha_bar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": beta * before.sqrt() / (1 - alpha_bar),
        "posterior_mean_coef2": (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar),
    }


DFORMER = PublishedSystem(
    name="DFormer",
    theirs="sem_seg_head.predictor.time_mlp.",
    ours="head.time_modulation.",
    names=NAMES,
    dropped=[*mask2former.DROPPED, (r"betas|\w*alphas_cumprod\w*|posterior_\w+", "the noise schedule is a setting")],
    buffers=buffers,
    configs=partial(mask2former.find_configs, "dformer"),
    settings={"DIFFUSION.SCHEDULE": "cosine", "DIFFUSION.TIMESTEPS": 1000},
)
