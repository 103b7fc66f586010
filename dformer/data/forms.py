"""The forms in which own images may be annotated, one reader each.

A reader gives records in Detectron2's standard form and the metadata by which all else goes: the number of classes,
their names, which of them are things, and which evaluators there are.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from pycocotools import mask as rle

from dformer.data.images import read_labels, read_size
from dformer.utils.errors import UserError
from dformer.utils.files import read_json
from dformer.utils.processes import parallel_map

logger = logging.getLogger(__name__)

Annotated = tuple[list[dict[str, Any]], dict[str, Any]]  # records, metadata

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
IGNORE_LABEL = 255
XYWH_ABS = 1  # Detectron2's `BoxMode` of boxes as x, y, width, height
COCO_KEYS = ("id", "segment_id", "iscrowd", "bbox", "area")  # of an object, kept beside its mask


@dataclass(frozen=True)
class Source:
    """Where the images and annotations of a declared data set lie.

    Attributes:
        form: a key of `FORMS`.
        images: folder, or pattern `folder/*_image.jpg`, where * stands for the name that image and annotation share.
        annotations: a json file, or a folder or pattern, as the form has it.
        pngs: coco_panoptic: folder of the PNGs of segment ids.
        instances: coco_panoptic: the same things as COCO instances json, for mask AP; None: made of the PNGs.
        classes: value in the annotation -> class name; several values may have the same name. None: as the data say.
        void: semantic: values of pixels that are not annotated.
    """

    form: str
    images: Path
    annotations: Path
    pngs: Path | None = None
    instances: Path | None = None
    classes: Mapping[int, str] | None = None
    void: tuple[int, ...] = (IGNORE_LABEL,)


def _coco_instances(source: Source) -> Annotated:
    content = read_json(source.annotations)
    categories = sorted(content["categories"], key=lambda c: c["id"])
    contiguous = {c["id"]: k for k, c in enumerate(categories)}
    objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    invalid = 0
    for annotation in content["annotations"]:
        found = {key: annotation[key] for key in COCO_KEYS if key in annotation}
        found |= {"category_id": contiguous[annotation["category_id"]], "bbox_mode": XYWH_ABS}
        if segmentation := annotation.get("segmentation"):
            if isinstance(segmentation, list):  # of polygons; those of fewer than 3 points are none
                segmentation = [p for p in segmentation if len(p) % 2 == 0 and len(p) >= 6]
            elif isinstance(segmentation["counts"], list):
                segmentation = rle.frPyObjects(segmentation, *segmentation["size"])
            found["segmentation"] = segmentation
            if not segmentation:
                invalid += 1
                continue
        objects[annotation["image_id"]].append(found)
    if invalid:
        logger.warning(
            "%s: %d objects have no polygon of 3 points or more, and are left out", source.annotations, invalid
        )
    records = [
        {
            "file_name": str(source.images / image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": objects[image["id"]],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]
    metadata = _things([c["name"] for c in categories], source, list(contiguous))
    return records, {**metadata, "json_file": str(source.annotations)}


def _coco_panoptic(source: Source) -> Annotated:
    content = read_json(source.annotations)
    # Things first, so that instance classes are 0 .. K-1.
    categories = sorted(content["categories"], key=lambda c: (not c["isthing"], c["id"]))
    contiguous = {c["id"]: k for k, c in enumerate(categories)}
    things = {c["id"] for c in categories if c["isthing"]}
    images = {image["id"]: image for image in content["images"]}
    assert source.pngs is not None  # the form's keys say so
    records = [
        {
            "file_name": str(source.images / images[annotation["image_id"]]["file_name"]),
            "image_id": annotation["image_id"],
            "height": images[annotation["image_id"]]["height"],
            "width": images[annotation["image_id"]]["width"],
            "pan_seg_file_name": str(source.pngs / annotation["file_name"]),
            "segments_info": [
                {**s, "category_id": contiguous[s["category_id"]], "isthing": s["category_id"] in things}
                for s in annotation["segments_info"]
            ],
        }
        for annotation in content["annotations"]
        if annotation["image_id"] in images
    ]
    names = [c["name"] for c in categories]
    return records, {
        "thing_classes": names,  # both lists name all classes, as Detectron2 has it; the id maps tell them apart
        "stuff_classes": names,
        "thing_dataset_id_to_contiguous_id": {i: k for i, k in contiguous.items() if i in things},
        "stuff_dataset_id_to_contiguous_id": {i: k for i, k in contiguous.items() if i not in things},
        "image_root": str(source.images),
        "panoptic_root": str(source.pngs),
        "panoptic_json": str(source.annotations),
        "json_file": str(source.instances) if source.instances else None,
        "evaluator_type": "coco_panoptic_seg",
        "ignore_label": IGNORE_LABEL,
        "label_divisor": 1000,
    }


def _semantic(source: Source) -> Annotated:
    pairs = _pairs(source)
    classes = source.classes
    if classes is None:
        found = set().union(*parallel_map(_values, [label for _, label in pairs.values()])) - set(source.void)
        classes = {value: str(value) for value in range(max(found, default=0) + 1) if value not in source.void}
        if missing := classes.keys() - found:
            raise UserError(
                f"{source.annotations}: the labels run to {max(classes)}, but no pixel has {min(missing)}: is "
                f"{max(classes)} a class, or void? Declare `void`, or the names of all `classes`"
            )
        logger.warning("%s: no names of classes are declared; labels run to %d", source.annotations, max(classes))
    names = list(dict.fromkeys(classes.values()))
    ignore_label = IGNORE_LABEL if len(names) <= IGNORE_LABEL else 65535
    label_map = {value: names.index(name) for value, name in classes.items()}
    label_map |= {value: ignore_label for value in source.void}
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


def _instance_ids(source: Source) -> Annotated:
    pairs = _pairs(source)
    names = list((source.classes or {1: "object"}).values())
    if len(names) > 1:
        raise UserError(
            f"{source.annotations}: PNGs of instance ids do not tell classes, but there are {len(names)}: "
            f"{', '.join(names)}; name one, or use another form"
        )
    annotated = parallel_map(_read_instance_ids, [ids for _, ids in pairs.values()])
    return _records(pairs, annotated), _things(names, source)


def _read_instance_ids(file: Path) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    ids = read_labels(file)
    return ids.shape, [
        _object(0, rle.encode(np.asfortranarray(ids == k, dtype=np.uint8)), k) for k in np.unique(ids).tolist() if k
    ]


def _labelme(source: Source) -> Annotated:
    pairs = _pairs(source)
    contents = {name: read_json(file) for name, (_, file) in pairs.items()}
    names = list((source.classes or {}).values())
    if not names:
        names = sorted({shape["label"] for content in contents.values() for shape in content["shapes"]})
    annotated = []
    for name, content in contents.items():
        parts: dict[Any, list[list[float]]] = defaultdict(list)  # of objects; those of one group are one object
        for k, shape in enumerate(content["shapes"]):
            if shape["label"] not in names:
                raise UserError(f'{pairs[name][1]}: "{shape["label"]}" is not among the classes: {", ".join(names)}')
            group = k if shape.get("group_id") is None else f"group {shape['group_id']}"
            parts[shape["label"], group].append(_labelme_polygon(shape, pairs[name][1]))
        size = (content["imageHeight"], content["imageWidth"])
        annotated.append((size, [_object(names.index(label), polygons) for (label, _), polygons in parts.items()]))
    return _records(pairs, annotated), _things(names, source)


def _labelme_polygon(shape: Mapping[str, Any], file: Path) -> list[float]:
    points, kind = shape["points"], shape.get("shape_type", "polygon")
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    elif kind != "polygon" or len(points) < 3:
        raise UserError(
            f'{file}: a shape "{kind}" of {len(points)} points, labelled "{shape["label"]}", is no mask; '
            "polygons (of 3 points or more) and rectangles are read"
        )
    return [float(c) for point in points for c in point]


def _yolo_segment(source: Source) -> Annotated:
    pairs = _pairs(source)
    if not source.classes:
        raise UserError(f"{source.annotations}: YOLO's files have no names of classes; declare `classes`")
    names = list(source.classes.values())
    annotated = parallel_map(partial(_read_yolo, num_classes=len(names)), list(pairs.values()))
    return _records(pairs, annotated), _things(names, source)


def _read_yolo(files: tuple[Path, Path | None], num_classes: int) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    image, annotation = files
    height, width = read_size(image)
    objects = []
    for number, line in enumerate(annotation.read_text().splitlines() if annotation else [], start=1):
        words = line.split()
        try:
            cls, corners = int(words[0]), np.array(words[1:], float).reshape(-1, 2)
        except (IndexError, ValueError) as error:
            raise UserError(f'{annotation}, line {number}: expected "class x y x y ...", got "{line[:60]}"') from error
        if len(corners) < 3 or not 0 <= cls < num_classes or corners.min() < 0 or corners.max() > 1:
            raise UserError(
                f"{annotation}, line {number}: expected a class of 0..{num_classes - 1} and a polygon of 3 points or "
                f'more, in parts of the width and height (0..1), got "{line[:60]}"'
            )
        objects.append(_object(cls, [(corners * (width, height)).ravel().tolist()]))
    return (height, width), objects


class Form(NamedTuple):
    """Describe a form.

    Attributes:
        read: reads a data set.
        required, optional: keys of a declaration beside form, images, annotations and split.
        suffixes: of annotation files that are paired with images; none where a json file lists them.
        file_may_be_missing: an image without an annotation file is one without objects.
    """

    read: Callable[[Source], Annotated]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    file_may_be_missing: bool = False


LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
FORMS = {
    "coco_instances": Form(_coco_instances),
    "coco_panoptic": Form(_coco_panoptic, ("pngs",), ("instances",)),
    "semantic": Form(_semantic, (), ("classes", "void"), LABEL_SUFFIXES),
    "instance_ids": Form(_instance_ids, (), ("classes",), LABEL_SUFFIXES),
    "labelme": Form(_labelme, (), ("classes",), (".json",)),
    "yolo_segment": Form(_yolo_segment, ("classes",), (), (".txt",), file_may_be_missing=True),
}


def read_classes(declared: Any, where: str) -> dict[int, str]:
    """Value -> class name, from a list of names, a mapping, or a file (.txt: a name a line; .yaml, .json: either, or
    YOLO's `names: `).

    Raises:
        UserError: it is none of these; `where` is named.
    """
    if isinstance(declared, Path):
        file = declared
        try:
            text = file.read_text()
            declared = text.split("\n") if file.suffix == ".txt" else yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{where}: {file} cannot be read: {error}") from error
        if isinstance(declared, dict) and "names" in declared:
            declared = declared["names"]
    if isinstance(declared, list | tuple):
        declared = dict(enumerate(str(name).strip() for name in declared if str(name).strip()))
    if not (isinstance(declared, dict) and declared and all(isinstance(value, int) for value in declared)):
        raise UserError(f"{where}: classes are a list of names, a mapping of values to names, or a file of either")
    return {value: str(name) for value, name in declared.items()}


def folder_of(place: Path) -> Path:
    """The folder of a pattern `folder/*_mask.png`; any other path is returned as it is."""
    return place.parent if "*" in place.name else place


def files_by_name(place: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files in a folder and below by their path in it, without suffix; or of a pattern, by what stands for its `*`.

    Raises:
        UserError: the folder does not exist.
    """
    before, star, after = place.name.partition("*")
    folder = folder_of(place)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if star:
        found = sorted(folder.glob(place.name))
        return {file.name[len(before) : len(file.name) - len(after)]: file for file in found}
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes)
    return {str(file.relative_to(folder).with_suffix("")): file for file in found}


