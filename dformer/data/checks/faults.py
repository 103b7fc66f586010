"""What can be wrong with a data set: small functions, each of which looks for a few kinds of faults.

`JSON_FAULTS` look at the content of one COCO json, `IMAGE_FAULTS` at one image with its annotation, `SET_FAULTS` at all
images of a set; `other_classes` and `leaked_images` compare two sets.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from panopticapi.utils import rgb2id
from pycocotools import mask as rle

from dformer.data.forms import unpaired
from dformer.data.images import MAX_PIXELS, read_image, read_labels, read_panoptic_png
from dformer.data.segmentations import decode_rle, fault_of
from dformer.data.types import Metadata
from dformer.utils.errors import UserError

FATAL, WARNING, NOTE = "fatal", "warning", "note"


@dataclass(frozen=True)
class Finding:
    """One fault, or one oddity.

    Attributes:
        level: "fatal": training cannot start; "warning": it can, but not as meant; "note": odd, and no error.
        kind: what findings are grouped by.
        file: where it is.
        what: what is wrong there, a clause.
        remedy: what to do.
    """

    level: str
    kind: str
    file: str
    what: str
    remedy: str = ""


Findings = Iterator[Finding]


@dataclass
class Sample:
    """An image and how it is annotated: what `IMAGE_FAULTS` look at.

    Attributes:
        record: in Detectron2's form.
        kind: "panoptic", "instance" or "semantic".
        num_classes: labels of semantic annotations are 0 .. num_classes - 1.
        ignore_label: label of void.
        size: height and width as the json has them; None: it does not say.
        objects: of instance annotations, as they stand in the json, but with contiguous class ids.
    """

    record: Mapping[str, Any]
    kind: str
    num_classes: int
    ignore_label: int
    size: tuple[int, int] | None
    objects: Sequence[Mapping[str, Any]] = ()


@dataclass
class Seen:
    """What was seen of a `Sample`; filled by `IMAGE_FAULTS`.

    Attributes:
        size: height and width of the image; None: it cannot be read.
        digest: of the file; images with the same digest are the same.
        objects: class, area in pixels and crowd flag of each object or region.
        ids: of objects, where the annotation gives them.
        void: pixels that are not annotated (of panoptic and semantic annotations).
    """

    file: str
    size: tuple[int, int] | None = None
    digest: str = ""
    objects: list[tuple[int, int, bool]] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    void: int = 0
    findings: list[Finding] = field(default_factory=list)


# A json file. `panoptic` says which of COCO's two formats it has.


SECTIONS = ("images", "annotations", "categories")


def json_sections(content: Any, file: str, panoptic: bool) -> Findings:
    for section in SECTIONS:
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            yield Finding(
                FATAL, "json incomplete", file, f'has no list "{section}"', "write it as COCO's format has it"
            )
        elif not content[section] and section != "annotations":
            yield Finding(FATAL, "json incomplete", file, f'"{section}" is empty', "list what the data set has")


def json_fields(content: Any, file: str, panoptic: bool) -> Findings:
    for section in SECTIONS:
        for index, entry in enumerate(content[section]):
            if not isinstance(entry, dict):
                what = f"{section}[{index}] is a {type(entry).__name__}, not an object with names and values"
                yield Finding(FATAL, "entry broken", file, what, "write it as COCO's format has it")
                return
    wanted = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("image_id", "file_name", "segments_info") if panoptic else ("id", "image_id", "category_id"),
        "categories": ("id", "name", "isthing") if panoptic else ("id", "name"),
    }
    for section, keys in wanted.items():
        for index, entry in enumerate(content[section]):
            for key in keys:
                if key not in entry:
                    yield Finding(FATAL, "field missing", file, f'{section}[{index}] has no "{key}"', "add it")
    if panoptic:
        for index, annotation in enumerate(content["annotations"]):
            segments = annotation.get("segments_info", [])
            if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
                what = f'"segments_info" of annotations[{index}] is not a list of segments'
                yield Finding(FATAL, "entry broken", file, what, "write it as COCO's format has it")
                return
            for segment in segments:
                for key in ("id", "category_id"):
                    if key not in segment:
                        what = f'annotations[{index}] has a segment without "{key}"'
                        yield Finding(FATAL, "field missing", file, what, "add it")


def json_types(content: Any, file: str, panoptic: bool) -> Findings:
    sections = [(f"{name}[{k}]", name, entry) for name in SECTIONS for k, entry in enumerate(content[name])]
    if panoptic:
        segments = ((k, s) for k, a in enumerate(content["annotations"]) for s in a["segments_info"])
        sections += [(f"a segment of annotations[{k}]", "segments", segment) for k, segment in segments]
    for where, section, entry in sections:
        for key, (is_right, expected) in TYPES[section].items():
            if key in entry and not is_right(entry[key]):
                what = f'"{key}" of {where} is {str(entry[key])[:40]!r}, but {expected} was expected'
                yield Finding(FATAL, "value of a wrong type", file, what, "correct it")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_PIXELS


_NAME = (lambda value: isinstance(value, str), "text")
_ID = (lambda value: type(value) in (int, str), "a number or text")
_INTEGER = (lambda value: type(value) is int, "an integer")
_SIDE = (_is_side, "a number of pixels")
_BOX = (lambda value: isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)), "4 numbers")
_FLAG = (lambda value: type(value) in (int, bool), "0 or 1")
_MEASURES = {"bbox": _BOX, "area": (_is_number, "a number"), "iscrowd": _FLAG}
# Of the entries of each section and, in panoptic annotations, of their segments.
TYPES: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "images": {"id": _ID, "file_name": _NAME, "height": _SIDE, "width": _SIDE},
    "annotations": {
        **{"id": _ID, "image_id": _ID, "category_id": _INTEGER, "file_name": _NAME, **_MEASURES},
        "segmentation": (lambda value: value is None or isinstance(value, list | dict), "polygons or an RLE"),
    },
    "categories": {"id": _INTEGER, "name": _NAME, "isthing": _FLAG},
    "segments": {"id": _INTEGER, "category_id": _INTEGER, **_MEASURES},
}


def json_duplicates(content: Any, file: str, panoptic: bool) -> Findings:
    remedy = "give each its own"
    for i in _repeated(image["id"] for image in content["images"]):
        yield Finding(FATAL, "duplicate image id", file, f"several images have the id {i!r}", remedy)
    for name in _repeated(image["file_name"] for image in content["images"]):
        what = f"several images are the file {name}"
        yield Finding(WARNING, "duplicate file name", file, what, "list each image once")
    for i in _repeated(category["id"] for category in content["categories"]):
        yield Finding(FATAL, "duplicate category id", file, f"several categories have the id {i!r}", remedy)
    for name in _repeated(category["name"] for category in content["categories"]):
        what = f'several categories are called "{name}"'
        yield Finding(WARNING, "duplicate category name", file, what, "merge them, or give each its own name")
    if panoptic:
        for i in _repeated(annotation["image_id"] for annotation in content["annotations"]):
            what = f"the image {i!r} is annotated several times"
            yield Finding(FATAL, "image annotated twice", file, what, "keep one of its annotations")
    else:
        for i in _repeated(annotation["id"] for annotation in content["annotations"]):
            yield Finding(FATAL, "duplicate annotation id", file, f"several annotations have the id {i!r}", remedy)


def json_references(content: Any, file: str, panoptic: bool) -> Findings:
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    orphans = Counter(a["image_id"] for a in content["annotations"] if a["image_id"] not in images)
    level = FATAL if sum(orphans.values()) == len(content["annotations"]) else WARNING
    for i, count in orphans.items():
        what = f"{count} annotations are of an image {i!r}, which is not listed"
        yield Finding(level, "annotation without image", file, what, "list the image, or remove its annotations")
    if panoptic:
        for i in sorted(images - {a["image_id"] for a in content["annotations"]}, key=str):
            what = f"the image {i!r} has no annotation, and is left out"
            yield Finding(WARNING, "image without annotation", file, what, "annotate it, or remove it from the list")
    for annotation in content["annotations"]:
        for entry in annotation["segments_info"] if panoptic else [annotation]:
            if entry["category_id"] not in categories:
                what = f"image {annotation['image_id']!r}, id {entry['id']}: its category {entry['category_id']} is "
                what += 'not among "categories"'
                yield Finding(FATAL, "unknown category", file, what, "add the category, or correct the id")


def json_segments(content: Any, file: str, panoptic: bool) -> Findings:
    for annotation in content["annotations"]:
        where = f"image {annotation['image_id']!r}"
        for entry in annotation["segments_info"] if panoptic else [annotation]:
            if entry.get("iscrowd", 0) not in (0, 1):
                what = f'{where}, id {entry["id"]}: "iscrowd" is {entry["iscrowd"]!r}'
                yield Finding(WARNING, "crowd flag", file, what, "make it 0 or 1")
        if panoptic:
            for i in _repeated(segment["id"] for segment in annotation["segments_info"]):
                what = f"{where}: several segments have the id {i}"
                yield Finding(FATAL, "duplicate segment id", file, what, "give each its own, in json and PNG")
            if any(not 0 < segment["id"] < 256**3 for segment in annotation["segments_info"]):
                what = f"{where}: a segment id is 0, which is void, or is too large for a PNG"
                yield Finding(FATAL, "segment id out of range", file, what, "use ids of 1 to 16777215")


def json_masks(content: Any, file: str, panoptic: bool) -> Findings:
    if panoptic:
        return
    for annotation in content["annotations"]:
        where = f"image {annotation['image_id']!r}, id {annotation['id']}"
        segmentation = annotation.get("segmentation")
        if not segmentation:
            what = f"{where}: the object has no mask"
            yield Finding(FATAL, "mask missing", file, what, "add polygons or RLE, or remove the annotation")
        elif isinstance(segmentation, list):
            if not all(
                isinstance(polygon, list) and all(type(c) in (int, float) for c in polygon) for polygon in segmentation
            ):
                what = f"{where}: a polygon is not a list of numbers"
                yield Finding(FATAL, "mask broken", file, what, "give it x and y of each point")
                continue
            if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
                what = f"{where}: a polygon has fewer than 3 points, or half a point, and is left out"
                yield Finding(WARNING, "polygon too short", file, what, "give it 3 points or more, x and y of each")
            if not all(math.isfinite(c) for polygon in segmentation for c in polygon):
                what = f"{where}: a polygon has coordinates that are no numbers"
                yield Finding(FATAL, "polygon not finite", file, what, "correct or remove it")
        elif "counts" not in segmentation or "size" not in segmentation:
            yield Finding(FATAL, "mask broken", file, f"{where}: an RLE needs counts and size", "encode the mask again")


JSON_FAULTS: list[Callable[[Any, str, bool], Findings]] = [
    json_sections,
    json_fields,
    json_types,
    json_duplicates,
    json_references,
    json_segments,
    json_masks,
]


# An image


def image_file(sample: Sample, seen: Seen) -> Findings:
    file = sample.record["file_name"]
    if not Path(file).is_file():
        yield Finding(FATAL, "image missing", file, "does not exist", "put it there, or remove it from the data set")
        return
    try:
        image = read_image(file)
    except UserError as error:
        yield Finding(FATAL, "image unreadable", file, str(error), "replace the file, or remove it from the data set")
        return
    seen.size = image.shape[0], image.shape[1]
    if sample.size and sample.size != seen.size:
        turned = " (it is on its side: EXIF orientation?)" if sample.size == seen.size[::-1] else ""
        what = f"is {_wxh(seen.size)} pixels, its annotation is of {_wxh(sample.size)}{turned}"
        yield Finding(FATAL, "image size", file, what, "correct the size in the annotation, or replace the image")


def panoptic_png(sample: Sample, seen: Seen) -> Findings:
    if sample.kind != "panoptic":
        return
    file = sample.record["pan_seg_file_name"]
    try:
        ids = rgb2id(read_panoptic_png(file))
    except UserError as error:
        yield _unreadable(file, error)
        return
    yield from _annotation_size(file, ids.shape, seen)
    values, counts = np.unique(ids, return_counts=True)
    areas = dict(zip(values.tolist(), counts.tolist(), strict=True))
    seen.void = areas.pop(0, 0)
    segments = {s["id"]: s for s in sample.record["segments_info"]}
    for i in areas.keys() - segments.keys():
        what = f"{areas[i]} pixels have the id {i}, which is not in its json; they are void"
        yield Finding(WARNING, "segment not in the json", file, what, "add the segment to the json, or make it void, 0")
    for i, segment in segments.items():
        if i not in areas:
            what = f"no pixel has the id {i}, which its json names"
            yield Finding(WARNING, "empty segment", file, what, "remove the segment from the json, or draw it")
            continue
        seen.objects.append((segment["category_id"], areas[i], bool(segment.get("iscrowd"))))
        if "area" in segment or "bbox" in segment:
            mask = rle.encode(np.asfortranarray(ids == i, dtype=np.uint8))
            yield from _area_and_box(segment, mask, file, f"segment {i}")


def label_map(sample: Sample, seen: Seen) -> Findings:
    if sample.kind != "semantic":
        return
    file, mapping = sample.record["sem_seg_file_name"], sample.record.get("label_map")
    try:
        labels = read_labels(file)
    except UserError as error:
        yield _unreadable(file, error)
        return
    yield from _annotation_size(file, labels.shape, seen)
    mapping = mapping or {sample.ignore_label: sample.ignore_label, **{k: k for k in range(sample.num_classes)}}
    values, counts = np.unique(labels, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value not in mapping:
            what = f"{count} pixels have the value {value}, which is neither a class nor void"
            remedy = f"if they are not annotated, declare `void: {value}`; else name the class"
            yield Finding(FATAL, "label without class", file, what, remedy)
        elif mapping[value] == sample.ignore_label:
            seen.void += count
        else:
            seen.objects.append((mapping[value], count, False))
    if seen.void == labels.size:
        yield Finding(WARNING, "all void", file, "no pixel is annotated", "annotate it, or remove it from the data set")


def instance_masks(sample: Sample, seen: Seen) -> Findings:
    if sample.kind != "instance":
        return
    file = sample.record["file_name"]
    size = seen.size or sample.size
    for k, annotation in enumerate(sample.objects):
        name = f"object {annotation.get('id', k)}"
        seen.ids.append(annotation.get("id"))
        segmentation = annotation.get("segmentation")
        if not segmentation or size is None:
            continue
        if fault := fault_of(segmentation, size):
            kind = "mask size" if "RLE of size" in fault else "mask broken"
            yield Finding(FATAL, kind, file, f"{name} {fault}", "encode the mask again, at the image's size")
            continue
        if isinstance(segmentation, list):
            segmentation = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
            if not segmentation:
                continue
            points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation])
            low, high = points.min(0), points.max(0)
            if low.min() < -OUTSIDE or high[0] > size[1] + OUTSIDE or high[1] > size[0] + OUTSIDE:
                what = f"{name}: its polygon reaches {tuple(low)} to {tuple(high)}, the image is {_wxh(size)}"
                yield Finding(WARNING, "mask outside the image", file, what, "are the coordinates those of this image?")
            mask = rle.merge(rle.frPyObjects(segmentation, *size))
        else:
            mask = rle.frPyObjects(segmentation, *size) if isinstance(segmentation["counts"], list) else segmentation
            try:
                decode_rle(mask)
            except UserError:
                what = f"{name}: its RLE cannot be decoded"
                yield Finding(FATAL, "mask broken", file, what, "encode the mask again")
                continue
        area = int(rle.area(mask))
        seen.objects.append((annotation["category_id"], area, bool(annotation.get("iscrowd"))))
        if not area:
            what = f"{name}: its mask has no pixel; it is not trained on"
            yield Finding(WARNING, "empty mask", file, what, "draw or remove it")
        else:
            yield from _area_and_box(annotation, mask, file, name)


IMAGE_FAULTS = [image_file, panoptic_png, label_map, instance_masks]

OUTSIDE = 2  # pixels that a polygon may reach over the image's border
MIN_AREA_RATIO, MIN_AREA_DIFFERENCE = 1.5, 100  # areas of polygons are not those of their pixels
MAX_BOX_DIFFERENCE, MAX_BOX_SHARE = 5, 0.1  # pixels; of the box's sides


def _annotation_size(file: str, size: tuple[int, ...], seen: Seen) -> Findings:
    if seen.size and seen.size != size:
        what = f"is {_wxh(size)} pixels, its image {seen.file} {_wxh(seen.size)}"
        yield Finding(FATAL, "annotation size", file, what, "replace the one that is wrong; do not resize annotations")


def _area_and_box(entry: Mapping[str, Any], mask: Mapping[str, Any], file: str, name: str) -> Findings:
    area = int(rle.area(mask))
    stated = entry.get("area", area)
    if abs(stated - area) > MIN_AREA_DIFFERENCE and max(stated, area) > MIN_AREA_RATIO * min(stated, area):
        what = f"{name}: its area is stated as {stated:g}, its mask has {area} pixels"
        yield Finding(
            WARNING, "area", file, what, "compute areas from the masks; they sort objects into small and large"
        )
    box = rle.toBbox(mask)
    stated_box = np.asarray(entry.get("bbox", box), float)
    corners, stated_corners = ([*b[:2], *(b[:2] + b[2:])] for b in (box, stated_box))
    allowed = max(MAX_BOX_DIFFERENCE, MAX_BOX_SHARE * max(box[2:]))
    if np.abs(np.subtract(corners, stated_corners)).max() > allowed:
        what = f"{name}: its box is stated as {stated_box.tolist()}, its mask's is {box.tolist()}"
        yield Finding(WARNING, "box", file, what, "compute boxes from the masks: x, y, width, height")


def _unreadable(file: str, error: UserError) -> Finding:
    if not Path(file).is_file():
        return Finding(FATAL, "annotation missing", file, "does not exist", "put it there, or remove its image")
    return Finding(FATAL, "annotation unreadable", file, str(error), "replace the file")


# All images of a set


def too_many_objects(seen: Sequence[Seen], metadata: Metadata, queries: int) -> Findings:
    for image in seen:
        count = sum(not crowd for _, _, crowd in image.objects)
        if count > queries:
            what = f"has {count} objects, the model {queries} queries; the rest cannot be found"
            remedy = "raise MODEL.MASK_DECODER.NUM_QUERIES"
            yield Finding(WARNING, "more objects than queries", image.file, what, remedy)


def no_objects(seen: Sequence[Seen], metadata: Metadata, queries: int) -> Findings:
    for image in seen:
        if image.size and not any(not crowd for _, _, crowd in image.objects):
            remedy = "DATALOADER.FILTER_EMPTY_ANNOTATIONS True leaves such images of instance sets out"
            yield Finding(NOTE, "image without objects", image.file, "has no object", remedy)
    if seen and not any(image.objects for image in seen):
        what = "no image has an object"
        yield Finding(FATAL, "nothing annotated", metadata.name, what, "are these the annotations of these images?")


def same_images(seen: Sequence[Seen], metadata: Metadata, queries: int) -> Findings:
    files: dict[str, str] = {}
    for image in seen:
        first = files.setdefault(image.digest, image.file)
        if image.digest and first != image.file:
            yield Finding(WARNING, "duplicate image", image.file, f"is the same image as {first}", "keep one")


def classes_without_example(seen: Sequence[Seen], metadata: Metadata, queries: int) -> Findings:
    counts = Counter(cls for image in seen for cls, _, crowd in image.objects if not crowd)
    names = metadata.get("stuff_classes") or metadata.get("thing_classes")
    missing = [name for k, name in enumerate(names) if not counts[k]]
    if missing and counts:
        what = f"{len(missing)} of {len(names)} classes have no example: {', '.join(missing[:8])}"
        yield Finding(NOTE, "class without example", metadata.name, what + (", ..." if len(missing) > 8 else ""))


def binary_masks(seen: Sequence[Seen], metadata: Metadata, queries: int) -> Findings:
    source = (metadata.get("declared") or (None,))[0]
    if source is not None and source.form == "instance_ids" and {i for image in seen for i in image.ids} == {255}:
        what = "255 is the only id: are these masks of the foreground, with all objects in one?"
        remedy = "give each object its own value, or declare them as `semantic`"
        yield Finding(WARNING, "binary masks", str(source.annotations), what, remedy)


def unpaired_files(seen: Sequence[Seen], metadata: Metadata, queries: int) -> Findings:
    source = (metadata.get("declared") or (None,))[0]
    if source is not None:
        folders, suffixes = (source.images, source.annotations), ANNOTATION_SUFFIXES.get(source.form)
    else:
        folders = Path(metadata.get("image_root") or ""), Path(metadata.get("sem_seg_root") or "")
        suffixes = (".png",) if metadata.get("evaluator_type") == "sem_seg" and all(f.name for f in folders) else None
    if suffixes is None:
        return
    images, annotations = unpaired(*folders, suffixes)
    for file in images if source is None or source.form != "yolo_segment" else []:
        what = "has no annotation of its name, and is left out"
        yield Finding(WARNING, "image without annotation", str(file), what, "annotate it, or remove it")
    for file in annotations:
        what = "has no image of its name, and is left out"
        yield Finding(WARNING, "annotation without image", str(file), what, "add the image, or remove it")


ANNOTATION_SUFFIXES = {
    "semantic": (".png", ".tif", ".tiff", ".bmp"),
    "instance_ids": (".png", ".tif", ".tiff", ".bmp"),
    "labelme": (".json",),
    "yolo_segment": (".txt",),
}

SET_FAULTS = [
    unpaired_files,
    same_images,
    too_many_objects,
    binary_masks,
    classes_without_example,
    no_objects,
]


# Two sets


def other_classes(first: Metadata, other: Metadata) -> Findings:
    for key in ("thing_classes", "stuff_classes"):
        ours, theirs = first.get(key), other.get(key)
        if ours and theirs and list(ours) != list(theirs):
            shorter = min(len(ours), len(theirs))
            k = next((k for k in range(shorter) if ours[k] != theirs[k]), shorter)
            names = [classes[k] if k < len(classes) else "missing" for classes in (ours, theirs)]
            what = f'class {k} is "{names[0]}" in {first.name} and "{names[1]}" here'
            yield Finding(FATAL, "other classes", other.name, what, "give both sets the same classes in the same order")
            return


def leaked_images(train: str, trained: Sequence[Seen], tested: Sequence[Seen]) -> Findings:
    files = {image.digest: image.file for image in trained if image.digest}
    for image in tested:
        if image.digest in files:
            what = f"is the same image as {files[image.digest]} of {train}: what is trained on is tested"
            yield Finding(WARNING, "image in training and test", image.file, what, "remove it from one of the sets")


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _wxh(size: Sequence[int]) -> str:
    return f"{size[1]} x {size[0]}"
