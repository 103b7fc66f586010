#!/usr/bin/env python3
"""Does a model that denoises masks listen to its input?

python datasets/shapes.py
python benchmarks/conditioning.py [--weights dformer://shapes] [--plot FILE] [--json FILE]

Slots are noised from the true masks of an image: all of them, half of them, or all after they were shifted, dilated,
replaced by their boxes or by polygons of four points; the other slots are noise. What a slot answers is compared with
the true mask: the mean IoU over all objects, and the share with the right class. (A model that ignores its input gives
the IoU of a random object.) Then the model starts from noise, with several steps.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from measure import environment, parser, report
from torch import Tensor
from tqdm import tqdm

from dformer.d2.checkpoint.zoo import inference_config
from dformer.d2.data import get_metadata, num_classes, register_custom
from dformer.d2.data.datasets import get_records
from dformer.d2.engine.predictor import Predictor
from dformer.d2.evaluation.evaluate import evaluate, headline
from dformer.data.annotations import annotation_reader
from dformer.data.images import read_image
from dformer.models.dformer import DFormerHead
from dformer.signals.hints import FREE, Hints, fill_boxes, mask_iou
from dformer.signals.masks import downsample
from dformer.utils import rng
from dformer.utils.errors import UserError, exit_on_user_error
from dformer.utils.files import write_json

TIMES = (0, 200, 300, 400, 600, 800, 999)  # of 1000
REFINE_TIME = 300  # at which coarse masks are given in the record's `refine`
STEPS = (1, 2, 4, 8)
SHIFT = DILATION = 4  # pixels
INPUTS = ("all", "half", "shifted", "dilated", "boxes", "polygons")


class Image(NamedTuple):
    """Hold an image's `memory`, encoded once, its classes (G,) and masks (G, H, W) bool, and the size of its canvas."""

    memory: Any
    classes: Tensor
    masks: Tensor
    canvas: tuple[int, int]


def coarsen(masks: Tensor, kind: str) -> Tensor:
    """Return masks (G, H, W) bool as a user might give them, of one of `INPUTS`."""
    if kind == "shifted":
        return F.pad(masks, (SHIFT, 0, SHIFT, 0))[:, :-SHIFT, :-SHIFT]
    if kind == "dilated":
        return F.max_pool2d(masks[:, None].float(), 2 * DILATION + 1, 1, DILATION)[:, 0] > 0
    if kind == "boxes":
        return fill_boxes(masks.float()) > 0
    if kind == "polygons":
        drawn = np.zeros(masks.shape, np.uint8)
        for canvas, mask in zip(drawn, masks.numpy(), strict=True):
            corners = cv2.boxPoints(cv2.minAreaRect(np.argwhere(mask)[:, ::-1].astype(np.float32)))
            cv2.fillConvexPoly(canvas, corners.round().astype(np.int32), 1)
        return torch.from_numpy(drawn) > 0
    return masks


