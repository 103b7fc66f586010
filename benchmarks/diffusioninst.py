#!/usr/bin/env python3
"""DiffusionInst beside a plain build of the published way, with the same random weights, in turns.

python benchmarks/diffusioninst.py                                      # 800 x 1333, 500 boxes, 1 and 4 steps
python benchmarks/diffusioninst.py --dtype bfloat16
python benchmarks/diffusioninst.py --builds ours --boxes 100 300 500 1000 --steps 1
python benchmarks/diffusioninst.py --memory --json benchmarks/results/diffusioninst/memory.json

The plain build follows the description of the published inference: batch norms run on their own, boxes are sorted by
level and pooled level by level, the mask branch runs again in each step, masks of all detections are computed by
grouped convolutions over repeated features and upsampled to float maps of the whole image, which a loop then cuts to
the boxes. Both find the same but for ties, and how much differs is in the record. `cpu_ms` is of all threads: on a busy
machine, time on the clock depends on the others. --memory: what a training step keeps of the decoder for the gradient.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import BitMasks, Instances
from measure import environment, parser, peak_memory, report
from torch import Tensor
from torchvision.ops import batched_nms, roi_align

from dformer.d2.config import get_cfg, merge_config
from dformer.diffusion.sampler import ddim_step, sample, time_pairs
from dformer.layers.roi_align import box_levels
from dformer.models import roi_decoder
from dformer.models.diffusioninst import renew_boxes
from dformer.models.roi_decoder import BoxPrediction, apply_deltas
from dformer.signals.boxes import boxes_to_signal, signal_to_boxes
from dformer.utils import rng
from dformer.utils.memory import keep_pages

CONFIG = Path(__file__).resolve().parent.parent / "configs/coco/instance/diffusioninst_r50_5x.yaml"
OBJECTS = 10  # in each training image


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--builds", nargs="+", default=["plain", "ours"], choices=("plain", "ours"))
    arguments.add_argument("--sizes", nargs="+", default=["800x1333"], help="height x width of image and result")
    arguments.add_argument("--boxes", nargs="+", type=int, default=[500])
    arguments.add_argument("--steps", nargs="+", type=int, default=[1, 4])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--dtype", default="float32", help="of torch.autocast, such as bfloat16; of both builds")
    arguments.add_argument("--no-peak", action="store_true", help="leave out the peak memory, each in a fresh process")
    arguments.add_argument("--memory", action="store_true", help="measure what training keeps, instead of inference")
    arguments.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="config overrides")
    args = arguments.parse_args()
    keep_pages()
    if args.memory:
        report([kept_in_training(args.opts, args.sizes[0], n) for n in args.boxes], environment("cpu"), args.json)
        return
    rows: list[dict[str, Any]] = []
    for case in product(args.sizes, args.boxes, args.steps):
        rows += compare(args, *case)
    report(rows, {**environment("cpu"), "dtype": args.dtype}, args.json)


def build(opts: list[str]) -> tuple[Any, Any]:
    """Return our model with random weights, and a backbone of the same weights whose batch norms run on their own."""
    cfg = get_cfg()
    merge_config(cfg, str(CONFIG), ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", *opts])
    torch.manual_seed(0)
    model: Any = build_model(cfg).eval()
    backbone = build_backbone(cfg).eval()
    backbone.load_state_dict(model.backbone.state_dict())
    return model, backbone


def builds(model: Any, plain_backbone: Any) -> dict[str, Callable[[dict[str, Any], int, int], dict[str, Any]]]:
    """Return the two builds as functions of image, boxes and steps."""

    def ours(item: dict[str, Any], boxes: int, steps: int) -> dict[str, Any]:
        for step in model.steps([item], replace(model.request, proposals=boxes, steps=steps)):  # noqa: B007
            pass
        found = step.results[0]["instances"]
        return {"boxes": found.pred_boxes.tensor, "scores": found.scores, "masks": found.pred_masks}

    return {"ours": ours, "plain": partial(plain, model, plain_backbone)}


def image(size: str) -> dict[str, Any]:
    height, width = (int(side) for side in size.split("x"))
    pixels = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"image": pixels, "height": height, "width": width}


RUN: dict[str, Any] = {}  # in the process of a build: the function, the type of its autocast, what it found last


def prepare(name: str, dtype: str, opts: list[str]) -> None:
    """Build a model in this process."""
    keep_pages()
    RUN.update(build=builds(*build(opts))[name], dtype=dtype)


def run_once(size: str, boxes: int, steps: int) -> tuple[float, float]:
    """Return the seconds of all threads and those on the clock."""
    item, start = image(size), (time.process_time(), time.perf_counter())
    with torch.autocast("cpu", getattr(torch, RUN["dtype"]), enabled=RUN["dtype"] != "float32"):
        RUN["found"] = RUN["build"](item, boxes, steps)
    return time.process_time() - start[0], time.perf_counter() - start[1]


def found_last() -> dict[str, Any]:
    """Return what the last run found."""
    return RUN.pop("found")


def peak_of(size: str, boxes: int, steps: int) -> float:
    """Return the MiB that a run holds at most."""
    return peak_memory(partial(run_once, size, boxes, steps), "cpu")


def compare(args: Any, size: str, boxes: int, steps: int) -> Iterator[dict[str, Any]]:
    """Yield a row a build. Each has a process of its own: it does not depend on what the other leaves in memory."""
    case = size, boxes, steps

    def process(name: str) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"), prepare, (name, args.dtype, args.opts))

    with ExitStack() as stack:
        processes = {name: stack.enter_context(process(name)) for name in args.builds}
        order = [name for _ in range(args.rounds) for name in processes]
        turns = [(name, processes[name].submit(run_once, *case).result()) for name in order]
        found = {name: each.submit(found_last).result() for name, each in processes.items()}
    same, differing = agreement(**found) if len(found) == 2 else (None, None)
    for name in args.builds:
        peak = None
        if not args.no_peak:
            with process(name) as fresh:
                peak = fresh.submit(peak_of, *case).result()
        cpu, clock = (1e3 * median(x) for x in zip(*(times for build, times in turns if build == name), strict=True))
        row = {"build": name, "size": size, "boxes": boxes, "steps": steps, "instances": len(found[name]["scores"])}
        row |= {"cpu_ms": cpu, "ms": clock, "peak_mib": peak}
        yield row | {"same_instances": same, "differing_pixels": differing}


def agreement(ours: dict[str, Any], plain: dict[str, Any]) -> tuple[float, float]:
    """Return the share of our instances that the plain build finds, too, to a pixel, and of their pixels that differ.

    Random weights give many scores and overlaps that nearly tie, so that rounding decides about some.
    """
    distance, partner = torch.cdist(ours["boxes"], plain["boxes"], p=torch.inf).min(1)
    pairs = [(k, int(partner[k])) for k in (distance < 1).nonzero()[:, 0].tolist()]
    differing = [(ours["masks"][a] != plain["masks"][b]).double().mean().item() for a, b in pairs]
    return len(pairs) / len(distance), sum(differing) / len(differing)


@torch.no_grad()
def plain(model: Any, backbone: Any, item: dict[str, Any], num_boxes: int, steps: int) -> dict[str, Any]:
    """Find instances in the published way."""
    head, images = model.head, model.preprocess([item])
    maps = backbone(images.tensor)
    pyramid = list(head.fpn({name: maps[name] for name in ("res2", "res3", "res4", "res5")}).values())
    extent = model.extent([item])[:, None]
    generator = rng.generator("cpu", model.request.seed)
    scale, renewal = head.diffusion.scale, head.diffusion.renewal
    found: list[tuple[Tensor, ...]] = []
    mask_features = None

    def denoise(x_t: Tensor, t: Tensor, _: Any) -> tuple[Tensor, list[BoxPrediction]]:
        nonlocal mask_features
        mask_features = plain_mask_branch(head.mask_branch, pyramid)
        last = plain_decoder(head.roi_decoder, pyramid, signal_to_boxes(x_t, extent, scale), t)
        return boxes_to_signal(last.boxes, extent, scale), [last]

    def draw_noise() -> Tensor:
        return torch.randn(1, num_boxes, 4, generator=generator)

    times, schedule = time_pairs(head.diffusion.timesteps, steps), head.diffusion.alpha_bar
    renew = partial(renew_boxes, draw_noise=draw_noise, threshold=renewal)
    for k, step in enumerate(sample(denoise, draw_noise, times, schedule, partial(ddim_step, eta=1.0), renew)):
        if k == 0 or k + 1 < steps:
            logits, boxes, kernels = (x[0].float() for x in step.output[-1])
            scores, index = logits.sigmoid().flatten().topk(num_boxes)
            row = index // logits.shape[1]
            found.append((boxes[row], scores, index % logits.shape[1], kernels[row]))
    boxes, scores, classes, kernels = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = batched_nms(boxes, scores, classes, model.nms_threshold)[: model.top_k]
    height, width = item["image"].shape[1:]
    boxes = boxes[kept]
    boxes = torch.stack([boxes[:, k].clamp(0, (width, height)[k % 2]) for k in range(4)], dim=1)
    kept = kept[filled := (boxes[:, 2:] > boxes[:, :2]).all(1)]
    assert mask_features is not None
    masks = plain_masks(kernels[kept], mask_features, boxes[filled], (height, width))
    return {"boxes": boxes[filled], "scores": scores[kept], "masks": masks}


def plain_decoder(decoder: Any, pyramid: list[Tensor], boxes: Tensor, t: Tensor) -> BoxPrediction:
    embedding, queries = decoder.time_embedding(t), None
    for stage in decoder.stages:
        rois = torch.cat([torch.zeros(boxes.shape[1], 1), boxes[0]], dim=1)
        level = box_levels(boxes, len(pyramid))[0]
        regions = pyramid[0].new_zeros(len(rois), pyramid[0].shape[1], 7, 7)
        for k, x in enumerate(pyramid):
            rows = (level == k).nonzero()[:, 0]
            regions[rows] = roi_align(x, rois[rows], 7, 1 / 2 ** (k + 2), 2, aligned=True)
        regions = regions.flatten(2).mT[None].contiguous()
        queries = regions.mean(2) if queries is None else queries
        x = stage.self_attn(queries, queries.new_zeros(1))
        queries = stage.feed_forward(stage.norm(x + stage.dynamic_conv(x, regions)))
        scale, shift = stage.time_projection(embedding)
        modulated = queries * (1 + scale) + shift
        refined = stage.box_branch(modulated)
        boxes = apply_deltas(boxes, stage.box_embed(refined))
    return BoxPrediction(stage.class_embed(stage.class_branch(modulated)), boxes, stage.kernel_embed(refined))


def plain_mask_branch(branch: Any, pyramid: list[Tensor]) -> Tensor:
    first, *others = (refine(x) for refine, x in zip(branch.refine, pyramid, strict=False))
    for factor, x in zip((2, 4), others, strict=True):
        first = first + plain_upsample(x, factor)
    return branch.mask_features(branch.tower(first))


def plain_upsample(x: Tensor, factor: int) -> Tensor:
    """Upsample by padding, a resize with aligned corners, padding and cutting."""
    height, width = (factor * side for side in x.shape[2:])
    x = F.interpolate(F.pad(x, (0, 1, 0, 1), "replicate"), (height + 1, width + 1), mode="bilinear", align_corners=True)
    return F.pad(x, (factor // 2, 0, factor // 2, 0), "replicate")[..., :height, :width]


def plain_masks(kernels: Tensor, features: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    n, channels = len(kernels), features.shape[1]
    sizes = [channels**2, channels**2, channels, channels, channels, 1]
    w1, w2, w3, b1, b2, b3 = kernels.split(sizes, dim=1)
    x = features.repeat(1, n, 1, 1)  # (1, 8 n, h, w)
    for weight, bias, out in ((w1, b1, channels), (w2, b2, channels), (w3, b3, 1)):
        x = F.conv2d(x, weight.reshape(n * out, channels, 1, 1), bias.flatten(), groups=n)
        x = x.relu() if out > 1 else x
    probability = plain_upsample(x[0, :, None].sigmoid(), 4)[..., : size[0], : size[1]]  # (n, 1, H, W)
    probability = F.interpolate(probability, size, mode="bilinear", align_corners=False)[:, 0]
    masks = (probability > 0.5).float()
    cut = []
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        inside = torch.zeros(size, dtype=torch.int64)
        inside[top:bottom, left:right] = 1
        cut.append(mask * inside)
    return torch.stack(cut) > 0.5


def kept_in_training(opts: list[str], size: str, boxes: int) -> dict[str, Any]:
    """Measure what a training step keeps for the gradient, with and without recomputation of the dynamic layers."""
    model, _ = build([*opts, "MODEL.ROI_DECODER.NUM_PROPOSALS", str(boxes)])
    height, width = (int(side) for side in size.split("x"))
    masks = torch.zeros(OBJECTS, height, width, dtype=torch.bool)
    for k, mask in enumerate(masks):
        mask[k * height // 20 : (k + 8) * height // 20, k * width // 20 : (k + 6) * width // 20] = True
    found = Instances((height, width), gt_classes=torch.arange(OBJECTS), gt_masks=masks)
    found.gt_boxes = BitMasks(masks).get_bounding_boxes()
    batch = [{**image(size), "image_id": 0, "instances": found}]
    model.train()
    row: dict[str, Any] = {"size": size, "boxes": boxes, "objects": OBJECTS}
    for name, recomputed in (("recomputed", True), ("kept", False)):
        with dynamic_layers(recomputed), kept_bytes(model.head.roi_decoder) as kept:
            model(batch)
        row[f"decoder_{name}_mib"] = sum(kept.values()) / 2**20
    return row


@contextmanager
def dynamic_layers(recomputed: bool) -> Iterator[None]:
    """Run the decoder as it is, or with its dynamic layers' maps kept."""
    if recomputed:
        yield
        return
    with mock.patch.object(roi_decoder, "checkpoint", lambda function, *inputs, **_: function(*inputs)):
        yield


@contextmanager
def kept_bytes(decoder: Any) -> Iterator[dict[int, int]]:
    """Yield the bytes of each tensor that the decoder's forward keeps for the gradient, by address; no parameters."""
    parameters = {parameter.data_ptr() for parameter in decoder.parameters()}
    kept: dict[int, int] = {}
    tensors = []

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
            tensors.append(x)  # so that no other gets its address
        return x

    forward = decoder.forward

    def watched(*inputs: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            return forward(*inputs)

    with mock.patch.object(decoder, "forward", watched):
        yield kept


if __name__ == "__main__":
    main()
