"""The forms in which videos may be annotated, one reader each: a record a frame.

A record has, beside what the record of an image has, `video_id` (a name), `frame` (its number in the video, from the
file's name), and in each object or segment of a thing `track_id`, the object's number in the video, from 1. So any
model of images is trained on frames.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from panopticapi.utils import rgb2id
from pycocotools import mask as rle

from dformer.data.forms.source import (
    IGNORE_LABEL,
    LABEL_SUFFIXES,
    Annotated,
    Objects,
    Source,
    annotated_object,
    class_metadata,
    folder_of,
    image_record,
    paired_files,
    register_form,
    thing_metadata,
)
from dformer.data.images import read_labels, read_panoptic_png
from dformer.data.segmentations import compress, encode_mask
from dformer.data.types import Size
from dformer.utils.errors import UserError
from dformer.utils.files import read_json
from dformer.utils.processes import parallel_map

VIDEO = {"evaluator_type": "video"}


@register_form("davis", optional=("classes", "void"), suffixes=LABEL_SUFFIXES)
def _davis(source: Source) -> Annotated:
    """Folders of frames, and of PNGs of their objects' ids."""
    names = list(dict.fromkeys((source.classes or {1: "object"}).values()))
    if len(names) > 1:
        raise UserError(
            f"{source.annotations}: ids tell no class; declare one of {', '.join(names)}, or use kitti_step"
        )
    pairs = paired_files(source)
    read = parallel_map(partial(_read_ids, void=source.void_values), [ids for _, ids in pairs.values()])
    records = [
        image_record(image, name, size, **_place(name, image), annotations=objects)
        for (name, (image, _)), (size, objects) in zip(pairs.items(), read, strict=True)
    ]
    return _in_order(records), {**thing_metadata(names, source), **VIDEO}


def _read_ids(file: Path, void: set[int]) -> tuple[Size, Objects]:
    ids = read_labels(file)
    objects = []
    for k in np.unique(ids[ids > 0]).tolist():
        mask = encode_mask(ids == k)
        known = {"iscrowd": 1} if k in void else {"track_id": k}
        objects.append({**annotated_object(0, mask, rle.toBbox(mask).tolist()), **known})
    return ids.shape, objects


@register_form("youtube_vis")
def _youtube_vis(source: Source) -> Annotated:
    """A json file of videos, whose objects have a mask, or none, for each frame."""
    content = read_json(source.annotations)
    categories = sorted(content["categories"], key=lambda c: c["id"])
    contiguous = {c["id"]: k for k, c in enumerate(categories)}
    records: dict[tuple[Any, int], dict[str, Any]] = {}
    for video in content["videos"]:
        size = video["height"], video["width"]
        for k, file in enumerate(video["file_names"]):
            place = {"video_id": str(video["id"]), "frame": _number(file, k)}
            name = str(Path(file).with_suffix(""))
            records[video["id"], k] = image_record(source.images / file, name, size, **place, annotations=[])
    for track in content.get("annotations") or []:  # "valid" and "test" have none
        category, crowd = contiguous[track["category_id"]], int(track.get("iscrowd", 0))
        for k, segmentation in enumerate(track["segmentations"]):
            if not segmentation:
                continue
            record = records.get((track["video_id"], k))
            if record is None:
                where = f"{source.annotations}: track {track['id']}"
                raise UserError(
                    f"{where} has a mask in frame {k} of video {track['video_id']}, which has no such frame"
                )
            mask = compress(segmentation, (record["height"], record["width"]))
            found = annotated_object(category, mask, rle.toBbox(mask).tolist())
            record["annotations"].append({**found, "iscrowd": crowd, "track_id": track["id"]})
    metadata = thing_metadata([c["name"] for c in categories], source, list(contiguous))
    return _in_order(records.values()), {**metadata, **VIDEO}


