"""Following by hints: DFormer finds the masks of the frame before anew, from noise around them."""

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
from dformer.postprocess.tracking import Tracks
from dformer.utils.errors import UserError

TIME = 0.5  # of T, to which the masks of the frame before are noised


class HintTracker(Tracker):
    """Give the masks of the frame before to slots of a DFormer with denoising assignment, which answer for them.

    Slots without a hint find what is new. The state: `Tracks`.
    """

    def __init__(self, model: Segmenter, request: Request) -> None:
        if not model.completes or model.max_time is None:
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
            (result,) = self.last_step([self.with_hints(frame, tracks)]).results
            things = things_of(result, self.request)
            known = [tracks.ids[slot] if slot < len(tracks.ids) else None for slot in things.sources]
            ids, tracks = tracks.advance(known, things.masks, things.classes)
            set_tracks(result, self.request, ids)
            results.append(result)
        return results, tracks

    def begin(self, frame: dict[str, Any], masks: NDArray[np.bool_], classes: Sequence[int] | None = None) -> State:
        if len(masks) > self.num_slots:
            raise UserError(f"{len(masks)} masks are given, but the model has {self.num_slots} slots; give fewer")
        return super().begin(frame, masks, classes)

    def with_hints(self, frame: dict[str, Any], tracks: Tracks) -> dict[str, Any]:
        """Return an item with the tracks' masks as hints."""
        if not tracks.ids:
            return frame
        masks = torch.from_numpy(rle.decode(list(tracks.masks)).transpose(2, 0, 1)).float()
        size = frame["image"].shape[1:]
        hints = F.interpolate(masks[None], size, mode="nearest-exact")[0] > 0
        return {**frame, "hint_masks": hints, "hint_time": self.time}
