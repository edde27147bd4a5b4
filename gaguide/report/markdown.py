"""A report as Markdown; names are shown as they are, whatever characters they contain."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gaguide.report.document import Cell, Report, Table


def to_markdown(report: Report) -> str:
    """Title, findings, cautions and every table."""
    lines = [f"# {escape_markdown(report.title)}", ""]
    lines += [f"- {escape_markdown(text)}" for text in report.findings]
    lines += [f"- **Caution:** {escape_markdown(text)}" for text in report.cautions]
    return "\n".join([*lines, "", *map(_table, report.tables)])


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: no tables, emphasis, links or HTML from a name."""
    shown = re.sub(r"([\\`*_\[\]|#])", r"\\\1", " ".join(text.split()))
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _table(table: Table) -> str:
    lines = [f"## {escape_markdown(table.title)}", "", _row([escape_markdown(name) for name in table.header])]
    lines.append(_row(["---"] + ["--:"] * (len(table.header) - 1)))
    for group, rows in table.grouped():
        if group:
            lines.append(_row([f"*{escape_markdown(group)}*", *([""] * (len(table.header) - 1))]))
        lines += [_row([escape_markdown(name), *map(_cell, cells)]) for name, cells in rows]
    return "\n".join([*lines, "", escape_markdown(table.note), ""] if table.note else [*lines, ""])


def _cell(cell: Cell) -> str:
    text = _bold(cell.text, cell.best)
    if cell.second is not None:
        text += f" / {_bold(cell.second, cell.second_best)}"
    return f"{text} {escape_markdown(cell.small)}" if cell.small else text


def _bold(text: str, best: bool) -> str:
    return f"**{escape_markdown(text)}**" if best else escape_markdown(text)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
