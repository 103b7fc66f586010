"""Results beside the ground truth, with the errors marked: what is missed, what is false, what has the wrong class."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dformer.visualize.arrays import Bools, Color, Ints, UInt8, tight_box
from dformer.visualize.overlay import ALPHA, Region, Segment, draw_regions, draw_segments, draw_semantic
from dformer.visualize.panels import draw_panels


class Error(NamedTuple):
    """What is wrong somewhere: a class is missed (`predicted` is None), falsely seen (`truth` is None) or mistaken.

    Attributes:
        mask: (H, W) bool; of the prediction where it is false, else of the ground truth.
        truth, predicted: class ids, or None.
    """

    mask: Bools
    truth: int | None
    predicted: int | None

    @property
    def kind(self) -> str:
        """ "missed", "false" or "wrong class"."""
        return "false" if self.truth is None else "missed" if self.predicted is None else "wrong class"


# Colours that the colour-blind can tell apart (Okabe and Ito, "Color universal design", 2008), and slopes of stripes.
STYLE: dict[str, tuple[Color, int]] = {
    "missed": ((213, 94, 0), 1),
    "false": ((0, 114, 178), -1),
    "wrong class": ((240, 228, 66), 0),
}


def draw_comparison(
    image: UInt8,
    truth: Iterable[Segment],
    prediction: Iterable[Segment],
    class_names: Sequence[str],
    void: Bools | None = None,
    alpha: float = ALPHA,
) -> UInt8:
    """Ground truth, prediction and errors side by side, for panoptic results and instances.

    Args:
        image: (H, W, 3) RGB or (H, W) grey.
        truth, prediction: see `panoptic_segments` and `instance_segments`.
        class_names: K names.
        void: (H, W), where nothing is known; see `find_errors`.
        alpha: opacity of the colours, 0 to 1.

    Returns:
        A sheet of three pictures.

    Raises:
        ValueError: shapes disagree or a class has no name.
    """
    truth, prediction = list(truth), list(prediction)
    pictures = [draw_segments(image, segments, class_names, alpha) for segments in (truth, prediction)]
    errors = find_errors(truth, prediction, void)
    counts = Counter(error.kind for error in errors)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in STYLE if counts[kind]) or "none"
    pictures.append(draw_errors(image, errors, class_names, alpha))
    return draw_panels(pictures, ["ground truth", "prediction", f"errors: {told}"])


def draw_semantic_comparison(
    image: UInt8, truth: Ints, prediction: Ints, class_names: Sequence[str], alpha: float = ALPHA
) -> UInt8:
    """Ground truth, prediction and errors side by side, for label maps (H, W); else as `draw_comparison`."""
    pictures = [draw_semantic(image, labels, class_names, alpha) for labels in (truth, prediction)]
    errors = find_label_errors(truth, prediction, len(class_names))
    known = int(((truth >= 0) & (truth < len(class_names))).sum())
    share = 100 * sum(int(error.mask.sum()) for error in errors) / max(1, known)
    pictures.append(draw_errors(image, errors, class_names, alpha, named=0.01))  # not the seams along all outlines
    return draw_panels(pictures, ["ground truth", "prediction", f"errors: {share:.1f} % of the pixels"])


def draw_errors(
    image: UInt8, errors: Iterable[Error], class_names: Sequence[str], alpha: float = ALPHA, named: float = 0.0
) -> UInt8:
    """Draw errors on the image, its own colours taken away: what is missed in red rising stripes, what is false in blue
    falling ones, and what has the wrong class in yellow. Those that take at least the share `named` of the image are
    labelled with their classes."""
    grey = image if image.ndim == 2 else image.mean(axis=2)
    regions = (_region(error, class_names, named) for error in errors)
    return draw_regions((0.6 * grey + 50).astype(np.uint8), regions, alpha)


class Match(NamedTuple):
    """A true segment and what is predicted there; None where one of them has no counterpart, and `iou` is 0 then."""

    truth: Segment | None
    predicted: Segment | None
    iou: float

    @property
    def is_right(self) -> bool:
        """Whether both are there, and of one class."""
        return bool(self.truth and self.predicted and self.truth.category == self.predicted.category)


def match_segments(truth: Sequence[Segment], prediction: Sequence[Segment], void: Bools | None = None) -> list[Match]:
    """Match predicted with true segments.

    As in panoptic quality (Kirillov et al. 2019), two segments match if their IoU is above 0.5; void does not count in
    it, and what lies to more than a half in void, or in crowds of its class, is left out. Segments may overlap, so the
    surest choose first. One that finds no segment of its class may take one of another: that is the wrong class, where
    panoptic quality counts one missed and one false.

    Args:
        truth, prediction: their masks all (H, W).
        void: (H, W) bool, where nothing is known; None where all is.
    """
    crowds = [segment for segment in truth if segment.is_crowd]
    free = {k: segment for k, segment in enumerate(truth) if not segment.is_crowd and segment.mask.any()}
    order = sorted(
        (segment for segment in prediction if segment.mask.any()), key=lambda s: -1.0 if s.score is None else -s.score
    )
    overlaps = {k: _overlaps(segment.mask, [p.mask for p in order], void) for k, segment in free.items()}
    matches, left = [], []
    for p, segment in enumerate(order):
        same = [k for k in free if free[k].category == segment.category]
        best = max(same, key=lambda k: overlaps[k][p], default=None)
        if best is not None and overlaps[best][p] > 0.5:
            matches.append(Match(free.pop(best), segment, overlaps[best][p]))
        else:
            left.append((p, segment))
    for p, segment in left:
        best = max(free, key=lambda k: overlaps[k][p], default=None)
        if best is not None and overlaps[best][p] > 0.5:
            matches.append(Match(free.pop(best), segment, overlaps[best][p]))
        elif not _excused(segment, crowds, void):
            matches.append(Match(None, segment, 0.0))
    return matches + [Match(segment, None, 0.0) for segment in free.values()]


def find_errors(truth: Sequence[Segment], prediction: Sequence[Segment], void: Bools | None = None) -> list[Error]:
    """What does not match of predicted and true segments; see `match_segments`."""
    errors = []
    for match in match_segments(truth, prediction, void):
        if match.truth and not match.is_right:
            errors.append(Error(match.truth.mask, match.truth.category, match.predicted and match.predicted.category))
        elif match.predicted and not match.is_right:
            errors.append(Error(match.predicted.mask, None, match.predicted.category))
    return errors


def find_label_errors(truth: Ints, prediction: Ints, num_classes: int) -> list[Error]:
    """What differs between label maps (H, W), by pair of classes.

    Labels outside 0..K-1 say nothing in the ground truth; in the prediction they mean that the true class is missed.
    """
    known = (truth >= 0) & (truth < num_classes)
    seen = np.where((prediction >= 0) & (prediction < num_classes), prediction, -1).astype(np.int64)
    wrong = known & (truth != seen)
    pairs = np.unique(np.stack([truth[wrong].astype(np.int64), seen[wrong]], axis=1), axis=0)
    return [Error(wrong & (truth == t) & (seen == p), t, p if p >= 0 else None) for t, p in pairs.tolist()]


def _overlaps(mask: Bools, others: Sequence[Bools], void: Bools | None) -> list[float]:
    """IoU of a true mask with predicted ones, of which void is cut off."""
    box = tight_box(mask)
    area = int(mask.sum())
    ious = []
    for other in others:
        known = other if void is None else other & ~void
        common = int((mask[box] & other[box]).sum())
        ious.append(common / (area + int(known.sum()) - common))
    return ious


def _excused(segment: Segment, crowds: Sequence[Segment], void: Bools | None) -> bool:
    """Whether a predicted segment lies to more than a half where it cannot be judged."""
    masks = [crowd.mask for crowd in crowds if crowd.category == segment.category]
    unknown = np.logical_or.reduce(masks + ([] if void is None else [void])) if masks or void is not None else False
    return bool((segment.mask & unknown).sum() > segment.mask.sum() / 2)


def _region(error: Error, class_names: Sequence[str], named: float) -> Region:
    names = [class_names[category] for category in (error.truth, error.predicted) if category is not None]
    text = f"{names[0]} as {names[1]}" if len(names) == 2 else f"{error.kind}: {names[0]}"
    color, slope = STYLE[error.kind]
    return Region(error.mask, text if error.mask.mean() >= named else "", color, slope=slope)
