"""Pictures of results: arrays in, a picture out.

H, W: height and width of the image; K classes; N masks. Pictures are uint8 (H * s, W * s, 3) in RGB: small images are
enlarged by an integer s (`enlargement`), so that labels are readable. Files are in `dformer.visualize.files`.
"""

from dformer.visualize.arrays import Bools, Color, Floats, Ints, UInt8, fit_size, resize
from dformer.visualize.color import class_color
from dformer.visualize.comparison import draw_comparison, draw_semantic_comparison, match_segments
from dformer.visualize.overlay import COLOR_BY, DEFAULT_STYLE, Style, draw_agreement, draw_segments, enlargement
from dformer.visualize.panels import draw_grid, draw_panels
from dformer.visualize.segments import (
    INSTANCE_THRESHOLD,
    Segment,
    instance_segments,
    panoptic_segments,
    result_segments,
    semantic_segments,
)

__all__ = [
    "COLOR_BY",
    "INSTANCE_THRESHOLD",
    "DEFAULT_STYLE",
    "Bools",
    "Color",
    "Floats",
    "Ints",
    "Segment",
    "Style",
    "UInt8",
    "class_color",
    "draw_agreement",
    "draw_comparison",
    "draw_grid",
    "draw_panels",
    "draw_segments",
    "draw_semantic_comparison",
    "enlargement",
    "fit_size",
    "instance_segments",
    "match_segments",
    "panoptic_segments",
    "resize",
    "result_segments",
    "semantic_segments",
]
