"""What an inspection found, for the terminal and as one HTML page with pictures, whose size is bounded."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path

import numpy as np
from tabulate import tabulate

from dformer.d2.data.datasets import class_names, get_records
from dformer.d2.data.inspection import Inspection
from dformer.d2.data.pictures import draw_record
from dformer.data.checks.findings import WARNING, Finding
from dformer.data.types import Record
from dformer.utils.errors import UserError
from dformer.utils.processes import parallel_map
from dformer.visualize import DEFAULT_STYLE, Style
from dformer.visualize.html import chart, figure, jpeg, table, write_page

MAX_IN_TERMINAL, MAX_IN_PAGE = 3, 50  # findings of a kind
MAX_CLASSES = 10  # in the terminal
SAMPLES, PICTURES_OF_A_KIND = 24, 4  # pictures of a data set


def count_classes(inspection: Inspection) -> list[tuple[str, str]]:
    """Count the objects of each class, or for semantic labels the images that show it; return names and counts."""
    if not inspection.images:
        return []
    counts = Counter(cls for image in inspection.images for cls in image.classes)
    names = class_names(inspection.name, inspection.task)
    return [(names[k], f"{counts[k]:,}") for k in sorted(range(len(names)), key=lambda k: -counts[k])]


def text_report(inspections: Sequence[Inspection]) -> str:
    """Return the report for the terminal."""
    lines = []
    for inspection in inspections:
        lines += ["", inspection.name, "=" * len(inspection.name), _summary(inspection)]
        classes = count_classes(inspection)
        lines += ["", tabulate(classes[:MAX_CLASSES], headers=["class", "count"])] if classes else []
        if len(classes) > MAX_CLASSES:
            lines.append(f"... {len(classes) - MAX_CLASSES} more are on the HTML page")
        for findings in inspection.groups():
            lines += ["", f"{findings[0].level.upper()}: {findings[0].kind} ({len(findings):,})"]
            lines += [f"  {finding.file}: {finding.what}" for finding in findings[:MAX_IN_TERMINAL]]
            if len(findings) > MAX_IN_TERMINAL:
                lines.append(f"  ... and {len(findings) - MAX_IN_TERMINAL:,} more")
            lines.append(f"  -> {findings[0].remedy}")
    return "\n".join([*lines, "", _verdict(inspections)])


def write_html(
    inspections: Sequence[Inspection], file: str | Path, workers: int | None = None, style: Style = DEFAULT_STYLE
) -> None:
    """Write the report as one page, whole or not at all; it refers to no other file.

    At most `SAMPLES` pictures of a data set are shown, `PICTURES_OF_A_KIND` and `MAX_IN_PAGE` findings of a kind.

    Raises:
        UserError: the file cannot be written.
    """
    body = "".join(_section(inspection, workers, style) for inspection in inspections)
    state = "bad" if any(inspection.fatal for inspection in inspections) else "good"
    title = ", ".join(inspection.name for inspection in inspections)
    write_page(file, title, f'<p class="verdict {state}">{escape(_verdict(inspections))}</p>{body}')


def _verdict(inspections: Sequence[Inspection]) -> str:
    fatal = sum(len(inspection.fatal) for inspection in inspections)
    warnings = sum(f.level == WARNING for inspection in inspections for f in inspection.findings)
    start = f"Training cannot start: fatal faults: {fatal:,}" if fatal else "Training can start: no fatal fault"
    return f"{start}, warnings: {warnings:,}."


def _summary(inspection: Inspection) -> str:
    objects = sum(len(image.classes) for image in inspection.images)
    checked = f"{len(inspection.images):,} of {inspection.total:,} images checked, with {objects:,} annotated objects"
    return f"annotated for {inspection.task or 'nothing'}; {checked}"


def _section(inspection: Inspection, workers: int | None, style: Style) -> str:
    images = inspection.images
    records = {r["file_name"]: r for r in (get_records(inspection.name) if images else [])}
    draw = partial(_pictures, inspection, records, workers, style)
    chosen = np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).round().astype(int)
    return (
        f"<section><h2>{escape(inspection.name)}</h2><p>{escape(_summary(inspection))}</p>"
        f"<h3>Findings</h3>{''.join(_findings(group, draw) for group in inspection.groups())}"
        f"{chart('Classes', table(['class', 'count'], count_classes(inspection)))}"
        f"<h3>Images</h3>{draw([images[k].file for k in chosen])}</section>"
    )


def _findings(findings: Sequence[Finding], draw: partial[str]) -> str:
    kind, level, remedy = findings[0].kind, findings[0].level, findings[0].remedy
    rows = "".join(
        f"<tr><td class=file>{escape(f.file)}</td><td>{escape(f.what)}</td></tr>" for f in findings[:MAX_IN_PAGE]
    )
    more = f"<p>... and {len(findings) - MAX_IN_PAGE:,} more.</p>" if len(findings) > MAX_IN_PAGE else ""
    return (
        f"<details class={level}><summary><b>{level}</b> {escape(kind)} <span>{len(findings):,}</span></summary>"
        f"<p class=remedy>{escape(remedy)}</p><table>{rows}</table>{more}"
        f"{draw([f.file for f in findings[:PICTURES_OF_A_KIND]])}</details>"
    )


def _pictures(
    inspection: Inspection, records: Mapping[str, Record], workers: int | None, style: Style, files: Sequence[str]
) -> str:
    known = [records[file] for file in dict.fromkeys(files) if file in records]
    encode = partial(_encode, name=inspection.name, task=inspection.task, style=style)
    drawn = parallel_map(encode, known, workers=workers)
    shown = zip(known, drawn, strict=True)
    return f"<div class=pictures>{''.join(figure(d, Path(r['file_name']).name) for r, d in shown if d)}</div>"


def _encode(record: Record, name: str, task: str, style: Style) -> str:
    """A picture of the record in base64; empty where it cannot be drawn."""
    try:
        return jpeg(draw_record(record, name, task, style=style))
    except (UserError, ValueError):  # the findings report its faults
        return ""
