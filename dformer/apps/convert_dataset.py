"""A data set in one form -> the same in another, written whole or not at all.

A form keeps what it can: COCO instances all of things; panoptic PNGs all but overlaps; PNGs of instance ids neither
classes nor crowds; semantic PNGs no instances. What is lost is told.
"""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.data import DatasetCatalog
from detectron2.data.catalog import Metadata
from numpy.typing import NDArray
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from pycocotools import mask as rle

from dformer.d2.data.datasets import get_metadata, loading
from dformer.data.coco_format import as_rle, category_entries, image_entry, image_size, instances_json, things_of
from dformer.data.images import read_labels, read_panoptic_png
from dformer.data.panoptic import paint_classes
from dformer.data.types import Record
from dformer.utils.errors import UserError, did_you_mean
from dformer.utils.processes import Map, parallel_map

Records = list[dict[str, Any]]
Written = tuple[dict[str, Any], list[str]]  # the declaration of what was written, and what was lost
MAX_SEGMENT_ID = 256**3 - 1
MAX_INSTANCE_ID = 65535


def convert(name: str, form: str, output: str | Path, workers: int | None = None, progress: bool = True) -> list[str]:
    """Write a registered data set in another form to the new folder `output`.

    The folder's `dataset.yaml` declares what was written, under the name of the folder. Images stay where they are.

    Args:
        name: of the data set, in any form.
        form: a key of `WRITERS`.
        output: appears when all is written; must not exist.
        workers: processes; by default as many as there are cores.
        progress: show a progress bar.

    Returns:
        What the form could not keep, a sentence each.

    Raises:
        UserError: `form` is unknown or cannot be made of these annotations, `output` exists, or a file cannot be read.
    """
    if form not in WRITERS:
        raise UserError(
            f'no form "{form}" can be written{did_you_mean(form, WRITERS)} (there are {", ".join(WRITERS)})'
        )
    output = Path(output).resolve()
    if output.exists():
        raise UserError(f"{output} exists already; name a folder that does not")
    metadata = get_metadata(name)
    if not metadata.get("image_root"):
        raise UserError(f'the metadata of data set "{name}" have no image_root: where all its images lie')
    with loading(name):
        records = DatasetCatalog.get(name)
    partial_output = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial_output, ignore_errors=True)  # left by a run that was killed
    try:
        partial_output.mkdir(parents=True)
        run = partial(parallel_map, what=f"{name} -> {form}" if progress else None, workers=workers)
        declaration, lost = WRITERS[form](records, metadata, partial_output, run)
        declared = {"form": form, "images": str(Path(metadata.image_root).resolve()), **declaration}
        (partial_output / "dataset.yaml").write_text(yaml.safe_dump({output.name: declared}, sort_keys=False))
        partial_output.rename(output)
    finally:
        shutil.rmtree(partial_output, ignore_errors=True)
    return lost


def _write_coco_instances(records: Records, metadata: Metadata, folder: Path, run: Map) -> Written:
    _need_things(metadata)
    (folder / "annotations.json").write_text(json.dumps(instances_json(records, metadata, run)))
    stuff = metadata.get("stuff_dataset_id_to_contiguous_id")
    return {"annotations": "annotations.json"}, ["stuff is left out: this form has things only"] if stuff else []


def _write_coco_panoptic(records: Records, metadata: Metadata, folder: Path, run: Map) -> Written:
    (folder / "panoptic").mkdir()
    categories = category_entries(metadata)
    found = run(partial(_write_panoptic_png, folder=folder / "panoptic", metadata=metadata), records)
    annotations = [
        {
            "image_id": record["image_id"],
            "file_name": f"{_name(record, metadata)}.png",
            "segments_info": [{**s, "category_id": categories[s["category_id"]]["id"]} for s in segments],
        }
        for record, (segments, _) in zip(records, found, strict=True)
    ]
    images = [image_entry(record, metadata) for record in records]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return {"annotations": "panoptic.json", "pngs": "panoptic"}, _told(found)


def _write_panoptic_png(record: Record, folder: Path, metadata: Metadata) -> tuple[list[dict[str, Any]], list[str]]:
    """Write the PNG of a record; return its segments, in contiguous category ids, and what was lost."""
    lost: list[str] = []
    if "segments_info" in record:
        ids, segments = rgb2id(read_panoptic_png(record["pan_seg_file_name"])), record["segments_info"]
    elif "annotations" in record:
        ids, segments, lost = _paint(record, MAX_SEGMENT_ID)
    else:
        labels = _labels(record, metadata).astype(np.int64)
        ids = np.where(labels == _ignore_label(metadata), 0, labels + 1)
        segments = [{"id": k, "category_id": k - 1} for k in np.unique(ids).tolist() if k]
    _save(id2rgb(ids), folder / f"{_name(record, metadata)}.png")
    return [_segment(s, ids) for s in segments], lost


def _segment(segment: dict[str, Any], ids: NDArray[Any]) -> dict[str, Any]:
    mask = rle.encode(np.asfortranarray(ids == segment["id"], dtype=np.uint8))
    return {
        "id": segment["id"],
        "category_id": segment["category_id"],
        "iscrowd": int(segment.get("iscrowd", 0)),
        "bbox": [int(side) for side in rle.toBbox(mask)],
        "area": int(rle.area(mask)),
    }


