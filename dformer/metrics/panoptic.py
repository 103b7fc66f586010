"""Panoptic quality (Kirillov et al., Panoptic Segmentation, CVPR 2019), computed by panopticapi."""

import io
import math
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from panopticapi.evaluation import PQStat, pq_compute_single_core

from dformer.utils.errors import UserError

Annotation = dict[str, Any]  # "image_id", "file_name" of the PNG, "segments_info": "id", "category_id", maybe "score"
Categories = Mapping[int, Mapping[str, Any]]  # dataset category id -> {"name", "isthing", ...}

ONE_CLASS: Categories = {1: {"id": 1, "name": "segment", "isthing": 1}}


def to_one_class(annotation: Annotation) -> Annotation:
    """Replace all categories of an annotation by that of `ONE_CLASS`, for class-agnostic PQ; return a copy."""
    return {**annotation, "segments_info": [{**s, "category_id": 1} for s in annotation["segments_info"]]}


def count_segments(
    truth: Annotation, prediction: Annotation, true_root: Path, predicted_root: Path, categories: Categories
) -> PQStat:
    """Compare the segments of an image. Return each class's true and false positives, false negatives and summed IoU.

    Raises:
        UserError: a PNG cannot be read, or PNGs, segments and categories do not fit each other.
    """
    prediction = {**prediction, "segments_info": [dict(s) for s in prediction["segments_info"]]}  # gets areas
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # a progress line an image; tracebacks
            return pq_compute_single_core(0, [(truth, prediction)], true_root, predicted_root, categories)
    except (KeyError, OSError, TypeError, ValueError) as error:  # the latter two for a PNG of another mode or size
        files = f"{predicted_root / prediction['file_name']}, compared with {true_root / truth['file_name']}"
        raise UserError(f"{files}: {error}; both must be RGB PNGs of one size, with the ids of the json") from error


def panoptic_quality(counts: PQStat, categories: Categories) -> dict[str, float]:
    """Return PQ, SQ and RQ: means over all classes, things (`_th`) and stuff (`_st`), then each class's (`PQ-<class>`).

    A class without segments has PQ nan and does not count in means.
    """
    counted = {i: c for i, c in categories.items() if counts[i].tp + counts[i].fp + counts[i].fn}
    results: dict[str, float] = {}
    for suffix, isthing in (("", None), ("_th", True), ("_st", False)):
        group = {i: c for i, c in counted.items() if isthing is None or bool(c["isthing"]) == isthing}
        # panopticapi divides by the number of classes
        average = counts.pq_average(group, None)[0] if group else {}
        for name in ("pq", "sq", "rq"):
            results[name.upper() + suffix] = 100 * float(average.get(name, math.nan))
    per_class = counts.pq_average(counted, None)[1] if counted else {}
    for name in ("pq", "sq", "rq"):
        for i, category in categories.items():
            value = per_class[i][name] if i in per_class else math.nan
            results[f"{name.upper()}-{category['name']}"] = 100 * float(value)
    return results
