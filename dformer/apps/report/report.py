"""The analysis of a run, or of two, as one HTML page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray

from dformer.apps.report.analysis import Analysis, analyze, rank_images
from dformer.apps.report.plots import calibration_svg, curves_svg
from dformer.apps.report.run import CURVES, Run
from dformer.metrics.summary import SUMMARY
from dformer.utils.errors import UserError
from dformer.visualize.html import bars, chart, figure, fold, jpeg, table, write_page

# The metric that says most of each class, and the task that it is of.
MAIN = {"panoptic": ("panoptic_seg", "PQ"), "instance": ("segm", "AP"), "semantic": ("sem_seg", "mIoU")}
SHOWN_CLASSES = 30  # of the confusion matrix
SHOWN_CONFUSIONS = 12


def write_report(runs: Sequence[Run], file: str | Path, images: int = 4) -> None:
    """Write the page, whole or not at all.

    Args:
        runs: one, or two that are compared, on the data sets that both have predictions for.
        images: pictures of each kind: the best, the median, the worst.

    Raises:
        UserError: predictions or data cannot be read, two runs have nothing in common, or the file cannot be written.
    """
    names = [name for name in runs[0].predictions if all(name in run.predictions for run in runs)]
    if not names:
        raise UserError(
            f"{runs[0].name} and {runs[1].name} have predictions for different data sets: "
            f"{', '.join(runs[0].predictions)} and {', '.join(runs[1].predictions)}"
        )
    body = "".join(_dataset(name, runs, images) for name in names)
    title = " and ".join(run.name for run in runs)
    write_page(file, title, _key(runs) + body + _curves(runs) + "".join(map(_settings, runs)) + _differences(runs))


def _key(runs: Sequence[Run]) -> str:
    """Which colour stands for which run."""
    if len(runs) == 1:
        return ""
    first, second = (escape(run.name) for run in runs)
    return f"<p class=key><span><i></i>{first}</span><span class=second><i></i>{second}</span></p>"


def _dataset(name: str, runs: Sequence[Run], images: int) -> str:
    analyses = [analyze(run, name) for run in runs]
    first = analyses[0]
    if any((a.task, a.class_names) != (first.task, first.class_names) for a in analyses):
        raise UserError(f"the predictions for {name} are of different tasks or classes and cannot be compared")
    by_size = chart("PQ by size of the segments", _by_size(analyses)) if first.by_size else ""
    charts = chart("Metrics", _metrics(runs, analyses)), f"<div>{chart('By class', _by_class(analyses))}{by_size}</div>"
    plots = [
        calibration_svg(f"Calibration of the scores of {what}", [a.calibrations[what] for a in analyses])
        for what in first.calibrations
        if all(what in a.calibrations for a in analyses)
    ]
    confusions = [
        f"<h3>Confusion between classes{f': {escape(run.name)}' if len(runs) > 1 else ''}</h3>{_confusion(analysis)}"
        for run, analysis in zip(runs, analyses, strict=True)
    ]
    return (
        f"<section><h2>{escape(name)}</h2>"
        f"<div class=charts>{''.join(charts)}</div><div class=plots>{''.join(plots)}</div>"
        f"{''.join(confusions)}{_images(runs, analyses, images)}</section>"
    )


def _metrics(runs: Sequence[Run], analyses: Sequence[Analysis]) -> str:
    head = ["", *(run.name for run in runs), *(["difference"] if len(runs) == 2 else [])]
    rows = []
    for title, task, metrics in SUMMARY:
        for metric in metrics:
            values = [analysis.metrics.get(task, {}).get(metric, math.nan) for analysis in analyses]
            if all(map(math.isnan, values)):
                continue
            difference = [f"{values[1] - values[0]:+.1f}"] if len(runs) == 2 else []
            rows.append([f"{metric.split('_')[0]} ({title})", *map(_number, values), *difference])
    return table(head, rows)


def _by_class(analyses: Sequence[Analysis]) -> str:
    first = analyses[0]
    task, metric = MAIN[first.task]
    name = metric.removeprefix("m")
    values = [[_known(a.metrics[task].get(f"{name}-{cls}", math.nan)) for a in analyses] for cls in first.class_names]
    rows = sorted(zip(first.class_names, values, strict=True), key=lambda row: -(row[1][0] or -1))
    return f"<p>{name}, 0 to 100</p>" + bars(rows, largest=100, digits=1)


def _by_size(analyses: Sequence[Analysis]) -> str:
    rows = [
        (f"{size}: {analyses[0].by_size[size]['segments']:,}", [_known(a.by_size[size]["PQ"]) for a in analyses])
        for size in analyses[0].by_size
    ]
    return bars(rows, largest=100, digits=1)


def _confusion(analysis: Analysis) -> str:
    """The matrix of the most frequent classes, its rows in percent, and the most frequent confusions."""
    confusion, names = analysis.confusion, list(analysis.class_names)
    chosen = np.sort(np.argsort(-confusion[: len(names)].sum(1), kind="stable")[:SHOWN_CLASSES])
    left_out = len(names) - len(chosen)
    unit = "pixels"
    rows = columns = chosen
    labels = np.array(names, object)
    if analysis.task != "semantic":
        unit, nothing = "segments", len(names)
        rows = columns = np.append(chosen, nothing)
        labels = np.append(labels, "nothing")
    note = f" {left_out} rarer classes are left out." if left_out else ""
    return (
        f"<p>Rows: the true class, with the number of its {unit}. Columns: the predicted one, in percent.{note}</p>"
        f"<div class=scroll>{_matrix(confusion, rows, columns, labels)}</div>"
        f"{fold('the most frequent confusions', _frequent(confusion, labels, unit))}"
    )


def _matrix(
    confusion: NDArray[np.int64], rows: NDArray[np.int64], columns: NDArray[np.int64], labels: NDArray[np.object_]
) -> str:
    head = "".join(f"<th>{escape(labels[k])}</th>" for k in columns)
    lines = []
    for row in rows:
        total = confusion[row].sum()
        cells = []
        for column in columns:
            share = confusion[row, column] / total if total else 0.0
            color = "74,127,181" if row == column else "200,54,43"
            shown = f"{100 * share:.0f}" if share >= 0.005 else ""
            cells.append(f"<td style='background:rgba({color},{share:.2f})'>{shown}</td>")
        lines.append(f"<tr><th>{escape(labels[row])}</th><td>{total:,}</td>{''.join(cells)}</tr>")
    return f"<table class=confusion><tr><th></th><th></th>{head}</tr>{''.join(lines)}</table>"


def _frequent(confusion: NDArray[np.int64], labels: NDArray[np.object_], unit: str) -> str:
    wrong = confusion * ~np.eye(len(confusion), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN_CONFUSIONS]
    pairs = [(row, column) for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    rows = [[f"{labels[r]} as {labels[c]}", f"{wrong[r, c]:,}"] for r, c in pairs if wrong[r, c]]
    return table(["", unit], rows)


def _images(runs: Sequence[Run], analyses: Sequence[Analysis], count: int) -> str:
    order = rank_images(analyses[0].qualities)
    middle = max(0, (len(order) - count) // 2)
    groups = {"The worst": order[:count], "Median": order[middle : middle + count], "The best": order[::-1][:count]}
    if len(analyses) == 2:
        gains = {f: analyses[1].qualities[f] - analyses[0].qualities[f] for f in order if f in analyses[1].qualities}
        changed = rank_images(gains)
        better, worse = changed[::-1][:count], changed[:count]
        first = {f"Better with {runs[1].name}": better, f"Worse with {runs[1].name}": worse}
        groups = first | {f"{title} of {runs[0].name}": files for title, files in groups.items()}
    drawn: set[str] = set()
    parts = []
    for title, files in groups.items():
        new = [file for file in files if file not in drawn]  # few images are worst and best at once
        drawn.update(new)
        if new:
            shown = "".join(_figure(file, runs, analyses) for file in new)
            parts.append(f"<h3>{escape(title)}</h3><div class=wide>{shown}</div>")
    return "".join(parts)


def _figure(file: str, runs: Sequence[Run], analyses: Sequence[Analysis]) -> str:
    """What each run made of an image."""
    what = "mIoU" if analyses[0].task == "semantic" else "PQ"
    figures = []
    for run, analysis in zip(runs, analyses, strict=True):
        whose = f", {run.name}" if len(runs) > 1 else ""
        caption = f"{Path(file).name}{whose}: {what} {_number(analysis.qualities.get(file, math.nan))}"
        figures.append(figure(jpeg(analysis.draw(file)), caption))
    return "".join(figures)


def _curves(runs: Sequence[Run]) -> str:
    plots = []
    for title, ends in CURVES.items():
        curves = [{name: c for name, c in run.curves.items() if name.endswith(ends)} for run in runs]
        if any(curves):
            plots.append(curves_svg(title, curves))
    return f"<h2>Training</h2><div class=plots>{''.join(plots)}</div>" if plots else ""


def _settings(run: Run) -> str:
    command = f"<pre>{escape(run.command)}</pre>" if run.command else "<p>The command is not known.</p>"
    config = fold("config", f"<pre>{escape(run.cfg.dump())}</pre>")
    return f"<h2>How {escape(run.name)} was made</h2>{command}{config}"


def _differences(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return ""
    first, second = (dict(_entries(run.cfg)) for run in runs)
    keys = [key for key in first | second if first.get(key) != second.get(key)]
    rows = [[key, first.get(key, "-"), second.get(key, "-")] for key in keys]
    return f"<h2>Where the configs differ</h2>{table(['', *(run.name for run in runs)], rows)}"


def _entries(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _entries(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"
