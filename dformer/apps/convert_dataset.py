"""Write a data set in another form: coco_instances, coco_panoptic, semantic or instance_ids.

dformer convert-dataset pedestrians.yaml --to coco_panoptic --output pedestrians_panoptic
dformer convert-dataset coco_2017_val_panoptic --to instance_ids --output masks

The folder appears when all is written, with a dataset.yaml that declares what it holds. Images stay where they are.

Each form keeps what it can hold: COCO instances all of things; panoptic PNGs all but overlaps; PNGs of instance ids
neither classes nor crowds; semantic PNGs no instances. Losses are reported.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.data.catalog import Metadata
from numpy.typing import NDArray
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image

from dformer.apps.commands.arguments import command_parser
from dformer.d2.data import find_datasets
from dformer.d2.data.datasets import get_metadata, get_records
from dformer.data.coco_format import as_rle, category_entries, image_entry, image_size, instances_json, things_of
from dformer.data.images import read_labels, read_panoptic_png
from dformer.data.panoptic import paint_classes, paint_masks
from dformer.data.segmentations import area_and_box, decode_rle, encode_mask
from dformer.data.types import Record
from dformer.utils.errors import UserError, did_you_mean, exit_on_user_error
from dformer.utils.files import atomic_folder, write_json
from dformer.utils.processes import Map, parallel_map

Records = Sequence[Record]
Written = tuple[dict[str, Any], list[str]]  # the declaration of what was written, and the losses
Segments = tuple[NDArray[np.integer[Any]], list[dict[str, Any]], list[str]]  # ids (H, W), entries, losses
MAX_SEGMENT_ID = 256**3 - 1
MAX_INSTANCE_ID = 65535


def convert(name: str, form: str, output: str | Path, workers: int | None = None, progress: bool = True) -> list[str]:
    """Write a registered data set in another form to the new folder `output`; return the losses, a sentence each.

    The folder's `dataset.yaml` declares what was written, under the name of the folder. Images stay where they are.

    Args:
        name: of the data set, in any form.
        form: a key of `WRITERS`.
        output: must not exist; it appears when it is complete.
        workers: processes; by default as many as there are cores.
        progress: show a progress bar.

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
    records, metadata = get_records(name), get_metadata(name)
    if not metadata.get("image_root"):
        raise UserError(f'the metadata of data set "{name}" have no image_root, the folder of all its images')
    run = partial(parallel_map, what=f"{name} -> {form}" if progress else None, workers=workers)
    with atomic_folder(output) as folder:
        declaration, lost = WRITERS[form](records, metadata, folder, run)
        declared = {"form": form, "images": str(Path(metadata.image_root).resolve()), **declaration}
        (folder / "dataset.yaml").write_text(yaml.safe_dump({output.name: declared}, sort_keys=False))
    return lost


def _write_coco_instances(records: Records, metadata: Metadata, folder: Path, run: Map) -> Written:
    _need_things(metadata)
    write_json(folder / "annotations.json", instances_json(records, metadata, run))
    stuff = metadata.get("stuff_dataset_id_to_contiguous_id")
    return {"annotations": "annotations.json"}, ["stuff is lost: this form has things only"] if stuff else []


def _write_coco_panoptic(records: Records, metadata: Metadata, folder: Path, run: Map) -> Written:
    categories = category_entries(metadata)
    found = run(partial(_write_panoptic_png, folder=folder / "panoptic", metadata=metadata), records)
    annotations = [
        {
            "image_id": record["image_id"],
            "file_name": _png_name(record, metadata),
            "segments_info": [{**s, "category_id": categories[s["category_id"]]["id"]} for s in segments],
        }
        for record, (segments, _) in zip(records, found, strict=True)
    ]
    images = [image_entry(record, metadata) for record in records]
    write_json(folder / "panoptic.json", {"images": images, "annotations": annotations, "categories": categories})
    return {"annotations": "panoptic.json", "pngs": "panoptic"}, _count_losses(found)


def _write_panoptic_png(record: Record, folder: Path, metadata: Metadata) -> tuple[list[dict[str, Any]], list[str]]:
    """Write the PNG of a record; return its segments, in contiguous category ids, and the losses."""
    ids, segments, lost = _segments(record, _ignore_label(metadata), MAX_SEGMENT_ID)
    _save(id2rgb(ids), folder / _png_name(record, metadata))
    common = [{"id": s["id"], "category_id": s["category_id"], "iscrowd": int(s.get("iscrowd", 0))} for s in segments]
    return [{**s, **area_and_box(encode_mask(ids == s["id"]))} for s in common], lost


def _write_semantic(records: Records, metadata: Metadata, folder: Path, run: Map) -> Written:
    run(partial(_write_label_png, folder=folder / "labels", metadata=metadata), records)
    names = [category["name"] for category in category_entries(metadata)]
    return {"annotations": "labels", "classes": names, "void": _ignore_label(metadata)}, []


