#!/usr/bin/env python3
"""Quality of tracks on Moving Shapes, and frames per second, by model and by the way to follow.

python datasets/moving_shapes.py
python benchmarks/video/tracking.py [WEIGHTS ...] [--trackers association queries hints past_maps] [--clips 100]

J&F, HOTA, IDF1 and AP count things, STQ and VPQ all classes, as `--eval-only` does. "kept": of the objects that were
hidden for so many frames, those with the same number afterwards. "switches": changes of an object's number, from one
frame to the next ("association"), over frames in which it was not found ("missed") or not to be seen ("hidden").
"""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dformer
from dformer.d2.data.datasets import get_metadata, get_records
from dformer.d2.engine.predictor import Predictor
from dformer.d2.evaluation.video import VideoEvaluator
from dformer.d2.modeling.tracking import TRACKERS
from dformer.data.images import read_image
from dformer.data.types import Record
from dformer.data.video import group_videos, paint_labels, read_segments
from dformer.utils.errors import UserError, exit_on_user_error

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import environment, parser, report  # noqa: E402

GAPS = (1, 2, 5, 10)
METRICS = ("STQ", "AQ", "VPQ", "J&F", "HOTA", "DetA", "AssA", "IDF1", "AP")
Numbers = list[
    int | None
]  # of an object, by frame: its track, 0 where it is not found, None where it is not to be seen


def follow(
    model: Predictor, tracker: str, frames: list[Record], evaluator: VideoEvaluator
) -> tuple[list[Numbers], float]:
    """Follow the objects of a clip; return the numbers of each, and the seconds that it took."""
    state, numbers, seconds = None, [], 0.0
    for record in frames:
        image, start = read_image(record["file_name"]), time.perf_counter()
        (result,), state = model.track([image], state, tracker=tracker, task="panoptic")
        seconds += time.perf_counter() - start
        prediction = evaluator.write(dict(record), result.predictions)
        evaluator.add(dict(record), prediction)
        size = record["height"], record["width"]
        labels = [paint_labels(segments, size)[..., 1] for segments in (read_segments(record), prediction["segments"])]
        numbers.append(numbers_of(*labels))
    return [[found.get(i) for found in numbers] for i in sorted({i for found in numbers for i in found})], seconds


def numbers_of(truth: NDArray[np.int32], found: NDArray[np.int32]) -> dict[int, int]:
    """Return for each object in a frame the track that most of it has, if that has an IoU above 0.5 with it; else 0."""
    numbers = {}
    for i in np.unique(truth[truth > 0]).tolist():
        track = int(np.bincount(found[truth == i]).argmax())
        shared = np.count_nonzero((truth == i) & (found == track))
        union = np.count_nonzero((truth == i) | (found == track))
        numbers[i] = track if shared > union / 2 else 0
    return numbers


def changes(numbers: Numbers) -> Iterator[str]:
    """Yield the cause of each change of an object's number."""
    last, cause = 0, "association"
    for number in numbers:
        if number is None:
            cause = "hidden"
        elif number == 0:
            cause = "missed" if cause == "association" else cause
        else:
            if last and number != last:
                yield cause
            last, cause = number, "association"


def returns(numbers: Numbers) -> Iterator[tuple[int, bool]]:
    """Yield for how many frames an object was hidden, and whether it has the same number afterwards."""
    seen = [t for t, number in enumerate(numbers) if number is not None]
    for last, first in zip(seen, seen[1:], strict=False):
        if first - last > 1:
            yield first - last - 1, numbers[last] == numbers[first] != 0


def measure(model: Predictor, name: str, clips: list[list[Record]]) -> dict[str, object]:
    """Follow the objects of all clips in one way, and return the numbers of its row."""
    records = [record for frames in clips for record in frames]
    with tempfile.TemporaryDirectory() as folder:
        evaluator = VideoEvaluator(Path(folder), get_metadata("moving_shapes"), records, "panoptic")
        followed = [follow(model, name, frames, evaluator) for frames in clips]
        metrics = evaluator.evaluate()["video"]
    objects, seconds = [numbers for each, _ in followed for numbers in each], sum(s for _, s in followed)
    switches = Counter(cause for numbers in objects for cause in changes(numbers))
    returned = [each for numbers in objects for each in returns(numbers)]
    row: dict[str, object] = {metric: round(metrics[metric], 1) for metric in METRICS}
    for gap in GAPS:
        same = [is_same for hidden, is_same in returned if hidden == gap]
        row[f"kept after {gap}"] = f"{sum(same)} of {len(same)}"
    visible = [number for numbers in objects for number in numbers if number is not None]
    row["not found"] = f"{visible.count(0)} of {len(visible)}"
    row["switches"] = {cause: switches[cause] for cause in ("association", "missed", "hidden")}
    return {**row, "frames_per_second": round(len(records) / seconds, 1)}


@exit_on_user_error
def main() -> None:
    options = parser(__doc__)
    options.add_argument("weights", nargs="*", default=["dformer://shapes"])
    options.add_argument("--trackers", nargs="+", default=list(TRACKERS))
    options.add_argument("--clips", type=int, default=100)
    args = options.parse_args()
    clips = list(group_videos(get_records("moving_shapes")).values())[: args.clips]
    rows = []
    for weights in args.weights:
        model = dformer.load(weights)
        for name in args.trackers:
            try:
                row = measure(model, name, clips)
            except UserError as error:
                print(error, file=sys.stderr)  # no way for this model
                continue
            rows.append({"model": type(model.model).__name__, "tracker": name, **row})
    report(rows, environment("cpu"), args.json)


if __name__ == "__main__":
    main()
