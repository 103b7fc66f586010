"""What the outputs of a model are worth: PQ, mask AP and mIoU in one pass over a data set."""

from dformer.d2.evaluation.build import build_evaluators
from dformer.d2.evaluation.summary import summary_table

__all__ = ["build_evaluators", "summary_table"]
