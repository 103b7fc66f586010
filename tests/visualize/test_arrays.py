"""Sizes of pictures."""

import pytest

from dformer.visualize import fit_size


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((480, 640), {"max_side": 640}, (480, 640)),
        ((640, 427), {"max_side": 480}, (480, 320)),
        ((5000, 1), {"max_side": 100}, (100, 1)),
        ((600, 900), {"max_pixels": 600 * 900 / 4}, (300, 450)),
        ((600, 900), {"max_side": 90, "max_pixels": 600 * 900 / 4}, (60, 90)),
        ((600, 900), {}, (600, 900)),
    ],
)
def test_a_size_within_limits(size, limits, expected):
    assert fit_size(*size, **limits) == expected