@register_form("kitti_step", required=("classes", "things"), optional=("void",), suffixes=(".png",))
def _kitti_step(source: Source) -> Annotated:
    """Folders of frames, and of PNGs whose red is the class, 256 * green + blue the id, 0 for crowds and stuff."""
    assert source.classes is not None  # the form requires the key
    names = list(dict.fromkeys(source.classes.values()))
    names.sort(key=lambda name: name not in source.things)  # things first: instance classes are 0 .. K-1
    classes = {value: names.index(name) for value, name in source.classes.items()}
    pairs = paired_files(source)
    read = parallel_map(partial(_read_step, classes=classes, source=source), list(pairs.values()))
    records = [
        image_record(image, name, size, **_place(name, image), pan_seg_file_name=str(png), **segments)
        for (name, (image, png)), (size, segments) in zip(pairs.items(), read, strict=True)
    ]
    categories = [{"id": k, "name": name, "isthing": name in source.things} for k, name in enumerate(names)]
    return _in_order(records), _panoptic_metadata(categories, source, source.annotations)


def _read_step(files: tuple[Path, Path], classes: Mapping[int, int], source: Source) -> tuple[Size, dict[str, Any]]:
    picture = read_panoptic_png(files[1])
    assert source.classes is not None
    segments, void = [], []
    for number in np.unique(rgb2id(picture)).tolist():
        value, track = number % 256, (number >> 8 & 255) * 256 + (number >> 16)
        if value in source.void_values:
            void.append(number)
        elif value in classes:
            thing = source.classes[value] in source.things
            segment = {
                "id": number,
                "category_id": classes[value],
                "isthing": thing,
                "iscrowd": int(thing and not track),
            }
            segments.append({**segment, "track_id": track} if thing and track else segment)
    return picture.shape[:2], {"segments_info": segments, "void_ids": void}


@register_form("vipseg", required=("pngs",))
def _vipseg(source: Source) -> Annotated:
    """A json file of videos with the segments of each frame, and folders of frames and of PNGs of segment ids."""
    content = read_json(source.annotations)
    classes = class_metadata(sorted(content["categories"], key=lambda c: (not c["isthing"], c["id"])))
    things = classes["thing_dataset_id_to_contiguous_id"]
    contiguous = {**things, **classes["stuff_dataset_id_to_contiguous_id"]}
    images = {(v["video_id"], i["id"]): i for v in content["videos"] for i in v["images"]}
    assert source.pngs is not None  # the form requires the key
    records = []
    for video in content["annotations"]:
        folder = str(video["video_id"])
        for k, annotation in enumerate(video["annotations"]):
            image = images.get((video["video_id"], annotation["image_id"]))
            if image is None:
                what = f"image {annotation['image_id']} of video {folder}, which has no such image"
                raise UserError(f"{source.annotations}: there are segments of {what}")
            file, size = source.images / folder / image["file_name"], (image["height"], image["width"])
            segments = [
                {
                    **s,
                    "category_id": contiguous[s["category_id"]],
                    "isthing": s["category_id"] in things,
                    **({"track_id": s["id"]} if s["category_id"] in things and not s.get("iscrowd") else {}),
                }
                for s in annotation["segments_info"]
            ]
            records.append(
                image_record(
                    file,
                    f"{folder}/{file.stem}",
                    size,
                    video_id=folder,
                    frame=_number(image["file_name"], k),
                    pan_seg_file_name=str(source.pngs / folder / annotation["file_name"]),
                    segments_info=segments,
                )
            )
    return _in_order(records), _panoptic_metadata(content["categories"], source, source.pngs) | classes


def _panoptic_metadata(categories: Sequence[Mapping[str, Any]], source: Source, pngs: Path) -> dict[str, Any]:
    return {
        **class_metadata(categories),
        **VIDEO,
        "image_root": str(folder_of(source.images)),
        "panoptic_root": str(pngs),
        "ignore_label": IGNORE_LABEL,
        "label_divisor": 1000,
    }


def _place(name: str, image: Path) -> dict[str, Any]:
    """Video and number of a frame: the folder, and the digits of its name."""
    return {"video_id": str(Path(name).parent) if "/" in name else image.parent.name, "frame": _number(name, 0)}


def _number(file: str, position: int) -> int:
    digits = re.findall(r"\d+", Path(file).stem)
    return int(digits[-1]) if digits else position


def _in_order(records: Any) -> list[dict[str, Any]]:
    return sorted(records, key=lambda r: (r["video_id"], r["frame"], r["file_name"]))
