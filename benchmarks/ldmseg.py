#!/usr/bin/env python3
"""Measure LDMSeg's parts beside diffusers', or how well it completes masks.

python benchmarks/ldmseg.py parts --json benchmarks/results/ldmseg/parts_cpu.json
python benchmarks/ldmseg.py inpainting --weights model.pth --dataset shapes_val --json inpainting.json

parts: time (on a CPU, that of all threads) and memory of the U-Net by steps and pixels, and of what decodes latents,
with the same weights as diffusers' (pip install diffusers; without it, only ours are measured). --channels 320 640
1280 1280 is Stable Diffusion's width, 815.6 million parameters. diffusers decodes to images by Stable Diffusion's
decoder, ours to ids.

inpainting: blocks of B x B pixels of the annotation are dropped at random (LDMSeg, Fig. 9), and the rest is given.
Class-agnostic PQ is that of the whole map, of the dropped pixels alone, and of the same pixels where nothing is given.
A plot is written beside the record.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from measure import cpu_milliseconds, environment, medians, milliseconds, parser, peak_memory, report
from numpy.typing import NDArray
from panopticapi.evaluation import PQStat
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from torch import Tensor, nn

from dformer.d2.checkpoint.zoo import inference_config
from dformer.d2.data.datasets import get_records
from dformer.d2.engine.predictor import Predictor
from dformer.d2.modeling.meta_arch import LDMSeg
from dformer.data.images import read_image, read_panoptic_png
from dformer.diffusion.prediction import x0_from_eps
from dformer.diffusion.sampler import last_step, sample, time_pairs
from dformer.diffusion.schedule import alpha_bar_table, table_schedule
from dformer.metrics.panoptic import ONE_CLASS, count_segments, panoptic_quality
from dformer.models.unet.mask_autoencoder import MaskAutoencoderModel
from dformer.models.unet.unet2d import UNet2DConditionModel
from dformer.signals.bits import draw_ids
from dformer.utils import rng
from dformer.utils.errors import UserError, exit_on_user_error

ATTENTION = (True, True, True, False)
STRIDE = 8  # pixels of a cell of the latents
Run = Callable[[], Any]
Map = NDArray[np.int64]  # (H, W), numbers of segments from 1, 0 for none


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

    last = last_step(sample(denoise, lambda: inputs[:, :4], time_pairs(1000, steps), alpha_bar))
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


@torch.no_grad()
def measure_parts(args: argparse.Namespace) -> None:
    """Report time and memory of the U-Net and of the decoder."""
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
    timer, unit = (cpu_milliseconds, "cpu_ms") if args.device == "cpu" else (milliseconds, "ms")
    times = medians({key: partial(timer, run) for key, (run, _) in cases.items()}, args.rounds)
    rows = [
        {
            "part": part,
            "implementation": name,
            "pixels": f"{size} x {size}",
            "steps": steps or "-",
            unit: times[part, name, size, steps],
            "peak_mib": peak(run, args.device),
            "parameters_m": count / 1e6,
        }
        for (part, name, size, steps), (run, count) in cases.items()
    ]
    report(rows, environment(args.device), args.json)


def numbered(record: dict[str, Any], model: LDMSeg) -> Map:
    """Read an annotation; its segments are numbered from 1, and crowds are none.

    A model that was trained with random ids takes any numbers; one with ID_ORDER "grid" needs these.
    """
    ids = rgb2id(read_panoptic_png(record["pan_seg_file_name"]))
    numbers = np.zeros(ids.shape, np.int64)
    segments = [segment for segment in record["segments_info"] if not segment.get("iscrowd")]
    for number, segment in enumerate(segments, start=1):
        numbers[ids == segment["id"]] = number
    stuff = model.stuff_classes[[segment["category_id"] for segment in segments]]
    num_ids = model.head.mask_autoencoder.num_ids
    ids = draw_ids(torch.from_numpy(numbers), len(segments), num_ids, "grid", torch.Generator(), stuff)
    return np.concatenate([[0], ids.numpy()])[numbers]


def given_pixels(size: tuple[int, int], block: int, drop: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Draw which pixels are given (H, W): each block is dropped with probability `drop`."""
    rows, columns = (-(-side // block) for side in size)
    kept = generator.random((rows, columns)) >= drop
    return kept.repeat(block, 0).repeat(block, 1)[: size[0], : size[1]]


def quality(truths: Sequence[Map], predictions: Sequence[Map], folder: Path) -> float:
    """Return the class-agnostic PQ of maps; where the truth has no segment, predictions are not false."""
    counts = PQStat()
    for k, pair in enumerate(zip(truths, predictions, strict=True)):
        annotations = []
        for kind, numbers in zip(("truth", "predicted"), pair, strict=True):
            file = folder / kind / f"{k}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(id2rgb(numbers)).save(file)
            found, areas = np.unique(numbers[numbers > 0], return_counts=True)
            rows = zip(found.tolist(), areas.tolist(), strict=True)
            segments = [{"id": i, "category_id": 1, "iscrowd": 0, "area": area} for i, area in rows]
            annotations.append({"image_id": k, "file_name": file.name, "segments_info": segments})
        counts += count_segments(annotations[0], annotations[1], folder / "truth", folder / "predicted", ONE_CLASS)
    return panoptic_quality(counts, ONE_CLASS)["PQ"]


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw PQ against the share of dropped blocks, a line for each size of a block."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, title in zip(axes, ("pq", "pq_dropped"), ("whole map", "dropped pixels"), strict=True):
        for block in sorted({row["block"] for row in rows}):
            chosen = [row for row in rows if row["block"] == block]
            axis.plot([row["drop"] for row in chosen], [row[key] for row in chosen], "o-", label=f"{block} px")
        axis.axhline(rows[0]["pq_without"], color="grey", linestyle=":", label="nothing given")
        axis.set(title=title, xlabel="share of dropped blocks", ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("class-agnostic PQ")
    axes[1].legend(title="block")
    figure.savefig(file, dpi=120)


def measure_inpainting(args: argparse.Namespace) -> None:
    """Report PQ by the share and the size of dropped blocks."""
    if not args.weights or not args.dataset:
        raise UserError("inpainting needs --weights and --dataset")
    predictor = Predictor(inference_config(args.weights, None, args.opts))
    if not predictor.model.completes:
        raise UserError(f"{args.weights} is no model that completes masks; LDMSeg is")
    request = replace(predictor.model.request, tasks=("panoptic",), steps=args.steps[-1])
    records = get_records(args.dataset)[: args.images]
    images, truths = [read_image(r["file_name"]) for r in records], [numbered(r, predictor.model) for r in records]

    def completed(known: Sequence[NDArray[np.uint8] | None]) -> list[Map]:
        results = [predictor.predict([x], request=request, known=[k])[0] for x, k in zip(images, known, strict=True)]
        return [result["panoptic_seg"][0].cpu().numpy().astype(np.int64) for result in results]

    free = completed([None] * len(images))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        without = quality(truths, free, Path(folder))
        for block in args.blocks:
            for drop in args.drops:
                seeds = [np.random.default_rng(rng.seed("blocks", block, str(drop), k)) for k in range(len(images))]
                given = [given_pixels(t.shape, block, drop, g) for t, g in zip(truths, seeds, strict=True)]
                known = [(t * g).astype(np.uint8) for t, g in zip(truths, given, strict=True)]
                found = completed(known)
                hidden = [[m * ~g for m, g in zip(maps, given, strict=True)] for maps in (truths, found, free)]
                row = {"block": block, "drop": drop, "pq": quality(truths, found, Path(folder))}
                row["pq_dropped"] = quality(hidden[0], hidden[1], Path(folder))
                row["pq_dropped_without"] = quality(hidden[0], hidden[2], Path(folder))
                rows.append({**row, "pq_without": without})
    report(rows, environment(str(predictor.model.device)), args.json)
    if args.json:
        plot(rows, args.json.with_suffix(".png"))


@exit_on_user_error
def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("what", choices=["parts", "inpainting"])
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="sides of the image, pixels")
    arguments.add_argument("--steps", type=int, nargs="+", default=[1, 4], help="of sampling")
    arguments.add_argument("--channels", type=int, nargs=4, default=[64, 128, 256, 256], help="of the U-Net's levels")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--weights", help="of a model that completes masks")
    arguments.add_argument("--dataset", metavar="NAME")
    arguments.add_argument("--images", type=int, default=20)
    arguments.add_argument("--blocks", type=int, nargs="+", default=[8, 16, 32, 64])
    arguments.add_argument("--drops", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.9])
    arguments.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE")
    args = arguments.parse_args()
    (measure_parts if args.what == "parts" else measure_inpainting)(args)


if __name__ == "__main__":
    main()
