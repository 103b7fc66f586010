"""Plots as SVG, to be embedded in an HTML page."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dformer.metrics.calibration import BINS, Calibration

COLORS = ("#4a7fb5", "#e09a4f")  # of the first and the second run; those of the bars
STYLES = ("-", "--", ":")


def curves_svg(title: str, runs: Sequence[Mapping[str, Mapping[int, float]]]) -> str:
    """Plot each run's curves (name -> iteration -> value), a colour a run and a line style a name; return SVG."""
    figure, axes = _axes(title)
    names = list(dict.fromkeys(name for run in runs for name in run))
    for run, color in zip(runs, COLORS, strict=False):
        for name, curve in run.items():
            style = STYLES[names.index(name) % len(STYLES)]
            marker = "o" if len(curve) < 3 else None
            axes.plot(list(curve), list(curve.values()), style, color=color, label=name, marker=marker, linewidth=1.3)
    axes.set_xlabel("iteration")
    if len(names) > 1:
        handles, labels = axes.get_legend_handles_labels()
        by_name = dict(zip(labels, handles, strict=True))  # one of each
        axes.legend(by_name.values(), by_name.keys())
    return _svg(figure)


def calibration_svg(title: str, calibrations: Sequence[Calibration]) -> str:
    """Plot the share of correct predictions over their score, and bars of how many have each score; return SVG."""
    figure, axes = _axes(title)
    axes.plot([0, 1], [0, 1], color="#999", linewidth=1)
    edges = np.arange(BINS) / BINS
    width = 0.9 / BINS / len(calibrations)
    for k, (bins, color) in enumerate(zip(calibrations, COLORS, strict=False)):
        axes.bar(edges + (k + 0.6) * width, bins.number / bins.number.sum(), width, color=color, alpha=0.25)
        label, filled = f"calibration error {bins.error:.3f}", bins.number > 0
        axes.plot(bins.confidence[filled], bins.accuracy[filled], "o-", color=color, label=label, linewidth=1.3)
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="score; bars: share of the predictions", ylabel="share that is right")
    axes.legend()
    return _svg(figure)


def _axes(title: str) -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    return "<svg" + stream.getvalue().partition("<svg")[2]  # without the XML header
