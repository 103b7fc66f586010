"""Following by past maps (Pix2Seq-D, Chen et al. 2023, Sec. 3.5): ids stay, as the decoder sees those before."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dformer.d2.modeling.meta_arch import Pix2SeqD, Request, Segmenter
from dformer.d2.modeling.meta_arch.segmenter import Batch
from dformer.d2.modeling.tracking.tracker import State, Tracker, set_tracks, things_of
from dformer.utils.errors import UserError

LATER = 4  # parts of the first frame's steps that later frames have: 32 and 8 as published for DAVIS


class Past(NamedTuple):
    """Hold the labels (F, 2, h, w) of past frames, the track of each id in them, and the id of the next new track."""

    labels: Tensor
    tracks: Mapping[int, int]
    next_id: int


class PastMapTracker(Tracker):
    """Give the label maps of past frames to a Pix2Seq-D, whose ids then are those of the past. The state: `Past`.

    An id that is in none of the past maps is a new track, as the model cannot know what it was before.
    """

    model: Pix2SeqD

    def __init__(self, model: Segmenter, request: Request) -> None:
        if not isinstance(model, Pix2SeqD) or not model.head.past_maps:
            raise UserError(
                f'tracker "past_maps": {type(model).__name__} has none; a Pix2SeqD with MODEL.PIX2SEQD.PAST_MAPS has'
            )
        super().__init__(model, request)

    def __call__(self, frames: Batch, state: State = None) -> tuple[list[dict[str, Any]], State]:
        past: Past | None = state
        results = []
        for frame in frames:
            item, request, size = frame, self.request, self.grid_size(frame)
            if past is not None and past.labels.shape[-2:] == size:
                item = {**frame, "past_labels": past.labels}
                request = replace(request, steps=max(1, request.steps // LATER))
            elif past is not None:  # the video goes on in another size
                past = Past(past.labels.new_zeros(*past.labels.shape[:2], *size), {}, past.next_id)
            step = self.last_step([item], request)
            (result,) = step.results
            sources = things_of(result, request).sources
            past = self.next_past(past, step.outputs[0].labels, sources)  # type: ignore[attr-defined]
            set_tracks(result, request, [past.tracks[source] for source in sources])
            results.append(result)
        return results, past

    def next_past(self, past: Past | None, labels: Tensor, ids: Sequence[int]) -> Past:
        """Return the past of the next frame, after one with labels (2, h, w), whose things have these ids."""
        past = past or Past(labels.new_zeros(self.model.head.past_maps, *labels.shape), {}, 1)
        maps = torch.cat([past.labels, labels[None]])[1:]
        tracks, next_id = {}, past.next_id
        for k in sorted({*maps[:, 1].unique().tolist(), *ids} - {0}):
            tracks[k] = past.tracks.get(k, next_id)
            next_id = max(next_id, tracks[k] + 1)
        return Past(maps, tracks, next_id)

    def begin(self, frame: dict[str, Any], masks: NDArray[np.bool_], classes: Sequence[int] | None = None) -> State:
        num_classes, num_ids = self.model.head.num_labels
        if classes is None and num_classes > 2:
            raise UserError('tracker "past_maps": the classes of the given masks are needed (classes)')
        if len(masks) >= num_ids:
            raise UserError(
                f"{len(masks)} masks are given, but the model has {num_ids - 1} ids (MODEL.PIX2SEQD.NUM_IDS)"
            )
        labels = torch.zeros(2, *masks.shape[1:], dtype=torch.int64)
        for k, (mask, cls) in enumerate(zip(masks, classes or [0] * len(masks), strict=True), start=1):
            labels[:, torch.from_numpy(mask)] = torch.tensor([[cls + 1], [k]])
        resized = F.interpolate(labels[None].float(), frame["image"].shape[1:], mode="nearest-exact")[0].long()
        grid = self.model.to_grid(resized, self.canvas(frame)).to(self.model.device)
        return self.next_past(None, grid, range(1, len(masks) + 1))

    def canvas(self, frame: dict[str, Any]) -> torch.Size:
        """Return the padded size of a frame."""
        divisor = self.model.size_divisibility
        return torch.Size([-(-side // divisor) * divisor for side in frame["image"].shape[1:]])

    def grid_size(self, frame: dict[str, Any]) -> tuple[int, ...]:
        """Return the size of a frame's label maps."""
        return self.model.noise_shape(self.canvas(frame), self.request)[1:]
