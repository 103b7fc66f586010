"""What the outputs of a model are worth: PQ, mask AP and mIoU in one pass over a data set or over what was saved."""

from dformer.d2.evaluation.build import build_evaluators
from dformer.d2.evaluation.output import written_whole
from dformer.d2.evaluation.saved import evaluate_saved
from dformer.d2.evaluation.summary import class_table, summary_table, write_csv

__all__ = ["build_evaluators", "class_table", "evaluate_saved", "summary_table", "write_csv", "written_whole"]
