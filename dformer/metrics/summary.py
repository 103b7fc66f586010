"""Results as tables, for a person, and as CSV, for a program."""

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from tabulate import tabulate

Metrics = Mapping[str, Mapping[str, float]]  # of a data set: task -> metric -> value, as the evaluators return them

# A line each: title, the evaluators' task, its metrics.
SUMMARY = (
    ("panoptic", "panoptic_seg", ("PQ", "SQ", "RQ")),
    ("panoptic, things", "panoptic_seg", ("PQ_th", "SQ_th", "RQ_th")),
    ("panoptic, stuff", "panoptic_seg", ("PQ_st", "SQ_st", "RQ_st")),
    ("panoptic, any class", "panoptic_seg", ("PQ_agnostic", "SQ_agnostic", "RQ_agnostic")),
    ("instance", "segm", ("AP", "AP50", "AP75", "APs", "APm", "APl")),
    ("instance, recall", "segm", ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")),
    ("instance, boundary", "segm", tuple(f"BoundaryAP{suffix}" for suffix in ("", "50", "75", "s", "m", "l"))),
    ("video, panoptic", "video", ("STQ", "AQ", "IoU", "VPQ")),
    ("video, tracks", "video", ("J&F", "HOTA", "DetA", "AssA", "IDF1")),
    ("video, instance", "video", ("AP", "AP50", "AP75", "AR1", "AR10")),
    ("semantic", "sem_seg", ("mIoU", "fwIoU", "mACC", "pACC", "mBoundaryIoU")),
)


def summary_table(results: Metrics) -> str:
    """Return the metrics of one data set in percent, a line a task, without those that were not evaluated."""
    lines = []
    for title, task, metrics in SUMMARY:
        measured = results.get(task, {})
        names = {metric: metric.split("_")[0].removeprefix("Boundary") for metric in metrics if metric in measured}
        if names:
            lines.append([title, *(f"{name} {format_value(measured[metric]):>5}" for metric, name in names.items())])
    return tabulate(lines, tablefmt="simple", disable_numparse=True)


def class_table(results: Metrics) -> str:
    """Return the metrics of each class of one data set in percent, a line a class."""
    lines: dict[str, dict[str, str]] = {}
    for _, metric, cls, value in _rows(results):
        if cls:
            lines.setdefault(cls, {"class": cls})[metric] = format_value(value)
    return tabulate(lines.values(), headers="keys", missingval="-", disable_numparse=True, stralign="right")


def format_value(value: float) -> str:
    """Format a metric with one decimal; "-" where nothing is annotated."""
    return "-" if math.isnan(value) else f"{value:.1f}"


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
    """Yield task, metric, class or "", value: a metric's name in `results` is <metric> or <metric>-<class>."""
    for task, metrics in results.items():
        for name, value in metrics.items():
            metric, _, cls = name.partition("-")
            yield task, metric, cls, value
