"""Each fault of a COCO json is found, and named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dformer.data.checks.coco_json import check_json
from dformer.data.checks.findings import FATAL, WARNING

FILES = {"panoptic": "coco_panoptic/coco/annotations/panoptic", "instance": "coco_instance/coco/annotations/instances"}
FIRST = object()  # the value of the first entry


def read(data_dir: Path, form: str) -> Any:
    return json.loads((data_dir / f"{FILES[form]}_val2017.json").read_text())


def setting(section: str, key: str, value: Any) -> Callable[[Any], None]:
    """A change of the second entry of a section; for "segments", of the second image's second segment."""

    def change(content: Any) -> None:
        entries = content["annotations"][1]["segments_info"] if section == "segments" else content[section]
        entries[1][key] = entries[0][key] if value is FIRST else value

    return change


@pytest.mark.parametrize("form", FILES)
def test_nothing_is_found_in_a_right_json(data_dir: Path, form: str) -> None:
    assert check_json(read(data_dir, form), "a.json", form) == []


@pytest.mark.parametrize(
    ("form", "change", "kind", "named"),
    [
        ("instance", lambda c: c.pop("categories"), "json unreadable", "categories"),
        ("panoptic", lambda c: c["images"].clear(), "json unreadable", "images"),
        ("instance", lambda c: c["annotations"][1].pop("segmentation"), "wrong entry", 'no "segmentation"'),
        ("panoptic", lambda c: c["categories"][1].pop("isthing"), "wrong entry", 'categories[1] has no "isthing"'),
        ("panoptic", lambda c: c["annotations"][0]["segments_info"].append(7), "wrong entry", "segments_info["),
        ("panoptic", setting("annotations", "segments_info", 7), "wrong entry", '"segments_info" of annotations[1]'),
        ("panoptic", setting("segments", "id", 256**3), "wrong entry", '"id" of segments_info['),
        ("instance", setting("images", "id", [1]), "wrong entry", '"id" of images[1]'),
        ("instance", setting("images", "height", 10**30), "wrong entry", '"height" of images[1]'),
        ("instance", setting("categories", "id", "1"), "wrong entry", '"id" of categories[1]'),
        ("instance", setting("annotations", "area", float("nan")), "wrong entry", '"area" of annotations[1]'),
        ("instance", setting("annotations", "bbox", [1, 2, 3]), "wrong entry", '"bbox" of annotations[1]'),
        ("instance", setting("annotations", "iscrowd", 2), "wrong entry", '"iscrowd" of annotations[1]'),
        ("instance", setting("annotations", "segmentation", []), "wrong entry", '"segmentation" of annotations[1]'),
        ("instance", setting("annotations", "segmentation", {"counts": "1"}), "wrong entry", '"segmentation"'),
        ("instance", setting("annotations", "segmentation", [[1, float("inf")]]), "wrong entry", '"segmentation"'),
        ("instance", setting("annotations", "id", FIRST), "duplicate id", "annotations have the id"),
        ("panoptic", setting("categories", "id", FIRST), "duplicate id", "categories have the id"),
        ("panoptic", setting("annotations", "image_id", FIRST), "duplicate id", "annotations have the image_id"),
        ("panoptic", setting("segments", "id", FIRST), "duplicate id", "several segments have the id"),
        ("instance", setting("annotations", "category_id", 999), "unknown category", "999"),
        ("panoptic", setting("segments", "category_id", 999), "unknown category", "999"),
        ("instance", setting("annotations", "image_id", "2"), "annotation without image", "'2'"),
        ("panoptic", lambda c: c["annotations"].pop(), "image without annotation", "the image"),
    ],
)
def test_a_fault_is_found(data_dir: Path, form: str, change: Callable[[Any], Any], kind: str, named: str) -> None:
    content = read(data_dir, form)
    change(content)
    finding = next(f for f in check_json(content, "a.json", form) if f.kind == kind)
    assert named in finding.what and finding.file == "a.json" and len(finding.what) < 200
    assert finding.level == (WARNING if "without" in kind else FATAL)


@pytest.mark.parametrize("content", [None, [], {"images": [7], "annotations": [None]}])
@pytest.mark.parametrize("form", FILES)
def test_any_json_can_be_checked(form: str, content: Any) -> None:
    assert any(finding.level == FATAL for finding in check_json(content, "a.json", form))
