"""Segments as JSON, written as they come: thousands of frames take no memory.

`segments.json`: {"task", "weights", "images": [{"file", "picture", "height", "width", "segments": [...]}]}, a segment:
{"id", "category_id", "category", "isthing", "score", "area", "bbox", "segmentation"}. A frame of a video has its number
("frame", from 0) there, too. Category ids are the model's class ids (from 0). "area" is in pixels of the image, "bbox"
is [x, y, width, height], "segmentation" COCO's run-length encoding, of the image's size too. "score" is in [0, 1], and
null for semantic results, which have none.

`coco.json`: the same as COCO has annotations: {"annotations", "images", "categories"}.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from dformer.utils.errors import UserError
from dformer.visualize import Segment

Size = tuple[int, int]  # height, width


class JsonList:
    """A JSON object with one long list in it, written item by item; to be used in a `with` statement.

    The file appears at the end. An interruption (KeyboardInterrupt) is an end, too; any other error leaves none.

    Args:
        file: to be written.
        key: of the list.
        head: what else is in the object.

    Attributes:
        tail: what else is in it, known only at the end.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, file: Path, key: str, head: dict[str, Any]) -> None:
        self.file = file
        self.partial = file.with_name(f".{file.name}.partial")
        self.tail: dict[str, Any] = {}
        self.items = 0
        opened = json.dumps(head)[:-1] + (", " if head else "")
        try:
            self.stream = self.partial.open("w")
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error.strerror}") from error
        self.stream.write(f"{opened}{json.dumps(key)}: [")

    def add(self, item: Any) -> None:
        """Add an item to the list."""
        self.stream.write((",\n" if self.items else "\n") + json.dumps(item))
        self.items += 1

    def __enter__(self) -> "JsonList":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            with self.stream:
                tail = "".join(f", {json.dumps(key)}: {json.dumps(value)}" for key, value in self.tail.items())
                self.stream.write(f"]{tail}}}")
            if kind is None or issubclass(kind, KeyboardInterrupt):
                os.replace(self.partial, self.file)
        except OSError as error:
            raise UserError(f"{self.file} cannot be written: {error.strerror}") from error
        finally:
            self.partial.unlink(missing_ok=True)


def segment_record(number: int, segment: Segment, size: Size, class_names: Sequence[str]) -> dict[str, Any]:
    """The entry of a segment, of an image of `size`."""
    encoded = rle.encode(np.asfortranarray(resized(segment.mask, size).view(np.uint8)))
    return {
        "id": number,
        "category_id": segment.category,
        "category": class_names[segment.category],
        "isthing": segment.is_thing,
        "score": segment.score,
        "area": int(rle.area(encoded)),
        "bbox": [int(side) for side in rle.toBbox(encoded)],
        "segmentation": {"size": list(size), "counts": encoded["counts"].decode()},
    }


class CocoFile:
    """`coco.json`, in the form of COCO's annotations, with scores. To be used in a `with` statement."""

    def __init__(self, file: Path, class_names: Sequence[str], things: Sequence[int]) -> None:
        self.annotations = JsonList(file, "annotations", {})
        categories = [{"id": k, "name": name, "isthing": int(k in things)} for k, name in enumerate(class_names)]
        self.images: list[dict[str, Any]] = []
        self.annotations.tail = {"images": self.images, "categories": categories}

    def add(self, record: dict[str, Any]) -> None:
        """Add an image as `segments.json` has it; images are numbered from 1."""
        image = {"id": len(self.images) + 1, "file_name": record["file"]}
        self.images.append({**image, **{key: record[key] for key in ("frame", "height", "width") if key in record}})
        for segment in record["segments"]:
            annotation = {"id": self.annotations.items + 1, "image_id": image["id"], "iscrowd": 0}
            kept = {key: segment[key] for key in ("category_id", "segmentation", "area", "bbox")}
            score = {} if segment["score"] is None else {"score": segment["score"]}
            self.annotations.add({**annotation, **kept, **score})

    def __enter__(self) -> "CocoFile":
        return self

    def __exit__(self, *error: Any) -> None:
        self.annotations.__exit__(*error)


def resized(image: NDArray[Any], size: Size) -> NDArray[Any]:
    """An image (H, W, 3) uint8, or a mask (H, W) bool, at another size."""
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize(size[::-1]))  # nearest for masks, else bicubic
