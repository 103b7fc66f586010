"""Each fault of a COCO json is found, and named."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from dformer.data.checks.coco_json import check_json
from dformer.data.checks.findings import FATAL, WARNING

MEASURES = {"iscrowd": 0, "area": 100, "bbox": [3, 2, 10, 10]}
IMAGES = [{"id": k, "file_name": f"{k}.jpg", "height": 24, "width": 24} for k in (1, 2)]
SQUARE = [3.0, 2.0, 13.0, 2.0, 13.0, 12.0, 3.0, 12.0]
RLE = {"size": [24, 24], "counts": [100, 50, 426]}
CONTENTS: dict[str, Any] = {
    "panoptic": {
        "images": IMAGES,
        "annotations": [
            {
                "image_id": k,
                "file_name": f"{k}.png",
                "segments_info": [{"id": i, "category_id": i % 2, **MEASURES} for i in (7, 300)],
            }
            for k in (1, 2)
        ],
        "categories": [{"id": 0, "name": "cat", "isthing": 1}, {"id": 1, "name": "sky", "isthing": 0}],
    },
    "instance": {
        "images": IMAGES,
        "annotations": [
            {"id": k, "image_id": k, "category_id": k % 2, "segmentation": s, **MEASURES}
            for k, s in ((1, [SQUARE]), (2, RLE))
        ],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    },
}


def setting(section: str, key: str, value: Any) -> Callable[[Any], None]:
    """A change of the second entry of a section; of its second segment for "segments"."""

    def change(content: Any) -> None:
        entries = content["annotations"][1]["segments_info"] if section == "segments" else content[section]
        entries[1][key] = value

    return change


@pytest.mark.parametrize("form", CONTENTS)
def test_nothing_is_found_in_a_right_json(form: str) -> None:
    assert check_json(CONTENTS[form], "a.json", form) == []


@pytest.mark.parametrize(
    ("form", "change", "kind", "named"),
    [
        ("instance", lambda c: c.pop("categories"), "json unreadable", "categories"),
        ("panoptic", lambda c: c["images"].clear(), "json unreadable", "images"),
        ("instance", lambda c: c["annotations"][1].pop("segmentation"), "wrong entry", 'no "segmentation"'),
        ("panoptic", lambda c: c["categories"][1].pop("isthing"), "wrong entry", 'categories[1] has no "isthing"'),
        ("panoptic", lambda c: c["annotations"][0]["segments_info"].append(7), "wrong entry", "segments_info[2]"),
        ("panoptic", setting("annotations", "segments_info", 7), "wrong entry", '"segments_info" of annotations[1]'),
        ("panoptic", setting("segments", "id", 256**3), "wrong entry", '"id" of segments_info[3]'),
        ("instance", setting("images", "id", [1]), "wrong entry", '"id" of images[1]'),
        ("instance", setting("images", "height", 10**30), "wrong entry", '"height" of images[1]'),
        ("instance", setting("categories", "id", "1"), "wrong entry", '"id" of categories[1]'),
        ("instance", setting("annotations", "area", float("nan")), "wrong entry", '"area" of annotations[1]'),
        ("instance", setting("annotations", "bbox", [1, 2, 3]), "wrong entry", '"bbox" of annotations[1]'),
        ("instance", setting("annotations", "iscrowd", 2), "wrong entry", '"iscrowd" of annotations[1]'),
        ("instance", setting("annotations", "segmentation", []), "wrong entry", '"segmentation" of annotations[1]'),
        ("instance", setting("annotations", "segmentation", {"counts": "1"}), "wrong entry", '"segmentation"'),
        ("instance", setting("annotations", "segmentation", [[1, float("inf")]]), "wrong entry", '"segmentation"'),
        ("instance", setting("annotations", "id", 1), "duplicate id", 'annotations have the id "1"'),
        ("panoptic", setting("categories", "id", 0), "duplicate id", 'categories have the id "0"'),
        ("panoptic", setting("annotations", "image_id", 1), "duplicate id", 'annotations have the image_id "1"'),
        ("panoptic", setting("segments", "id", 7), "duplicate id", "image 2: several segments have the id 7"),
        ("instance", setting("annotations", "category_id", 9), "unknown category", "id 2"),
        ("panoptic", setting("segments", "category_id", 9), "unknown category", "id 300"),
        ("instance", setting("annotations", "image_id", "2"), "annotation without image", "'2'"),
        ("panoptic", lambda c: c["annotations"].pop(), "image without annotation", "image 2"),
    ],
)
def test_a_fault_is_found(form: str, change: Callable[[Any], Any], kind: str, named: str) -> None:
    content = copy.deepcopy(CONTENTS[form])
    change(content)
    finding = next(f for f in check_json(content, "a.json", form) if f.kind == kind)
    assert named in finding.what and finding.file == "a.json" and finding.remedy and len(finding.what) < 200
    assert finding.level == (WARNING if "without" in kind else FATAL)


@pytest.mark.parametrize("content", [None, 7, [], {"images": 7}, {"images": [7], "annotations": [None]}])
@pytest.mark.parametrize("form", CONTENTS)
def test_any_json_can_be_checked(form: str, content: Any) -> None:
    assert any(finding.level == FATAL for finding in check_json(content, "a.json", form))
