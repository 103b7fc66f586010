"""Following by overlap: the baseline for any system."""

from typing import Any

from dformer.d2.modeling.meta_arch.segmenter import Batch
from dformer.d2.modeling.tracking.tracker import State, Tracker, number_things
from dformer.postprocess.tracking import Tracks


class AssociationTracker(Tracker):
    """Identify things with those that they overlap in the frame before (see `associate`). The state: `Tracks`."""

    def __call__(self, frames: Batch, state: State = None) -> tuple[list[dict[str, Any]], State]:
        tracks: Tracks = state or Tracks()
        results = self.last_step(frames).results
        for result in results:
            tracks = number_things(result, self.request, tracks)
        return results, tracks
