#!/usr/bin/env python3
"""Does a model that denoises masks listen to its input?

python datasets/shapes.py
python benchmarks/conditioning.py [--weights dformer://shapes] [--plot FILE] [--json FILE]

Slots are noised from the true masks of an image: all of them, half of them, or all after they were shifted, dilated,
replaced by their boxes or by polygons of four points; the other slots are noise. What a slot answers is compared with
the true mask: the mean IoU over all objects, and the share with the right class. (A model that ignores its input gives
the IoU of a random object.) Then the model starts from noise, with several steps.

A model with denoising assignment also completes (half of the segments are given; PQ of the other half), gives several
answers (how well their agreement tells right segments from wrong ones), and, with --other, makes the segments of
another model better.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from torch import Tensor
from tqdm import tqdm

from dformer.d2.checkpoint.zoo import inference_config
from dformer.d2.data import get_metadata, num_classes, register_custom
from dformer.d2.data.datasets import get_records
from dformer.d2.engine.predictor import Predictor
from dformer.d2.evaluation.evaluate import evaluate, headline
from dformer.d2.modeling.meta_arch.query_segmenter import QueryOutput
from dformer.data.annotations import annotation_reader
from dformer.data.images import read_image
from dformer.metrics.calibration import segment_calibration
from dformer.metrics.segments import MatchedSegment, quality_by_size
from dformer.models.dformer import DFormerHead
from dformer.postprocess.ensemble import merge_samples
from dformer.postprocess.view import View
from dformer.signals.hints import FREE, Hints, fill_boxes, given_hints, mask_iou
from dformer.signals.masks import downsample
from dformer.utils import rng
from dformer.utils.errors import UserError, exit_on_user_error
from dformer.utils.files import write_json

TIMES = (0, 200, 300, 400, 600, 800, 999)  # of 1000
REFINE_TIME = 300  # at which coarse masks are given in the record's `refine`
STEPS = (1, 2, 4, 8)
SHIFT = DILATION = 4  # pixels
SAMPLES = 8  # answers whose agreement is measured
INPUTS = ("all", "half", "shifted", "dilated", "boxes", "polygons")


class Image(NamedTuple):
    """Hold an image's `memory`, encoded once, its classes (G,) and masks (G, H, W) bool, and the size of its canvas."""

    memory: Any
    classes: Tensor
    masks: Tensor
    canvas: tuple[int, int]
    pixels: NDArray[np.uint8]


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
        classes, masks, _ = reader(record, size).targets(T.TransformList([]), size)
        if classes:
            item = {"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}
            images = model.preprocess([item]).tensor
            memory = model.head.encode(model.features(images))
            yield Image(memory, torch.tensor(classes), masks, (images.shape[2], images.shape[3]), pixels)


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


def match(found: tuple[Tensor, list[dict[str, Any]]], classes: Tensor, masks: Tensor) -> list[MatchedSegment]:
    """Return the G true segments in their order, each with what matches it, and then the found ones that match none."""
    ids, segments = found
    shown = torch.stack([ids == s["id"] for s in segments]) if segments else masks[:0]
    overlap = mask_iou(masks, shown) > 0.5
    rows = []
    for index, category in enumerate(classes.tolist()):
        (match, *_) = [*overlap[index].nonzero()[:, 0].tolist(), None]
        area = int(masks[index].sum())
        if match is None:
            rows.append(MatchedSegment(category, None, 0.0, None, area))
        else:
            iou = mask_iou(masks[index][None], shown[match][None]).item()
            rows.append(MatchedSegment(category, segments[match]["category_id"], iou, segments[match]["score"], area))
    wrong = [s for s, is_right in zip(segments, overlap.any(0).tolist(), strict=True) if not is_right]
    return rows + [MatchedSegment(None, s["category_id"], 0.0, s["score"], s["area"]) for s in wrong]


def quality(segments: Sequence[MatchedSegment], predictor: Predictor) -> float:
    """Return PQ: segments of all images, those that match an object of another class counted as missed and false."""
    names = enumerate(predictor.class_names)
    categories = {k: {"id": k, "name": name, "isthing": k in predictor.things} for k, name in names}
    return quality_by_size(segments, categories)["all"]["PQ"]


def measure_completion(predictor: Predictor, images: Sequence[Image]) -> dict[str, float]:
    """Return PQ of every other object: when nothing is given, and when the objects between are."""
    alone, completed = list[MatchedSegment](), list[MatchedSegment]()
    for image in tqdm(images, "complete", leave=False, disable=None):
        ids = 2 * torch.arange(1, len(image.masks[::2]) + 1)
        known = (ids[:, None, None] * image.masks[::2]).amax(0)
        (free,) = predictor.predict([image.pixels])
        (found,) = predictor.predict([image.pixels], known=[known.numpy().astype(np.uint8)])
        matched, count = match(free["panoptic_seg"], image.classes, image.masks), len(image.masks)
        alone += matched[1:count:2] + matched[count:]
        labels, segments = found["panoptic_seg"]
        assert (labels[known > 0] == known[known > 0]).all()
        new = labels, [s for s in segments if s["id"] not in ids]
        completed += match(new, image.classes[1::2], image.masks[1::2])
    return {"alone": quality(alone, predictor), "given half": quality(completed, predictor)}


def measure_agreement(predictor: Predictor, images: Sequence[Image]) -> dict[str, Any]:
    """Compare one answer and its class scores with what `SAMPLES` answers agree on, and their agreement as scores."""
    rows: dict[str, list[MatchedSegment]] = {"one answer": [], "agreement": []}
    for image in tqdm(images, "ensemble", leave=False, disable=None):
        requests = [replace(predictor.model.request, seed=seed) for seed in range(SAMPLES)]
        found = [predictor.predict([image.pixels], request=request)[0]["panoptic_seg"] for request in requests]
        ids, segments, _ = merge_samples([(labels.numpy(), shown) for labels, shown in found])
        rows["one answer"] += match(found[0], image.classes, image.masks)
        rows["agreement"] += match((torch.from_numpy(ids), segments), image.classes, image.masks)
    return {
        name: {
            "PQ": quality(segments, predictor),
            "AUROC": auroc([(s.score, s.iou > 0.5) for s in segments if s.score is not None]),
            "ECE": segment_calibration(segments).error,
        }
        for name, segments in rows.items()
    }


def auroc(scored: Sequence[tuple[float, bool]]) -> float:
    """Return how often a right one has a higher score than a wrong one; equal scores count half."""
    right, wrong = ([score for score, is_right in scored if is_right == side] for side in (True, False))
    return float(mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong)))