def _write_label_png(record: Record, folder: Path, metadata: Metadata) -> None:
    void = _ignore_label(metadata)
    ids, segments, _ = _segments(record, void, MAX_SEGMENT_ID)
    labels = paint_classes(ids, {s["id"]: s["category_id"] for s in segments}, void)
    _save(labels, folder / _png_name(record, metadata))


def _write_instance_ids(records: Records, metadata: Metadata, folder: Path, run: Map) -> Written:
    _need_things(metadata)
    lost = _count_losses(run(partial(_write_id_png, folder=folder / "masks", metadata=metadata), records))
    names = [category["name"] for category in category_entries(metadata) if category["isthing"]]
    if len(names) > 1:
        lost.append(f"the {len(names)} classes are lost: this form has one")
        names = ["object"]
    return {"annotations": "masks", "classes": names}, lost


def _write_id_png(record: Record, folder: Path, metadata: Metadata) -> tuple[None, list[str]]:
    things = things_of(record)
    objects = [thing for thing in things if not thing["iscrowd"]]
    ids, _, lost = _paint({**record, "annotations": objects}, MAX_INSTANCE_ID)
    _save(ids, folder / _png_name(record, metadata))
    return None, lost + (["crowds are lost"] if len(objects) < len(things) else [])


def _segments(record: Record, ignore_label: int, max_id: int) -> Segments:
    """The segments of a record, whatever its form."""
    if "segments_info" in record:
        return rgb2id(read_panoptic_png(record["pan_seg_file_name"])), record["segments_info"], []
    if "annotations" in record:
        return _paint(record, max_id)
    labels = read_labels(record["sem_seg_file_name"], record.get("label_map")).astype(np.int64)
    ids = np.where(labels == ignore_label, 0, labels + 1)
    return ids, [{"id": k, "category_id": k - 1} for k in np.unique(ids).tolist() if k], []


def _paint(record: Record, max_id: int) -> Segments:
    """The objects of a record on one map, smaller over larger ones."""
    objects = [a for a in record["annotations"] if a.get("segmentation")]
    masks = np.zeros((len(objects), *image_size(record)), bool)
    for mask, annotation in zip(masks, objects, strict=True):
        mask[:] = decode_rle(as_rle(annotation["segmentation"], record))
    numbers, visible = paint_masks(masks)
    ids = np.array([a.get("segment_id", a.get("id")) or 0 for a in objects], np.int64)
    if len(np.unique(ids)) < len(ids) or len(ids) and not 0 < ids.min() <= ids.max() <= max_id:
        ids = np.arange(1, len(objects) + 1)
    lost = []
    if masks.sum() > (numbers > 0).sum():
        lost.append("objects overlap; where they do, the smaller one is kept")
    if len(visible) < len(objects):
        lost.append("objects without a pixel of their own are lost")
    segments = [{**objects[k], "id": int(ids[k])} for k in visible.tolist()]
    return np.concatenate([[0], ids[visible]])[numbers], segments, lost


def _ignore_label(metadata: Metadata) -> int:
    return metadata.get("ignore_label", 255)


def _need_things(metadata: Metadata) -> None:
    if not metadata.get("thing_dataset_id_to_contiguous_id"):
        raise UserError(f'data set "{metadata.name}" has classes of pixels only, without instances')


def _png_name(record: Record, metadata: Metadata) -> str:
    """The image's path below `image_root`, with the suffix .png."""
    return f"{Path(record['file_name']).relative_to(metadata.image_root).with_suffix('')}.png"


def _save(picture: NDArray[Any], file: Path) -> None:
    """Save a picture in colour, or of grey values with 8 bits a pixel or, where these are too few, 16."""
    if picture.ndim == 2:
        picture = picture.astype(np.uint8 if picture.max() < 256 else np.uint16)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(file)


def _count_losses(found: Sequence[tuple[Any, list[str]]]) -> list[str]:
    """The losses, each with its number of images."""
    counts = Counter(text for _, lost in found for text in lost)
    return [f"{text} ({count} of {len(found)} images)" for text, count in counts.items()]


WRITERS = {
    "coco_instances": _write_coco_instances,
    "coco_panoptic": _write_coco_panoptic,
    "semantic": _write_semantic,
    "instance_ids": _write_instance_ids,
}


@exit_on_user_error
def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("dataset", help="a name, or a YAML file of declarations (datasets/README.md)")
    parser.add_argument("--name", help="which data set of the file, where it declares several")
    parser.add_argument("--to", required=True, choices=WRITERS, dest="form", help="form to write")
    parser.add_argument("--output", metavar="DIR", required=True, help="new folder to write to")
    parser.add_argument("--workers", type=int, metavar="N", help="processes; by default as many as cores")
    args = parser.parse_args()
    names = find_datasets([args.dataset])
    if args.name is not None and args.name not in names or len(names) > 1 and args.name is None:
        raise UserError(f"choose one of the data sets in {args.dataset} with --name: {', '.join(names)}")
    for lost in convert(args.name or names[0], args.form, args.output, args.workers):
        print(f"not kept: {lost}")
    print(f"{args.output}: written, declared in {args.output}/dataset.yaml")
