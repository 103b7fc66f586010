"""What benchmarks/model.py measured, as tables, records and a picture."""

import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from contenders import MODELS, TASKS, Case, transformers_missing
from measure import write
from tabulate import tabulate

from dformer.utils.env import cpu_model

USUAL = {"masks": 100, "mask_stride": 4, "tasks": TASKS, "objects": 10}
LEGEND = (
    "x peer: over the time of Transformers' Mask2Former on the same input in the same turns, eager, without its "
    "post-processing. Peak: above the built model. GFLOP: of matrix products, convolutions and attention."
)


class Result(NamedTuple):
    """What was measured of a case; None: was not."""

    case: Case
    milliseconds: float  # median of a call
    peak_mib: float | None
    flops: float | None
    parameters: int
    parts: dict[str, float]  # milliseconds


def label(case: Case) -> str:
    """The model, and what is unusual about it."""
    unusual = {key: getattr(case, key) for key, usual in USUAL.items() if getattr(case, key) != usual}
    words = [f"{key}={'+'.join(value) if key == 'tasks' else value}" for key, value in unusual.items()]
    return " ".join([case.model, *words])


def describe(case: Case) -> str:
    """What is done with the model."""
    steps = f", {case.steps} steps" if case.steps > 1 else ""
    compiled = ", compiled" if case.compiled else ""
    return f"{case.mode}, {'x'.join(map(str, case.size))}, batch {case.batch}, {case.dtype}{steps}{compiled}"


def environment(device: str) -> str:
    """What it ran on, in a line."""
    processor = f"{cpu_model()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    where = torch.cuda.get_device_name() if device == "cuda" else processor
    peer = "" if transformers_missing() else f", Transformers {version('transformers')}"
    return f"{where}; PyTorch {torch.__version__}{peer}"


def report(results: list[Result], device: str) -> str:
    """All tables, in Markdown."""
    sections = [environment(device), table(results), LEGEND]
    if any(result.parts for result in results):
        sections += ["Milliseconds by part:", parts_table(results)]
    return "\n\n".join(sections) + "\n"


def table(results: list[Result]) -> str:
    """All results, a line each."""
    rows = []
    for case, milliseconds, peak, flops, parameters, _ in results:
        reference = peer(case, results)
        rows.append(
            {
                "model": label(case),
                "mode": case.mode,
                "size": "x".join(map(str, case.size)),
                "batch": case.batch,
                "dtype": case.dtype,
                "steps": case.steps,
                "compiled": "yes" if case.compiled else "no",
                "ms": number(milliseconds),
                "images/s": number(1e3 * case.batch / milliseconds),
                "x peer": "" if reference is None else f"{milliseconds / reference:.2f}",
                "peak MiB": "" if peak is None else f"{peak:.0f}",
                "GFLOP": "" if flops is None else f"{flops / 1e9:.0f}",
                "M param.": f"{parameters / 1e6:.1f}",
            }
        )
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def parts_table(results: list[Result]) -> str:
    """Time by part, a line a result."""
    found = dict.fromkeys(name for result in results for name in result.parts)
    names = [*(name for name in found if name != "other"), "other"]
    rows = [
        {"model": label(result.case), "case": describe(result.case)}
        | {name: number(result.parts[name]) if name in result.parts else "" for name in names}
        for result in results
        if result.parts
    ]
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def peer(case: Case, results: list[Result]) -> float | None:
    """Milliseconds of Transformers' model: see LEGEND."""
    mode = "train" if case.mode == "train" else "forward"
    wanted = case._replace(model="transformers", mode=mode, steps=1, compiled=False, mask_stride=4, tasks=TASKS)
    return next((result.milliseconds for result in results if result.case == wanted), None)


def records(results: list[Result]) -> str:
    """JSON: a list of results, a line each."""
    lines = [
        json.dumps(
            {
                "model": label(case),
                "mode": case.mode,
                "size": "x".join(map(str, case.size)),
                "batch": case.batch,
                "dtype": case.dtype,
                "steps": case.steps,
                "compiled": case.compiled,
                "median_ms": round(milliseconds, 3),
                "peak_mib": None if peak is None else round(peak, 1),
            }
        )
        for case, milliseconds, peak, *_ in results
    ]
    return "[\n" + ",\n".join(lines) + "\n]\n"


AXES: dict[str, tuple[str, Callable[[Case], float]]] = {
    "size": ("megapixels", lambda case: case.size[0] * case.size[1] / 1e6),
    "masks": ("masks", lambda case: case.masks),
    "steps": ("sampling steps", lambda case: case.steps),
}
COLOURS = dict(zip(MODELS, ("tab:red", "tab:blue", "tab:grey"), strict=True))
STYLES = {"forward": "-", "inference": "--", "train": ":"}


def plot(results: list[Result], path: Path) -> None:
    """Cost against resolution, masks and sampling steps: time, memory, and the time of DFormer's parts at inference."""
    from matplotlib.figure import Figure  # only here: measuring does not need it

    figure = Figure(figsize=(14, 11), layout="constrained")
    for column, field in zip(figure.subplots(3, len(AXES)).T, AXES, strict=True):
        times, memory, parts = column
        for line in lines(results, field):
            case = line[0].case
            x = [AXES[field][1](result.case) for result in line]
            style = {"color": COLOURS[case.model], "linestyle": STYLES[case.mode], "marker": "."}
            times.plot(x, [r.milliseconds / 1e3 for r in line], label=f"{case.model}, {case.mode}", **style)
            memory.plot(x, [math.nan if r.peak_mib is None else r.peak_mib for r in line], **style)
            if (case.model, case.mode) == ("dformer", "inference"):
                for name in line[0].parts:
                    parts.plot(x, [r.parts[name] / 1e3 for r in line], label=name, marker=".")
        for axes, title in ((times, "s a call"), (memory, "peak above the model, MiB"), (parts, "DFormer's parts, s")):
            axes.set(xlabel=AXES[field][0], ylabel=title, xlim=(0, None), ylim=(0, None))
            once = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
            if once:
                axes.legend(once.values(), once.keys(), fontsize="x-small")
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix(".") or "png")
    write(path, picture.getvalue())


def lines(results: list[Result], field: str) -> list[list[Result]]:
    """Results that differ only in `field`, at least three each, in its order."""
    found = defaultdict(list)
    for result in results:
        found[tuple(value for key, value in result.case._asdict().items() if key != field)].append(result)
    return [sorted(line, key=lambda r: AXES[field][1](r.case)) for line in found.values() if len(line) >= 3]
