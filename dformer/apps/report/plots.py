"""Plots as SVG, to stand in an HTML page."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dformer.metrics.calibration import BINS, Calibration

COLORS = ("#4a7fb5", "#e09a4f")  # of the first and the second run; those of the bars
STYLES = ("-", "--", ":")


def curves_svg(title: str, runs: Sequence[Mapping[str, Mapping[int, float]]]) -> str:
    """Values over iterations.

    Args:
        runs: of each, name -> iteration -> value; a run has a colour, a name a style of line.
    """
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
        axes.legend(*zip(*dict(zip(labels, zip(handles, labels, strict=True), strict=True)).values(), strict=True))
    return _svg(figure)


def calibration_svg(title: str, calibrations: Sequence[Calibration]) -> str:
    """The share of right predictions over their score, and how many there are of each score."""
    figure, axes = _axes(title)
    axes.plot([0, 1], [0, 1], color="#999", linewidth=1)
    edges = np.arange(BINS) / BINS
    for k, (calibration, color) in enumerate(zip(calibrations, COLORS, strict=False)):
        filled = calibration.number > 0
        width = 0.9 / BINS / len(calibrations)
        share = calibration.number / calibration.number.sum()
        axes.bar(edges + (k + 0.6) * width, share, width, color=color, alpha=0.25)
        label = f"calibration error {calibration.error:.3f}"
        axes.plot(
            calibration.confidence[filled], calibration.accuracy[filled], "o-", color=color, label=label, linewidth=1.3
        )
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
    return stream.getvalue().partition("<svg")[1] + stream.getvalue().partition("<svg")[2]  # without the XML header
