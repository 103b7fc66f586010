"""Pictures side by side."""

import numpy as np
import pytest

from dformer.visualize import draw_grid, draw_panels


def solid(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), (value, 255 - value, value), np.uint8)


def corner(sheet: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """Return the upper left corner of a picture of one colour in the sheet, where it must be whole."""
    h, w = picture.shape[:2]
    ys, xs = np.nonzero((sheet == picture[0, 0]).all(axis=2))
    assert len(ys) == h * w and (sheet[ys[0] : ys[0] + h, xs[0] : xs[0] + w] == picture).all()
    return int(ys[0]), int(xs[0])


@pytest.mark.parametrize("columns", [None, 1, 2, 3])
def test_pictures_are_in_rows(columns):
    pictures = [solid(40, 120, 70), solid(60, 90, 80), solid(20, 30, 90), solid(60, 120, 100)]
    sheet = draw_panels(pictures, ["", "", "", ""], columns)
    corners = [corner(sheet, picture) for picture in pictures]
    across = columns or 4
    for k, (y, x) in enumerate(corners):
        assert y == corners[k // across * across][0] and x == corners[k % across][1]
        assert y > corners[max(0, k - across)][0] or k < across


def test_captions_are_above_their_picture_and_not_wider():
    pictures = [solid(30, 200, 70), solid(30, 200, 80)]
    sheet = draw_panels(pictures, ["short", "a caption that is far too long for it" * 3])
    ys, xs = np.nonzero((sheet < 60).all(axis=2))
    (top, left), (_, second) = (corner(sheet, picture) for picture in pictures)
    assert ys.max() < top
    assert xs.min() >= left and ((xs < left + 200) | (xs >= second)).all() and xs.max() < second + 200
    assert (xs > second + 150).any()


def test_a_grid_of_masks():
    masks = np.random.default_rng(0).random((2, 3, 5, 4))
    picture = draw_grid(masks, min_side=10)
    assert picture.shape == (2 * (15 + 2), 3 * (12 + 2), 3)
    assert (picture[17:32:3, 14:26:3, 0] == np.rint(255 * masks[1, 1])).all()
