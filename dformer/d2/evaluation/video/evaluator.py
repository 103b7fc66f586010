"""Quality of the tracks of a model: J&F, HOTA, IDF1, AP of tracks and, for panoptic sets, STQ and VPQ."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.utils import comm
from numpy.typing import NDArray

from dformer.d2.evaluation.evaluator import REMEDY, TaskEvaluator, check_complete
from dformer.data.segmentations import encode_mask, json_rle
from dformer.data.types import Record
from dformer.data.video import VOID, group_videos, paint_labels, read_segments
from dformer.metrics.stq import segmentation_and_tracking_quality
from dformer.metrics.track_ap import beside_each_other, track_average_precision
from dformer.metrics.tracks import require_trackeval, track_quality
from dformer.metrics.vpq import video_panoptic_quality
from dformer.utils import groups
from dformer.utils.errors import UserError
from dformer.utils.files import read_json, write_json
from dformer.visualize.segments import result_segments

Frame = dict[str, Any]  # a prediction: `image_id`, `video_id`, and `segments` by rising score
Pair = tuple[NDArray[np.int32], NDArray[np.int32]]


@dataclass(eq=False)
class VideoEvaluator(TaskEvaluator[Frame]):
    """Evaluate the results of a `Tracker`; the folder gets `video.json`, all frames with their segments and tracks.

    Crowds and, in panoptic sets, what is not annotated do not count. Classes count for AP, STQ and VPQ. Of a data set
    with one class, as DAVIS, every object is of that class.
    """

    metadata: Metadata
    records: Sequence[Record]
    task: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require_trackeval()
        self.things: dict[int, int] = self.metadata.thing_dataset_id_to_contiguous_id
        self.is_panoptic = bool(self.metadata.get("panoptic_root"))
        self.json_file = Path(self.folder) / "video.json"

    def reset(self) -> None:
        super().reset()
        self._frames: list[Frame] = []

    def write(self, image: dict[str, Any], output: dict[str, Any]) -> Frame:
        segments = [
            {
                "category_id": 0 if len(self.class_names) == 1 else s.category_id,
                "isthing": s.is_thing,
                "score": s.score,
                **({} if s.track is None else {"track_id": s.track}),
                "segmentation": json_rle(encode_mask(s.mask)),
            }
            for s in sorted(result_segments(output, self.task), key=lambda s: s.score or 0)
        ]
        return {"image_id": image["image_id"], "video_id": image["video_id"], "segments": segments}

    def open_saved(self, images: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], Frame]:
        try:
            frames = {frame["image_id"]: frame for frame in read_json(self.json_file, REMEDY)["frames"]}
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.json_file} has no frames with image_id and segments: {error!r}") from error
        check_complete(self.json_file, (image["image_id"] for image in images), frames)
        return lambda image: frames[image["image_id"]]

    def add(self, image: dict[str, Any], prediction: Frame) -> None:
        self._frames.append(prediction)

    @property
    def class_names(self) -> list[str]:
        names = self.metadata.stuff_classes if self.is_panoptic else self.metadata.thing_classes
        return list(names)

    def evaluate(self) -> dict[str, dict[str, float]]:
        gathered = groups.gather(self._frames)
        if not comm.is_main_process():
            return {}
        frames = {frame["image_id"]: frame for frame in chain.from_iterable(gathered)}
        if not self.is_saved:
            write_json(self.json_file, {"frames": list(frames.values())})
        videos = group_videos(record for record in self.records if record["image_id"] in frames)
        found = {name: [frames[r["image_id"]] for r in records] for name, records in videos.items()}
        results: dict[str, float] = {}
        if self.is_panoptic and self.task == "panoptic":
            results |= self._panoptic_quality(videos, found)
        results |= track_quality(map(_without_ignored, self._pairs(videos, found)))
        return {"video": results | self._average_precision(videos, found)}

    def _panoptic_quality(
        self, videos: Mapping[str, list[Record]], found: Mapping[str, list[Frame]]
    ) -> dict[str, float]:
        categories = {
            k: {"id": k, "name": name, "isthing": int(k in self.things.values())}
            for k, name in enumerate(self.class_names)
        }
        pairs = (pair[:2] for pair in self._pairs(videos, found))
        stq, _ = segmentation_and_tracking_quality(pairs, len(categories), list(self.things.values()), VOID)
        vpq = video_panoptic_quality((pair[:2] for pair in self._pairs(videos, found)), categories)
        return {"STQ": 100 * stq.stq, "AQ": 100 * stq.aq, "IoU": 100 * stq.iou, **vpq}

    def _pairs(
        self, videos: Mapping[str, list[Record]], found: Mapping[str, list[Frame]]
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]]:
        """Yield the labels (T, H, W, 2) of truth and prediction of each video, and what does not count."""
        for name, records in videos.items():
            sizes = [(r["height"], r["width"]) for r in records]
            truth = _stacked([paint_labels(read_segments(r), size) for r, size in zip(records, sizes, strict=True)])
            pairs = zip(found[name], sizes, strict=True)
            labels = _stacked([paint_labels(frame["segments"], size) for frame, size in pairs])
            is_crowd = np.isin(truth[..., 0], list(self.things.values())) & (truth[..., 1] == 0)
            yield truth, labels, is_crowd | (truth[..., 0] == VOID) & self.is_panoptic

    def _average_precision(
        self, videos: Mapping[str, list[Record]], found: Mapping[str, list[Frame]]
    ) -> dict[str, float]:
        truth, predictions = [], []
        for name, records in videos.items():
            sizes = [(r["height"], r["width"]) for r in records]
            truth += list(tracks_of(name, [read_segments(record) for record in records], sizes))
            predictions += list(tracks_of(name, [frame["segments"] for frame in found[name]], sizes))
        names = [self.class_names[k] for k in sorted(self.things.values())]
        return track_average_precision(truth, predictions, names)


def tracks_of(
    video: str, frames: Sequence[Sequence[dict[str, Any]]], sizes: Sequence[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """Yield the tracks in the segments of a video's frames, as `track_average_precision` takes them.

    The class is that of most frames, the score the mean over the frames in which the object is seen.
    """
    tracks: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
    for t, segments in enumerate(frames):
        for segment in segments:
            if "track_id" in segment:
                tracks[segment["track_id"]][t] = segment
    for seen in tracks.values():
        masks = [seen[t]["segmentation"] if t in seen else None for t in range(len(frames))]
        yield {
            "video_id": video,
            "category_id": Counter(s["category_id"] for s in seen.values()).most_common(1)[0][0],
            "score": float(np.mean([s.get("score") or 0 for s in seen.values()])),
            "iscrowd": int(any(s.get("iscrowd") for s in seen.values())),
            "segmentation": beside_each_other(masks, sizes),
        }


def _stacked(frames: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Stack labels (H, W, 2); smaller frames are padded with void."""
    height, width = (max(frame.shape[axis] for frame in frames) for axis in (0, 1))
    labels = np.zeros((len(frames), height, width, 2), np.int32)
    labels[..., 0] = VOID
    for t, frame in enumerate(frames):
        labels[t, : frame.shape[0], : frame.shape[1]] = frame
    return labels


def _without_ignored(pair: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]) -> Pair:
    """Ids of the truth, and of the prediction where it counts."""
    truth, found, ignored = pair
    return truth[..., 1], np.where(ignored, 0, found[..., 1])