@torch.no_grad()
def load_images(predictor: Predictor, name: str, limit: int) -> Iterator[Image]:
    """Yield the first images of a data set that have an object, encoded."""
    model, task = predictor.model, predictor.task
    reader = annotation_reader(task, num_classes(name, task), get_metadata(name).get("ignore_label", 255))
    for record in get_records(name)[:limit]:
        pixels = read_image(record["file_name"])
        size = pixels.shape[0], pixels.shape[1]
        classes, masks = reader(record, size).targets(T.TransformList([]), size)
        if classes:
            item = {"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}
            images = model.preprocess([item]).tensor
            memory = model.head.encode(model.features(images))
            yield Image(memory, torch.tensor(classes), masks, (images.shape[2], images.shape[3]))


@torch.no_grad()
def follow_slots(head: DFormerHead, image: Image, given: Tensor, t: int) -> tuple[list[float], list[float]]:
    """Return for each given mask (M, H, W) bool the IoU of its slot with the true mask, and whether the class is right.

    Args:
        given: of the first M objects of the image.
        t: time, 0..T-1.
    """
    generator = rng.generator("cpu", 0)
    num_slots, *_ = head.noise_shape(*image.canvas)
    truth, given = image.masks[: len(given)][:num_slots], given[:num_slots]
    slots = torch.randperm(num_slots, generator=generator)[: len(given)]
    height, width = (canvas - side for canvas, side in zip(image.canvas, given.shape[1:], strict=True))
    cells = downsample(F.pad(given, (0, width, 0, height)), head.diffusion.stride)
    masks = cells.new_zeros(num_slots, *cells.shape[1:]).index_copy(0, slots, cells)
    owner = torch.full((num_slots,), FREE).index_copy(0, slots, torch.arange(len(slots)))
    hints = Hints(masks[None], owner[None])
    noise = torch.randn(hints.masks.shape, generator=generator)
    (step,) = head.sample_hints(image.memory, hints, lambda: noise, [t], 0.0)
    prediction = step.output[-1]
    found = F.interpolate(prediction.masks.float(), image.canvas, mode="bilinear")[0, slots] > 0
    overlap = mask_iou(found[:, : truth.shape[1], : truth.shape[2]], truth).diagonal()
    right = prediction.logits[0, slots, :-1].argmax(1) == image.classes[: len(slots)]
    return overlap.tolist(), right.float().tolist()


def measure_slots(head: DFormerHead, images: Sequence[Image]) -> list[dict[str, Any]]:
    """Return a row for each input and time: IoU of input and answer with the truth, and the share of right classes."""
    rows = []
    for kind in INPUTS:
        inputs = [coarsen(image.masks[:: 2 if kind == "half" else 1], kind) for image in images]
        chosen = [image._replace(masks=image.masks[::2], classes=image.classes[::2]) for image in images]
        shown = chosen if kind == "half" else images
        before = [mask_iou(a, b.masks).diagonal() for a, b in zip(inputs, shown, strict=True)]
        for time in tqdm(TIMES, kind, leave=False, disable=None):
            t = time * head.diffusion.timesteps // 1000
            pairs = [follow_slots(head, image, given, t) for image, given in zip(shown, inputs, strict=True)]
            overlaps, right = ([x for part in parts for x in part] for parts in zip(*pairs, strict=True))
            rows.append(
                {
                    "input": kind,
                    "t": t,
                    "input IoU": torch.cat(before).mean().item(),
                    "slot IoU": float(np.mean(overlaps)),
                    "class accuracy": float(np.mean(right)),
                }
            )
    return rows


def measure_steps(cfg: CfgNode) -> list[dict[str, Any]]:
    """Return PQ from noise for each of `STEPS` and eta 0 and 1."""
    rows = []
    for eta in (0.0, 1.0):
        for steps in STEPS if eta else STEPS[1:]:  # one step has no eta
            cfg = cfg.clone()
            cfg.defrost()
            cfg.DIFFUSION.SAMPLING_STEPS, cfg.DIFFUSION.ETA, cfg.TEST.TASKS = steps, eta, ("panoptic",)
            with tempfile.TemporaryDirectory() as cfg.OUTPUT_DIR:
                (results,) = evaluate(cfg, Predictor(cfg).model).values()
            rows.append({"steps": steps, "eta": eta, **headline(results)})
    return rows


def record(slots: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]], cfg: CfgNode) -> dict[str, Any]:
    """Return the figures by name: of all true masks against t, PQ against steps, and coarse masks made better."""
    true = {str(row["t"]): row for row in slots if row["input"] == "all"}
    time = REFINE_TIME * cfg.DIFFUSION.TIMESTEPS // 1000
    coarse = {row["input"]: row for row in slots if row["t"] == time and row["input"] not in ("all", "half")}
    return {
        "slot_iou": {t: row["slot IoU"] for t, row in true.items()},
        "class_accuracy": {t: row["class accuracy"] for t, row in true.items()},
        "pq": {str(row["steps"]): row["PQ"] for row in steps if row["eta"] == 1},
        "refine": {kind: {"input": row["input IoU"], "output": row["slot IoU"]} for kind, row in coarse.items()},
        "slots": list(slots),
        "steps": list(steps),
    }


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Plot the slots' IoU with the truth against the time, a curve an input."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for kind in INPUTS:
        found = [row for row in rows if row["input"] == kind]
        axes.plot([row["t"] for row in found], [row["slot IoU"] for row in found], marker="o", label=kind)
    axes.set(xlabel="t", ylabel="IoU of a slot's answer with its true mask", ylim=(0, 1))
    axes.legend(title="slots noised from")
    figure.savefig(file, dpi=120)


@exit_on_user_error
def main() -> None:
    options = parser(__doc__)
    options.add_argument("--weights", metavar="FILE", default="dformer://shapes", help="checkpoint of a DFormer")
    options.add_argument("--dataset", metavar="NAME", default="shapes_val", help="data set to test on")
    options.add_argument("--images", type=int, default=100, help="at most so many, for the slots")
    options.add_argument("--plot", type=Path, metavar="FILE", help="write a plot of IoU against t")
    options.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    args = options.parse_args()
    cfg = inference_config(args.weights, None, args.opts)
    cfg.DATASETS.TEST = (args.dataset,)
    register_custom(cfg)
    predictor = Predictor(cfg)
    if not isinstance(predictor.model.head, DFormerHead):
        raise UserError(f"{args.weights}: MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; give a DFormer")
    slots = measure_slots(predictor.model.head, list(load_images(predictor, args.dataset, args.images)))
    steps = measure_steps(cfg)
    report(slots, {}, None)
    report(steps, environment("cpu"), None)
    if args.plot:
        draw(slots, args.plot)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, record(slots, steps, cfg) | {"weights": args.weights, **environment("cpu")})


if __name__ == "__main__":
    main()
