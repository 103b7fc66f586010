#!/usr/bin/env python3
"""Quality of tracks on Moving Shapes, and frames per second, by model and by the way to follow.

python datasets/moving_shapes.py
python -m benchmarks.video.tracking [WEIGHTS ...] [--trackers association queries hints past_maps] [--clips 100]
python -m benchmarks.video.tracking [WEIGHTS ...] --given

J&F, HOTA, IDF1 and AP count things, STQ and VPQ all classes, as `--eval-only` does. "occlusion": the same, of the clips
in which an object is hidden and comes back. "kept": of the objects that were hidden for so many frames, those with the
same number afterwards. "switches": changes of an object's number, from one frame to the next ("association"), over
frames in which it was not found ("missed") or not to be seen ("hidden"). "perfect": the segments of association, with
the numbers of the true objects that they overlap. Frames per second are those of one core, by CPU time.

--noise adds noise to the frames, --every leaves frames out, so that things move faster.
--given measures how objects are followed that are given in the first frame: J&F, semi-supervised.
"""

import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dformer
from dformer.d2.data.datasets import get_metadata, get_records
from dformer.d2.engine.predictor import Predictor
from dformer.d2.evaluation.video import VideoEvaluator
from dformer.d2.modeling.tracking import TRACKERS
from dformer.data.images import read_image
from dformer.data.segmentations import decode_rle
from dformer.data.types import Record
from dformer.data.video import VOID, group_videos, paint_labels, read_segments
from dformer.metrics.stq import segmentation_and_tracking_quality
from dformer.metrics.tracks import given_object_quality, track_quality
from dformer.postprocess.tracking import Tracks, find_tracks
from dformer.utils import rng
from dformer.utils.errors import UserError, exit_on_user_error

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import environment, parser, report  # noqa: E402

GAPS = (1, 2, 5, 10)
METRICS = ("STQ", "AQ", "VPQ", "J&F", "HOTA", "DetA", "AssA", "IDF1", "AP")
WITH_OCCLUSION = ("STQ", "AQ", "HOTA", "DetA", "IDF1")
Clip = list[Record]
Frame = dict[str, Any]  # a prediction, as of `VideoEvaluator`
# Of an object, by frame: its track, 0 where it is not found, None where it is not to be seen.
Numbers = list[int | None]


def evaluator_of(clips: Sequence[Clip], folder: str) -> VideoEvaluator:
    """Return the evaluator of clips."""
    records = [record for frames in clips for record in frames]
    return VideoEvaluator(Path(folder), get_metadata("moving_shapes"), records, "panoptic")


def noisy(record: Record, noise: float) -> NDArray[np.uint8]:
    """Read a frame, with noise of this standard deviation, in parts of the brightness."""
    image = read_image(record["file_name"])
    draws = np.random.default_rng(rng.seed("noise", record["image_id"])).normal(0, 255 * noise, image.shape)
    return (image + draws).round().clip(0, 255).astype(np.uint8) if noise else image


def follow(model: Predictor, tracker: str, frames: Clip, noise: float, given: bool) -> tuple[list[Frame], float]:
    """Follow the objects of a clip; return its predictions, and the seconds of CPU time that it took.

    With `given`, the objects of the first frame are given, and tracks have their ids; there are no others.
    """
    state, predictions, seconds, ids = None, [], 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        evaluator = evaluator_of([frames], folder)
    for record in frames:
        image = noisy(record, noise)
        start = time.process_time()
        if given and not predictions:
            things = [s for s in read_segments(record) if "track_id" in s]
            ids = [s["track_id"] for s in things]
            masks = [decode_rle(s["segmentation"]) for s in things]
            classes = [s["category_id"] for s in things]
            state = model.begin(image, np.array(masks), classes, tracker=tracker, task="panoptic")
        (result,), state = model.track([image], state, tracker=tracker, task="panoptic")
        seconds += time.process_time() - start
        prediction = evaluator.write(dict(record), result.predictions)
        if given:
            known = [s for s in prediction["segments"] if s.get("track_id", len(ids) + 1) <= len(ids)]
            prediction["segments"] = [{**s, "track_id": ids[s["track_id"] - 1]} for s in known]
        predictions.append(prediction)
    return predictions, seconds


def perfect(frames: Clip, predictions: list[Frame]) -> list[Frame]:
    """Return the predictions of a clip with the true numbers of their things; others have one of their own."""
    unknown, result = 10_000, []
    for record, prediction in zip(frames, predictions, strict=True):
        true = [s for s in read_segments(record) if "track_id" in s]
        things = [s for s in prediction["segments"] if s["isthing"]]
        tracks = Tracks(tuple(s["segmentation"] for s in true), tuple(s["track_id"] for s in true))
        size = record["height"], record["width"]
        masks = np.array([decode_rle(s["segmentation"]) > 0 for s in things], bool).reshape(-1, *size)
        numbered = []
        for segment, number in zip(things, find_tracks(tracks, masks), strict=True):
            unknown += number is None
            numbered.append({**segment, "track_id": unknown if number is None else number})
        result.append({**prediction, "segments": [s for s in prediction["segments"] if not s["isthing"]] + numbered})
    return result


