"""Pictures of results: plain arrays in, a picture out.

H, W: height and width of the image; K classes; N masks. Pictures are uint8 (H * s, W * s, 3) in RGB: small images are
enlarged by an integer s first (`enlargement`), so that labels can be read.
"""

from dformer.visualize.arrays import Bools, Color, Floats, Ints, UInt8, fit_size
from dformer.visualize.color import class_color
from dformer.visualize.comparison import (
    Error,
    Match,
    draw_comparison,
    draw_errors,
    draw_semantic_comparison,
    find_errors,
    find_label_errors,
    match_segments,
)
from dformer.visualize.overlay import (
    ALPHA,
    Region,
    Segment,
    draw_instances,
    draw_panoptic,
    draw_regions,
    draw_segments,
    draw_semantic,
    enlargement,
    instance_segments,
    panoptic_segments,
    semantic_segments,
)
from dformer.visualize.panels import draw_grid, draw_panels

__all__ = [
    "ALPHA",
    "Bools",
    "Color",
    "Error",
    "Floats",
    "Ints",
    "Match",
    "Region",
    "Segment",
    "UInt8",
    "class_color",
    "draw_comparison",
    "draw_errors",
    "draw_grid",
    "draw_instances",
    "draw_panels",
    "draw_panoptic",
    "draw_regions",
    "draw_segments",
    "draw_semantic",
    "draw_semantic_comparison",
    "enlargement",
    "find_errors",
    "find_label_errors",
    "fit_size",
    "instance_segments",
    "match_segments",
    "panoptic_segments",
    "semantic_segments",
]
