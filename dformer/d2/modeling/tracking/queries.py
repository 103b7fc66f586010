"""Following by queries (MinVIS, Huang et al. 2022): a model of images tells objects apart by its queries."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dformer.d2.modeling.meta_arch import Request, Segmenter
from dformer.d2.modeling.meta_arch.query_segmenter import QuerySegmenter
from dformer.d2.modeling.meta_arch.segmenter import Batch
from dformer.d2.modeling.tracking.tracker import State, Tracker, set_tracks, things_of
from dformer.postprocess.tracking import Tracks, associate_embeddings, match_queries
from dformer.utils.errors import UserError


class QueryTracker(Tracker):
    """Identify things by their queries, for DFormer and Mask2Former.

    Those of a model with a tracking branch have embeddings, which are associated with those of the tracks (see
    `associate_embeddings`; the state: `Tracks`); those of other models are matched from frame to frame as they are (see
    `match_queries`; the state: the queries (N, C), by slot).
    """

    model: QuerySegmenter

    def __init__(self, model: Segmenter, request: Request) -> None:
        if not isinstance(model, QuerySegmenter):
            raise UserError(f'tracker "queries": {type(model).__name__} has no queries; use "association"')
        super().__init__(model, request)

    @torch.no_grad()
    def __call__(self, frames: Batch, state: State = None) -> tuple[list[dict[str, Any]], State]:
        step = self.last_step(frames)
        for output, result in zip(step.outputs, step.results, strict=True):
            queries = output.predictions[-1].queries[0]  # type: ignore[attr-defined]
            sources = things_of(result, self.request).sources
            if self.model.tracking is None:
                slots, state = match_queries(state, queries.float())
                ids = [slots[query] + 1 for query in sources]
            else:
                embeddings = self.model.tracking(queries[torch.tensor(sources, dtype=torch.int64)]).float()
                ids, state = associate_embeddings(state or Tracks(), embeddings)
            set_tracks(result, self.request, ids)
        return step.results, state

    def begin(self, frame: dict[str, Any], masks: NDArray[np.bool_], classes: Sequence[int] | None = None) -> State:
        raise UserError('tracker "queries": it cannot begin with given masks; use "hints" or "past_maps"')
