"""What the predictions of a run are like: statistics, plots and examples, as one HTML page."""

from dformer.d2.analysis.report import write_report
from dformer.d2.analysis.run import read_run

__all__ = ["read_run", "write_report"]
