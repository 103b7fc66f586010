"""Pictures: what is drawn where. Whether they please was judged by looking at them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from dformer.visualize import class_color, draw_instances, draw_panoptic, draw_semantic, enlargement
from dformer.visualize.color import lighter

NAMES = ["disc", "square", "triangle", "star", "grass", "water", "brick"]
GREY = np.full((480, 640, 3), 128, np.uint8)


def hue(color: tuple[int, int, int]) -> float:
    """In Oklab's terms roughly: the angle of the opponent colours, degrees."""
    red, green, blue = (channel / 255 for channel in color)
    return float(np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)))


def label_boxes(monkeypatch) -> list[tuple[int, int, int, int]]:
    """x0, y0, x1, y1 of the labels of the pictures that are drawn from now on."""
    boxes = []
    paste = Image.Image.paste

    def record(self, label, corner, mask):
        boxes.append((*corner, corner[0] + label.width, corner[1] + label.height))
        assert boxes[-1][0] >= 0 and boxes[-1][1] >= 0
        assert boxes[-1][2] <= self.width and boxes[-1][3] <= self.height, "a label leaves the picture"
        paste(self, label, corner, mask)

    monkeypatch.setattr(Image.Image, "paste", record)
    return boxes


def test_a_class_has_its_colour_in_every_picture():
    segment_map = np.zeros((480, 640), int)
    segment_map[100:300, 100:300] = 1
    alone = draw_panoptic(GREY, segment_map, [{"id": 1, "category_id": 2}], NAMES)
    segment_map[350:450] = 2
    others = draw_panoptic(GREY, segment_map, [{"id": 2, "category_id": 4}, {"id": 1, "category_id": 2}], NAMES)
    assert (alone[110:150, 110:150] == others[110:150, 110:150]).all()
    assert (alone[110, 110] != 128).any() and (alone[20, 20] == 128).all()


def test_instances_share_the_hue_and_differ():
    for category in range(20):
        colors = [class_color(category, instance) for instance in range(10)]
        assert len(set(colors)) == 10
        turns = [(hue(color) - hue(colors[0]) + 180) % 360 - 180 for color in colors]
        assert np.abs(turns).max() < 35


def test_classes_are_well_apart():
    colors = np.array([class_color(category) for category in range(8)], float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
    assert distances[~np.eye(8, dtype=bool)].min() > 45
    assert len({class_color(category) for category in range(150)}) == 150


def test_labels_lie_in_the_picture_and_apart(monkeypatch):
    boxes = label_boxes(monkeypatch)
    random = np.random.default_rng(0)
    masks = np.zeros((40, 480, 640), bool)
    for mask in masks:
        top, left = random.integers(0, (475, 635))
        mask[top : top + random.integers(5, 120), left : left + random.integers(5, 120)] = True
    draw_instances(GREY, masks, random.integers(0, 7, 40), random.random(40), NAMES)
    assert len(boxes) > 20
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        assert all(x1 <= a0 or a1 <= x0 or y1 <= b0 or b1 <= y0 for a0, b0, a1, b1 in boxes[:k]), "labels overlap"


def test_a_label_lies_on_its_segment_or_beside_a_small_one(monkeypatch):
    boxes = label_boxes(monkeypatch)
    masks = np.zeros((2, 480, 640), bool)
    masks[0, 200:400, 50:250] = True
    masks[1, 100:112, 500:512] = True
    draw_instances(GREY, masks, [0, 1], [0.9, 0.8], NAMES)
    (x0, y0, x1, y1), small = boxes
    assert masks[0, y0:y1, x0:x1].all()
    assert not masks[1, small[1] : small[3], small[0] : small[2]].all()
    assert abs(small[0] - 506) < 100 and abs(small[1] - 106) < 40, "it is near"


def test_scores_and_ids_are_optional_and_void_stays():
    segment_map = np.full((480, 640), 7)
    segment_map[:, :320] = 0
    picture = draw_panoptic(GREY, segment_map, [{"id": 7, "category_id": 0, "isthing": False}], NAMES)
    assert (picture[:, :300] == 128).all() and (picture[5, 630] != 128).any()
    assert (draw_panoptic(GREY, segment_map, [], NAMES) == 128).all()
    assert (draw_panoptic(GREY, segment_map, [{"id": 3, "category_id": 0}], NAMES) == 128).all(), "no pixel, no picture"


def test_stuff_is_paler_than_things():
    def strength(is_thing: bool) -> int:
        segments = [{"id": 1, "category_id": 0, "isthing": is_thing}]
        picture = draw_panoptic(GREY, np.ones((480, 640), int), segments, NAMES)
        return np.abs(picture[5, 5].astype(int) - 128).max()

    assert strength(False) < strength(True)


def test_alpha_is_the_opacity():
    def drawn(alpha: float) -> np.ndarray:
        picture = draw_panoptic(GREY, np.ones((480, 640), int), [{"id": 1, "category_id": 0}], NAMES, alpha)
        return picture[5, 5]

    assert (drawn(0.0) == 128).all()
    assert tuple(drawn(1.0)) == class_color(0)


def test_semantic_labels_outside_the_classes_stay():
    labels = np.full((480, 640), 255, np.uint8)
    labels[:200] = 5
    picture = draw_semantic(GREY, labels, NAMES)
    assert (picture[250:] == 128).all() and (picture[10, 10] != 128).any()
    assert (draw_semantic(GREY, np.full((480, 640), -1), NAMES) == 128).all()


def test_overlapping_instances_are_both_seen():
    masks = np.zeros((2, 480, 640), bool)
    masks[0, :, :400] = masks[1, :, 300:] = True
    picture = draw_instances(GREY, masks, [0, 1], None, NAMES)
    left, both, right = picture[470, 50], picture[470, 350], picture[470, 600]
    assert (left != both).any() and (both != right).any() and (left != right).any()


def test_small_images_are_enlarged_by_an_integer():
    assert enlargement(128, 128) == 4 and enlargement(480, 640) == 1 and enlargement(1, 1) == 8
    image = np.random.default_rng(0).integers(0, 256, (128, 96, 3), np.uint8)
    picture = draw_panoptic(image, np.zeros((128, 96), int), [], NAMES)
    assert picture.shape == (512, 384, 3) and picture.dtype == np.uint8


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 7), (90, 60)])
def test_any_size(shape):
    image = np.zeros((*shape, 3), np.uint8)
    scale = enlargement(*shape)
    expected = (shape[0] * scale, shape[1] * scale, 3)
    one = [{"id": 1, "category_id": 3, "score": 0.5}]
    assert draw_panoptic(image, np.ones(shape, int), one, NAMES).shape == expected
    assert draw_instances(image, np.ones((3, *shape), bool), [0, 1, 2], [1, 1, 1], NAMES).shape == expected
    assert draw_instances(image, np.zeros((0, *shape), bool), [], [], NAMES).shape == expected
    assert draw_semantic(image, np.zeros(shape, np.int64), NAMES).shape == expected


