"""Mask AP where pycocotools has limits; its numbers: tests/d2/evaluation/test_oracle.py."""

import numpy as np
import pytest
from pycocotools import mask as rle

from dformer.metrics.instance import coco_evaluation, mask_average_precision


def test_more_than_a_hundred_objects():
    """COCO's limit of 100 detections of a class in an image holds: of 101 objects one is never found."""
    masks = rle.encode(np.asfortranarray(np.eye(101, dtype=np.uint8)[None]))
    objects = [{"image_id": 1, "category_id": 3, "segmentation": m, "area": 1, "score": 1.0} for m in masks]
    truth = {
        "images": [{"id": 1, "height": 1, "width": 101}],
        "annotations": objects,
        "categories": [{"id": 3, "name": "cat"}],
    }
    for count in (100, 101):
        evaluation = coco_evaluation(truth, objects[:count], [1])
        assert mask_average_precision(evaluation)["AP"] == pytest.approx(100 * 100 / 101)