def pair_files(source: Source) -> tuple[dict[str, Any], list[Path], list[Path]]:
    """Pair images and annotations by name, in the order of names.

    Returns:
        Name -> image and annotation file, which is None where the form takes this for an image without objects;
        images without an annotation; annotations without an image.
    """
    form = FORMS[source.form]
    images, annotations = files_by_name(source.images, IMAGE_SUFFIXES), files_by_name(source.annotations, form.suffixes)
    pairs = {n: (f, annotations.get(n)) for n, f in images.items() if n in annotations or form.file_may_be_missing}
    without_annotation = [file for name, file in images.items() if name not in pairs]
    return pairs, without_annotation, [file for name, file in annotations.items() if name not in images]


def _pairs(source: Source) -> dict[str, Any]:
    pairs, without_annotation, without_image = pair_files(source)
    if not any(annotation for _, annotation in pairs.values()):
        raise UserError(
            f"no image in {source.images} ({len(pairs) + len(without_annotation)} images) has an annotation of its "
            f"name in {source.annotations} ({len(without_image)} files); where names differ by an ending, give a "
            "pattern such as masks/*_mask.png"
        )
    if unused := len(without_annotation) + len(without_image):
        logger.warning("%s: %d files are not used, as image or annotation is missing", source.annotations, unused)
    return pairs


