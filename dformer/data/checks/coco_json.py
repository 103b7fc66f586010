"""Checks of COCO's json files."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from dformer.data.checks.findings import Finding, Findings
from dformer.data.images import MAX_PIXELS


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(polygon, list) and all(map(_is_number, polygon)) for polygon in value)
    return isinstance(value, dict) and {"counts", "size"} <= value.keys()


Field = tuple[Callable[[Any], bool], str]  # whether a value is valid; what it must be
ID: Field = (lambda value: type(value) in (int, str), "a number or text")
INTEGER: Field = (lambda value: type(value) is int, "an integer")
TEXT: Field = (lambda value: isinstance(value, str), "text")
SIDE: Field = (lambda value: type(value) is int and 0 < value <= MAX_PIXELS, "a number of pixels")
FLAG: Field = (lambda value: type(value) in (int, bool) and value in (0, 1), "0 or 1")
SEGMENT_ID: Field = (lambda value: type(value) is int and 0 < value < 256**3, "1 to 16777215 (0 is void)")
SEGMENTS: Field = (lambda value: isinstance(value, list), "a list of segments")
SEGMENTATION: Field = (_is_segmentation, "polygons, lists of x and y, or an RLE of counts and size")
BOX: Field = (lambda value: isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)), "4 numbers")
MEASURES: dict[str, Field] = {"bbox": BOX, "area": (_is_number, "a number"), "iscrowd": FLAG}  # optional
IMAGE = {"id": ID, "file_name": TEXT, "height": SIDE, "width": SIDE}
SEGMENT = {"id": SEGMENT_ID, "category_id": INTEGER, **MEASURES}
FORMATS: dict[str, dict[str, dict[str, Field]]] = {
    "panoptic": {
        "images": IMAGE,
        "annotations": {"image_id": ID, "file_name": TEXT, "segments_info": SEGMENTS},
        "categories": {"id": INTEGER, "name": TEXT, "isthing": FLAG},
    },
    "instance": {
        "images": IMAGE,
        "annotations": {"id": ID, "image_id": ID, "category_id": INTEGER, "segmentation": SEGMENTATION, **MEASURES},
        "categories": {"id": INTEGER, "name": TEXT},
    },
}


def check_json(content: Any, file: str, form: str) -> list[Finding]:
    """Check the content of a COCO json file of the form "panoptic" or "instance".

    Returns:
        All findings or, where fields are missing or of a wrong type, these alone.
    """
    found = [*_sections(content, file, form)]
    if not found and form == "panoptic":
        segments = (segment for annotation in content["annotations"] for segment in annotation["segments_info"])
        found = [*_check_fields(segments, "segments_info", SEGMENT, file)]
    return found or [*_duplicates(content, file, form), *_references(content, file, form)]


def _sections(content: Any, file: str, form: str) -> Findings:
    for section, fields in FORMATS[form].items():
        entries = content.get(section) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not entries and section != "annotations":
            yield Finding("json unreadable", file, f'has no list "{section}", or an empty one')
        else:
            yield from _check_fields(entries, section, fields, file)


def _check_fields(entries: Iterable[Any], where: str, fields: dict[str, Field], file: str) -> Findings:
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            yield Finding("wrong entry", file, f"{where}[{index}] is a {type(entry).__name__}, not an object")
            continue
        for key, (is_valid, expected) in fields.items():
            if key in entry and not is_valid(entry[key]):
                what = f'"{key}" of {where}[{index}] is {str(entry[key])[:40]!r}, but must be {expected}'
                yield Finding("wrong entry", file, what)
            elif key not in entry and key not in MEASURES:
                yield Finding("wrong entry", file, f'{where}[{index}] has no "{key}"')


def _duplicates(content: Any, file: str, form: str) -> Findings:
    key = "image_id" if form == "panoptic" else "id"
    for section, field in (("images", "id"), ("categories", "id"), ("annotations", key)):
        for value in _repeated(entry[field] for entry in content[section]):
            yield Finding("duplicate id", file, f'several {section} have the {field} "{value}"')
    for annotation in content["annotations"] if form == "panoptic" else ():
        for value in _repeated(segment["id"] for segment in annotation["segments_info"]):
            yield Finding("duplicate id", file, f"image {annotation['image_id']}: several segments have the id {value}")


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _references(content: Any, file: str, form: str) -> Findings:
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    annotated = Counter(annotation["image_id"] for annotation in content["annotations"])
    for image in annotated.keys() - images:
        what = f"{annotated[image]} annotations are of an image {image!r}, which is not listed"
        yield Finding("annotation without image", file, what)
    for image in images - annotated.keys() if form == "panoptic" else ():
        yield Finding("image without annotation", file, f"the image {image!r} has no annotation, and is not used")
    for annotation in content["annotations"]:
        for entry in annotation.get("segments_info", [annotation]):
            if entry["category_id"] not in categories:
                what = f"image {annotation['image_id']!r}, id {entry['id']}: there is no category"
                yield Finding("unknown category", file, f"{what} {entry['category_id']}")
