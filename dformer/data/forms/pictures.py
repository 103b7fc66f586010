"""The forms in which users' images may be annotated, one reader each: records, and metadata."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from dformer.data.forms.source import (
    IGNORE_LABEL,
    LABEL_SUFFIXES,
    XYWH_ABS,
    Annotated,
    Objects,
    Source,
    annotated_object,
    class_metadata,
    folder_of,
    image_record,
    logger,
    paired_files,
    paired_records,
    polygon_object,
    register_form,
    thing_metadata,
)
from dformer.data.images import read_labels, read_size
from dformer.data.segmentations import encode_mask
from dformer.data.types import Size
from dformer.utils.errors import UserError
from dformer.utils.files import read_json
from dformer.utils.processes import parallel_map

COCO_KEYS = ("id", "segment_id", "iscrowd", "bbox", "area")  # of an object, beside class and mask


@register_form("coco_instances")
def _coco_instances(source: Source) -> Annotated:
    content = read_json(source.annotations)
    categories = sorted(content["categories"], key=lambda c: c["id"])
    contiguous = {c["id"]: k for k, c in enumerate(categories)}
    objects: dict[Any, Objects] = defaultdict(list)
    for annotation in content["annotations"]:
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list):  # polygons of fewer than 3 points have no mask
            segmentation = [p for p in segmentation if len(p) % 2 == 0 and len(p) >= 6]
            if not segmentation:
                logger.warning("%s: object %s has no polygon; it is not used", source.annotations, annotation["id"])
                continue
        found = {key: annotation[key] for key in COCO_KEYS if key in annotation}
        found |= {"segmentation": segmentation} if segmentation else {}
        category = contiguous[annotation["category_id"]]
        objects[annotation["image_id"]].append({**found, "category_id": category, "bbox_mode": XYWH_ABS})
    records = [
        image_record(source.images / i["file_name"], i["id"], (i["height"], i["width"]), annotations=objects[i["id"]])
        for i in sorted(content["images"], key=lambda image: image["id"])
    ]
    metadata = thing_metadata([c["name"] for c in categories], source, list(contiguous))
    return records, {**metadata, "json_file": str(source.annotations)}


@register_form("coco_panoptic", required=("pngs",), optional=("instances",))
def _coco_panoptic(source: Source) -> Annotated:
    content = read_json(source.annotations)
    # Things first, so that instance classes are 0 .. K-1.
    classes = class_metadata(sorted(content["categories"], key=lambda c: (not c["isthing"], c["id"])))
    things = classes["thing_dataset_id_to_contiguous_id"]
    contiguous = {**things, **classes["stuff_dataset_id_to_contiguous_id"]}
    images = {image["id"]: image for image in content["images"]}
    assert source.pngs is not None  # the form requires the key
    records = []
    for annotation in content["annotations"]:
        if image := images.get(annotation["image_id"]):
            segments = [
                {**s, "category_id": contiguous[s["category_id"]], "isthing": s["category_id"] in things}
                for s in annotation["segments_info"]
            ]
            png = str(source.pngs / annotation["file_name"])
            size = image["height"], image["width"]
            file = source.images / image["file_name"]
            records.append(image_record(file, image["id"], size, pan_seg_file_name=png, segments_info=segments))
    return records, {
        **classes,
        "image_root": str(source.images),
        "panoptic_root": str(source.pngs),
        "panoptic_json": str(source.annotations),
        "json_file": str(source.instances) if source.instances else None,
        "evaluator_type": "coco_panoptic_seg",
        "ignore_label": IGNORE_LABEL,
        "label_divisor": 1000,
    }


@register_form("semantic", optional=("classes", "void"), suffixes=LABEL_SUFFIXES)
def _semantic(source: Source) -> Annotated:
    pairs = paired_files(source)
    classes = source.classes or _classes_of_labels(source, [file for _, file in pairs.values()])
    names = list(dict.fromkeys(classes.values()))
    ignore_label = IGNORE_LABEL if len(names) <= IGNORE_LABEL else 65535
    label_map = {value: names.index(name) for value, name in classes.items()}
    label_map |= {value: ignore_label for value in source.void_values}
    records = [
        {"file_name": str(image), "image_id": name, "sem_seg_file_name": str(label), "label_map": label_map}
        for name, (image, label) in pairs.items()
    ]
    return records, {
        "stuff_classes": names,
        "image_root": str(folder_of(source.images)),
        "sem_seg_root": str(folder_of(source.annotations)),
        "evaluator_type": "sem_seg",
        "ignore_label": ignore_label,
    }


def _classes_of_labels(source: Source, files: list[Path]) -> dict[int, str]:
    void = source.void_values
    found = set().union(*parallel_map(_values, files)) - void
    classes = {value: str(value) for value in range(max(found, default=0) + 1) if value not in void}
    if missing := classes.keys() - found:
        raise UserError(
            f"{source.annotations}: there are labels up to {max(classes)}, but no pixel has {min(missing)}: is "
            f"{max(classes)} a class, or void? Declare `void`, or the names of all `classes`"
        )
    logger.warning("%s: no names of classes are declared; there are labels up to %d", source.annotations, max(classes))
    return classes


def _values(file: Path) -> set[int]:
    return set(np.unique(read_labels(file)).tolist())


@register_form("instance_ids", optional=("classes", "table"), suffixes=LABEL_SUFFIXES)
def _instance_ids(source: Source) -> Annotated:
    pairs = paired_files(source)
    annotated = parallel_map(_read_instance_ids, [ids for _, ids in pairs.values()])
    if source.table:
        names = _classes_by_table(source, pairs, annotated)
    else:
        names = list((source.classes or {1: "object"}).values())
    if len(names) > 1 and not source.table:
        raise UserError(f"{source.annotations}: ids tell no class; declare one of {', '.join(names)}, or a `table`")
    records = paired_records(pairs, annotated)
    return [{**r, "ids_file_name": str(pairs[r["image_id"]][1])} for r in records], thing_metadata(names, source)


def _read_instance_ids(file: Path) -> tuple[Size, Objects]:
    ids = read_labels(file)
    masks = {k: encode_mask(ids == k) for k in np.unique(ids).tolist() if k}
    return ids.shape, [{**annotated_object(0, mask, rle.toBbox(mask).tolist()), "id": k} for k, mask in masks.items()]


def _classes_by_table(source: Source, pairs: Mapping[str, Any], annotated: Sequence[tuple[Size, Objects]]) -> list[str]:
    """Give each object the class that the table says, in place, and return the names of all classes."""
    assert source.table is not None
    try:
        with open(source.table, newline="") as file:
            table = {(row["image"], int(row["id"])): row["class"] for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source.table}: expected a csv file with the columns image, id and class ({error!r})"
        ) from error
    names = list(dict.fromkeys((source.classes or {}).values())) or sorted(set(table.values()))
    for name, (_, objects) in zip(pairs, annotated, strict=True):
        for found in objects:
            label = table.get((name, found["id"]))
            if label not in names:
                what = "has no row" if label is None else f'is "{label}", none of the classes {", ".join(names)}'
                raise UserError(f"{source.table}: the object {found['id']} of the image {name} {what}")
            found["category_id"] = names.index(label)
    return names


@register_form(
    "instance_masks",
    optional=("classes",),
    suffixes=LABEL_SUFFIXES,
    file_may_be_missing=True,
    file_of_object=True,
)
def _instance_masks(source: Source) -> Annotated:
    pairs = paired_files(source)
    names = list((source.classes or {1: "object"}).values())
    annotated = parallel_map(partial(_read_masks, names=names), list(pairs.values()))
    return paired_records(pairs, annotated), thing_metadata(names, source)


def _read_masks(files: tuple[Path, list[Path] | None], names: list[str]) -> tuple[Size, Objects]:
    image, masks = files
    objects = []
    for file in masks or []:
        if len(names) > 1 and file.parent.name not in names:
            raise UserError(f"{file}: its folder is none of the classes: {', '.join(names)}")
        labels = read_labels(file)
        mask = encode_mask(2 * labels.astype(np.int64) > labels.max())  # of 0 and 1, or of 0 and 255
        cls = names.index(file.parent.name) if len(names) > 1 else 0
        objects.append(annotated_object(cls, mask, rle.toBbox(mask).tolist()))
    return read_size(image), objects


@register_form("labelme", optional=("classes",), suffixes=(".json",))
def _labelme(source: Source) -> Annotated:
    pairs = paired_files(source)
    contents = {name: read_json(file) for name, (_, file) in pairs.items()}
    labels = {shape["label"] for content in contents.values() for shape in content["shapes"]}
    names = list((source.classes or {}).values()) or sorted(labels)
    annotated = []
    for name, content in contents.items():
        parts: dict[Any, list[list[float]]] = defaultdict(list)  # of objects; those of one group are one object
        for k, shape in enumerate(content["shapes"]):
            if shape["label"] not in names:
                raise UserError(f'{pairs[name][1]}: "{shape["label"]}" is not among the classes: {", ".join(names)}')
            group = k if shape.get("group_id") is None else f"group {shape['group_id']}"
            parts[shape["label"], group].append(_labelme_polygon(shape, pairs[name][1]))
        size = (content["imageHeight"], content["imageWidth"])
        annotated.append(
            (size, [polygon_object(names.index(label), polygons) for (label, _), polygons in parts.items()])
        )
    return paired_records(pairs, annotated), thing_metadata(names, source)


def _labelme_polygon(shape: Mapping[str, Any], file: Path) -> list[float]:
    points, kind = shape["points"], shape.get("shape_type", "polygon")
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    elif kind != "polygon" or len(points) < 3:
        raise UserError(
            f'{file}: a shape "{kind}" of {len(points)} points, with the label "{shape["label"]}", has no mask; use '
            "polygons of 3 points or more, or rectangles"
        )
    return [float(c) for point in points for c in point]


@register_form("yolo_segment", required=("classes",), suffixes=(".txt",), file_may_be_missing=True)
def _yolo_segment(source: Source) -> Annotated:
    pairs = paired_files(source)
    names = list((source.classes or {}).values())
    annotated = parallel_map(partial(_read_yolo, num_classes=len(names)), list(pairs.values()))
    return paired_records(pairs, annotated), thing_metadata(names, source)


def _read_yolo(files: tuple[Path, Path | None], num_classes: int) -> tuple[Size, Objects]:
    image, annotation = files
    height, width = read_size(image)
    objects = []
    for number, line in enumerate(annotation.read_text().splitlines() if annotation else [], start=1):
        words = line.split()
        try:
            cls, corners = int(words[0]), np.array(words[1:], float).reshape(-1, 2)
            valid = len(corners) >= 3 and 0 <= cls < num_classes and corners.min() >= 0 and corners.max() <= 1
        except (IndexError, ValueError):
            valid = False
        if not valid:
            raise UserError(
                f'{annotation}, line {number}: expected "class x y x y x y ...", a class of 0..{num_classes - 1} and 3 '
                f'points or more as parts of width and height (0..1), got "{line[:60]}"'
            )
        objects.append(polygon_object(cls, [(corners * (width, height)).ravel().tolist()]))
    return (height, width), objects
