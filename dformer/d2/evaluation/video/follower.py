"""A model as it is evaluated on videos: with a tracker, whose state begins anew with each of them."""

from typing import Any

from detectron2.config import CfgNode
from torch import nn

from dformer.d2.modeling.tracking import State, build_tracker, tracked_request


class Follower(nn.Module):
    """Segment the frames of videos, one after the other, and number their objects by the tracker TEST.TRACKER."""

    def __init__(self, cfg: CfgNode, model: Any) -> None:
        super().__init__()
        self.model = model
        self.tracker = build_tracker(cfg.TEST.TRACKER, model, tracked_request(model.request))
        self.video: Any = None
        self.state: State = None

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results of frames, see `Tracker`; those of a video come in their order."""
        results = []
        for frame in batch:
            if frame["video_id"] != self.video:
                self.video, self.state = frame["video_id"], None
            found, self.state = self.tracker([frame], self.state)
            results += found
        return results