def _write_semantic(records: Records, metadata: Metadata, folder: Path, run: Map) -> Written:
    (folder / "labels").mkdir()
    run(partial(_write_label_png, folder=folder / "labels", metadata=metadata), records)
    names = [category["name"] for category in category_entries(metadata)]
    return {"annotations": "labels", "classes": names, "void": _ignore_label(metadata)}, []


def _write_label_png(record: Record, folder: Path, metadata: Metadata) -> None:
    labels = _labels(record, metadata)
    dtype = np.uint8 if _ignore_label(metadata) < 256 else np.uint16
    _save(labels.astype(dtype), folder / f"{_name(record, metadata)}.png")


def _write_instance_ids(records: Records, metadata: Metadata, folder: Path, run: Map) -> Written:
    _need_things(metadata)
    (folder / "masks").mkdir()
    lost = _told(run(partial(_write_id_png, folder=folder / "masks", metadata=metadata), records))
    names = [category["name"] for category in category_entries(metadata) if category["isthing"]]
    if len(names) > 1:
        lost.append(f"the {len(names)} classes are lost: this form has one")
        names = ["object"]
    return {"annotations": "masks", "classes": names}, lost


def _write_id_png(record: Record, folder: Path, metadata: Metadata) -> tuple[None, list[str]]:
    things = things_of(record)
    objects = [thing for thing in things if not thing["iscrowd"]]
    ids, _, lost = _paint({**record, "annotations": objects}, MAX_INSTANCE_ID)
    _save(ids.astype(np.uint8 if ids.max() < 256 else np.uint16), folder / f"{_name(record, metadata)}.png")
    return None, lost + (["crowds are left out"] if len(objects) < len(things) else [])


def _paint(record: Record, largest_id: int) -> tuple[NDArray[np.int64], list[dict[str, Any]], list[str]]:
    """Objects on one map, smaller over larger ones: ids (H, W), 0 is none; the objects that are seen; what is lost."""
    objects = [a for a in record["annotations"] if a.get("segmentation")]
    objects = [{**a, "id": k} for a, k in zip(objects, _ids_of(objects, largest_id), strict=True)]
    masks = {a["id"]: rle.decode(as_rle(a["segmentation"], record)).astype(bool) for a in objects}
    ids = np.zeros(image_size(record), np.int64)
    for k, mask in sorted(masks.items(), key=lambda item: -item[1].sum()):
        ids[mask] = k
    seen = [a for a in objects if (ids == a["id"]).any()]
    overlap = sum(mask.sum() for mask in masks.values()) > (ids > 0).sum()
    lost = ["objects overlap; where they do, the smaller one is kept"] if overlap else []
    return ids, seen, lost + (["objects without a pixel of their own are left out"] if len(seen) < len(objects) else [])


def _ids_of(objects: Sequence[dict[str, Any]], largest: int) -> list[int]:
    """The objects' own ids where they are unique and in 1..largest, else 1, 2, ..."""
    ids = [a.get("segment_id", a.get("id")) or 0 for a in objects]
    fit = len(set(ids)) == len(ids) and all(0 < k <= largest for k in ids)
    return ids if fit else list(range(1, len(ids) + 1))


def _labels(record: Record, metadata: Metadata) -> NDArray[Any]:
    """(H, W) contiguous classes, `_ignore_label` where there is none."""
    if "sem_seg_file_name" in record:
        return read_labels(record["sem_seg_file_name"], record.get("label_map"))
    if "segments_info" in record:
        classes = {s["id"]: s["category_id"] for s in record["segments_info"]}
        return paint_classes(read_panoptic_png(record["pan_seg_file_name"]), classes, _ignore_label(metadata))
    ids, objects, _ = _paint(record, MAX_SEGMENT_ID)
    return paint_classes(ids, {a["id"]: a["category_id"] for a in objects}, _ignore_label(metadata))


def _ignore_label(metadata: Metadata) -> int:
    return metadata.get("ignore_label", 255)


def _need_things(metadata: Metadata) -> None:
    if not metadata.get("thing_dataset_id_to_contiguous_id"):
        raise UserError(f'data set "{metadata.name}" has classes of pixels only, which tell no instances apart')


def _name(record: Record, metadata: Metadata) -> str:
    """The image's path below `image_root`, without suffix: what image and annotation have in common."""
    return str(Path(record["file_name"]).relative_to(metadata.image_root).with_suffix(""))


def _save(picture: NDArray[Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(file)


def _told(found: Sequence[tuple[Any, list[str]]]) -> list[str]:
    """What was lost, each with its number of images."""
    counts = Counter(text for _, lost in found for text in lost)
    return [f"{text} ({count} of {len(found)} images)" for text, count in counts.items()]


WRITERS = {
    "coco_instances": _write_coco_instances,
    "coco_panoptic": _write_coco_panoptic,
    "semantic": _write_semantic,
    "instance_ids": _write_instance_ids,
}
