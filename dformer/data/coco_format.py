"""Records of any data set -> COCO's json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from panopticapi.utils import rgb2id

from dformer.data.images import read_panoptic_png, read_size
from dformer.data.segmentations import area_and_box, compress, encode_mask, json_rle
from dformer.data.types import Metadata, Record, Size
from dformer.utils.errors import UserError
from dformer.utils.processes import Map, parallel_map


def instances_json(records: Sequence[Record], metadata: Metadata, run: Map = parallel_map) -> dict[str, Any]:
    """Return the COCO instances json of the things in `records`: "images", "annotations", "categories".

    Category ids are the data set's. Polygons stay polygons, all else becomes RLE. Ids that are unique within images
    only become "segment_id". `run` maps a function over the records.

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
    """Return the things of a record, with contiguous category ids.

    Each has "id" (None: it has none), "category_id", "iscrowd", "area", "bbox" and "segmentation".
    """
    if "annotations" in record:
        return [_thing(a, a["segmentation"], record) for a in record["annotations"] if a.get("segmentation")]
    if "segments_info" not in record:
        raise UserError(f"{record['file_name']} is annotated with classes of pixels only, without instances")
    ids = rgb2id(read_panoptic_png(record["pan_seg_file_name"]))
    return [_thing(s, encode_mask(ids == s["id"]), record) for s in record["segments_info"] if s["isthing"]]


def _thing(annotation: dict[str, Any], segmentation: Any, record: Record) -> dict[str, Any]:
    encoded = as_rle(segmentation, record)
    measures = area_and_box(encoded)
    if isinstance(segmentation, dict):
        segmentation = json_rle(encoded)
    else:  # of polygons, the annotation's own numbers are finer than the mask's
        measures |= {key: annotation[key] for key in measures if key in annotation}
    return {
        "id": annotation.get("segment_id", annotation.get("id")),
        "category_id": annotation["category_id"],
        "iscrowd": int(annotation.get("iscrowd", 0)),
        **measures,
        "segmentation": segmentation,
    }


def as_rle(segmentation: Any, record: Record) -> dict[str, Any]:
    """Return the mask of an object in a record, polygons or RLE of either kind, as a compressed RLE."""
    try:
        return compress(segmentation, image_size(record))
    except UserError as error:
        raise UserError(f"an object of {record['file_name']} {error}") from error


def image_size(record: Record) -> Size:
    """Return the height and width of a record's image, from the file if the record has none."""
    return (record["height"], record["width"]) if "height" in record else read_size(record["file_name"])


def image_entry(record: Record, metadata: Metadata) -> dict[str, Any]:
    """Return the entry of an image in COCO's json, with its file name relative to `image_root`."""
    height, width = image_size(record)
    name = str(Path(record["file_name"]).relative_to(metadata.image_root))
    return {"id": record["image_id"], "file_name": name, "height": height, "width": width}


def category_entries(metadata: Metadata) -> list[dict[str, Any]]:
    """Return "id", "name" and "isthing" of all classes, in contiguous order; for label maps, labels are the ids."""
    things = metadata.get("thing_dataset_id_to_contiguous_id", {})
    stuff = metadata.get("stuff_dataset_id_to_contiguous_id")
    if stuff is None:
        stuff = {} if things else {k: k for k in range(len(metadata.stuff_classes))}
    names = metadata.thing_classes if things else metadata.stuff_classes
    entries = [(k, i, 1) for i, k in things.items()] + [(k, i, 0) for i, k in stuff.items()]
    return [{"id": i, "name": names[k], "isthing": isthing} for k, i, isthing in sorted(entries)]
