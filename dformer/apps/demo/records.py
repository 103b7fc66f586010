"""Segments as JSON, written one by one: memory does not grow with the number of frames.

`segments.json`: {"images": [{"file", "picture", "height", "width", "segments": [...]}], "task", "weights"}; a segment:
{"id", "category_id", "category", "isthing", "score", "area", "bbox", "segmentation"}. Frames of a video also have their
number, "frame", from 0, and things have a "track_id" there, from 1. Category ids are the model's class ids, from 0.
"area" is in pixels of the image, "bbox" is [x, y, width, height], "segmentation" is COCO's run-length encoding at the
size of the image. "score" is in [0, 1]; null for semantic results.

`coco.json`: the same in the format of COCO's annotations: {"annotations", "images", "categories"}.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

from dformer.utils.files import atomic_write


@contextmanager
def json_list(file: Path, key: str, others: dict[str, Any]) -> Iterator[Callable[[Any], None]]:
    """Write a JSON object with one long list, `key`, and `others` after it; yield a function that appends to the list.

    The file appears at the end of the `with` statement, also after KeyboardInterrupt, but after no other error.
    """
    separators = chain(["\n"], repeat(",\n"))

    def append(item: Any) -> None:
        stream.write(next(separators) + json.dumps(item))

    with atomic_write(file, keep_interrupted=True) as partial, partial.open("w") as stream:
        stream.write(f"{{{json.dumps(key)}: [")
        try:
            yield append
        finally:
            stream.write(f"], {json.dumps(others)[1:]}\n")


@contextmanager
def coco_file(
    file: Path, class_names: Sequence[str], things: Sequence[int]
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Write `coco.json`; yield a function that adds an image, given its record in `segments.json`."""
    images: list[dict[str, Any]] = []
    categories = [{"id": k, "name": name, "isthing": int(k in things)} for k, name in enumerate(class_names)]
    ids = count(1)

    def add(record: dict[str, Any]) -> None:
        image = {"id": len(images) + 1, "file_name": record["file"]}
        images.append(image | {key: record[key] for key in ("frame", "height", "width") if key in record})
        for segment in record["segments"]:
            annotation = {"id": next(ids), "image_id": len(images), "iscrowd": 0}
            known = ("category_id", "segmentation", "area", "bbox", "track_id")
            annotation |= {key: segment[key] for key in known if key in segment}
            append(annotation if segment["score"] is None else annotation | {"score": segment["score"]})

    with json_list(file, "annotations", {"images": images, "categories": categories}) as append:
        yield add
