"""Checks of videos: what images alone do not show."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from pycocotools import mask as rle

from dformer.data.checks.findings import Finding, Findings
from dformer.data.types import Record
from dformer.data.video import group_videos, read_segments
from dformer.utils.errors import UserError
from dformer.utils.processes import parallel_map

SAME_PLACE, ELSEWHERE = 0.7, 0.1  # IoU of masks in two frames, from which on, and up to which


def check_videos(records: Sequence[Record], limit: int | None = None, workers: int | None = None) -> Findings:
    """Check the videos of a data set, their masks of about `limit` frames at most; yield the findings."""
    videos = group_videos(records)
    for name, frames in videos.items():
        yield from _check_frames(name, frames)
    chosen = list(videos.values())
    if limit is not None and limit < len(records):
        count = max(1, len(chosen) * limit // len(records))
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, count).round().astype(int)]
    for findings in parallel_map(_check_tracks, chosen, workers=workers):
        yield from findings


def _check_frames(name: str, frames: Sequence[Record]) -> Findings:
    sizes = Counter((frame["height"], frame["width"]) for frame in frames)
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        first = next(f for f in frames if (f["height"], f["width"]) != usual)
        what = f"is {first['width']} x {first['height']} pixels, other frames of {name} {usual[1]} x {usual[0]}"
        yield Finding("size changes", first["file_name"], what)
    steps = Counter(b["frame"] - a["frame"] for a, b in pairwise(frames))
    usual_step = max(steps, key=lambda step: (steps[step], -step), default=1)
    for before, after in pairwise(frames):
        step = after["frame"] - before["frame"]
        if step == 0:
            yield Finding("duplicate frame", after["file_name"], f"has the number of {before['file_name']}")
        elif step > usual_step:
            what = f"follows frame {before['frame']} of {name}, other frames are {usual_step} apart"
            yield Finding("gap in frames", after["file_name"], what)


def _check_tracks(frames: Sequence[Record]) -> list[Finding]:
    """Check that each track has one class, and that no object changes its id from one frame to the next."""
    classes: dict[int, set[int]] = defaultdict(set)
    findings: list[Finding] = []
    before: dict[int, object] = {}
    for frame in frames:
        try:
            segments = [s for s in read_segments(frame) if "track_id" in s]
        except UserError:  # a finding of the image
            before = {}
            continue
        for s in segments:
            classes[s["track_id"]].add(s["category_id"])
        after = {s["track_id"]: s["segmentation"] for s in segments}
        for old, new in _jumps(before, after):
            what = f"the object {old} of the frame before has the id {new}"
            findings.append(Finding("id jumps", frame["file_name"], what))
        before = after
    for track, found in classes.items():
        if len(found) > 1:
            what = f"the object {track} has {len(found)} classes, {', '.join(map(str, sorted(found)))}"
            findings.append(Finding("track of several classes", frames[0]["video_id"], what))
    return findings


def _jumps(before: dict[int, object], after: dict[int, object]) -> list[tuple[int, int]]:
    """Ids of an object in two frames where it stays in its place, and neither id is near its old one's."""
    if not before or not after:
        return []
    overlap = rle.iou(list(before.values()), list(after.values()), [0] * len(after))
    if np.min(overlap) < 0:  # frames of different sizes
        return []
    rows, columns = list(before), list(after)
    own = partial(_own_overlap, overlap, rows, columns)
    pairs = ((rows[i], columns[j]) for i, j in np.argwhere(overlap >= SAME_PLACE).tolist())
    return [(old, new) for old, new in pairs if old != new and own(old) <= ELSEWHERE and own(new) <= ELSEWHERE]


def _own_overlap(overlap: np.ndarray, rows: list[int], columns: list[int], track: int) -> float:
    """IoU of a track with itself in the other frame; 0 where it is not in both."""
    return float(overlap[rows.index(track), columns.index(track)]) if track in rows and track in columns else 0.0
