"""HTML pages that hold all they show: no script, and no reference to another file."""

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from dformer.utils.errors import UserError
from dformer.visualize import UInt8


def write_page(file: str | Path, title: str, body: str) -> None:
    """Write a page, whole or not at all.

    Args:
        title: plain text.
        body: HTML.

    Raises:
        UserError: the file cannot be written.
    """
    partial = Path(f"{file}.partial")
    try:
        partial.write_text(PAGE.format(title=escape(title), body=body))
        os.replace(partial, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def jpeg(picture: UInt8) -> str:
    """A picture (H, W, 3) as JPEG, in base64."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="jpeg", quality=82)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def figure(data: str, caption: str) -> str:
    """A picture, from `jpeg`, over its caption, plain text."""
    picture = f"<img loading=lazy decoding=async alt='' src='data:image/jpeg;base64,{data}'>"
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def bars(rows: Sequence[tuple[str, Sequence[float | None]]], largest: float, digits: int = 0) -> str:
    """A table of bars, a row a name and, in it, a bar a value; None is told as "-".

    Args:
        largest: the value whose bar is as long as can be.
        digits: behind the point.
    """
    lines = []
    for name, values in rows:
        lengths = [0.0 if value is None else 100 * value / max(largest, 1e-9) for value in values]
        strips = "".join(f"<i style='width:{length:.1f}%'></i>" for length in lengths)
        numbers = "<br>".join("-" if value is None else f"{value:,.{digits}f}" for value in values)
        lines.append(f"<tr><td>{escape(name)}</td><td class=bar>{strips}</td><td class=number>{numbers}</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def chart(title: str, content: str) -> str:
    """HTML under a title, plain text; what is too high is scrolled."""
    return f"<div><h3>{escape(title)}</h3><div class=chart>{content}</div></div>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts; all but the first column are numbers."""
    heading = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table class=numbers><tr>{heading}</tr>{lines}</table>"


def fold(summary: str, content: str) -> str:
    """HTML that is shown when the reader asks for it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem }} h2 {{ margin-top: 3rem; border-bottom: 2px solid #ddd }} h3 {{ margin: 1.5rem 0 .5rem }}
.verdict {{ padding: .7rem 1rem; border-radius: 6px; font-weight: 600 }}
.good {{ background: #e2f3e4 }} .bad {{ background: #fbe1df }}
dl {{ display: grid; grid-template-columns: max-content auto; gap: 0 1.5rem }} dt {{ color: #666 }} dd {{ margin: 0 }}
details {{ border-left: 5px solid #bbb; background: #f7f7f7; margin: .5rem 0; padding: .4rem .9rem }}
details.fatal {{ border-color: #c8362b }} details.warning {{ border-color: #e0a100 }}
summary {{ cursor: pointer }} summary span {{ color: #666 }} .remedy {{ margin: .5rem 0; font-style: italic }}
table {{ border-collapse: collapse; width: 100% }} td {{ padding: .12rem .6rem .12rem 0; vertical-align: top }}
.file {{ font-family: monospace; font-size: 12px; overflow-wrap: anywhere; width: 40% }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 0 2rem }}
.chart {{ max-height: 620px; overflow-y: auto }} .chart td {{ white-space: nowrap; padding-block: 1px }}
.chart td:first-child {{ max-width: 200px; overflow: hidden; text-overflow: ellipsis }}
.bar {{ width: 60% }} .bar i {{ display: block; height: .9rem; background: #4a7fb5; min-width: 1px }}
.number {{ line-height: calc(.9rem + 1px) }} .bar i + i {{ background: #e09a4f; margin-top: 1px }}
.number, .numbers :is(td, th):not(:first-child) {{ text-align: right; font-variant-numeric: tabular-nums }}
.numbers {{ width: auto }} .numbers :is(td, th) {{ padding-right: 1.5rem }} th {{ text-align: left; font-weight: 600 }}
.confusion {{ width: auto; font-size: 12px; font-variant-numeric: tabular-nums }}
.confusion td, .confusion th {{ padding: 2px 6px; text-align: right; font-weight: 400; white-space: nowrap }}
.scroll {{ overflow: auto; max-height: 620px }} pre {{ overflow: auto; font-size: 12px; white-space: pre-wrap }}
.plots {{ display: flex; flex-wrap: wrap; gap: 0 1.5rem }} .plots svg {{ max-width: 100%; height: auto }}
.wide {{ display: block }} .wide figure {{ margin-bottom: 1rem }} .wide img {{ max-height: none }}
.key i {{ display: inline-block; width: .9rem; height: .9rem; background: #4a7fb5; margin: 0 .3rem -.1rem 0 }}
.key i + i, .key .second i {{ background: #e09a4f }} .key .second {{ margin-left: 1.5rem }}
.pictures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1rem; margin: .7rem 0 }}
figure {{ margin: 0 }} img {{ max-width: 100%; max-height: 300px; border-radius: 4px }}
figcaption {{ font-size: 12px; color: #666; overflow-wrap: anywhere }}
</style>
<h1>{title}</h1>
{body}
</html>
"""