def test_grey_images():
    grey = np.random.default_rng(0).integers(0, 256, (480, 640), np.uint8)
    expected = draw_semantic(np.repeat(grey[:, :, None], 3, axis=2), np.zeros((480, 640), int), NAMES)
    assert (draw_semantic(grey, np.zeros((480, 640), int), NAMES) == expected).all()
    assert (draw_semantic(grey[:, :, None], np.zeros((480, 640), int), NAMES) == expected).all()


def test_the_inputs_are_left_as_they_are():
    image, segment_map = GREY.copy(), np.ones((480, 640), int)
    draw_panoptic(image, segment_map, [{"id": 1, "category_id": 1}], NAMES)
    assert (image == 128).all() and (segment_map == 1).all()


@pytest.mark.parametrize(
    ("image", "segment_map", "category"),
    [
        (GREY, np.ones((480, 639), int), 0),
        (GREY.astype(np.float32), np.ones((480, 640), int), 0),
        (np.zeros((480, 640, 4), np.uint8), np.ones((480, 640), int), 0),
        (GREY, np.ones((480, 640), int), 7),
        (GREY, np.ones((480, 640), int), -1),
    ],
    ids=["size", "dtype", "channels", "unnamed class", "negative class"],
)
def test_wrong_arguments_are_refused(image, segment_map, category):
    with pytest.raises(ValueError):
        draw_panoptic(image, segment_map, [{"id": 1, "category_id": category}], NAMES)


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(np.int32, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(-2, 6)),
    st.floats(0, 1),
)
def test_any_map_of_segments(segment_map, alpha):
    image = np.full((*segment_map.shape, 3), 40, np.uint8)
    segments = [{"id": i, "category_id": i % 7, "score": 0.5, "isthing": i % 2 == 0} for i in range(-2, 5)]
    picture = draw_panoptic(image, segment_map, segments, NAMES, alpha)
    scale = enlargement(*segment_map.shape)
    void = np.repeat(np.repeat(segment_map > 4, scale, axis=0), scale, axis=1)
    assert picture.shape == (*void.shape, 3)
    if void.all():
        assert (picture == 40).all()


def test_labels_can_be_read_whatever_they_lie_on():
    """Black letters on boxes of their own: WCAG's contrast of 7 (its level AAA) for any class and instance."""

    def luminance(color: tuple[int, int, int]) -> float:
        srgb = np.array(color) / 255
        return float(
            np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    colors = [class_color(category, instance) for category in range(150) for instance in range(8)]
    assert min(luminance(lighter(color)) + 0.05 for color in colors) / 0.05 > 7