def _things(names: list[str], source: Source, ids: Sequence[int] | None = None) -> dict[str, Any]:
    return {
        "thing_classes": names,
        "thing_dataset_id_to_contiguous_id": {i: k for k, i in enumerate(ids or range(1, len(names) + 1))},
        "image_root": str(folder_of(source.images)),
        "annotation_root": str(folder_of(source.annotations)),
        "evaluator_type": "coco",
    }


def _records(
    pairs: Mapping[str, tuple[Path, Path]], annotated: Sequence[tuple[tuple[int, int], list[dict[str, Any]]]]
) -> list[dict[str, Any]]:
    return [
        {
            "file_name": str(image),
            "image_id": name,
            "height": height,
            "width": width,
            "annotations": objects,
        }
        for (name, (image, _)), ((height, width), objects) in zip(pairs.items(), annotated, strict=True)
    ]


def _object(cls: int, segmentation: Any, object_id: int | None = None) -> dict[str, Any]:
    """An object as Detectron2 has it; `segmentation` is an RLE or polygons."""
    if isinstance(segmentation, dict):
        box = rle.toBbox(segmentation).tolist()
    else:
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation])
        box = [*points.min(0).tolist(), *np.ptp(points, axis=0).tolist()]
    found = {"category_id": cls, "segmentation": segmentation, "iscrowd": 0, "bbox": box}
    found |= {} if object_id is None else {"id": object_id}
    return {**found, "bbox_mode": XYWH_ABS}


def _values(file: Path) -> set[int]:
    return set(np.unique(read_labels(file)).tolist())
