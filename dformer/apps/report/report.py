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
from dformer.metrics.summary import SUMMARY, format_value
from dformer.utils.errors import UserError
from dformer.visualize import DEFAULT_STYLE, Style
from dformer.visualize.html import bars, chart, figure, fold, jpeg, table, write_page

# The most telling metric of each class, and its task in the evaluators' results.
CLASS_METRIC = {"panoptic": ("panoptic_seg", "PQ"), "instance": ("segm", "AP"), "semantic": ("sem_seg", "IoU")}
MAX_CLASSES = 30  # of the confusion matrix
MAX_CONFUSIONS = 12


def write_report(runs: Sequence[Run], file: str | Path, images: int = 4, style: Style = DEFAULT_STYLE) -> None:
    """Write the page, whole or not at all.

    Args:
        runs: one, or two that are compared, on the data sets that both have predictions for.
        images: pictures of each kind: the best, the median, the worst.
        style: of the pictures.
    """
    names = [name for name in runs[0].predictions if all(name in run.predictions for run in runs)]
    if not names:
        predicted = " and ".join(f"{run.name} for {', '.join(run.predictions)}" for run in runs)
        raise UserError(f"the predictions have no data set in common: {predicted}")
    body = "".join(_dataset(name, runs, images, style) for name in names)
    title = " and ".join(run.name for run in runs)
    write_page(file, title, _key(runs) + body + _curves(runs) + "".join(map(_settings, runs)) + _differences(runs))


def _key(runs: Sequence[Run]) -> str:
    """Return the colour of each run."""
    if len(runs) == 1:
        return ""
    first, second = (escape(run.name) for run in runs)
    return f"<p class=key><span><i></i>{first}</span><span class=second><i></i>{second}</span></p>"


def _dataset(name: str, runs: Sequence[Run], images: int, style: Style) -> str:
    analyses = [analyze(run, name, style) for run in runs]
    first = analyses[0]
    if any((a.task, a.class_names) != (first.task, first.class_names) for a in analyses):
        raise UserError(f"the predictions for {name} are of different tasks or classes and cannot be compared")
    by_size = chart("PQ by size of the segments", _by_size(analyses)) if first.by_size else ""
    charts = f"{chart('Metrics', _metrics(analyses))}<div>{chart('By class', _by_class(analyses))}{by_size}</div>"
    plots = [
        calibration_svg(f"Calibration of the scores of {scored}", [a.calibrations[scored] for a in analyses])
        for scored in first.calibrations
        if all(scored in a.calibrations for a in analyses)
    ]
    confusions = [
        f"<h3>Confusion between classes{f': {escape(a.run)}' if len(runs) > 1 else ''}</h3>{_confusion(a)}"
        for a in analyses
    ]
    return (
        f"<section><h2>{escape(name)}</h2><div class=charts>{charts}</div><div class=plots>{''.join(plots)}</div>"
        f"{''.join(confusions)}{_images(analyses, images)}</section>"
    )


def _metrics(analyses: Sequence[Analysis]) -> str:
    head = ["", *(a.run for a in analyses), *(["difference"] if len(analyses) == 2 else [])]
    rows = []
    for title, task, metrics in SUMMARY:
        for metric in metrics:
            values = [a.metrics.get(task, {}).get(metric, math.nan) for a in analyses]
            if all(map(math.isnan, values)):
                continue
            difference = [f"{values[1] - values[0]:+.1f}"] if len(analyses) == 2 else []
            rows.append([f"{metric.split('_')[0]} ({title})", *map(format_value, values), *difference])
    return table(head, rows)


def _by_class(analyses: Sequence[Analysis]) -> str:
    task, metric = CLASS_METRIC[analyses[0].task]
    names = analyses[0].class_names
    rows = [(name, [a.metrics[task].get(f"{metric}-{name}", math.nan) for a in analyses]) for name in names]
    rows.sort(key=lambda row: -np.nan_to_num(row[1][0], nan=-1))
    return f"<p>{metric}, 0 to 100</p>" + bars(rows, largest=100, digits=1)


def _by_size(analyses: Sequence[Analysis]) -> str:
    sizes = analyses[0].by_size
    rows = [(f"{size}: {sizes[size]['segments']:,}", [a.by_size[size]["PQ"] for a in analyses]) for size in sizes]
    return bars(rows, largest=100, digits=1)


