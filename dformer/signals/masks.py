"""Ground-truth masks as a signal: pad, shuffle, encode, scale, corrupt (DFormer, Sec. 3.3.1 and Alg. 1).

Shapes: G ground-truth masks, N noisy masks, image H x W, noise h x w = H/stride x W/stride, rounded up.
Units: a mask is in [0, 1]; the signal is the mask mapped to [-b, b], b the signal scale.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dformer.diffusion.schedule import q_sample


def to_signal(masks: Tensor, scale: float) -> Tensor:
    """[0, 1] -> [-b, b]."""
    return (2 * masks - 1) * scale


def to_unit(signal: Tensor, scale: float) -> Tensor:
    """[-b, b] -> [0, 1]; what lies outside is clamped."""
    return (signal.clamp(-scale, scale) / scale + 1) / 2


def downsample(masks: Tensor, stride: int) -> Tensor:
    """(G, H, W) bool -> (G, h, w) float32: the share of each stride x stride cell that is inside."""
    return F.avg_pool2d(masks[:, None].float(), stride, ceil_mode=True)[:, 0] if stride > 1 else masks.float()


def pad_and_shuffle(masks: Tensor, num_masks: int, generator: torch.Generator) -> Tensor:
    """(G, h, w) in [0, 1] -> (N, h, w): random binary masks are added, or a random subset is kept; in random order."""
    missing = num_masks - len(masks)
    if missing > 0:
        random = torch.rand(missing, *masks.shape[1:], generator=generator, device=masks.device) > 0.5
        masks = torch.cat([masks, random.to(masks.dtype)])
    return masks[torch.randperm(len(masks), generator=generator, device=masks.device)[:num_masks]]


def encode_random(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Inside values become uniform in [0.5, 1], outside ones in [0, 0.5] (random shuffling, Sec. 3.3.1)."""
    noise = torch.rand(masks.shape, generator=generator, device=masks.device) / 2
    return torch.where(masks > 0.5, 1 - noise, noise)


def corrupt(
    gt_masks: Tensor,
    *,
    num_masks: int,
    alpha_bar_t: float | Tensor,
    scale: float,
    encoding: str,
    stride: int,
    generator: torch.Generator,
) -> Tensor:
    """Noisy masks of one image at one time (Alg. 1).

    Args:
        gt_masks: (G, H, W) bool on the padded canvas, any G. With G > N a random subset of N is noised.
        alpha_bar_t: of the time, a number or a scalar tensor.
        encoding: "binary" or "random".
        stride: image pixels a noise pixel.

    Returns:
        (N, h, w) float32 in [0, 1].
    """
    masks = pad_and_shuffle(downsample(gt_masks, stride), num_masks, generator)
    return diffuse(masks, alpha_bar_t=alpha_bar_t, scale=scale, encoding=encoding, generator=generator)


def diffuse(
    masks: Tensor, *, alpha_bar_t: float | Tensor, scale: float, encoding: str, generator: torch.Generator
) -> Tensor:
    """Masks (N, h, w) in [0, 1] encoded, scaled, noised and brought back to [0, 1]; arguments as of `corrupt`."""
    if encoding == "random":
        masks = encode_random(masks, generator)
    noise = torch.randn(masks.shape, generator=generator, device=masks.device)
    return to_unit(q_sample(to_signal(masks, scale), noise, alpha_bar_t), scale)
