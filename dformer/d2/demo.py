"""Pictures of results for image files, and one JSON file of the segments.

`segments.json`: {"task", "weights", "images": [{"file", "picture", "height", "width", "segments": [...]}]}, a segment:
{"id", "category_id", "category", "isthing", "score", "area", "bbox", "segmentation"}. Category ids are the model's
class ids (from 0). "area" is in pixels of the image, "bbox" is [x, y, width, height], "segmentation" COCO's run-length
encoding, of the image's size too. "score" is in [0, 1], and null for semantic results, which have none.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from tqdm import tqdm

from dformer.d2.data import read_image
from dformer.d2.evaluation.output import write_json
from dformer.d2.predictor import Predictor
from dformer.errors import UserError
from dformer.visualize import draw_instances, draw_panoptic, draw_semantic

TASKS = ("panoptic", "instance", "semantic")
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2", ".avif"}
INSTANCE_CONFIDENCE = 0.5

# Results of larger images are computed and drawn at this size, as 100 masks of a 12 megapixel photograph take 5 GB,
# several times over. The network sees less anyway, about one megapixel.
MAX_PIXELS = 1920 * 1080

Array = NDArray[Any]
Segment = tuple[dict[str, Any], NDArray[np.bool_]]  # its entries in the JSON file, as far as known, and its mask
Size = tuple[int, int]  # height, width


def segment_files(
    cfg: CfgNode,
    inputs: Sequence[str],
    output: str | Path,
    task: str | None = None,
    confidence: float | None = None,
) -> list[str]:
    """Segment image files; write a picture of each, and `segments.json`, to the folder `output`.

    Pictures appear whole, one by one, and the JSON file at the end. Inputs are never overwritten.

    Args:
        cfg: config of the model, its trained weights in MODEL.WEIGHTS.
        inputs: files, folders (for the images that lie in them) and patterns ("dir/*.jpg").
        task: "panoptic", "instance" or "semantic"; by default INPUT.TASK, for which the model was trained.
        confidence: segments of a lower score are left out, 0 to 1. By default TEST.OBJECT_THRESHOLD for panoptic
            results and 0.5 for instances.

    Returns:
        What could not be read and why, a sentence each; empty if all went well.

    Raises:
        UserError: an argument or the config is wrong, the weights do not fit, or `output` cannot be written to.
    """
    task = task or cfg.INPUT.TASK
    _check(task, confidence)
    files, problems = find_images(inputs)
    if not files:
        return problems
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.TASKS = (task,)
    if task == "panoptic" and confidence is not None:
        cfg.TEST.OBJECT_THRESHOLD = confidence
    predictor = Predictor(cfg)
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {output} cannot be made: {error.strerror}") from error
    records = []
    progress = tqdm(files, unit="image", disable=len(files) == 1)
    for file, picture_file in zip(progress, picture_files(files, output), strict=True):
        try:
            image = read_image(file)
        except UserError as error:
            problems.append(str(error))
            continue
        height, width = image.shape[:2]
        size = _limited(height, width)
        result = predictor([image], [size])[0]
        if task == "instance":
            threshold = INSTANCE_CONFIDENCE if confidence is None else confidence
            result["instances"] = result["instances"][result["instances"].scores >= threshold]
        segments, picture = draw_result(task, _resized(image, size), result, predictor.class_names)
        _save(picture, picture_file)
        records.append(
            {
                "file": str(file),
                "picture": picture_file.name,
                "height": height,
                "width": width,
                "segments": [_record(*segment, (height, width), predictor.class_names) for segment in segments],
            }
        )
    write_json(output / "segments.json", {"task": task, "weights": cfg.MODEL.WEIGHTS, "images": records})
    return problems


def draw_result(task: str, image: Array, result: dict[str, Any], class_names: list[str]) -> tuple[list[Segment], Array]:
    """The segments of a model's result for a task, and a picture of them on the image (H, W, 3), RGB."""
    return _RESULTS[task](image, result, class_names)


