"""Tables as values, apart from how they are written: HTML, Markdown and LaTeX take the same ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """One cell; `beside` is a second number in it (the paper's), `small` what stands below in small print.

    Its lines are kept in HTML, joined elsewhere.
    """

    text: str
    best: bool = False
    beside: str | None = None
    beside_best: bool = False
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a name for files and links; each row is a heading and its cells. `note` stands below."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""


def html_table(table: Table) -> str:
    """A section with the table; every text is escaped."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.header[1:])
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_html_cell, cells))}</tr>'
        for name, cells in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    many = ' class="many"' if len(table.header) > 8 else ""  # printed in smaller letters
    return (
        f'<section id="{escape(table.name)}"><h2>{escape(table.title)}</h2>'
        f'<div class="wide" tabindex="0"><table{many}>'
        f'<thead><tr><th scope="col" class="first">{escape(table.header[0])}</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}</section>"
    )


def _html_cell(cell: Cell) -> str:
    text = f"<b>{escape(cell.text)}</b>" if cell.best else escape(cell.text)
    if cell.beside is not None:
        beside = f"<b>{escape(cell.beside)}</b>" if cell.beside_best else escape(cell.beside)
        text += f' <span class="beside">{beside}</span>'
    if cell.small:
        text += f'<span class="sub">{escape(cell.small)}</span>'
    return f"<td>{text}</td>"


def markdown_table(table: Table) -> str:
    """The table below a heading; texts are shown as they are, the note follows."""
    lines = [f"## {plain(table.title)}", "", _line([plain(text) for text in table.header])]
    lines.append(_line(["---"] + ["--:"] * (len(table.header) - 1)))
    lines += [_line([plain(name), *map(_markdown_cell, cells)]) for name, cells in table.rows]
    return "\n".join([*lines, "", plain(table.note), ""] if table.note else [*lines, ""])


def _markdown_cell(cell: Cell) -> str:
    text = f"**{plain(cell.text)}**" if cell.best else plain(cell.text)
    if cell.beside is not None:
        text += f" / **{plain(cell.beside)}**" if cell.beside_best else f" / {plain(cell.beside)}"
    return f"{text} {plain(cell.small)}" if cell.small else text


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no tables, emphasis, links or HTML from a name."""
    shown = re.sub(r"([\\`*_\[\]|#])", r"\\\1", " ".join(text.split()))
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
