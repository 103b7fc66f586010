"""Quality of tracks: J&F (DAVIS), HOTA (Luiten et al. 2021) and IDF1, computed by trackeval."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from dformer.utils.errors import UserError

Labels = NDArray[np.integer]


def track_quality(videos: Iterable[tuple[Labels, Labels]]) -> dict[str, float]:
    """Return J&F with its parts J and F, HOTA with its parts DetA and AssA, and IDF1, over all videos, in 0..100.

    J&F matches tracks over whole videos (DAVIS, unsupervised) and is a mean over true tracks; the others count masks.

    Args:
        videos: pairs (ground truth, prediction) of ids (T, H, W), 0: no object. Classes do not matter.

    Raises:
        UserError: the package trackeval is missing.
    """
    require_trackeval()
    from trackeval.metrics import HOTA, Identity, JAndF

    metrics = {"J&F": JAndF(), "HOTA": HOTA(), "Identity": Identity({"PRINT_CONFIG": False})}
    counts: dict[str, dict[int, Any]] = {name: {} for name in metrics}
    for number, (truth, found) in enumerate(videos):
        for name, metric in metrics.items():
            if name == "J&F" and not truth.any():
                continue  # it is a mean over true tracks
            counts[name][number] = metric.eval_sequence(_sequence(truth, found))  # which it changes
    whole: dict[str, Any] = {}
    for name, metric in metrics.items():
        whole |= metric.combine_sequences(counts[name])
    names = {"J&F": "J&F", "J": "J-Mean", "F": "F-Mean", "HOTA": "HOTA", "DetA": "DetA", "AssA": "AssA", "IDF1": "IDF1"}
    return {name: 100 * float(np.mean(whole[theirs])) for name, theirs in names.items()}  # HOTA: over its thresholds


def given_object_quality(videos: Iterable[tuple[Labels, Labels]]) -> dict[str, float]:
    """Return J&F, J and F of objects that are given in the first frame, the means over all of them, in 0..100.

    That is DAVIS's semi-supervised evaluation: the first frame, which is given, and the last do not count.

    Args:
        videos: pairs (ground truth, prediction) of ids (T, H, W), as of `track_quality`, with the same ids for the same
            objects. Those that are not in the first frame of the truth do not count, nor those that are in no frame
            that counts.

    Raises:
        UserError: the package trackeval is missing.
    """
    require_trackeval()
    from trackeval.metrics import JAndF

    metric, scores = JAndF(), []
    for truth, found in videos:
        for i in sorted({*truth[0][truth[0] > 0].tolist()} & {*np.unique(truth[1:-1]).tolist()}):
            scores.append(metric.eval_sequence(_sequence(*(ids[1:-1] == i for ids in (truth, found)))))
    means = {name: 100 * float(np.mean([s[f"{name}-Mean"] for s in scores])) for name in ("J", "F")}
    return {"J&F": (means["J"] + means["F"]) / 2, **means}


def require_trackeval() -> None:
    """Check that the package trackeval is there, and raise a `UserError` if not."""
    if find_spec("trackeval") is None:
        raise UserError("J&F, HOTA and IDF1 need the package trackeval: pip install 'dformer[video]'")


def _sequence(truth: Labels, found: Labels) -> dict[str, Any]:
    """Return a video as trackeval's metrics take it."""
    data: dict[str, Any] = {"num_timesteps": len(truth), "similarity_scores": []}
    for ours, theirs in ((truth, "gt"), (found, "tracker")):
        values = np.unique(ours[ours > 0])
        present = [np.unique(frame[frame > 0]) for frame in ours]
        data[f"num_{theirs}_ids"] = len(values)
        data[f"num_{theirs}_dets"] = sum(map(len, present))
        data[f"{theirs}_ids"] = [np.searchsorted(values, ids) for ids in present]
        data[f"{theirs}_dets"] = [
            [mask_utils.encode(np.asfortranarray(frame == i, dtype=np.uint8)) for i in ids]
            for frame, ids in zip(ours, present, strict=True)
        ]
    for true, predicted in zip(data["gt_dets"], data["tracker_dets"], strict=True):
        overlap = mask_utils.iou(predicted, true, [0] * len(true)) if true and predicted else np.zeros(0)
        data["similarity_scores"].append(np.reshape(overlap, (len(predicted), len(true))).T)
    return data