def _confusion(analysis: Analysis) -> str:
    """Return the matrix of the most frequent classes, its rows in percent, and the most frequent confusions."""
    confusion, names = analysis.confusion, analysis.class_names
    unit, labels = ("pixels", names) if analysis.task == "semantic" else ("segments", [*names, "nothing"])
    chosen = np.sort(np.argsort(-confusion[: len(names)].sum(1), kind="stable")[:MAX_CLASSES])
    hidden = len(names) - len(chosen)
    note = f" {hidden} rarer classes are left out." if hidden else ""
    matrix = _matrix(confusion, [*chosen.tolist(), *range(len(names), len(labels))], labels)
    return (
        f"<p>Rows: the true class, with the number of its {unit}. Columns: the predicted one, in percent.{note}</p>"
        f"<div class=scroll>{matrix}</div>{fold('the most frequent confusions', _frequent(confusion, labels, unit))}"
    )


def _matrix(confusion: NDArray[np.int64], shown: Sequence[int], labels: Sequence[str]) -> str:
    lines = []
    for row in shown:
        total = confusion[row].sum()
        cells = []
        for column in shown:
            share = confusion[row, column] / total if total else 0.0
            color = "74,127,181" if row == column else "200,54,43"
            percent = f"{100 * share:.0f}" if share >= 0.005 else ""
            cells.append(f"<td style='background:rgba({color},{share:.2f})'>{percent}</td>")
        lines.append(f"<tr><th>{escape(labels[row])}</th><td>{total:,}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(labels[k])}</th>" for k in shown)
    return f"<table class=confusion><tr><th></th><th></th>{head}</tr>{''.join(lines)}</table>"


def _frequent(confusion: NDArray[np.int64], labels: Sequence[str], unit: str) -> str:
    wrong = confusion * ~np.eye(len(confusion), dtype=bool)
    pairs = np.transpose(np.nonzero(wrong)).tolist()
    pairs = sorted(pairs, key=lambda pair: -wrong[tuple(pair)])[:MAX_CONFUSIONS]
    return table(["", unit], [[f"{labels[r]} as {labels[c]}", f"{wrong[r, c]:,}"] for r, c in pairs])


def _images(analyses: Sequence[Analysis], count: int) -> str:
    """Return pictures of the images that gained and lost most, and of the worst, median and best of the first run."""
    first, *others = analyses
    order = rank_images(first.qualities)
    middle = max(0, (len(order) - count) // 2)
    groups = {"The worst": order[:count], "Median": order[middle : middle + count], "The best": order[::-1][:count]}
    for other in others:
        gains = rank_images({f: other.qualities[f] - first.qualities[f] for f in order if f in other.qualities})
        changed = {f"Better with {other.run}": gains[::-1][:count], f"Worse with {other.run}": gains[:count]}
        groups = changed | {f"{title} of {first.run}": files for title, files in groups.items()}
    drawn: set[str] = set()
    parts = []
    for title, files in groups.items():
        new = [file for file in files if file not in drawn]  # few images are worst and best at once
        drawn.update(new)
        if new:
            shown = "".join(_figure(file, analysis, bool(others)) for file in new for analysis in analyses)
            parts.append(f"<h3>{escape(title)}</h3><div class=wide>{shown}</div>")
    return "".join(parts)


def _figure(file: str, analysis: Analysis, with_run: bool) -> str:
    metric = "mIoU" if analysis.task == "semantic" else "PQ"
    name = f"{Path(file).name}, {analysis.run}" if with_run else Path(file).name
    quality = format_value(analysis.qualities.get(file, math.nan))
    return figure(jpeg(analysis.draw(file)), f"{name}: {metric} {quality}")


def _curves(runs: Sequence[Run]) -> str:
    plots = [
        curves_svg(title, curves)
        for title, ends in CURVES.items()
        if any(curves := [{name: c for name, c in run.curves.items() if name.endswith(ends)} for run in runs])
    ]
    return f"<h2>Training</h2><div class=plots>{''.join(plots)}</div>" if plots else ""


def _settings(run: Run) -> str:
    command = f"<pre>{escape(run.command)}</pre>" if run.command else "<p>The command is not known.</p>"
    config = fold("config", f"<pre>{escape(run.cfg.dump())}</pre>")
    return f"<h2>How {escape(run.name)} was made</h2>{command}{config}"


def _differences(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return ""
    first, second = (dict(_flatten(run.cfg)) for run in runs)
    rows = [[key, first.get(key, "-"), second.get(key, "-")] for key in first | second]
    different = [row for row in rows if row[1] != row[2]]
    return f"<h2>Where the configs differ</h2>{table(['', *(run.name for run in runs)], different)}"


def _flatten(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)
