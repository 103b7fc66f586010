"""Pictures side by side."""

import numpy as np
import pytest

from dformer.visualize import draw_panels
from dformer.visualize.labels import font
from dformer.visualize.panels import shortened


def solid(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), (value, 255 - value, value), np.uint8)


def found(sheet: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """Upper left corners of where a picture of one colour lies in the sheet."""
    h, w = picture.shape[:2]
    ys, xs = np.nonzero((sheet == picture[0, 0]).all(axis=2))
    assert len(ys) == h * w, "it lies there once, and nothing on it"
    assert (sheet[ys[0] : ys[0] + h, xs[0] : xs[0] + w] == picture).all()
    return [(int(ys[0]), int(xs[0]))]


@pytest.mark.parametrize("columns", [None, 1, 2, 3])
def test_pictures_lie_in_rows_whole_and_apart(columns):
    pictures = [solid(40, 120, 70), solid(60, 90, 80), solid(20, 30, 90), solid(60, 120, 100)]
    sheet = draw_panels(pictures, ["", "", "", ""], columns)
    corners = [corner for picture in pictures for corner in found(sheet, picture)]
    across = columns or 4
    for k, (y, x) in enumerate(corners):
        assert y == corners[k // across * across][0] and x == corners[k % across][1]
        assert y > corners[max(0, k - across)][0] or k < across


def test_captions_stand_above_their_picture_and_within_it():
    sheet = draw_panels(
        [solid(30, 200, 70), solid(30, 200, 80)], ["short", "a caption that is far too long for it" * 3]
    )
    ys, xs = np.nonzero((sheet < 60).all(axis=2))
    (top, left), (_, second) = found(sheet, solid(30, 200, 70)) + found(sheet, solid(30, 200, 80))
    assert ys.max() < top
    assert xs.min() >= left and ((xs < left + 200) | (xs >= second)).all() and xs.max() < second + 200
    assert (xs > second + 150).any()


@pytest.mark.parametrize("width", [0, 5, 40, 100, 1000])
def test_a_caption_is_shortened_to_fit(width):
    text = shortened("Fourscore and seven", 12, width)
    assert text == "Fourscore and seven" if width == 1000 else text.endswith("...")
    assert font(12).getlength(text) <= max(width, font(12).getlength("..."))


def test_each_picture_needs_a_caption():
    with pytest.raises(ValueError, match="1 pictures, 2 captions"):
        draw_panels([solid(3, 3, 9)], ["a", "b"])
    with pytest.raises(ValueError):
        draw_panels([], [])
