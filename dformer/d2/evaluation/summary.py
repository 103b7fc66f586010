"""The one table that a person wants."""

import math
from collections.abc import Mapping

from tabulate import tabulate

TASKS = (
    ("panoptic", "panoptic_seg", ("PQ", "SQ", "RQ")),
    ("panoptic, things", "panoptic_seg", ("PQ_th", "SQ_th", "RQ_th")),
    ("panoptic, stuff", "panoptic_seg", ("PQ_st", "SQ_st", "RQ_st")),
    ("instance", "segm", ("AP", "AP50", "AP75", "APs", "APm", "APl")),
    ("semantic", "sem_seg", ("mIoU", "fwIoU", "mACC", "pACC")),
)


def summary_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics of one data set in percent, a line a task; "-" where nothing is annotated.

    Args:
        results: as the evaluators return them; tasks that were not evaluated are left out.
    """
    lines = [
        [title, *(_cell(metric, results[key][metric]) for metric in metrics)]
        for title, key, metrics in TASKS
        if key in results
    ]
    return tabulate(lines, tablefmt="simple", disable_numparse=True)


def _cell(metric: str, value: float) -> str:
    name = metric.split("_")[0]  # things and stuff stand in the title
    return f"{name} {'-' if math.isnan(value) else f'{value:.1f}':>5}"