def find_images(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files that `inputs` (files, folders, patterns) stand for, each once, and what was not found.

    Raises:
        UserError: an input is a URL.
    """
    found: dict[Path, Path] = {}  # by the file itself, however it is written
    problems = []
    for name in inputs:
        if "://" in name:
            raise UserError(f"{name} is a URL; nothing is fetched here: download the image and give its file")
        path = Path(name)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
            missing = f"folder {name} holds no images ({', '.join(sorted(SUFFIXES))})"
        elif path.exists() or not glob.has_magic(name):
            files, missing = [path], ""
        else:
            files = sorted(Path(match) for match in glob.glob(name, recursive=True) if os.path.isfile(match))
            missing = f"no file matches {name}"
        if not files:
            problems.append(missing)
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values()), problems


def picture_files(files: Sequence[Path], output: Path) -> Iterator[Path]:
    """Where the picture of each of `files` goes: `<output>/<name>.png`, numbered where that is taken or is an input."""
    inputs = {str(file.resolve()).casefold() for file in files}
    taken: set[str] = set()
    for file in files:
        number, picture = 1, output / f"{file.stem}.png"
        while str(picture.resolve()).casefold() in inputs | taken:
            number += 1
            picture = output / f"{file.stem}-{number}.png"
        taken.add(str(picture.resolve()).casefold())
        yield picture


def _check(task: str, confidence: float | None) -> None:
    if task not in TASKS:
        raise UserError(f'task "{task}" does not exist; choose one of {", ".join(TASKS)}')
    if confidence is not None and task == "semantic":
        raise UserError("semantic results have no scores, so that there is no confidence to choose")
    if confidence is not None and not 0 <= confidence <= 1:
        raise UserError(f"the confidence must be in 0..1, got {confidence:g}")


def _panoptic(image: Array, result: dict[str, Any], class_names: list[str]) -> tuple[list[Segment], Array]:
    segment_map, infos = result["panoptic_seg"]
    segment_map = segment_map.cpu().numpy()
    segments = [(info, segment_map == info["id"]) for info in infos]
    return segments, draw_panoptic(image, segment_map, infos, class_names)


def _instance(image: Array, result: dict[str, Any], class_names: list[str]) -> tuple[list[Segment], Array]:
    instances = result["instances"].to("cpu")
    masks = instances.pred_masks.numpy()
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    segments = [
        ({"id": k, "isthing": True, "category_id": category, "score": score}, mask)
        for k, (mask, category, score) in enumerate(zip(masks, classes, scores, strict=True), start=1)
        if mask.any()
    ]
    return segments, draw_instances(image, masks, classes, scores, class_names)


def _semantic(image: Array, result: dict[str, Any], class_names: list[str]) -> tuple[list[Segment], Array]:
    labels = result["sem_seg"].argmax(0).cpu().numpy()
    segments = [
        ({"id": k, "isthing": False, "category_id": category, "score": None}, labels == category)
        for k, category in enumerate(np.unique(labels).tolist(), start=1)
    ]
    return segments, draw_semantic(image, labels, class_names)


_RESULTS = {"panoptic": _panoptic, "instance": _instance, "semantic": _semantic}


def _record(info: dict[str, Any], mask: Array, size: Size, class_names: list[str]) -> dict[str, Any]:
    """The entry of a segment in the JSON file, of an image of `size`."""
    encoded = rle.encode(np.asfortranarray(_resized(mask, size).view(np.uint8)))
    return {
        "id": info["id"],
        "category_id": info["category_id"],
        "category": class_names[info["category_id"]],
        "isthing": info["isthing"],
        "score": info["score"],
        "area": int(rle.area(encoded)),
        "bbox": [int(side) for side in rle.toBbox(encoded)],
        "segmentation": {"size": list(size), "counts": encoded["counts"].decode()},
    }


def _limited(height: int, width: int) -> Size:
    """The size in the same proportions that has at most MAX_PIXELS."""
    scale = min(1.0, (MAX_PIXELS / (height * width)) ** 0.5)
    return max(1, int(height * scale)), max(1, int(width * scale))


def _resized(image: Array, size: Size) -> Array:
    """An image (H, W, 3) uint8, or a mask (H, W) bool, at another size."""
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize(size[::-1]))  # nearest for masks, else bicubic


def _save(picture: Array, file: Path) -> None:
    """Write a picture, whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        Image.fromarray(picture).save(partial, format="png", compress_level=1)  # 6 takes as long as all else
        os.replace(partial, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
