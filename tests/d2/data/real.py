"""Small real data sets that may be damaged."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

IMAGES = 6  # of each data set
CAMVID = ["sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car", "person", "bicycle"]
DECLARATIONS: dict[str, dict[str, Any]] = {
    "panoptic": {"form": "coco_panoptic", "images": "images", "annotations": "panoptic.json", "pngs": "pngs"},
    "instance": {"form": "coco_instances", "images": "images", "annotations": "instances.json"},
    "semantic": {"form": "semantic", "images": "images", "annotations": "labels", "classes": CAMVID, "void": 11},
    "ids": {"form": "instance_ids", "images": "images", "annotations": "masks"},
}


def copy_of(data: Path, kind: str, folder: Path, part: int = 0) -> Path:
    """Copy images and annotations to `folder`, with dataset.yaml, which declares them; other `part`s, other images."""
    kept = slice(part * IMAGES, (part + 1) * IMAGES)
    annotations = DECLARATIONS[kind]["annotations"]
    if kind in ("panoptic", "instance"):
        coco = data / f"coco_{kind}" / "coco"
        content = json.loads((coco / "annotations" / annotations.replace(".json", "_val2017.json")).read_text())
        if kind == "instance":  # images with objects, some of them crowds
            content["images"].sort(key=lambda i: -sum(a["image_id"] == i["id"] for a in content["annotations"]))
        content["images"] = content["images"][kept]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        _copy(coco / "val2017", folder / "images", [i["file_name"] for i in content["images"]])
        if kind == "panoptic":
            _copy(coco / "panoptic_val2017", folder / "pngs", [a["file_name"] for a in content["annotations"]])
        (folder / annotations).write_text(json.dumps(content))
    else:
        images, labels = ("pennfudan/images", "pennfudan/masks")
        if kind == "semantic":
            images, labels = ("camvid/val", "camvid/valannot")
        names = sorted(f.stem for f in (data / labels).iterdir())[40:][kept]
        _copy(data / images, folder / "images", [f"{name}.jpg" for name in names])
        _copy(data / labels, folder / annotations, [f"{name}.png" for name in names])
    (folder / "dataset.yaml").write_text(yaml.safe_dump({folder.name: DECLARATIONS[kind]}))
    return folder


def declaration(folder: Path) -> dict[str, Any]:
    """Return the declaration in a copy's dataset.yaml."""
    return yaml.safe_load((folder / "dataset.yaml").read_text())[folder.name]


def _copy(source: Path, target: Path, names: list[str]) -> None:
    target.mkdir(parents=True)
    for name in names:
        shutil.copyfile(source / name, target / name)
