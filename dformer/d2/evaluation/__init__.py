"""Evaluate a model or its saved predictions: PQ, mask AP and mIoU in one pass over a data set."""

from dformer.d2.evaluation.build import build_evaluators
from dformer.d2.evaluation.evaluate import evaluate_saved

__all__ = ["build_evaluators", "evaluate_saved"]
