"""The ways to follow objects through a video, by their names."""

from contextlib import suppress

from dformer.d2.modeling.meta_arch import Request, Segmenter
from dformer.d2.modeling.tracking.association import AssociationTracker
from dformer.d2.modeling.tracking.hints import HintTracker
from dformer.d2.modeling.tracking.past_maps import PastMapTracker
from dformer.d2.modeling.tracking.queries import QueryTracker
from dformer.d2.modeling.tracking.tracker import State, Tracker, number_things, tracked_request
from dformer.utils.errors import UserError, did_you_mean

TRACKERS: dict[str, type[Tracker]] = {
    "association": AssociationTracker,
    "queries": QueryTracker,
    "hints": HintTracker,
    "past_maps": PastMapTracker,
}


def build_tracker(name: str, model: Segmenter, request: Request) -> Tracker:
    """Build the tracker of a name for a model; raise UserError if there is none, or not for this model."""
    if name not in TRACKERS:
        raise UserError(
            f'tracker "{name}"{did_you_mean(name, TRACKERS)}: there are {", ".join(TRACKERS)} (TEST.TRACKER)'
        )
    return TRACKERS[name](model, request)


def trackers_of(model: Segmenter) -> list[str]:
    """Return the names of the trackers that there are for a model."""
    names = []
    for name in TRACKERS:
        with suppress(UserError):
            build_tracker(name, model, model.request)
            names.append(name)
    return names


__all__ = ["TRACKERS", "State", "Tracker", "build_tracker", "number_things", "tracked_request", "trackers_of"]
