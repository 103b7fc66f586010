"""What an inspection found, for the terminal and as one HTML page with pictures, whose size is bounded."""

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from tabulate import tabulate

from dformer.d2.data.datasets import class_names
from dformer.d2.data.pictures import draw_record
from dformer.data.checks.faults import FATAL, NOTE, WARNING, Finding
from dformer.data.checks.inspection import Inspection
from dformer.data.types import Record
from dformer.utils.errors import UserError
from dformer.utils.processes import parallel_map
from dformer.visualize.html import bars, chart, figure, jpeg, write_page

SHOWN_IN_TERMINAL, SHOWN_IN_PAGE = 3, 50  # findings of a kind
SAMPLES, PICTURES_OF_A_KIND = 24, 4  # pictures of a data set
SMALL, MEDIUM = 32**2, 96**2  # COCO's areas, in pixels

Rows = list[tuple[str, int]]


def summary(inspection: Inspection) -> dict[str, str]:
    """The figures of a data set: name -> value."""
    seen = inspection.seen
    objects = [o for image in seen for o in image.objects]
    pixels = sum(image.size[0] * image.size[1] for image in seen if image.size)
    figures = {"annotated for": inspection.kind or "-", "images": f"{len(seen):,}"}
    if len(seen) < inspection.total:
        figures["images"] += f" of {inspection.total:,} looked at"
    sizes = [image.size for image in seen if image.size]
    if sizes:
        middle = np.median(sizes, axis=0).astype(int)
        figures["size of images"] = f"{middle[1]} x {middle[0]} (median)"
    figures["regions" if inspection.kind == "semantic" else "objects"] = f"{len(objects):,}"
    if inspection.kind != "semantic" and objects:
        figures["crowds"] = f"{100 * sum(crowd for *_, crowd in objects) / len(objects):.1f} % of the objects"
    if inspection.kind != "instance" and pixels:
        figures["void"] = f"{100 * sum(image.void for image in seen) / pixels:.1f} % of the pixels"
    return figures


def by_class(inspection: Inspection) -> Rows:
    """Objects (of semantic labels: images) by class."""
    counts = Counter(cls for image in inspection.seen for cls, _, _ in image.objects)
    names = class_names(inspection.name, inspection.kind)
    return [(name, counts[k]) for k, name in enumerate(names)]


def by_size(inspection: Inspection) -> Rows:
    """Objects by COCO's sizes."""
    areas = np.array([area for image in inspection.seen for _, area, _ in image.objects])
    small, medium = int((areas < SMALL).sum()), int(((areas >= SMALL) & (areas < MEDIUM)).sum())
    return [
        ("small (< 32 x 32)", small),
        ("medium", medium),
        ("large (> 96 x 96)", len(areas) - small - medium),
    ]


def by_count(inspection: Inspection) -> Rows:
    """Images by their number of objects."""
    edges = [(0, 0), (1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, 10**9)]
    counts = [sum(not crowd for *_, crowd in image.objects) for image in inspection.seen]
    names = [f"{a}" if a == b else f"{a} - {b}" if b < 10**9 else f"{a} or more" for a, b in edges]
    rows = [(name, sum(a <= c <= b for c in counts)) for name, (a, b) in zip(names, edges, strict=True)]
    last = max((k for k, (_, count) in enumerate(rows) if count), default=0)
    return rows[: last + 1]


def verdict(inspections: Sequence[Inspection]) -> str:
    """One sentence."""
    fatal = sum(len(inspection.fatal) for inspection in inspections)
    warnings = sum(f.level == WARNING for inspection in inspections for f in inspection.findings)
    if fatal:
        return f"Training cannot start: {_count(fatal, 'fatal fault')}, {_count(warnings, 'warning')}."
    return f"Training can start: no fatal fault, {_count(warnings, 'warning')}."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def text_report(inspections: Sequence[Inspection]) -> str:
    """The report for the terminal."""
    width = min(120, shutil.get_terminal_size((120, 40)).columns)
    lines = []
    for inspection in inspections:
        lines += ["", inspection.name, "=" * len(inspection.name)]
        lines += [f"{name}: {value}" for name, value in summary(inspection).items()] if inspection.kind else []
        if inspection.seen:
            rows = sorted(by_class(inspection), key=lambda row: -row[1])
            shown = [row for row in rows if row[1]][:10]
            tables = [shown, by_size(inspection), by_count(inspection)]
            if inspection.kind == "semantic":
                tables = [shown]
            heads = ["class", "size", "objects in an image"]
            side = [tabulate(t, headers=[h, "count"]).splitlines() for t, h in zip(tables, heads, strict=False)]
            lines += ["", *_side_by_side(side)]
            if len([row for row in rows if row[1]]) > len(shown):
                lines.append(f"... the other of {len(rows)} classes are on the HTML page")
        for level in (FATAL, WARNING, NOTE):
            for kind, findings in inspection.by_kind(level).items():
                lines += ["", f"{level.upper()}: {kind} ({len(findings):,})"]
                for finding in findings[:SHOWN_IN_TERMINAL]:
                    lines += _wrapped(f"{finding.file}: {finding.what}", width)
                if len(findings) > SHOWN_IN_TERMINAL:
                    lines.append(f"  ... and {len(findings) - SHOWN_IN_TERMINAL:,} more")
                if findings[0].remedy:
                    lines += _wrapped(f"-> {findings[0].remedy}", width)
    return "\n".join([*lines, "", verdict(inspections)])


