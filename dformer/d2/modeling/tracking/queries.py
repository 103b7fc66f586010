"""Following by queries (MinVIS, Huang et al. 2022): a model of images tells objects apart by its queries."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dformer.d2.modeling.meta_arch import Request, Segmenter
from dformer.d2.modeling.meta_arch.query_segmenter import QuerySegmenter
from dformer.d2.modeling.meta_arch.segmenter import Batch
from dformer.d2.modeling.tracking.tracker import State, Tracker, set_tracks, things_of
from dformer.postprocess.tracking import match_queries
from dformer.utils.errors import UserError


class QueryTracker(Tracker):
    """Identify things by their queries, matched from frame to frame (see `match_queries`), for DFormer and Mask2Former.

    The state: the queries' mask embeddings (N, E), by slot. MinVIS matches the queries themselves, from which these are
    computed; the predictions of our decoder have no others.
    """

    def __init__(self, model: Segmenter, request: Request) -> None:
        if not isinstance(model, QuerySegmenter):
            raise UserError(f'tracker "queries": {type(model).__name__} has no queries; use "association"')
        super().__init__(model, request)

    def __call__(self, frames: Batch, state: State = None) -> tuple[list[dict[str, Any]], State]:
        step = self.last_step(frames)
        for output, result in zip(step.outputs, step.results, strict=True):
            slots, state = match_queries(state, output.predictions[-1].mask_embed[0].float())  # type: ignore[attr-defined]
            sources = things_of(result, self.request).sources
            set_tracks(result, self.request, [slots[query] + 1 for query in sources])
        return step.results, state

    def begin(self, frame: dict[str, Any], masks: NDArray[np.bool_], classes: Sequence[int] | None = None) -> State:
        raise UserError('tracker "queries": it cannot begin with given masks; use "hints" or "past_maps"')
