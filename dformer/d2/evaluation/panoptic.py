"""Panoptic quality (Kirillov et al., Panoptic Segmentation, CVPR 2019), computed by panopticapi."""

import io
import math
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from panopticapi.evaluation import PQStat, pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image

from dformer.d2.evaluation.ground_truth import PanopticGroundTruth
from dformer.d2.evaluation.output import write_json
from dformer.errors import UserError


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ of `panoptic_seg`: of all classes, of things (`_th`), of stuff (`_st`), and PQ of each class.

    Every image is scored by panopticapi as it comes, so processes exchange counts and not maps; crowd and void regions
    are those of the official evaluation. A class without any true or predicted segment has PQ nan and does not count.

    Writes `panoptic/<name>.png` and `panoptic.json`, in COCO's panoptic format, to `output_dir`.
    """

    def __init__(self, ground_truth: PanopticGroundTruth, dataset_ids: Mapping[int, int], output_dir: Path) -> None:
        """
        Args:
            ground_truth: segments in dataset category ids.
            dataset_ids: contiguous class id -> dataset category id.
            output_dir: where the predictions are written.
        """
        self._ground_truth = ground_truth
        self._dataset_ids = dataset_ids
        self._output_dir = output_dir
        self._png_root = output_dir / "panoptic"
        self.reset()

    def reset(self) -> None:
        self._counts = PQStat()
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            truth = self._ground_truth[image["image_id"]]
            prediction = self._write(truth, *output["panoptic_seg"])
            self._predictions.append(prediction)
            scored = {**prediction, "segments_info": [dict(s) for s in prediction["segments_info"]]}  # gets areas
            with redirect_stdout(io.StringIO()):  # a progress line an image
                self._counts += pq_compute_single_core(
                    0, [(truth, scored)], self._ground_truth.png_root, self._png_root, self._ground_truth.categories
                )

    def evaluate(self) -> dict[str, dict[str, float]]:
        counts = comm.gather(self._counts)
        predictions = comm.gather(self._predictions)
        if not comm.is_main_process():
            return {}
        total = PQStat()
        for part in counts:
            total += part
        categories = self._ground_truth.categories
        annotations = list(chain.from_iterable(predictions))
        write_json(
            self._output_dir / "panoptic.json", {"annotations": annotations, "categories": [*categories.values()]}
        )
        return OrderedDict(panoptic_seg=panoptic_quality(total, categories))

    def _write(self, truth: dict[str, Any], ids: Any, segments: list[dict[str, Any]]) -> dict[str, Any]:
        """Write a prediction's PNG; return its annotation in COCO's panoptic format."""
        truth_file = self._ground_truth.png_file(truth)
        with Image.open(truth_file) as annotated:
            if annotated.size != (ids.shape[1], ids.shape[0]):
                raise UserError(
                    f"{truth_file} is {annotated.width} x {annotated.height} pixels, the prediction for its image "
                    f"{ids.shape[1]} x {ids.shape[0]}: the annotation does not belong to the image"
                )
        png_file = self._png_root / truth["file_name"]
        png_file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(id2rgb(ids.cpu().numpy())).save(png_file)
        return {
            "image_id": truth["image_id"],
            "file_name": truth["file_name"],
            "segments_info": [{"id": s["id"], "category_id": self._dataset_ids[s["category_id"]]} for s in segments],
        }


def panoptic_quality(counts: PQStat, categories: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """Averages over classes, 0..100, nan where no class has a segment.

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
    for i, category in categories.items():
        results[f"PQ-{category['name']}"] = 100 * float(per_class[i]["pq"]) if i in per_class else math.nan
    return results
