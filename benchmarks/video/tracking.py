#!/usr/bin/env python3
"""Quality of tracks on Moving Shapes, and frames per second, by models of images and the way to follow.

python datasets/moving_shapes.py
python benchmarks/video/tracking.py [WEIGHTS ...] [--clips 100] [--time 500] [--json FILE]

association: things take the number of what they overlap in the frame before. hints, with models that refine masks
(DFormer with denoising assignment): the masks of the frame before are noised to `--time` and found anew first.

J&F, HOTA and IDF1 (trackeval) count things, STQ and VPQ (panopticapi) all classes. "kept" is the share of objects that
have the same number before and after being hidden for so many frames.
"""

import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

import dformer
from dformer.d2.engine.predictor import Predictor
from dformer.data.prepare import default_root
from dformer.data.segmentations import encode_mask
from dformer.metrics.stq import segmentation_and_tracking_quality
from dformer.metrics.tracks import track_quality
from dformer.metrics.vpq import video_panoptic_quality
from dformer.postprocess.tracking import Tracks
from dformer.utils.errors import exit_on_user_error

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import environment, parser, report  # noqa: E402

GAPS = (1, 2, 5, 10)
VOID = 255
MIN_SCORE = 0.5
Labels = NDArray[np.int64]


def clips(folder: Path, number: int) -> Iterator[tuple[list[NDArray[np.uint8]], Labels]]:
    """Yield the frames of each clip, and its classes and ids (T, H, W, 2)."""
    for clip in sorted((folder / "JPEGImages").iterdir())[:number]:
        frames = [np.array(Image.open(file)) for file in sorted(clip.iterdir())]
        kinds = [
            np.stack([np.array(Image.open(file)) for file in sorted((folder / kind / clip.name).iterdir())])
            for kind in ("Classes", "Annotations")
        ]
        yield frames, np.stack(kinds, -1).astype(np.int64)


def found_anew(model: Predictor, frame: NDArray[np.uint8], tracks: Tracks, time: int) -> Tracks:
    """Return tracks whose masks are those that the model makes, for the next frame, of the old ones."""
    before = rle.decode(list(tracks.masks)).transpose(2, 0, 1)  # (M, H, W)
    refined = model.refine(frame, before, classes=tracks.classes, time=time)
    found = [encode_mask(mask) for mask in refined.masks]
    pairs = zip(refined.scores > MIN_SCORE, found, tracks.masks, strict=True)
    return tracks._replace(masks=tuple(new if is_seen else old for is_seen, new, old in pairs))


def follow(model: Predictor, frames: list[NDArray[np.uint8]], time: int | None) -> Labels:
    """Return the classes and track ids (T, H, W, 2) that the model finds; 255, 0 where there is nothing."""
    tracks = Tracks()
    labels = []
    for frame in frames:
        if time is not None and tracks.ids:
            tracks = found_anew(model, frame, tracks, time)
        result, tracks = model(frame, task="panoptic").tracked(tracks)
        found = np.full((*frame.shape[:2], 2), (VOID, 0))
        for segment in result.segments:
            found[segment.mask] = segment.category_id, segment.track or 0
        labels.append(found)
    return np.stack(labels)


def kept(truth: Labels, found: Labels) -> Iterator[tuple[int, bool]]:
    """Yield for how many frames each hidden object was gone, and whether it has the same number afterwards."""
    for i in np.unique(truth[..., 1][truth[..., 1] > 0]):
        seen = np.flatnonzero((truth[..., 1] == i).any((1, 2)))
        for last, first in zip(seen, seen[1:], strict=False):
            if first - last > 1:
                numbers = [np.bincount(found[t][truth[t, ..., 1] == i][:, 1]).argmax() for t in (last, first)]
                yield int(first - last - 1), numbers[0] == numbers[1] > 0


@exit_on_user_error
def main() -> None:
    options = parser(__doc__)
    options.add_argument("weights", nargs="*", default=["dformer://shapes"])
    options.add_argument("--clips", type=int, default=100)
    options.add_argument("--time", type=int, default=500, help="of the noise on hints, 0 to T - 1")
    args = options.parse_args()
    rows = []
    for weights, by in product(args.weights, ("association", "hints")):
        model = dformer.load(weights)
        if by == "hints" and not model.model.completes:
            continue
        categories = {
            k: {"id": k, "name": name, "isthing": int(k in model.things)} for k, name in enumerate(model.class_names)
        }
        pairs, seconds, count = [], 0.0, 0
        for frames, truth in clips(Path(default_root(), "moving_shapes"), args.clips):
            start = time.perf_counter()
            pairs.append((truth, follow(model, frames, args.time if by == "hints" else None)))
            seconds += time.perf_counter() - start
            count += len(frames)
        ids = [tuple(np.where(np.isin(x[..., 0], model.things), x[..., 1], 0) for x in pair) for pair in pairs]
        stq, _ = segmentation_and_tracking_quality(pairs, len(categories), list(model.things), VOID)
        row: dict[str, object] = {"weights": Path(weights).name, "by": by, "STQ": 100 * stq.stq}
        row |= {"VPQ": video_panoptic_quality(pairs, categories)["VPQ"], **track_quality(ids)}
        returned = [pair for truth, found in pairs for pair in kept(truth, found)]
        for gap in GAPS:
            same = [is_same for hidden, is_same in returned if hidden == gap]
            row[f"kept after {gap}"] = f"{sum(same)} of {len(same)}"
        rows.append({k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()})
        rows[-1]["frames_per_second"] = round(count / seconds, 1)
    report(rows, environment("cpu"), args.json)


if __name__ == "__main__":
    main()
