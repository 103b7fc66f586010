"""Colours of classes and of their labels."""

import math

import numpy as np

from dformer.visualize.arrays import Color


def class_color(category_id: int, instance: int = 0) -> Color:
    """Return the colour of a class, the same in all pictures; lightness and chroma vary over its instances 0, 1, ..."""
    golden = (math.sqrt(5) - 1) / 2  # its multiples modulo 1 spread evenly, however many there are
    spread = (0.5 + instance * golden) % 1 - 0.5  # 0 for the first instance, later ones fill [-0.5, 0.5)
    vivid = 0.19 - 0.09 * (category_id * math.sqrt(2) % 1)  # separates classes whose hues are close
    return _oklch_to_rgb(
        0.70 + 0.26 * spread, vivid * (1 - 0.6 * abs(spread)), 2 * math.pi * (category_id * golden % 1)
    )


def lighten(color: Color) -> Color:
    """Return the colour of outlines and labels: black text on it is readable, and the area's colour differs from it."""
    red, green, blue = (round(0.5 * channel + 0.5 * 255) for channel in color)
    return red, green, blue


def _oklch_to_rgb(lightness: float, chroma: float, hue: float) -> Color:
    """Convert Oklab in polar form (B. Ottosson, "A perceptual color space for image processing", 2020) to sRGB.

    Equal lightness and chroma look equal in all hues. Chroma is reduced where sRGB cannot represent the colour.
    """
    while True:
        a, b = chroma * math.cos(hue), chroma * math.sin(hue)
        lms = np.array([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728],
                        [1, -0.0894841775, -1.2914855480]]) @ [lightness, a, b]  # fmt: skip
        linear = np.array([[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
                           [-0.0041960863, -0.7034186147, 1.7076147010]]) @ lms**3  # fmt: skip
        if chroma < 0.01 or (linear.min() >= 0 and linear.max() <= 1):
            break
        chroma -= 0.005
    linear = linear.clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = np.rint(255 * srgb).astype(int).tolist()
    return red, green, blue
