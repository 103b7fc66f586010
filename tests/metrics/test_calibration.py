"""Calibration of scores, by hand."""

import pytest

from dformer.metrics.calibration import calibration


def test_calibration_by_hand():
    found = calibration([0.05, 0.91, 0.99, 1.0], [False, True, True, False])
    assert found.number.tolist() == [1] + 8 * [0] + [3]
    assert found.confidence[[0, 9]] == pytest.approx([0.05, 2.9 / 3])
    assert found.accuracy[[0, 9]] == pytest.approx([0, 2 / 3])
    assert found.error == pytest.approx((0.05 + 3 * (2.9 / 3 - 2 / 3)) / 4)
