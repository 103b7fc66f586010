"""Annotations turned into the outputs that a perfect model would give, and a small data set to work out by hand."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data.datasets import register_coco_panoptic
from detectron2.structures import Boxes, Instances
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from pycocotools import mask as rle

from dformer.d2.config import get_cfg
from dformer.d2.evaluation import build_evaluators
from dformer.visualize import Segment, panoptic_segments

Results = dict[str, dict[str, float]]


def read_segments(record: dict[str, Any]) -> list[Segment]:
    """Return the segments of a record of Detectron2's panoptic data sets."""
    with Image.open(record["pan_seg_file_name"]) as picture:
        return list(panoptic_segments(rgb2id(np.array(picture)), record["segments_info"]))


def panoptic_output(segments: Iterable[Segment], size: tuple[int, int]) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Return the model output `panoptic_seg`; scores are 1 unless segments have one."""
    ids, infos = torch.zeros(size, dtype=torch.int32), []
    for i, s in enumerate(segments, start=1):
        ids[torch.from_numpy(s.mask)] = i
        infos.append({"id": i, "category_id": s.category_id, "isthing": s.is_thing, "score": s.score or 1.0})
    return ids, infos


def instances_output(segments: Sequence[Segment], size: tuple[int, int], scores: Sequence[float] = ()) -> Instances:
    """Return the model output `instances`; scores are 1 unless given or segments have one."""
    return Instances(
        size,
        pred_masks=torch.tensor(np.array([s.mask for s in segments], dtype=bool).reshape(-1, *size)),
        pred_boxes=Boxes(torch.zeros(len(segments), 4)),
        scores=torch.tensor(scores or [s.score or 1.0 for s in segments]),
        pred_classes=torch.tensor([s.category_id for s in segments], dtype=torch.int64),
    )


def semantic_output(segments: Iterable[Segment], size: tuple[int, int], num_classes: int) -> torch.Tensor:
    """Return the model output `sem_seg`, class 0 where there is no segment."""
    labels = torch.zeros(size, dtype=torch.int64)
    for segment in segments:
        labels[torch.from_numpy(segment.mask)] = segment.category_id
    return torch.zeros(num_classes, *size, dtype=torch.uint8).scatter_(0, labels[None], 1)


def perfect_output(segments: Sequence[Segment], size: tuple[int, int], num_classes: int) -> dict[str, Any]:
    """Return all three outputs. No model predicts crowd regions as segments, but their pixels have a class."""
    visible = [s for s in segments if not s.is_crowd]
    return {
        "panoptic_seg": panoptic_output(visible, size),
        "instances": instances_output([s for s in visible if s.is_thing], size),
        "sem_seg": semantic_output(segments, size, num_classes),
    }


def evaluate(
    name: str,
    pairs: Iterable[tuple[dict[str, Any], dict[str, Any]]],
    folder: Path,
    tasks: Sequence[str] = ("panoptic", "instance", "semantic"),
    more: bool = False,
) -> Results:
    """Evaluate (model input, model output) pairs on the data set `name`; `more` adds boundary and class-agnostic PQ."""
    cfg = get_cfg()
    cfg.TEST.TASKS = tuple(tasks)
    cfg.TEST.BOUNDARY = cfg.TEST.CLASS_AGNOSTIC = more
    evaluators = build_evaluators(cfg, name, folder)
    evaluators.reset()
    for image, output in pairs:
        evaluators.process([image], [output])
    return evaluators.evaluate()


def perturb(segments: list[Segment], rng: np.random.Generator) -> list[Segment]:
    """Segments dropped, mistaken for each other's class, moved, and squares added, crowds and void included."""
    kinds = sorted({(s.category_id, s.is_thing) for s in segments})
    size = segments[0].mask.shape
    owner = np.full(size, -1)
    classes: list[tuple[int, bool]] = []
    for segment in segments:
        if rng.random() < 0.15:
            continue
        shift = rng.integers(-4, 5, size=2) if rng.random() < 0.5 else (0, 0)
        owner[np.roll(segment.mask, shift, (0, 1))] = len(classes)
        classes.append(
            kinds[rng.integers(len(kinds))] if rng.random() < 0.2 else (segment.category_id, segment.is_thing)
        )
    for _ in range(5):
        row, column = rng.integers(size[0] - 40), rng.integers(size[1] - 40)
        owner[row : row + 40, column : column + 40] = len(classes)
        classes.append(kinds[rng.integers(len(kinds))])
    masks = [owner == i for i in range(len(classes))]
    return [Segment(m, k, is_thing=thing) for m, (k, thing) in zip(masks, classes, strict=True) if m.any()]