@torch.no_grad()
def measure_other(predictor: Predictor, other: Predictor, images: Sequence[Image]) -> dict[str, float]:
    """Return PQ of another model's segments, and of what this one makes of them, against the time of the hints."""
    model, rows = predictor.model, dict[str, list[MatchedSegment]]()
    for image in tqdm(images, "other", leave=False, disable=None):
        (found,) = other.predict([image.pixels])
        labels, segments = found["panoptic_seg"]
        rows.setdefault("input", []).extend(match((labels, segments), image.classes, image.masks))
        size = labels.shape[0], labels.shape[1]
        shown = [
            F.pad(labels == s["id"], (0, image.canvas[1] - size[1], 0, image.canvas[0] - size[0])) for s in segments
        ]
        cells = downsample(
            torch.stack(shown) if shown else torch.zeros(0, *image.canvas) > 0, model.head.diffusion.stride
        )
        num_slots, *_ = model.head.noise_shape(*image.canvas)
        for t in TIMES[1:-1]:
            generator = rng.generator("cpu", 0)
            noise = torch.randn(1, num_slots, *cells.shape[1:], generator=generator)
            time = t * model.head.diffusion.timesteps // 1000
            (step,) = model.head.sample_hints(
                image.memory, given_hints([cells], num_slots), lambda noise=noise: noise, [time], 0.0
            )
            output = QueryOutput(model, model.request, step.output, None, [])
            result = output.result(View(image.canvas, size, size))["panoptic_seg"]
            rows.setdefault(str(t), []).extend(match(result, image.classes, image.masks))
    return {key: quality(segments, predictor) for key, segments in rows.items()}


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
    options.add_argument("--other", metavar="FILE", help="checkpoint of a model whose segments are made better")
    options.add_argument("--plot", type=Path, metavar="FILE", help="write a plot of IoU against t")
    options.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    args = options.parse_args()
    cfg = inference_config(args.weights, None, args.opts)
    cfg.DATASETS.TEST = (args.dataset,)
    register_custom(cfg)
    predictor = Predictor(cfg)
    if not isinstance(predictor.model.head, DFormerHead):
        raise UserError(f"{args.weights}: MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; give a DFormer")
    images = list(load_images(predictor, args.dataset, args.images))
    slots = measure_slots(predictor.model.head, images)
    steps = measure_steps(cfg)
    results = record(slots, steps, cfg)
    report(slots, {}, None)
    if predictor.model.completes:
        results["complete"] = measure_completion(predictor, images)
        results["ensemble"] = measure_agreement(predictor, images)
        report([results["complete"]], {}, None)
        report([{"score": name} | row for name, row in results["ensemble"].items()], {}, None)
        if args.other:
            results["other"] = measure_other(predictor, Predictor(inference_config(args.other, None, [])), images)
            report([results["other"]], {}, None)
    report(steps, environment("cpu"), None)
    if args.plot:
        draw(slots, args.plot)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, results | {"weights": args.weights, **environment("cpu")})


if __name__ == "__main__":
    main()
