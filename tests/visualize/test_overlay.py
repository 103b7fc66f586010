"""Pictures: what is drawn where."""

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dformer.utils.errors import UserError
from dformer.visualize import (
    Segment,
    Style,
    class_color,
    draw_agreement,
    draw_segments,
    enlargement,
    instance_segments,
    panoptic_segments,
    semantic_segments,
)

NAMES = ["disc", "square", "triangle", "star", "grass", "water", "brick"]
GREY = np.full((480, 640, 3), 128, np.uint8)
ONES = np.ones((480, 640), int)


def draw_panoptic(image, segment_map, infos, alpha=0.55) -> np.ndarray:
    return draw_segments(image, panoptic_segments(segment_map, infos), NAMES, Style(alpha))


def draw_semantic(image, labels) -> np.ndarray:
    return draw_segments(image, semantic_segments(labels, len(NAMES)), NAMES)


def test_a_class_has_its_colour_in_every_picture():
    segment_map = np.zeros((480, 640), int)
    segment_map[100:300, 100:300] = 1
    alone = draw_panoptic(GREY, segment_map, [{"id": 1, "category_id": 2}])
    segment_map[350:450] = 2
    others = draw_panoptic(GREY, segment_map, [{"id": 2, "category_id": 4}, {"id": 1, "category_id": 2}])
    assert (alone[110:150, 110:150] == others[110:150, 110:150]).all()
    assert (alone[110, 110] != 128).any() and (alone[20, 20] == 128).all()


def test_pixels_without_a_segment_stay():
    segment_map = np.full((480, 640), 7)
    segment_map[:, :320] = 0
    picture = draw_panoptic(GREY, segment_map, [{"id": 7, "category_id": 0, "isthing": False}])
    assert (picture[:, :300] == 128).all() and (picture[5, 630] != 128).any()
    assert (draw_panoptic(GREY, segment_map, [{"id": 3, "category_id": 0}]) == 128).all(), "an empty segment"
    for outside in (255, -1):
        labels = np.full((480, 640), outside)
        labels[:200] = 5
        picture = draw_semantic(GREY, labels)
        assert (picture[250:] == 128).all() and (picture[10, 10] != 128).any()


def test_stuff_is_paler_than_things():
    stuff, thing = (draw_panoptic(GREY, ONES, [{"id": 1, "category_id": 0, "isthing": k}])[5, 5] for k in (False, True))
    assert 0 < np.abs(stuff.astype(int) - 128).max() < np.abs(thing.astype(int) - 128).max()


def test_alpha_is_the_opacity():
    clear, opaque = (draw_panoptic(GREY, ONES, [{"id": 1, "category_id": 0}], alpha) for alpha in (0.0, 1.0))
    assert (clear[5, 5] == 128).all() and tuple(opaque[5, 5]) == class_color(0)


def test_without_labels_all_of_a_segment_has_its_colour():
    labelled, bare = (
        draw_segments(GREY, [Segment(ONES > 0, 0, 0.9)], NAMES, Style(1.0, labels)) for labels in (True, False)
    )
    assert (bare[4:-4, 4:-4] == class_color(0)).all() and (labelled[4:-4, 4:-4] != class_color(0)).any()


def test_instances_of_one_class_have_hues_of_their_own():
    masks = np.zeros((12, 480, 640), bool)
    for k, mask in enumerate(masks):
        mask[:, 50 * k : 50 * k + 40] = True

    def hues(color_by: str) -> np.ndarray:
        style = Style(1.0, labels=False, color_by=color_by)
        picture = draw_segments(GREY, instance_segments(masks, [0] * 12), NAMES, style)
        return np.array([colorsys.rgb_to_hsv(*color / 255)[0] for color in picture[240, 20:620:50]])

    assert np.ptp(hues("class")) < 0.1
    assert np.diff(np.sort(hues("instance"))).min() > 0.01 and np.ptp(hues("instance")) > 0.8
    stuff = [Segment(masks[0], 4, is_thing=False)]
    by_class, by_instance = (draw_segments(GREY, stuff, NAMES, Style(color_by=by)) for by in ("class", "instance"))
    assert (by_class == by_instance).all()


def test_wrong_styles_are_named():
    with pytest.raises(UserError, match="alpha"):
        Style(alpha=1.5)
    with pytest.raises(UserError, match="color_by"):
        Style(color_by="score")


def test_overlapping_instances_are_both_visible():
    masks = np.zeros((2, 480, 640), bool)
    masks[0, :, :400] = masks[1, :, 300:] = True
    picture = draw_segments(GREY, instance_segments(masks, [0, 1]), NAMES)
    left, both, right = picture[470, 50], picture[470, 350], picture[470, 600]
    assert (left != both).any() and (both != right).any() and (left != right).any()


@pytest.mark.parametrize(("shape", "scale"), [((1, 1), 8), ((1, 500), 1), ((500, 1), 1), ((90, 60), 6), ((128, 96), 4)])
def test_images_of_any_size_are_enlarged_by_an_integer(shape, scale):
    instances = instance_segments(np.ones((3, *shape), bool), [0, 1, 2], [1, 1, 1])
    picture = draw_segments(np.zeros((*shape, 3), np.uint8), instances, NAMES)
    assert enlargement(*shape) == scale and picture.shape == (shape[0] * scale, shape[1] * scale, 3)


def test_grey_images():
    grey = np.random.default_rng(0).integers(0, 256, (480, 640), np.uint8)
    expected = draw_semantic(np.repeat(grey[:, :, None], 3, axis=2), ONES)
    assert (draw_semantic(grey, ONES) == expected).all()
    assert (draw_semantic(grey[:, :, None], ONES) == expected).all()


@pytest.mark.parametrize(
    ("image", "mask", "category_id"),
    [(GREY, ONES[:, 1:], 0), (GREY.astype(np.float32), ONES, 0), (GREY, ONES, 7), (GREY, ONES, -1)],
)
def test_wrong_arguments_are_refused(image, mask, category_id):
    with pytest.raises(ValueError):
        draw_segments(image, [Segment(mask > 0, category_id)], NAMES)


@settings(max_examples=40)
@given(
    arrays.arrays(np.int32, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(-2, 6)),
    st.floats(0, 1),
)
def test_any_map_of_segments(segment_map, alpha):
    image = np.full((*segment_map.shape, 3), 40, np.uint8)
    segments = [{"id": i, "category_id": i % 7, "score": 0.5, "isthing": i % 2 == 0} for i in range(-2, 5)]
    picture = draw_panoptic(image, segment_map, segments, alpha)
    assert picture.shape[:2] == tuple(side * enlargement(*segment_map.shape) for side in segment_map.shape)


def test_where_answers_disagree_is_red():
    agreement = np.ones((480, 640), np.float32)
    agreement[:, 320:] = 0.25
    picture = draw_agreement(GREY, agreement).astype(int)
    assert (picture[:, 100] == 128).all()
    red, green, blue = picture[200, 500]
    assert red > 200 and green < 80 and blue < 80