# The small data set: two things and two stuff classes, ids with gaps, images of 20 x 40 pixels.
SIZE = (20, 40)
CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 7, "name": "dog", "isthing": 1},
    {"id": 20, "name": "sky", "isthing": 0},
    {"id": 21, "name": "sea", "isthing": 0},
]
CAT, DOG, SKY, SEA = range(4)


def block(category_id: int, row: int, column: int, is_crowd: bool = False) -> Segment:
    """Return a segment of 10 x 10 pixels."""
    mask = np.zeros(SIZE, bool)
    mask[row : row + 10, column : column + 10] = True
    return Segment(mask, category_id, is_thing=category_id in (CAT, DOG), is_crowd=is_crowd)


def rest(category_id: int, *others: Segment) -> Segment:
    """Return a segment of all other pixels."""
    return Segment(~np.any([s.mask for s in others], axis=0), category_id, is_thing=category_id in (CAT, DOG))


def write_dataset(name: str, folder: Path, images: Sequence[Sequence[Segment]]) -> list[dict[str, Any]]:
    """Write and register annotations of `images` in COCO's layout; return the model inputs, whose files are empty."""
    (folder / "panoptic").mkdir(parents=True)
    inputs: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for image_id, segments in enumerate(images, start=1):
        file_name = f"{image_id:06}.png"
        ids = np.zeros(SIZE, np.int64)
        info: list[dict[str, Any]] = []
        for i, segment in enumerate(segments, start=1):
            category_id, area = CATEGORIES[segment.category_id]["id"], int(segment.mask.sum())
            annotation = {"id": 70000 * i, "category_id": category_id, "iscrowd": int(segment.is_crowd), "area": area}
            ids[segment.mask] = annotation["id"]
            info.append(annotation)
            if segment.is_thing:
                mask = rle.encode(np.asfortranarray(segment.mask, np.uint8))
                mask["counts"] = mask["counts"].decode()
                # counted from 0: an id that pycocotools alone would take for "not found"
                instances.append({**annotation, "id": len(instances), "image_id": image_id, "segmentation": mask})
        Image.fromarray(id2rgb(ids)).save(folder / "panoptic" / file_name)
        (folder / f"{image_id:06}.jpg").touch()
        panoptic.append({"image_id": image_id, "file_name": file_name, "segments_info": info})
        inputs.append({"file_name": f"{image_id:06}.jpg", "image_id": image_id, "height": SIZE[0], "width": SIZE[1]})
    listed = [{"id": image["image_id"], **{k: image[k] for k in ("file_name", "height", "width")}} for image in inputs]
    for kind, annotations, categories in (("panoptic", panoptic, CATEGORIES), ("instances", instances, CATEGORIES[:2])):
        content = {"images": listed, "annotations": annotations, "categories": categories}
        (folder / f"{kind}.json").write_text(json.dumps(content))
    register(name, folder)
    return inputs


def register(name: str, folder: Path) -> None:
    """Register the annotations that `write_dataset` wrote to `folder`."""
    names, ids = ([c[key] for c in CATEGORIES] for key in ("name", "id"))
    metadata = {
        "thing_classes": names,
        "stuff_classes": names,
        "thing_dataset_id_to_contiguous_id": {ids[k]: k for k in (CAT, DOG)},
        "stuff_dataset_id_to_contiguous_id": {ids[k]: k for k in (SKY, SEA)},
    }
    files = (str(folder / file) for file in ("panoptic", "panoptic.json", "instances.json"))
    register_coco_panoptic(name, metadata, str(folder), *files)


# Its images: a cat and a dog, a cat, a dog; and what a poor model predicts: a shifted cat, no dog, a cat for a dog.
CAT_SEGMENT, DOG_SEGMENT, MOVED_CAT = block(CAT, 5, 5), block(DOG, 5, 25), block(CAT, 6, 6)
PETS = [
    [CAT_SEGMENT, DOG_SEGMENT, rest(SKY, CAT_SEGMENT, DOG_SEGMENT)],
    [CAT_SEGMENT, rest(SEA, CAT_SEGMENT)],
    [DOG_SEGMENT, rest(SKY, DOG_SEGMENT)],
]
PREDICTED_PETS = [
    [MOVED_CAT, rest(SKY, MOVED_CAT)],
    [CAT_SEGMENT, rest(SEA, CAT_SEGMENT)],
    [block(CAT, 5, 25), rest(SKY, DOG_SEGMENT)],
]


def poor_outputs() -> list[dict[str, Any]]:
    """Return the model outputs of `PREDICTED_PETS`."""
    return [perfect_output(segments, SIZE, len(CATEGORIES)) for segments in PREDICTED_PETS]
