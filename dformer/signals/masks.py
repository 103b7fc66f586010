"""Ground-truth masks as a signal: pad, shuffle, encode, scale, add noise (DFormer, Sec. 3.3.1 and Alg. 1).

Shapes: G ground-truth masks, N noisy masks, image H x W, noise h x w = H/stride x W/stride, rounded up.
Units: a mask is in [0, 1]; the signal is the mask mapped to [-b, b], b the signal scale.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dformer.diffusion.schedule import add_noise, broadcast_to


def to_signal(masks: Tensor, scale: float) -> Tensor:
    """Map masks in [0, 1] to the signal in [-b, b]."""
    return (2 * masks - 1) * scale


def to_unit(signal: Tensor, scale: float) -> Tensor:
    """Map a signal to masks in [0, 1]; values outside [-b, b] are clamped."""
    return (signal.clamp(-scale, scale) / scale + 1) / 2


def log_odds(x_t: Tensor, alpha_bar_t: Tensor, scale: float) -> Tensor:
    """Compute how much more likely each value of x_t is inside a mask than outside, as a logarithm.

    x_t is normal around +-b sqrt(alpha_bar_t), so this is linear in it.

    Args:
        x_t: (B, N, h, w), of binary masks at times t.
        alpha_bar_t: (B, N), or (B,).
        scale: b.
    """
    factor = 2 * scale * alpha_bar_t.sqrt() / (1 - alpha_bar_t).clamp(min=1e-6)
    return broadcast_to(factor, x_t) * x_t


def downsample(masks: Tensor, stride: int) -> Tensor:
    """Average masks (G, H, W) bool over cells of stride x stride pixels: (G, h, w) float32 in [0, 1]."""
    return F.avg_pool2d(masks[:, None].float(), stride, ceil_mode=True)[:, 0] if stride > 1 else masks.float()


def pad_and_shuffle(masks: Tensor, num_masks: int, generator: torch.Generator) -> Tensor:
    """Return N masks (N, h, w) in random order: all G with random binary ones added, or a random subset of G > N."""
    missing = num_masks - len(masks)
    if missing > 0:
        random = torch.rand(missing, *masks.shape[1:], generator=generator, device=masks.device) > 0.5
        masks = torch.cat([masks, random.to(masks.dtype)])
    return masks[torch.randperm(len(masks), generator=generator, device=masks.device)[:num_masks]]


def encode_random(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Replace values inside a mask by uniform ones in [0.5, 1], outside in [0, 0.5] (random shuffling, Sec. 3.3.1)."""
    noise = torch.rand(masks.shape, generator=generator, device=masks.device) / 2
    return torch.where(masks > 0.5, 1 - noise, noise)


def noise_masks(
    masks: Tensor, *, alpha_bar_t: Tensor, scale: float, encoding: str, generator: torch.Generator
) -> Tensor:
    """Encode, scale and noise masks (N, h, w) in [0, 1]: the noisy signal (N, h, w), not clamped.

    Args:
        alpha_bar_t: a scalar tensor on the masks' device.
        encoding: "binary" or "random".
    """
    if encoding == "random":
        masks = encode_random(masks, generator)
    noise = torch.randn(masks.shape, generator=generator, device=masks.device)
    return add_noise(to_signal(masks, scale), noise, alpha_bar_t)
