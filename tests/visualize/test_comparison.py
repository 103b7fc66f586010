"""Errors in small maps that can be checked by eye, and where they are drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dformer.visualize import (
    Segment,
    Style,
    match_segments,
)
from dformer.visualize.comparison import ERRORS, draw_errors, find_label_errors

NAMES = ["cat", "dog", "sky", "grass"]


def columns(start: int, stop: int) -> np.ndarray:
    """Return a mask (10, 20) that is True in these columns."""
    mask = np.zeros((10, 20), bool)
    mask[:, start:stop] = True
    return mask


def find_errors(truth, prediction, void=None) -> list[tuple]:
    """Return the kind, classes, and first and last column of each error."""
    found = []
    for match in match_segments(truth, prediction, void):
        segments = [match.truth, match.predicted]
        where = np.flatnonzero(next(s for s in segments if s).mask.any(0)).tolist()
        if match.error:
            found.append((match.error, *(s and s.category_id for s in segments), where[0], where[-1]))
    return found


TRUTH = [Segment(columns(0, 6), 0), Segment(columns(6, 12), 1), Segment(columns(12, 20), 2, is_thing=False)]


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (TRUTH, []),
        ([], [("missed", 0, None, 0, 5), ("missed", 1, None, 6, 11), ("missed", 2, None, 12, 19)]),
        ([TRUTH[0], Segment(columns(6, 12), 0, 0.9), TRUTH[2]], [("wrong class", 1, 0, 6, 11)]),
        # IoU 3/6 is not above 1/2: missed and false
        ([*TRUTH[1:], Segment(columns(0, 3), 0)], [("false", None, 0, 0, 2), ("missed", 0, None, 0, 5)]),
        ([*TRUTH[1:], Segment(columns(0, 4), 0)], []),
        # of two on one object, that of the higher score matches
        ([*TRUTH, Segment(columns(0, 5), 0, 0.8)], [("false", None, 0, 0, 4)]),
        ([*TRUTH, Segment(columns(9, 9), 3)], []),
    ],
)
def test_errors(prediction, expected):
    assert find_errors(TRUTH, prediction) == expected


def test_the_correct_class_is_preferred_to_a_better_overlap():
    truth = [Segment(columns(0, 10), 0), Segment(columns(0, 8), 1)]
    assert find_errors(truth, [Segment(columns(0, 8), 0), Segment(columns(0, 10), 1)]) == []


def test_void_and_crowds_are_ignored():
    void = columns(14, 20)
    truth = [Segment(columns(0, 6), 0), Segment(columns(6, 14), 1, is_crowd=True)]
    assert find_errors(truth, [TRUTH[0], Segment(columns(15, 20), 2)], void) == []
    assert find_errors(truth, [TRUTH[0], Segment(columns(15, 20), 2)]) == [("false", None, 2, 15, 19)]
    # void does not count: IoU 6/6, where it would be 6/14
    assert find_errors(truth, [Segment(columns(0, 6) | columns(12, 20), 0)], columns(6, 20)) == []
    # in a crowd of its class, of another class; the crowd itself is not missed
    assert find_errors(truth, [TRUTH[0], Segment(columns(7, 9), 1)]) == []
    assert find_errors(truth, [TRUTH[0], Segment(columns(7, 9), 0)]) == [("false", None, 0, 7, 8)]
    assert find_errors(truth, [TRUTH[0], Segment(columns(11, 17), 1)], void) == []
    assert find_errors(truth, [TRUTH[0], Segment(columns(11, 17), 1)]) == [("false", None, 1, 11, 16)]
    assert find_errors(truth, [TRUTH[0], Segment(columns(10, 16), 1)]) == []


maps = arrays.arrays(np.int8, (6, 8), elements=st.integers(0, 4))


@settings(max_examples=60)
@given(maps, maps)
def test_label_errors_are_the_pixels_that_differ(truth, prediction):
    errors = find_label_errors(truth, prediction, 4)  # 4 is a label outside
    total = np.zeros(truth.shape, int)
    for true, predicted, _ in errors:
        assert (truth[true.mask] == true.category_id).all()
        assert (prediction[true.mask] == (predicted.category_id if predicted else 4)).all()
        total += true.mask
    assert (total == ((truth != prediction) & (truth != 4))).all()


def test_errors_are_drawn_in_their_place_and_style():
    image = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
    prediction = [Segment(columns(0, 6), 1), Segment(columns(13, 16), 3)]
    picture = draw_errors(image, match_segments(TRUTH[:2], prediction), NAMES, Style(alpha=1.0))
    plain = draw_errors(image, [], NAMES)
    assert (plain == plain[:, :, :1]).all(), "the image's colours are gone"
    scale = len(plain) // 10
    drawn = (picture != plain).any(axis=2)
    assert not drawn[: 3 * scale, 17 * scale :].any()
    for kind, start, stop in [("wrong class", 0, 6), ("missed", 6, 12), ("false", 13, 16)]:
        inside = picture[:, start * scale : stop * scale]
        share = (inside == ERRORS[kind][0]).all(axis=2).mean()
        assert share > 0.5 if kind == "wrong class" else 0.25 < share < 0.55, "filled, or half of it in stripes"
