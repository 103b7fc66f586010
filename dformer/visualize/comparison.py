"""Results compared with the ground truth: segments that are missed, false, or of the wrong class."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dformer.visualize.arrays import Bools, Color, Ints, UInt8, tight_box
from dformer.visualize.overlay import DEFAULT_STYLE, Region, Style, draw_regions, draw_segments
from dformer.visualize.panels import draw_panels
from dformer.visualize.segments import Segment, semantic_segments

# Colours that the colour-blind can distinguish (Okabe and Ito, "Color universal design", 2008), and slopes of stripes.
ERRORS: dict[str, tuple[Color, int]] = {
    "missed": ((213, 94, 0), 1),
    "false": ((0, 114, 178), -1),
    "wrong class": ((240, 228, 66), 0),
}


class Match(NamedTuple):
    """Hold a true segment, the predicted one that matches it, and their IoU; one of them is None if there is none."""

    truth: Segment | None
    predicted: Segment | None
    iou: float = 0.0

    @property
    def error(self) -> str:
        """Return "missed", "false" or "wrong class"; "" if the prediction is correct."""
        if self.predicted is None:
            return "missed"
        if self.truth is None:
            return "false"
        return "" if self.truth.category_id == self.predicted.category_id else "wrong class"


def draw_comparison(
    image: UInt8,
    truth: Iterable[Segment],
    prediction: Iterable[Segment],
    class_names: Sequence[str],
    void: Bools | None = None,
    style: Style = DEFAULT_STYLE,
) -> UInt8:
    """Draw ground truth, prediction and errors side by side, for panoptic results and instances.

    For the arguments, see `draw_segments` and `match_segments`.
    """
    truth, prediction = list(truth), list(prediction)
    pictures = [draw_segments(image, segments, class_names, style) for segments in (truth, prediction)]
    matches = match_segments(truth, prediction, void)
    pictures.append(draw_errors(image, matches, class_names, style))
    counts = Counter(match.error for match in matches)
    summary = ", ".join(f"{counts[error]} {error}" for error in ERRORS if counts[error]) or "none"
    return draw_panels(pictures, ["ground truth", "prediction", f"errors: {summary}"])


def draw_semantic_comparison(
    image: UInt8, truth: Ints, prediction: Ints, class_names: Sequence[str], style: Style = DEFAULT_STYLE
) -> UInt8:
    """Draw ground truth, prediction and errors side by side, for label maps (H, W)."""
    num_classes = len(class_names)
    segments = (semantic_segments(labels, num_classes) for labels in (truth, prediction))
    pictures = [draw_segments(image, found, class_names, style) for found in segments]
    known = (truth >= 0) & (truth < num_classes)
    share = 100 * (known & (truth != prediction)).sum() / max(1, known.sum())
    errors = find_label_errors(truth, prediction, num_classes)
    pictures.append(draw_errors(image, errors, class_names, style, min_labelled=0.01))  # no labels along outlines
    return draw_panels(pictures, ["ground truth", "prediction", f"errors: {share:.1f} % of the pixels"])


def draw_errors(
    image: UInt8,
    matches: Iterable[Match],
    class_names: Sequence[str],
    style: Style = DEFAULT_STYLE,
    min_labelled: float = 0.0,
) -> UInt8:
    """Draw errors on the image in grey: missed (red, rising stripes), false (blue, falling), wrong class (yellow).

    Errors that cover at least the share `min_labelled` of the image, 0 to 1, are labelled with their classes.
    """
    grey = image if image.ndim == 2 else image.mean(axis=2)
    regions = (_region(match, class_names, min_labelled) for match in matches if match.error)
    return draw_regions((0.6 * grey + 50).astype(np.uint8), regions, style)


def match_segments(truth: Sequence[Segment], prediction: Sequence[Segment], void: Bools | None = None) -> list[Match]:
    """Match predicted with true segments.

    As in panoptic quality (Kirillov et al. 2019), two segments match if their IoU is above 0.5; void does not count in
    it, and predictions that are to more than a half in void, or in crowds of their class, are ignored. Segments may
    overlap, so those of a higher score are matched first. A prediction without a match in its class may match a segment
    of another: that is one of the wrong class, where panoptic quality counts one missed and one false.
    """
    crowds = [segment for segment in truth if segment.is_crowd]
    free = {k: segment for k, segment in enumerate(truth) if not segment.is_crowd and segment.mask.any()}
    ranked = [segment for segment in prediction if segment.mask.any()]
    ranked.sort(key=lambda segment: -1.0 if segment.score is None else -segment.score)
    ious = {k: _ious(segment.mask, [other.mask for other in ranked], void) for k, segment in free.items()}
    matches = []
    unmatched = dict(enumerate(ranked))
    for any_class in (False, True):
        for p, segment in list(unmatched.items()):
            candidates = [k for k in free if any_class or free[k].category_id == segment.category_id]
            best = max(candidates, key=lambda k: ious[k][p], default=None)
            if best is not None and ious[best][p] > 0.5:
                matches.append(Match(free.pop(best), unmatched.pop(p), ious[best][p]))
    matches += [Match(None, segment) for segment in unmatched.values() if not _is_ignored(segment, crowds, void)]
    return matches + [Match(segment, None) for segment in free.values()]


def find_label_errors(truth: Ints, prediction: Ints, num_classes: int) -> list[Match]:
    """Return the errors of a label map (H, W): for each pair of different classes, the pixels that have it.

    Pixels whose true label is outside 0..K-1 are ignored; where the predicted label is, the true class is missed.
    """
    known = (truth >= 0) & (truth < num_classes)
    predicted = np.where((prediction >= 0) & (prediction < num_classes), prediction, -1).astype(np.int64)
    wrong = known & (truth != predicted)
    errors = []
    for t, p in np.unique(np.stack([truth[wrong].astype(np.int64), predicted[wrong]], axis=1), axis=0).tolist():
        mask = wrong & (truth == t) & (predicted == p)
        errors.append(Match(Segment(mask, t), Segment(mask, p) if p >= 0 else None))
    return errors


def _ious(mask: Bools, others: Sequence[Bools], void: Bools | None) -> list[float]:
    """Return the IoU of a true mask with predicted masks, whose pixels in void do not count."""
    box, area = tight_box(mask), int(mask.sum())
    ious = []
    for other in others:
        known = other if void is None else other & ~void
        common = int((mask[box] & other[box]).sum())
        ious.append(common / (area + int(known.sum()) - common))
    return ious


def _is_ignored(segment: Segment, crowds: Sequence[Segment], void: Bools | None) -> bool:
    """Return whether more than a half of a predicted segment is in void or in crowds of its class."""
    masks = [crowd.mask for crowd in crowds if crowd.category_id == segment.category_id]
    ignored = np.logical_or.reduce([*masks, np.zeros_like(segment.mask) if void is None else void])
    return bool((segment.mask & ignored).sum() > segment.mask.sum() / 2)


def _region(match: Match, class_names: Sequence[str], min_labelled: float) -> Region:
    found = [segment for segment in (match.truth, match.predicted) if segment is not None]
    names = [class_names[segment.category_id] for segment in found]
    text = f"{names[0]} as {names[1]}" if len(names) == 2 else f"{match.error}: {names[0]}"
    color, slope = ERRORS[match.error]
    mask = found[0].mask
    return Region(mask, text if mask.mean() >= min_labelled else "", color, slope=slope)
