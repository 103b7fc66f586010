"""Panoptic quality of a model's `panoptic_seg`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from operator import iadd
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from panopticapi.evaluation import PQStat
from panopticapi.utils import id2rgb
from PIL import Image

from dformer.d2.evaluation.evaluator import REMEDY, TaskEvaluator, check_complete
from dformer.metrics.panoptic import ONE_CLASS, Annotation, Categories, count_segments, panoptic_quality, to_one_class
from dformer.utils import groups
from dformer.utils.errors import UserError
from dformer.utils.files import read_json, write_json


class PanopticGroundTruth:
    """Read a data set's panoptic annotations: in dataset category ids, 0 is void."""

    def __init__(self, json_file: Path, png_root: Path) -> None:
        content = read_json(json_file)
        self.png_root = png_root
        self.categories: Categories = {c["id"]: c for c in content["categories"]}
        self._annotations: dict[int | str, Annotation] = {a["image_id"]: a for a in content["annotations"]}
        self._json_file = json_file

    def __getitem__(self, image_id: int | str) -> Annotation:
        """Return the annotation of an image, or raise a UserError if it has none."""
        if image_id not in self._annotations:
            raise UserError(f"{self._json_file} has no annotation for the image with id {image_id!r}; add one")
        return self._annotations[image_id]


@dataclass(eq=False)
class PanopticEvaluator(TaskEvaluator[Annotation]):
    """Evaluate `panoptic_seg`: PQ, SQ and RQ, see `panoptic_quality`.

    panopticapi scores each image at once, so processes exchange counts and not maps; crowd and void regions are handled
    as in the official evaluation. The folder gets, in COCO's panoptic format, `panoptic.json` and
    `panoptic/<name>.png`, named as the annotations.

    With `class_agnostic` also of segments whatever their class (`_agnostic`), as LDMSeg reports it: panopticapi's PQ
    with one category. Of several crowd regions in an image, it then ignores false positives in the last one only.
    Without `class_aware`, for models that know no classes, there is nothing else.
    """

    ground_truth: PanopticGroundTruth
    dataset_ids: Mapping[int, int]  # contiguous class id -> dataset category id
    class_agnostic: bool = False
    class_aware: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.png_root = self.folder / "panoptic"
        self.json_file = self.folder / "panoptic.json"

    def reset(self) -> None:
        super().reset()
        self._counts, self._agnostic_counts = PQStat(), PQStat()
        self._predictions: list[Annotation] = []

    def write(self, image: dict[str, Any], output: dict[str, Any]) -> Annotation:
        ids, segments = output["panoptic_seg"]
        truth = self.ground_truth[image["image_id"]]
        png_file = self.png_root / truth["file_name"]
        png_file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(id2rgb(ids.cpu().numpy())).save(png_file)
        infos = [
            {"id": s["id"], "category_id": self.dataset_ids[s["category_id"]], "score": s.get("score")}
            for s in segments
        ]
        return {"image_id": truth["image_id"], "file_name": truth["file_name"], "segments_info": infos}

    def open_saved(self, images: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], Annotation]:
        content = read_json(self.json_file, REMEDY)
        keys = ("image_id", "file_name", "segments_info")
        try:
            annotations = {a["image_id"]: {key: a[key] for key in keys} for a in content["annotations"]}
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.json_file} is not in COCO's panoptic format: {error!r}") from error
        if len(annotations) < len(content["annotations"]):
            raise UserError(f"{self.json_file} has several annotations for one image_id; leave one for each")
        check_complete(self.json_file, (image["image_id"] for image in images), annotations)
        return lambda image: annotations[image["image_id"]]

    def add(self, image: dict[str, Any], prediction: Annotation) -> None:
        truth = self.ground_truth[image["image_id"]]
        roots = self.ground_truth.png_root, self.png_root
        self._counts += count_segments(truth, prediction, *roots, self.ground_truth.categories)
        if self.class_agnostic:
            self._agnostic_counts += count_segments(to_one_class(truth), to_one_class(prediction), *roots, ONE_CLASS)
        self._predictions.append(prediction)

    def evaluate(self) -> dict[str, dict[str, float]]:
        gathered = groups.gather((self._counts, self._agnostic_counts, self._predictions))
        if not comm.is_main_process():
            return {}
        counts, agnostic_counts, predictions = zip(*gathered, strict=True)
        categories = self.ground_truth.categories
        if not self.is_saved:
            annotations = list(chain.from_iterable(predictions))
            write_json(self.json_file, {"annotations": annotations, "categories": [*categories.values()]})
        results = panoptic_quality(reduce(iadd, counts, PQStat()), categories) if self.class_aware else {}
        if self.class_agnostic:
            agnostic = panoptic_quality(reduce(iadd, agnostic_counts, PQStat()), ONE_CLASS)
            results |= {f"{name}_agnostic": agnostic[name] for name in ("PQ", "SQ", "RQ")}
        return {"panoptic_seg": results}
