"""HTML pages that hold all they show: no script, and no reference to another file. Texts are plain and escaped here."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from dformer.utils.files import atomic_write
from dformer.visualize.arrays import UInt8

PAGE = Path(__file__).parents[1] / "assets" / "page.html"


def write_page(file: str | Path, title: str, body: str) -> None:
    """Write a page with the HTML `body`, whole or not at all."""
    page = Template(PAGE.read_text()).substitute(title=escape(title), body=body)
    with atomic_write(file) as partial:
        partial.write_text(page)


def jpeg(picture: UInt8) -> str:
    """Encode a picture (H, W, 3) as JPEG; return it in base64."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="jpeg", quality=82)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def figure(data: str, caption: str) -> str:
    """Format a picture, from `jpeg`, with its caption; return HTML."""
    picture = f"<img loading=lazy decoding=async alt='' src='data:image/jpeg;base64,{data}'>"
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def bars(rows: Sequence[tuple[str, Sequence[float]]], largest: float, digits: int = 0) -> str:
    """Draw a table of bars, a row a name and, in it, a bar a value, at most `largest`; nan is "-". Return HTML."""
    lines = []
    for name, values in rows:
        lengths = [0.0 if math.isnan(value) else 100 * value / max(largest, 1e-9) for value in values]
        strips = "".join(f"<i style='width:{length:.1f}%'></i>" for length in lengths)
        numbers = "<br>".join("-" if math.isnan(value) else f"{value:,.{digits}f}" for value in values)
        lines.append(f"<tr><td>{escape(name)}</td><td class=bar>{strips}</td><td class=number>{numbers}</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def chart(title: str, content: str) -> str:
    """Format HTML under a title, scrolled where it is too high; return HTML."""
    return f"<div><h3>{escape(title)}</h3><div class=chart>{content}</div></div>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table, all but the first column as numbers; return HTML."""
    heading = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table class=numbers><tr>{heading}</tr>{lines}</table>"


def fold(summary: str, content: str) -> str:
    """Hide HTML until the reader opens it; return HTML."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"
