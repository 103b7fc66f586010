"""Evaluation on videos: models follow objects, and their tracks are scored."""

from dformer.d2.evaluation.video.evaluator import VideoEvaluator
from dformer.d2.evaluation.video.follower import Follower

__all__ = ["Follower", "VideoEvaluator"]
