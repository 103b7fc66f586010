"""Results as tables, for a person, and as CSV, for a program."""

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from tabulate import tabulate

Metrics = Mapping[str, Mapping[str, float]]  # of a data set: task -> metric -> value, as the evaluators return them

TASKS = (
    ("panoptic", "panoptic_seg", ("PQ", "SQ", "RQ")),
    ("panoptic, things", "panoptic_seg", ("PQ_th", "SQ_th", "RQ_th")),
    ("panoptic, stuff", "panoptic_seg", ("PQ_st", "SQ_st", "RQ_st")),
    ("panoptic, any class", "panoptic_seg", ("PQ_agnostic", "SQ_agnostic", "RQ_agnostic")),
    ("instance", "segm", ("AP", "AP50", "AP75", "APs", "APm", "APl")),
    ("instance, recall", "segm", ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")),
    (
        "instance, boundary",
        "segm",
        ("BoundaryAP", "BoundaryAP50", "BoundaryAP75", "BoundaryAPs", "BoundaryAPm", "BoundaryAPl"),
    ),
    ("semantic", "sem_seg", ("mIoU", "fwIoU", "mACC", "pACC", "mBoundaryIoU")),
)


def summary_table(results: Metrics) -> str:
    """Metrics of one data set in percent, a line a task; "-" where nothing is annotated.

    Args:
        results: tasks and metrics that were not evaluated are left out.
    """
    lines = []
    for title, key, metrics in TASKS:
        measured = results.get(key, {})
        cells = [_cell(metric, measured[metric]) for metric in metrics if metric in measured]
        if cells:
            lines.append([title, *cells])
    return tabulate(lines, tablefmt="simple", disable_numparse=True)


def class_table(results: Metrics) -> str:
    """Metrics of each class of one data set in percent, a line a class; "-" where it is not annotated."""
    values = {(cls, metric): value for _, metric, cls, value in _rows(results) if cls}
    if not values:
        return ""
    classes, metrics = (list(dict.fromkeys(names)) for names in zip(*values, strict=True))
    lines = [[cls, *(_number(values.get((cls, metric), math.nan)) for metric in metrics)] for cls in classes]
    return tabulate(lines, headers=["class", *metrics], tablefmt="simple", disable_numparse=True, stralign="right")


def write_csv(path: Path, results: Mapping[str, Metrics]) -> None:
    """Write the metrics of all data sets to `path`, a line each: dataset, task, metric, class (empty: all), value.

    Values are in percent, with all digits, empty where nothing is annotated.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", "task", "metric", "class", "value"])
        for name, metrics in results.items():
            writer.writerows([name, *rest, "" if math.isnan(value) else value] for *rest, value in _rows(metrics))


def _rows(results: Metrics) -> Iterator[tuple[str, str, str, float]]:
    """Task, metric, class or "", value: a metric's name in `results` is <metric> or <metric>-<class>."""
    for task, metrics in results.items():
        for name, value in metrics.items():
            metric, _, cls = name.partition("-")
            yield task, metric, cls, value


def _cell(metric: str, value: float) -> str:
    name = metric.split("_")[0]  # things and stuff stand in the title
    return f"{name.removeprefix('Boundary')} {_number(value):>5}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"
