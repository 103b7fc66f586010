#!/usr/bin/env python3
"""Measure LDMSeg's U-Net by steps and pixels, and what decodes latents, beside diffusers' with the same weights.

python benchmarks/ldmseg.py --sizes 256 512 --steps 1 4 --json benchmarks/results/ldmseg_cpu.json

Without diffusers (pip install diffusers), only ours are measured. --channels 320 640 1280 1280 is Stable Diffusion's
width (815.6 million parameters). diffusers decodes to images by Stable Diffusion's decoder, ours to ids by LDMSeg's.
"""

import multiprocessing
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from measure import environment, medians, milliseconds, parser, peak_memory, report
from torch import Tensor, nn

from dformer.diffusion.prediction import x0_from_eps
from dformer.diffusion.sampler import sample, time_pairs
from dformer.diffusion.schedule import alpha_bar_table, table_schedule
from dformer.models.unet.mask_autoencoder import MaskAutoencoderModel
from dformer.models.unet.unet2d import UNet2DConditionModel
from dformer.utils.errors import exit_on_user_error

ATTENTION = (True, True, True, False)
STRIDE = 8  # pixels of a cell of the latents
Run = Callable[[], Any]


def our_unet(channels: list[int]) -> UNet2DConditionModel:
    """Build the U-Net that denoises."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=12, out_channels=4, channels=channels, attention=ATTENTION, layers=2, heads=8
    )
    return unet.eval()


def their_unet(channels: list[int], weights: dict[str, Tensor]) -> nn.Module:
    """Build diffusers' U-Net without attention to a text, with the same weights."""
    from diffusers import UNet2DConditionModel as Theirs

    unet = Theirs(in_channels=12, out_channels=4, block_out_channels=channels, attention_head_dim=8)
    for module in unet.modules():
        if hasattr(module, "attn2"):
            module.attn2 = module.norm2 = None
    unet.load_state_dict(weights)
    return unet.eval()


def decoders() -> dict[str, tuple[Callable[[Tensor], Any], int]]:
    """Return what decodes latents, by implementation, and its number of parameters."""
    autoencoder = MaskAutoencoderModel(num_bits=7).eval()
    ours = lambda z: autoencoder.decode_at(z, (STRIDE * z.shape[2], STRIDE * z.shape[3])).argmax(1)  # noqa: E731
    found = {"dformer": (ours, sum(p.numel() for p in autoencoder.decoder.parameters()))}
    if find_spec("diffusers"):
        from diffusers import AutoencoderKL

        levels = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
        blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
        vae = AutoencoderKL(**levels, **blocks).eval()
        found["diffusers"] = (lambda z: vae.decode(z).sample, sum(p.numel() for p in vae.decoder.parameters()))
    return found


def denoised(unet: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, steps: int) -> Tensor:
    """Return the latents after so many steps."""
    alpha_bar = table_schedule(alpha_bar_table("scaled_linear", 1000))

    def denoise(x_t: Tensor, t: Tensor, before: Tensor | None) -> tuple[Tensor, None]:
        condition = torch.zeros_like(x_t) if before is None else before
        eps = unet(torch.cat([x_t, inputs[:, 4:8], condition], dim=1), t)
        return x0_from_eps(x_t, eps, alpha_bar(t)), None

    *_, last = sample(denoise, lambda: inputs[:, :4], time_pairs(1000, steps), alpha_bar)
    return last.x0


def peak(run: Run, device: str) -> float:
    """Return the memory of `run`, measured in a process of its own on a CPU."""
    if device == "cuda":
        return peak_memory(run, device)
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: send.send(peak_memory(run, device)))
    child.start()
    child.join()
    return float(receive.recv())


@exit_on_user_error
@torch.no_grad()
def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="sides of the image, pixels")
    arguments.add_argument("--steps", type=int, nargs="+", default=[1, 4])
    arguments.add_argument("--channels", type=int, nargs=4, default=[64, 128, 256, 256], help="of the U-Net's levels")
    arguments.add_argument("--rounds", type=int, default=3)
    args = arguments.parse_args()

    ours = our_unet(args.channels).to(args.device)
    unets: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {"dformer": (ours, 0)}
    if find_spec("diffusers"):
        theirs = their_unet(args.channels, ours.state_dict()).to(args.device)
        unets["diffusers"] = (lambda x, t: theirs(x, t, None).sample, 0)
    parameters = sum(p.numel() for p in ours.parameters())
    cases: dict[tuple[str, str, int, int], tuple[Run, int]] = {}
    for size in args.sizes:
        side = size // STRIDE
        inputs = torch.randn(1, 12, side, side, generator=torch.Generator().manual_seed(0)).to(args.device)
        for name, (unet, _) in unets.items():
            for steps in args.steps:
                cases["U-Net", name, size, steps] = partial(denoised, unet, inputs, steps), parameters
        for name, (decode, count) in decoders().items():
            cases["decoder", name, size, 0] = partial(decode, inputs[:, :4]), count
    times = medians({key: partial(milliseconds, run) for key, (run, _) in cases.items()}, args.rounds)
    rows = [
        {
            "part": part,
            "implementation": name,
            "pixels": f"{size} x {size}",
            "steps": steps or "-",
            "ms": times[part, name, size, steps],
            "peak_mib": peak(run, args.device),
            "parameters_m": count / 1e6,
        }
        for (part, name, size, steps), (run, count) in cases.items()
    ]
    report(rows, environment(args.device), args.json)


if __name__ == "__main__":
    main()
