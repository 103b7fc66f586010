"""Confusion matrix and what is computed from it, by hand."""

import math

import numpy as np
import pytest

from dformer.metrics.semantic import confusion_matrix, semantic_metrics
from dformer.utils.errors import UserError


def test_predicted_class_that_is_absent():
    """It is no member of the mean, but takes its pixels from the others."""
    confusion = confusion_matrix(np.array([[0, 0, 0, 255]]), np.array([[0, 0, 1, 1]]), 2, ignore_label=255)
    assert confusion.tolist() == [[2, 1], [0, 0]]
    results = semantic_metrics(confusion, ["a", "b"])
    assert results["mIoU"] == results["pACC"] == pytest.approx(200 / 3)
    assert math.isnan(results["IoU-b"])


def test_labels_out_of_range():
    with pytest.raises(UserError, match=r"0\.\.4.*0\.\.3.*255"):
        confusion_matrix(np.array([[0, 4]]), np.array([[0, 0]]), 4, ignore_label=255)