def _wrapped(text: str, width: int) -> list[str]:
    wrapper = textwrap.TextWrapper(width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    wrapper.break_long_words = False  # of files
    return wrapper.wrap(text)


def _side_by_side(blocks: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, block)) for block in blocks]
    rows = max(map(len, blocks))
    padded = [[*block, *[""] * (rows - len(block))] for block in blocks]
    return ["    ".join(f"{b[r]:{w}}" for b, w in zip(padded, widths, strict=True)).rstrip() for r in range(rows)]


def write_html(inspections: Sequence[Inspection], file: str | Path, workers: int | None = None) -> None:
    """Write the report as one page, whole or not at all; it refers to no other file.

    At most `SAMPLES` pictures of a data set are shown, `PICTURES_OF_A_KIND` and `SHOWN_IN_PAGE` findings of a kind.

    Raises:
        UserError: the file cannot be written.
    """
    body = "".join(_section(inspection, workers) for inspection in inspections)
    state = "bad" if any(inspection.fatal for inspection in inspections) else "good"
    title = ", ".join(inspection.name for inspection in inspections)
    write_page(file, title, f'<p class="verdict {state}">{escape(verdict(inspections))}</p>{body}')


def _section(inspection: Inspection, workers: int | None) -> str:
    parts = [f"<h2>{escape(inspection.name)}</h2>"]
    records: dict[str, Record] = {}
    if inspection.seen:
        records = {record["file_name"]: record for record in DatasetCatalog.get(inspection.name)}
    figures = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in summary(inspection).items())
    parts.append(f"<dl>{figures}</dl>")
    draw = partial(_pictures, name=inspection.name, task=inspection.kind, records=records, workers=workers)
    levels = [(level, inspection.by_kind(level)) for level in (FATAL, WARNING, NOTE)]
    parts.append("<h3>Findings</h3>" + ("" if any(kinds for _, kinds in levels) else "<p>None.</p>"))
    for level, kinds in levels:
        parts += [_findings(level, kind, findings, draw) for kind, findings in kinds.items()]
    if inspection.seen:
        charts = [("Objects by class", by_class(inspection))]
        if inspection.kind != "semantic":
            charts += [("Objects by size", by_size(inspection)), ("Images by number of objects", by_count(inspection))]
        else:
            charts = [("Images by class", by_class(inspection))]
        parts.append("<div class=charts>" + "".join(_chart(*chart) for chart in charts) + "</div>")
        chosen = np.linspace(0, len(inspection.seen) - 1, min(SAMPLES, len(inspection.seen))).round().astype(int)
        samples = [inspection.seen[k].file for k in chosen]
        parts.append(f"<h3>Images</h3><div class=pictures>{draw(samples)}</div>")
    return f"<section>{''.join(parts)}</section>"


def _findings(level: str, kind: str, findings: Sequence[Finding], draw: partial[str]) -> str:
    shown = findings[:SHOWN_IN_PAGE]
    rows = "".join(f"<tr><td class=file>{escape(f.file)}</td><td>{escape(f.what)}</td></tr>" for f in shown)
    more = f"<p>... and {len(findings) - len(shown):,} more.</p>" if len(findings) > len(shown) else ""
    remedy = f"<p class=remedy>&rarr; {escape(findings[0].remedy)}</p>" if findings[0].remedy else ""
    pictures = draw([f.file for f in findings[:PICTURES_OF_A_KIND]])
    pictures = f"<div class=pictures>{pictures}</div>" if pictures else ""
    opened = " open" if level == FATAL else ""
    return (
        f"<details{opened} class={level}><summary><b>{level}</b> {escape(kind)} <span>{len(findings):,}</span>"
        "</summary>"
        f"{remedy}<table>{rows}</table>{more}{pictures}</details>"
    )


def _chart(title: str, rows: Rows) -> str:
    rows = sorted(rows, key=lambda row: -row[1]) if "class" in title else rows
    return chart(title, bars([(name, [count]) for name, count in rows], largest=max(count for _, count in rows)))


def _pictures(files: Iterable[str], name: str, task: str, records: Mapping[str, Record], workers: int | None) -> str:
    known = [records[file] for file in dict.fromkeys(files) if file in records]
    drawn = parallel_map(partial(_encoded, name=name, task=task), known, workers=workers)
    shown = zip(known, drawn, strict=True)
    return "".join(figure(data, Path(record["file_name"]).name) for record, data in shown if data)


def _encoded(record: Record, name: str, task: str) -> str:
    """A picture of the record in base64; empty where it cannot be drawn."""
    try:
        picture = draw_record(record, name, task)
    except (UserError, ValueError):  # its faults are told by the findings
        return ""
    return jpeg(picture)
