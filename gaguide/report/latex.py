"""Tables as LaTeX that compiles whatever a name contains: no package is needed, every text is escaped."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gaguide.report.document import Cell, Report, Table
from gaguide.report.text import slug

_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", "`": "'", '"': "''",
    "–": "--", "—": "---", "−": "$-$", "→": r"$\rightarrow$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "Δ": r"$\Delta$", "·": r"$\cdot$",
    "×": r"$\times$", "±": r"$\pm$", "≥": r"$\geq$", "≤": r"$\leq$", "†": r"$\dagger$", "…": r"\ldots{}",
    "‡": r"$\ddagger$", "§": r"\S{}",
}  # fmt: skip
_MINUS = re.compile(r"(?<![\w.-])-(?=\d)")


def to_latex(report: Report) -> str:
    """Every table as a `table` environment with a caption and a label, to be \\input into a document."""
    return "\n".join(_table(part) for table in report.tables for part in _split(table))


def _split(table: Table) -> Iterator[Table]:
    """One table for each group of rows: LaTeX does not break a table over pages."""
    if not table.groups:
        yield table
        return
    for group, rows in table.grouped():
        yield replace(table, name=f"{table.name}-{slug(group)}", title=group, rows=rows, groups=())


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it is; a letter that a plain installation lacks becomes its code point."""
    return "".join(_ESCAPES.get(char) or _letter(char) for char in " ".join(text.split()))


def _letter(char: str) -> str:
    if " " <= char <= "~":
        return char
    base = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
    return base if base.isalnum() else f"U+{ord(char):04X}"


def _table(table: Table) -> str:
    columns = "l" + "r" * (len(table.header) - 1)
    lines = [
        r"\begin{table}[ht]",
        r"\centering\small",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\hline",
        _row([latex_text(text) for text in table.header]),
        r"\hline",
        *(_row([latex_text(name), *map(_cell, cells)]) for name, cells in table.rows),
        r"\hline",
        r"\end{tabular}",
        rf"\caption{{{latex_text(' '.join(filter(None, [table.title + '.', table.note])))}}}",
        rf"\label{{tab:{table.name}}}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    # An empty group: a first cell that begins with [ or * would be read as an argument of \\ above it.
    return "{}" + " & ".join(cells) + r" \\"


def _cell(cell: Cell) -> str:
    text = _bold(cell.text, cell.best)
    if cell.second is not None:
        text += f" / {_bold(cell.second, cell.second_best)}"
    return text + (rf" {{\scriptsize {_number(cell.small)}}}" if cell.small else "")


def _bold(text: str, best: bool) -> str:
    return rf"\textbf{{{_number(text)}}}" if best else _number(text)


def _number(text: str) -> str:
    """The text of a cell, in which a hyphen before a digit is a minus."""
    return latex_text(_MINUS.sub("\u2212", text))
