"""What the predictions of a run are like: statistics, plots and examples, as one HTML page."""

from dformer.apps.report.report import write_report
from dformer.apps.report.run import read_run

__all__ = ["read_run", "write_report"]
