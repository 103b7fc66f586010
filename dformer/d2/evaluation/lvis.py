"""Mask AP of LVIS, by its own package."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np

from dformer.d2.evaluation.instance import InstanceEvaluator
from dformer.metrics.instance import Detections
from dformer.utils.errors import UserError


@dataclass(eq=False)
class LVISEvaluator(InstanceEvaluator):
    """Evaluate `instances` as LVIS does: at most 300 masks an image, of the classes that it is annotated for.

    `source` is LVIS's json file. AP, and that of rare, common and frequent classes (APr, APc, APf), 0..100, nan where
    nothing is annotated.

    Raises:
        UserError: the package "lvis" is not installed.
    """

    def __post_init__(self) -> None:
        if find_spec("lvis") is None:
            raise UserError('AP of LVIS is computed by its package "lvis", which is not installed: pip install lvis')
        super().__post_init__()

    def score(self, truth: dict[str, Any], predictions: Detections, image_ids: list[int | str]) -> dict[str, float]:
        """Return the metrics of the predictions of these images."""
        from lvis import LVIS, LVISEval, LVISResults

        if not predictions:  # which LVISResults does not take
            return {"AP": 0.0}
        objects = LVIS(self.source)
        evaluation = LVISEval(objects, LVISResults(objects, [{**x} for x in predictions]), "segm")
        evaluation.params.img_ids = image_ids
        with mock.patch.object(np, "float", float, create=True):  # lvis 0.5 uses the alias that NumPy 1.24 dropped
            evaluation.run()
        return {name: math.nan if x < 0 else 100 * float(x) for name, x in evaluation.get_results().items()}
