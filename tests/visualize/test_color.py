"""Colours: of one hue for a class, far apart for different classes, readable under labels."""

import numpy as np

from dformer.visualize import class_color
from dformer.visualize.color import lighten


def hue(color: tuple[int, int, int]) -> float:
    """Return the angle of the opponent colours in degrees, roughly as in Oklab."""
    red, green, blue = (channel / 255 for channel in color)
    return float(np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)))


def luminance(color: tuple[int, int, int]) -> float:
    """Return the relative luminance by WCAG."""
    srgb = np.array(color) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_instances_share_the_hue_and_differ():
    for category_id in range(20):
        colors = [class_color(category_id, instance) for instance in range(10)]
        assert len(set(colors)) == 10
        turns = [(hue(color) - hue(colors[0]) + 180) % 360 - 180 for color in colors]
        assert np.abs(turns).max() < 35


def test_classes_are_well_apart():
    colors = np.array([class_color(category_id) for category_id in range(8)], float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
    assert distances[~np.eye(8, dtype=bool)].min() > 45
    assert len({class_color(category_id) for category_id in range(150)}) == 150


def test_black_text_is_readable_on_labels_of_any_class():
    """WCAG's contrast of 7, its level AAA."""
    colors = [class_color(category_id, instance) for category_id in range(150) for instance in range(8)]
    assert min(luminance(lighten(color)) + 0.05 for color in colors) / 0.05 > 7
