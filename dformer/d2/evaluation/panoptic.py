"""Panoptic quality (Kirillov et al., Panoptic Segmentation, CVPR 2019), computed by panopticapi."""

import io
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from panopticapi.evaluation import PQStat, pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image

from dformer.d2.evaluation.ground_truth import PanopticGroundTruth
from dformer.d2.evaluation.output import PREDICT, TaskEvaluator, check_complete
from dformer.utils.errors import UserError
from dformer.utils.files import read_json, write_json

Annotation = dict[str, Any]  # "image_id", "file_name" of the PNG, "segments_info": "id", "category_id", maybe "score"

ONE_CLASS = {1: {"id": 1, "name": "segment", "isthing": 1}}


class PanopticEvaluator(TaskEvaluator[Annotation]):
    """PQ, SQ and RQ of `panoptic_seg`: of all classes, of things (`_th`), of stuff (`_st`), and of each class.

    Every image is scored by panopticapi as it comes, so processes exchange counts and not maps; crowd and void regions
    are those of the official evaluation. A class without any true or predicted segment has PQ nan and does not count.

    With `class_agnostic`, also of segments whatever their class (`_agnostic`), as LDMSeg reports it: panopticapi's
    marks where all categories are one. (Of several crowd regions in an image, panopticapi then excuses false
    positives in the last one only.)

    In the folder, in COCO's panoptic format: `panoptic.json` and `panoptic/<name>.png`, named as the annotations.
    """

    def __init__(
        self,
        ground_truth: PanopticGroundTruth,
        dataset_ids: Mapping[int, int],
        folder: Path,
        class_agnostic: bool = False,
    ) -> None:
        """
        Args:
            ground_truth: segments in dataset category ids.
            dataset_ids: contiguous class id -> dataset category id.
            folder: of the predictions.
        """
        self.ground_truth = ground_truth
        self.dataset_ids = dataset_ids
        self.png_root = folder / "panoptic"
        self._class_agnostic = class_agnostic
        super().__init__(folder)

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
        return {
            "image_id": truth["image_id"],
            "file_name": truth["file_name"],
            "segments_info": [
                {"id": s["id"], "category_id": self.dataset_ids[s["category_id"]], "score": s.get("score")}
                for s in segments
            ],
        }

    def read(self, images: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], Annotation]:
        json_file = self.folder / "panoptic.json"
        content = read_json(json_file, PREDICT)
        keys = ("image_id", "file_name", "segments_info")
        try:
            annotations = {a["image_id"]: {key: a[key] for key in keys} for a in content["annotations"]}
        except (KeyError, TypeError) as error:
            raise UserError(f"{json_file} is not in COCO's panoptic format: {error!r}") from error
        if len(annotations) < len(content["annotations"]):
            raise UserError(f"{json_file} has several annotations for one image; leave one for each")
        check_complete(json_file, (image["image_id"] for image in images), annotations)
        return lambda image: annotations[image["image_id"]]

    def add(self, image: dict[str, Any], prediction: Annotation) -> None:
        truth = self.ground_truth[image["image_id"]]
        self._check_png(truth, prediction)
        self._counts += self._score(truth, prediction, self.ground_truth.categories)
        if self._class_agnostic:
            self._agnostic_counts += self._score(of_one_class(truth), of_one_class(prediction), ONE_CLASS)
        self._predictions.append(prediction)

    def evaluate(self) -> dict[str, dict[str, float]]:
        gathered = comm.gather((self._counts, self._agnostic_counts, self._predictions))
        if not comm.is_main_process():
            return {}
        counts, agnostic_counts, predictions = zip(*gathered, strict=True)
        annotations = list(chain.from_iterable(predictions))
        categories = self.ground_truth.categories
        if not self.is_saved:
            content = {"annotations": annotations, "categories": [*categories.values()]}
            write_json(self.folder / "panoptic.json", content)
        results = panoptic_quality(_sum(counts), categories)
        if self._class_agnostic:
            agnostic = panoptic_quality(_sum(agnostic_counts), ONE_CLASS)
            results |= {f"{name}_agnostic": agnostic[name] for name in ("PQ", "SQ", "RQ")}
        return OrderedDict(panoptic_seg=results)

    def _check_png(self, truth: Annotation, prediction: Annotation) -> None:
        """Check that the predicted PNG can be compared with the annotated one. Neither is decoded."""
        truth_file = self.ground_truth.png_file(truth)
        png_file = self.png_root / prediction["file_name"]
        try:
            with Image.open(png_file) as predicted, Image.open(truth_file) as annotated:
                mode, sizes = predicted.mode, (annotated.size, predicted.size)
        except OSError as error:
            raise UserError(f"panoptic PNG {error.filename or png_file} cannot be read: {error}") from error
        if mode != "RGB":
            raise UserError(f"{png_file} is a picture of mode {mode}; COCO's panoptic format is an RGB PNG")
        if sizes[0] != sizes[1]:
            raise UserError(
                f"{truth_file} is {sizes[0][0]} x {sizes[0][1]} pixels, the prediction for its image {sizes[1][0]} x "
                f"{sizes[1][1]}: the annotation or the prediction does not belong to the image"
            )

    def _score(self, truth: Annotation, prediction: Annotation, categories: Mapping[int, Any]) -> PQStat:
        prediction = {**prediction, "segments_info": [dict(s) for s in prediction["segments_info"]]}  # gets areas
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # a progress line an image; tracebacks
                return pq_compute_single_core(
                    0, [(truth, prediction)], self.ground_truth.png_root, self.png_root, categories
                )
        except (KeyError, OSError) as error:  # ids without a category, or the other way round; a truncated PNG
            files = f"{self.png_root / prediction['file_name']}, compared with {self.ground_truth.png_file(truth)}"
            raise UserError(f"{files}: {error.args[0]}") from error


def of_one_class(annotation: Annotation) -> Annotation:
    """The annotation with all categories replaced by that of `ONE_CLASS`."""
    return {**annotation, "segments_info": [{**s, "category_id": 1} for s in annotation["segments_info"]]}


def panoptic_quality(counts: PQStat, categories: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """Averages over classes, then each class, 0..100, nan where no class has a segment.

    Args:
        counts: true positives, false positives, false negatives and summed IoU of each class.
        categories: dataset category id -> {"name", "isthing", ...}.
    """
    seen = {i: c for i, c in categories.items() if counts[i].tp + counts[i].fp + counts[i].fn}
    results: dict[str, float] = OrderedDict()
    for suffix, isthing in (("", None), ("_th", True), ("_st", False)):
        group = {i: c for i, c in seen.items() if isthing is None or bool(c["isthing"]) == isthing}
        # panopticapi divides by the number of classes
        average = counts.pq_average(group, None)[0] if group else {}
        for name in ("pq", "sq", "rq"):
            results[name.upper() + suffix] = 100 * float(average.get(name, math.nan))
    per_class = counts.pq_average(seen, None)[1] if seen else {}
    for name in ("pq", "sq", "rq"):
        for i, category in categories.items():
            value = per_class[i][name] if i in per_class else math.nan
            results[f"{name.upper()}-{category['name']}"] = 100 * float(value)
    return results


def _sum(parts: Sequence[PQStat]) -> PQStat:
    total = PQStat()
    for part in parts:
        total += part
    return total
