"""Following by hints: DFormer finds the masks of the frame before anew, denoised from a time between 0 and T."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as rle

from dformer.d2.modeling.meta_arch import Request, Segmenter
from dformer.d2.modeling.meta_arch.segmenter import Batch
from dformer.d2.modeling.tracking.tracker import State, Tracker, set_tracks, things_of
from dformer.postprocess.tracking import Tracks, encode_masks, find_tracks
from dformer.utils.errors import UserError

TIME = 0.3  # of T, to which the masks of the frame before are noised
MIN_IOU = 0.4  # of a thing and the answer of a slot


class HintTracker(Tracker):
    """Identify things with the answers of slots to which a DFormer with denoising assignment got the masks before.

    A frame is decoded twice: from noise, for its segments, and from the masks of the tracks, noised, for what became of
    these. What no answer overlaps is left to association. The state: `Tracks`.
    """

    def __init__(self, model: Segmenter, request: Request) -> None:
        if not model.refines or model.max_time is None:
            raise UserError(
                f'tracker "hints": {type(model).__name__} takes none; '
                "a DFormer trained with DIFFUSION.ASSIGNMENT denoising does"
            )
        super().__init__(model, request)
        self.time = round(TIME * model.max_time)
        self.num_slots = request.proposals or model.options["proposals"][1]

    def __call__(self, frames: Batch, state: State = None) -> tuple[list[dict[str, Any]], State]:
        tracks: Tracks = state or Tracks()
        results = []
        for frame in frames:
            tracks = tracks.of_size((frame["height"], frame["width"])).first(self.num_slots)
            (result,) = self.last_step([frame]).results
            things = things_of(result, self.request)
            ids = find_tracks(self.found_anew(frame, tracks), things.masks, MIN_IOU)
            left = [k for k, i in enumerate(ids) if i is None]
            others = tracks.of([k for k, i in enumerate(tracks.ids) if i not in ids])
            for k, i in zip(left, find_tracks(others, things.masks[left]), strict=True):
                ids[k] = i
            numbers, tracks = tracks.advance(ids, encode_masks(things.masks))
            set_tracks(result, self.request, numbers)
            results.append(result)
        return results, tracks

    def begin(self, frame: dict[str, Any], masks: NDArray[np.bool_], classes: Sequence[int] | None = None) -> State:
        if len(masks) > self.num_slots:
            raise UserError(f"{len(masks)} masks are given, but the model has {self.num_slots} slots; give fewer")
        return super().begin(frame, masks, classes)

    def found_anew(self, frame: dict[str, Any], tracks: Tracks) -> Tracks:
        """Return those of the tracks that the model finds in a frame, with their masks there."""
        if not tracks.ids:
            return tracks
        before = torch.from_numpy(rle.decode(list(tracks.seen)).transpose(2, 0, 1)).float()
        masks = F.interpolate(before[None], frame["image"].shape[1:], mode="nearest-exact")[0] > 0
        (result,) = self.last_step([{**frame, "hint_masks": masks, "hint_time": self.time}]).results
        things = things_of(result, self.request)
        answers = [k for k, slot in enumerate(things.sources) if slot < len(tracks.ids)]
        found = tracks.of([things.sources[k] for k in answers])
        return found._replace(seen=tuple(encode_masks(things.masks[answers])))
