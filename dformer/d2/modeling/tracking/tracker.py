"""What all ways to follow objects through a video share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dformer.d2.modeling.meta_arch import Request, Segmenter, Step
from dformer.d2.modeling.meta_arch.segmenter import Batch
from dformer.postprocess.tracking import Tracks, associate, encode_masks
from dformer.utils.errors import UserError

State = Any  # of a tracker; None before the first frame


class Tracker(ABC):
    """Follow objects through a video: frames and a state in, results with track ids and the next state out.

    Memory does not grow with the video, and frames one by one give the same as several at once.

    Args:
        model: the system that segments the frames.
        request: as of `Segmenter.steps`, for one task; "panoptic", or "instance" above its `object_threshold`.
    """

    def __init__(self, model: Segmenter, request: Request) -> None:
        self.model, self.request = model, request

    @abstractmethod
    def __call__(self, frames: Batch, state: State = None) -> tuple[list[dict[str, Any]], State]:
        """Return the results of the next frames, and the state after them.

        In the results, segments of things have a `track_id`, from 1; of instances, `track_ids` (n,).
        """

    def begin(self, frame: dict[str, Any], masks: NDArray[np.bool_], classes: Sequence[int] | None = None) -> State:
        """Return the state in which objects 1..M, whose masks are known in the first frame, are followed.

        Args:
            frame: the first one, an item as of `Segmenter.forward`; the tracker gets it with this state.
            masks: (M, height, width).
            classes: of the objects, where they are known; "past_maps" needs them.
        """
        return Tracks().advance([None] * len(masks), encode_masks(masks))[1]

    def last_step(self, frames: Batch, request: Request | None = None) -> Step:
        """Return the last sampling step of the model, for the tracker's request or another."""
        for step in self.model.steps(frames, request or self.request):  # noqa: B007
            pass
        return step


class Things(NamedTuple):
    """Hold the things in a result: masks (S, H, W), contiguous classes, and the query, slot or id that each is of."""

    masks: NDArray[np.bool_]
    classes: list[int]
    sources: list[int]


def things_of(result: dict[str, Any], request: Request) -> Things:
    """Return the things of a frame's result.

    Instances of lower scores than the request's are removed from it, and all but the best class of a query.
    """
    if "panoptic" in request.tasks:
        found, segments = result["panoptic_seg"]
        ids, things = found.cpu().numpy(), [s for s in segments if s["isthing"]]
        masks = np.array([ids == s["id"] for s in things], bool).reshape(-1, *ids.shape)
        return Things(masks, [s["category_id"] for s in things], [s.get("source", 0) for s in things])
    instances = result["instances"].to("cpu")
    result["instances"] = instances = instances[instances.scores >= request.object_threshold]
    if instances.has("sources"):
        first = {source: k for k, source in reversed(list(enumerate(instances.sources.tolist())))}
        result["instances"] = instances = instances[sorted(first.values())]
    sources = instances.sources.tolist() if instances.has("sources") else [0] * len(instances)
    return Things(instances.pred_masks.numpy(), instances.pred_classes.tolist(), sources)


def set_tracks(result: dict[str, Any], request: Request, ids: Sequence[int]) -> None:
    """Write the track ids of the things of a result into it."""
    if "panoptic" in request.tasks:
        things = [s for s in result["panoptic_seg"][1] if s["isthing"]]
        for segment, track in zip(things, ids, strict=True):
            segment["track_id"] = track
    else:
        result["instances"].track_ids = torch.tensor(ids, dtype=torch.int64)


def number_things(result: dict[str, Any], request: Request, tracks: Tracks) -> Tracks:
    """Track the things of a frame's result by association, in place; return the tracks after it."""
    things = things_of(result, request)
    ids, tracks = associate(tracks, things.masks)
    set_tracks(result, request, ids)
    return tracks


def tracked_task(tasks: Sequence[str]) -> str:
    """Return the task whose results are followed, "panoptic" if it is among them; raise UserError if none can be."""
    for task in ("panoptic", "instance"):
        if task in tasks:
            return task
    raise UserError(f"TEST.TASKS is {tuple(tasks)}: objects are followed in panoptic and instance results")


def tracked_request(request: Request) -> Request:
    """Return the request for the one task whose results are followed."""
    return replace(request, tasks=(tracked_task(request.tasks),))
