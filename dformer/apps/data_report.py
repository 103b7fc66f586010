"""What an inspection found, for the terminal and as one HTML page with pictures, whose size is bounded."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from tabulate import tabulate

from dformer.d2.data.datasets import class_names
from dformer.d2.data.pictures import draw_record
from dformer.data.checks.findings import FATAL, LEVELS, WARNING, Finding
from dformer.data.checks.inspection import Inspection
from dformer.data.types import Record
from dformer.utils.errors import UserError
from dformer.utils.processes import parallel_map
from dformer.visualize.html import bars, chart, figure, jpeg, write_page

MAX_IN_TERMINAL, MAX_IN_PAGE = 3, 50  # findings of a kind
MAX_CLASSES = 10  # in the terminal
SAMPLES, PICTURES_OF_A_KIND = 24, 4  # pictures of a data set
SIZES = {"small (< 32 x 32)": 32**2, "medium": 96**2, "large (> 96 x 96)": np.inf}  # COCO's, upper ends in pixels
COUNTS = {"0": 0, "1": 1, "2": 2, "3 - 5": 5, "6 - 10": 10, "11 - 20": 20, "21 - 50": 50, "51 - 100": 100}

Rows = list[tuple[str, int]]


def summary(inspection: Inspection) -> dict[str, str]:
    """Return the figures of a data set: name -> value."""
    images = inspection.images
    objects = [o for image in images for o in image.objects]
    sizes = [image.size for image in images if image.size]
    figures = {"annotated for": inspection.task or "-", "images": f"{len(images):,}"}
    if len(images) < inspection.total:
        figures["images"] += f" of {inspection.total:,} checked"
    if sizes:
        height, width = np.median(sizes, axis=0).astype(int)
        figures["size of images"] = f"{width} x {height} (median)"
    figures["regions" if inspection.task == "semantic" else "objects"] = f"{len(objects):,}"
    if inspection.task != "semantic" and objects:
        figures["crowds"] = f"{100 * sum(crowd for *_, crowd in objects) / len(objects):.1f} % of the objects"
    if inspection.task != "instance" and sizes:
        void = sum(image.void for image in images) / sum(height * width for height, width in sizes)
        figures["void"] = f"{100 * void:.1f} % of the pixels"
    return figures


def histograms(inspection: Inspection) -> dict[str, Rows]:
    """Return the numbers of objects by class and size, and of images by their number of objects; title -> rows.

    Of semantic labels: the numbers of images by class alone.
    """
    names = class_names(inspection.name, inspection.task)
    classes = Counter(cls for image in inspection.images for cls, *_ in image.objects)
    by_class = sorted(((name, classes[k]) for k, name in enumerate(names)), key=lambda row: -row[1])
    if inspection.task == "semantic":
        return {"Images by class": by_class}
    areas = [area for image in inspection.images for _, area, _ in image.objects]
    counts = [sum(not crowd for *_, crowd in image.objects) for image in inspection.images]
    by_size = np.bincount(np.searchsorted([*SIZES.values()], areas, side="right"), minlength=len(SIZES))
    by_count = np.bincount(np.searchsorted([*COUNTS.values()], counts))
    return {
        "Objects by class": by_class,
        "Objects by size": list(zip(SIZES, by_size.tolist(), strict=True)),
        "Images by number of objects": list(zip([*COUNTS, "101 or more"], by_count.tolist(), strict=False)),
    }


def verdict(inspections: Sequence[Inspection]) -> str:
    """Say in a sentence whether training can start."""
    fatal = sum(len(inspection.fatal) for inspection in inspections)
    warnings = sum(f.level == WARNING for inspection in inspections for f in inspection.findings)
    start = f"Training cannot start: fatal faults: {fatal:,}" if fatal else "Training can start: no fatal fault"
    return f"{start}, warnings: {warnings:,}."


def text_report(inspections: Sequence[Inspection]) -> str:
    """Return the report for the terminal."""
    lines = []
    for inspection in inspections:
        lines += ["", inspection.name, "=" * len(inspection.name)]
        lines += [f"{name}: {value}" for name, value in summary(inspection).items()]
        for title, rows in histograms(inspection).items() if inspection.images else ():
            shown = rows[:MAX_CLASSES]
            lines += ["", tabulate(shown, headers=[title, "count"])]
            if len(rows) > len(shown):
                lines.append(f"... {len(rows) - len(shown)} more are on the HTML page")
        for level in LEVELS:
            for kind, findings in inspection.by_kind(level).items():
                lines += ["", f"{level.upper()}: {kind} ({len(findings):,})"]
                lines += [f"  {finding.file}: {finding.what}" for finding in findings[:MAX_IN_TERMINAL]]
                if len(findings) > MAX_IN_TERMINAL:
                    lines.append(f"  ... and {len(findings) - MAX_IN_TERMINAL:,} more")
                if findings[0].remedy:
                    lines.append(f"  -> {findings[0].remedy}")
    return "\n".join([*lines, "", verdict(inspections)])


def write_html(inspections: Sequence[Inspection], file: str | Path, workers: int | None = None) -> None:
    """Write the report as one page, whole or not at all; it refers to no other file.

    At most `SAMPLES` pictures of a data set are shown, `PICTURES_OF_A_KIND` and `MAX_IN_PAGE` findings of a kind.

    Raises:
        UserError: the file cannot be written.
    """
    body = "".join(_section(inspection, workers) for inspection in inspections)
    state = "bad" if any(inspection.fatal for inspection in inspections) else "good"
    title = ", ".join(inspection.name for inspection in inspections)
    write_page(file, title, f'<p class="verdict {state}">{escape(verdict(inspections))}</p>{body}')


def _section(inspection: Inspection, workers: int | None) -> str:
    records = DatasetCatalog.get(inspection.name) if inspection.images else []
    draw = partial(_pictures, inspection, {record["file_name"]: record for record in records}, workers)
    figures = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in summary(inspection).items())
    parts = [f"<h2>{escape(inspection.name)}</h2><dl>{figures}</dl><h3>Findings</h3>"]
    for level in LEVELS:
        parts += [_findings(kind, findings, draw) for kind, findings in inspection.by_kind(level).items()]
    if inspection.images:
        charts = histograms(inspection).items()
        parts.append(f"<div class=charts>{''.join(_chart(title, rows) for title, rows in charts)}</div>")
        chosen = np.linspace(0, len(inspection.images) - 1, min(SAMPLES, len(inspection.images))).round().astype(int)
        parts.append(f"<h3>Images</h3>{draw([inspection.images[k].file for k in chosen])}")
    return f"<section>{''.join(parts)}</section>"


def _findings(kind: str, findings: Sequence[Finding], draw: partial[str]) -> str:
    level = findings[0].level
    opened = " open" if level == FATAL else ""
    shown = findings[:MAX_IN_PAGE]
    rows = "".join(f"<tr><td class=file>{escape(f.file)}</td><td>{escape(f.what)}</td></tr>" for f in shown)
    more = f"<p>... and {len(findings) - len(shown):,} more.</p>" if len(findings) > len(shown) else ""
    heading = f"<summary><b>{level}</b> {escape(kind)} <span>{len(findings):,}</span></summary>"
    remedy = f"<p class=remedy>{escape(findings[0].remedy)}</p>"
    pictures = draw([f.file for f in findings[:PICTURES_OF_A_KIND]])
    return f"<details{opened} class={level}>{heading}{remedy}<table>{rows}</table>{more}{pictures}</details>"


def _chart(title: str, rows: Rows) -> str:
    return chart(title, bars([(name, [count]) for name, count in rows], largest=max(count for _, count in rows)))


def _pictures(inspection: Inspection, records: Mapping[str, Record], workers: int | None, files: Sequence[str]) -> str:
    known = [records[file] for file in dict.fromkeys(files) if file in records]
    drawn = parallel_map(partial(_encode, name=inspection.name, task=inspection.task), known, workers=workers)
    shown = zip(known, drawn, strict=True)
    return f"<div class=pictures>{''.join(figure(d, Path(r['file_name']).name) for r, d in shown if d)}</div>"


def _encode(record: Record, name: str, task: str) -> str:
    """A picture of the record in base64; empty where it cannot be drawn."""
    try:
        return jpeg(draw_record(record, name, task))
    except (UserError, ValueError):  # the findings report its faults
        return ""