def quality(clips: Sequence[Clip], predictions: Sequence[list[Frame]]) -> dict[str, float]:
    """Return the metrics of clips."""
    with tempfile.TemporaryDirectory() as folder:
        evaluator = evaluator_of(clips, folder)
        for frames, found in zip(clips, predictions, strict=True):
            for record, prediction in zip(frames, found, strict=True):
                evaluator.add(dict(record), prediction)
        return evaluator.evaluate()["video"]


def labels_of(frames: Clip, predictions: list[Frame]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the labels (T, H, W, 2) of the truth and of the predictions of a clip."""
    size = frames[0]["height"], frames[0]["width"]
    truth = np.stack([paint_labels(read_segments(record), size) for record in frames])
    return truth, np.stack([paint_labels(prediction["segments"], size) for prediction in predictions])


def numbers_by_object(truth: NDArray[np.int32], found: NDArray[np.int32]) -> list[Numbers]:
    """Return the numbers of each object of a clip."""
    numbers = [numbers_of(*labels) for labels in zip(truth[..., 1], found[..., 1], strict=True)]
    return [[frame.get(i) for frame in numbers] for i in sorted({i for frame in numbers for i in frame})]


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


def row_of(clips: Sequence[Clip], predictions: Sequence[list[Frame]]) -> dict[str, Any]:
    """Return the numbers of a row of the table."""
    metrics, labels = quality(clips, predictions), list(map(labels_of, clips, predictions))
    numbers = [numbers_by_object(*pair) for pair in labels]
    row: dict[str, Any] = {metric: round(metrics[metric], 1) for metric in METRICS}
    hidden = [k for k, objects in enumerate(numbers) if any(True for each in objects for _ in returns(each))]
    row["clips with occlusion"] = len(hidden)
    if hidden:
        metadata, chosen = get_metadata("moving_shapes"), [labels[k] for k in hidden]
        things = list(metadata.thing_dataset_id_to_contiguous_id.values())
        stq, _ = segmentation_and_tracking_quality(chosen, len(metadata.stuff_classes), things, VOID)
        tracks = track_quality((truth[..., 1], found[..., 1]) for truth, found in chosen)
        of_hidden = {"STQ": 100 * stq.stq, "AQ": 100 * stq.aq, **tracks}
        row |= {f"{metric}, occlusion": round(of_hidden[metric], 1) for metric in WITH_OCCLUSION}
    everything = [each for objects in numbers for each in objects]
    returned = [each for objects in everything for each in returns(objects)]
    for gap in GAPS:
        same = [is_same for frames, is_same in returned if frames == gap]
        row[f"kept after {gap}"] = f"{sum(same)} of {len(same)}"
    visible = [number for each in everything for number in each if number is not None]
    row["not found"] = f"{visible.count(0)} of {len(visible)}"
    switches = Counter(cause for each in everything for cause in changes(each))
    return {**row, "switches": {cause: switches[cause] for cause in ("association", "missed", "hidden")}}


def measure(model: Predictor, tracker: str, clips: Sequence[Clip], args: Namespace) -> Iterator[dict[str, Any]]:
    """Follow the objects of all clips in one way, and yield the row of it; after that of association, of "perfect"."""
    followed = [follow(model, tracker, frames, args.noise, args.given) for frames in clips]
    predictions = [found for found, _ in followed]
    speed = round(sum(map(len, clips)) / sum(seconds for _, seconds in followed), 1)
    if args.given:
        pairs = [labels_of(frames, found) for frames, found in zip(clips, predictions, strict=True)]
        ids = [(truth[..., 1], found[..., 1]) for truth, found in pairs]
        metrics = {name: round(value, 1) for name, value in given_object_quality(ids).items()}
        count = sum(len(np.unique(truth[0][truth[0] > 0])) for truth, _ in ids)
        yield {"tracker": tracker, "objects": count, **metrics, "frames per second": speed}
        return
    yield {"tracker": tracker, **row_of(clips, predictions), "frames per second": speed}
    if tracker == "association":
        yield {"tracker": "perfect", **row_of(clips, list(map(perfect, clips, predictions)))}


def short_name(weights: str) -> str:
    """Return the name of shipped weights, or of the folder and the file."""
    return weights if "://" in weights else "/".join(Path(weights).parts[-2:])


@exit_on_user_error
def main() -> None:
    options = parser(__doc__)
    options.add_argument("weights", nargs="*", default=["dformer://shapes"])
    options.add_argument("--trackers", nargs="+", default=list(TRACKERS))
    options.add_argument("--clips", type=int, default=100)
    options.add_argument("--noise", type=float, default=0.0, help="standard deviation, in parts of the brightness")
    options.add_argument("--every", type=int, default=1, help="take each n-th frame")
    options.add_argument("--given", action="store_true", help="objects are given in the first frame")
    args = options.parse_args()
    clips = [frames[:: args.every] for frames in group_videos(get_records("moving_shapes")).values()][: args.clips]
    rows = []
    for weights in args.weights:
        model = dformer.load(weights)
        for name in args.trackers:
            try:
                for row in measure(model, name, clips, args):
                    rows.append({"model": type(model.model).__name__, "weights": short_name(weights), **row})
                    print(rows[-1], file=sys.stderr)
            except UserError as error:
                print(error, file=sys.stderr)  # no way for this model
    settings = {key: getattr(args, key) for key in ("clips", "noise", "every")}
    report(rows, {**environment("cpu"), **settings}, args.json)


if __name__ == "__main__":
    main()
