"""Records of any data set -> what COCO's json files say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from panopticapi.utils import rgb2id
from pycocotools import mask as rle

from dformer.data.images import read_panoptic_png, read_size
from dformer.data.segmentations import fault_of
from dformer.data.types import Metadata, Record
from dformer.utils.errors import UserError
from dformer.utils.processes import Map, parallel_map


def instances_json(records: Sequence[Record], metadata: Metadata, run: Map = parallel_map) -> dict[str, Any]:
    """COCO instances json of the things in `records`: {"images", "annotations", "categories"}, in dataset category ids.

    Polygons stay polygons, all else becomes RLE. Ids that are unique within images only become "segment_id".
    `run` maps a function over the records.

    Raises:
        UserError: a file cannot be read, or is annotated for semantic segmentation only.
    """
    dataset_ids = {k: i for i, k in metadata.thing_dataset_id_to_contiguous_id.items()}
    annotations = [
        {**thing, "image_id": record["image_id"], "category_id": dataset_ids[thing["category_id"]]}
        for record, found in zip(records, run(things_of, records), strict=True)
        for thing in found
    ]
    if len({a["id"] for a in annotations} - {None}) < len(annotations):
        annotations = [{**a, "id": i, "segment_id": a["id"]} for i, a in enumerate(annotations, start=1)]
    return {
        "images": [image_entry(record, metadata) for record in records],
        "annotations": annotations,
        "categories": [c for c in category_entries(metadata) if c["isthing"]],
    }


def things_of(record: Record) -> list[dict[str, Any]]:
    """The things of a record, with contiguous category ids: {"id" (None: it has none), "category_id", "iscrowd",
    "area", "bbox", "segmentation"}."""
    if "annotations" in record:
        return [_thing(a, a["segmentation"], record) for a in record["annotations"] if a.get("segmentation")]
    if "segments_info" not in record:
        raise UserError(
            f"{record['file_name']} is annotated with classes of pixels only, which tell no instances apart"
        )
    ids = rgb2id(read_panoptic_png(record["pan_seg_file_name"]))
    things = [s for s in record["segments_info"] if s["isthing"]]
    return [_thing(s, rle.encode(np.asfortranarray(ids == s["id"], dtype=np.uint8)), record) for s in things]


def as_rle(segmentation: Any, record: Record) -> dict[str, Any]:
    """A segmentation (polygons, or RLE of either kind) as a compressed RLE.

    Raises:
        UserError: there is a fault in it.
    """
    if fault := fault_of(segmentation, image_size(record)):
        raise UserError(f"an object of {record['file_name']} {fault}")
    if isinstance(segmentation, dict):
        size = segmentation["size"]
        return rle.frPyObjects(segmentation, *size) if isinstance(segmentation["counts"], list) else segmentation
    return rle.merge(rle.frPyObjects(segmentation, *image_size(record)))


def image_size(record: Record) -> tuple[int, int]:
    """Height and width; read from the file where the record does not tell."""
    if "height" in record:
        return record["height"], record["width"]
    return read_size(record["file_name"])


def image_entry(record: Record, metadata: Metadata) -> dict[str, Any]:
    """An image, its file name relative to `image_root`."""
    height, width = image_size(record)
    name = str(Path(record["file_name"]).relative_to(metadata.image_root))
    return {"id": record["image_id"], "file_name": name, "height": height, "width": width}


def category_entries(metadata: Metadata) -> list[dict[str, Any]]:
    """{"id", "name", "isthing"} of all classes, in contiguous order; labels without things are their own ids."""
    things = metadata.get("thing_dataset_id_to_contiguous_id", {})
    stuff = metadata.get("stuff_dataset_id_to_contiguous_id")
    if stuff is None:
        stuff = {} if things else {k: k for k in range(len(metadata.stuff_classes))}
    names = metadata.thing_classes if things else metadata.stuff_classes
    entries = [(k, i, 1) for i, k in things.items()] + [(k, i, 0) for i, k in stuff.items()]
    return [{"id": i, "name": names[k], "isthing": isthing} for k, i, isthing in sorted(entries)]


def _thing(annotation: dict[str, Any], segmentation: Any, record: Record) -> dict[str, Any]:
    encoded = as_rle(segmentation, record)
    area, bbox = int(rle.area(encoded)), [int(side) for side in rle.toBbox(encoded)]
    if isinstance(segmentation, dict):
        counts = encoded["counts"]
        segmentation = {
            "size": [int(side) for side in encoded["size"]],
            "counts": counts if isinstance(counts, str) else counts.decode("ascii"),
        }
    else:  # of polygons, the annotation's own numbers are finer than the mask's
        area, bbox = annotation.get("area", area), list(annotation.get("bbox", bbox))
    return {
        "id": annotation.get("segment_id", annotation.get("id")),
        "category_id": annotation["category_id"],
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "area": area,
        "bbox": bbox,
        "segmentation": segmentation,
    }
