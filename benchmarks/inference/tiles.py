#!/usr/bin/env python3
"""A large picture made of small ones: does inference in tiles find what each small one alone gives, and in what memory?

python datasets/shapes.py
python -m benchmarks.inference.tiles --json benchmarks/results/inference/tiles.json

Validation images of Shapes, each resized to about 600 x 667, are put beside each other to pictures of several sizes.
"alone" segments each by itself and puts the results beside each other, "tiled" segments the picture, which the model
gets at the scale of its training. PQ is that of the picture as a whole. Memory is what the process holds at most above
what it held before, with the results, after a smaller picture has been segmented.
"""

import ctypes
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image

from benchmarks.measure import environment, parser, report, reset_peak, resident
from dformer.d2.checkpoint.zoo import inference_config
from dformer.d2.engine.predictor import Predictor
from dformer.metrics.panoptic import count_segments, panoptic_quality
from dformer.postprocess.view import Size

SMALL = (4000 / 6, 600.0)  # height and width of a small picture
Ids = NDArray[np.integer[Any]]


class Map:
    """Put panoptic maps beside each other: segments of one stuff class become one."""

    def __init__(
        self, size: Size, things: set[int], ids: Ids | None = None, found: dict[int, int] | None = None
    ) -> None:
        self.ids, self.things = np.zeros(size, np.int32) if ids is None else ids, things
        self.categories = found or {}  # by id

    def add(self, place: tuple[slice, slice], ids: Ids, categories: dict[int, int]) -> None:
        target = self.ids[place]
        for number, category in categories.items():
            new = len(self.categories) + 1
            if category not in self.things:
                new = next((k for k, c in self.categories.items() if c == category), new)
            self.categories[new] = category
            target[ids == number] = new

    def annotation(self, root: Path) -> dict[str, Any]:
        """Write the map, and return its annotation in COCO's form."""
        Image.fromarray(id2rgb(self.ids)).save(root / "map.png")
        areas = np.bincount(self.ids.ravel(), minlength=len(self.categories) + 1)
        info = [{"id": k, "category_id": c, "iscrowd": 0, "area": int(areas[k])} for k, c in self.categories.items()]
        return {"image_id": 0, "file_name": "map.png", "segments_info": [s for s in info if s["area"]]}


def quality(truth: Map, found: Map, categories: dict[int, dict[str, Any]]) -> dict[str, float]:
    """Return PQ of all classes, things and stuff."""
    with tempfile.TemporaryDirectory() as folder:
        roots = Path(folder, "truth"), Path(folder, "found")
        for root in roots:
            root.mkdir()
        pair = (each.annotation(root) for each, root in zip((truth, found), roots, strict=True))
        return panoptic_quality(count_segments(*pair, *roots, categories), categories)


def row_of(found: dict[str, float]) -> dict[str, float]:
    return {"PQ": found["PQ"], "things": found["PQ_th"], "stuff": found["PQ_st"]}


def measured(segment: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return a result, with the seconds of a processor and the MiB of memory that it took."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free but kept would be taken again unnoticed
    reset_peak()
    memory, start = resident(), time.process_time()
    result = segment()
    return result, {"s": round(time.process_time() - start, 1), "peak_mib": round(resident("VmHWM") - memory)}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--weights", metavar="FILE", default="dformer://shapes", help="checkpoint")
    arguments.add_argument("--dataset", metavar="NAME", default="shapes_val", help="panoptic data set (%(default)s)")
    arguments.add_argument("--grids", nargs="+", default=["5x3", "10x6"], help="columns x rows (%(default)s)")
    arguments.add_argument("--tile", type=int, default=128, help="side, in pixels of the model (%(default)s)")
    arguments.add_argument("--overlaps", nargs="+", type=int, default=[32, 64], help="of tiles (%(default)s)")
    args = arguments.parse_args()
    keys = ["TEST.TASKS", "('panoptic',)", "INPUT.AUGMENTATION", "native"]
    predictor = Predictor(inference_config(args.weights, None, [*keys, "INPUT.SCALE_TEST", str(args.tile / SMALL[1])]))
    names, metadata = predictor.class_names, MetadataCatalog.get(args.dataset)
    annotated = json.loads(Path(metadata.panoptic_json).read_text())
    classes = {c["id"]: names.index(c["name"]) for c in annotated["categories"]}
    categories = {classes[c["id"]]: {**c, "id": classes[c["id"]]} for c in annotated["categories"]}
    things = {k for k, c in categories.items() if c["isthing"]}

    def segment(picture: NDArray[np.uint8], **asked: int) -> tuple[Ids, dict[int, int]]:
        request = replace(predictor.model.request, **asked)
        ids, segments = predictor.predict([picture], request=request)[0]["panoptic_seg"]
        return ids.numpy(), {s["id"]: s["category_id"] for s in segments}

    rows = []
    for columns, lines in (map(int, grid.split("x")) for grid in args.grids):
        tops, lefts = ([round(k * side) for k in range(n + 1)] for side, n in zip(SMALL, (lines, columns), strict=True))
        picture = np.zeros((tops[-1], lefts[-1], 3), np.uint8)
        truth, alone = Map(picture.shape[:2], things), Map(picture.shape[:2], things)
        for k, annotation in enumerate(annotated["annotations"][: columns * lines]):
            (y0, y1), (x0, x1) = tops[k // columns :][:2], lefts[k % columns :][:2]
            place = slice(y0, y1), slice(x0, x1)
            image = Image.open((Path(metadata.image_root) / annotation["file_name"]).with_suffix(".jpg"))
            picture[place] = np.asarray(image.convert("RGB").resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC))
            png = Image.open(Path(metadata.panoptic_root) / annotation["file_name"])
            ids = rgb2id(np.asarray(png.resize((x1 - x0, y1 - y0), Image.Resampling.NEAREST)))
            truth.add(place, ids, {s["id"]: classes[s["category_id"]] for s in annotation["segments_info"]})
            alone.add(place, *segment(np.ascontiguousarray(picture[place])))
        about = {"picture": f"{lefts[-1]}x{tops[-1]}"}
        rows.append({**about, "how": "alone", **row_of(quality(truth, alone, categories))})
        for overlap in args.overlaps:
            (ids, found), cost = measured(partial(segment, picture, tile=args.tile, tile_overlap=overlap))
            sizes = {"map_mib": round(ids.nbytes / 2**20), "picture_mib": round(picture.nbytes / 2**20)}
            pq = row_of(quality(truth, Map(ids.shape, things, ids, found), categories))
            rows.append({**about, "how": f"tiles of {args.tile}, overlap {overlap}", **pq, **cost, **sizes})
            del ids
    report(rows, environment("cpu") | {"weights": args.weights}, args.json)


if __name__ == "__main__":
    main()
