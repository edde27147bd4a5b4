"""A report on the console: its summary table, findings and cautions."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table as ConsoleTable

from gaguide.log import table_console
from gaguide.report.document import Cell, Report, Table

_PIPE_WIDTH = 170


def print_report(report: Report) -> None:
    """Print summary, findings and cautions."""
    console = Console()
    if report.summary is not None and report.summary.rows:
        print_table(report.summary, report.summary.caption or report.title)
    for sentence in report.findings:
        console.print(f"• {sentence}", markup=False, highlight=False)
    for caution in report.cautions:
        console.print(f"! {caution}", markup=False, highlight=False, style="yellow")


def print_table(table: Table, title: str | None = None) -> None:
    """Print one table of a report; under `title`, or its own."""
    shown = ConsoleTable(header_style="bold", title=escape(table.title if title is None else title))
    shown.add_column(escape(table.header[0]), overflow="fold")
    for name in table.header[1:]:
        shown.add_column(escape(name), justify="right", overflow="fold")
    for group, rows in table.grouped():
        shown.add_section()
        if group:
            shown.add_row(f"[italic]{escape(group)}[/italic]")
        for name, cells in rows:
            shown.add_row(f"  {escape(name)}", *map(_console_cell, cells))
    table_console(_PIPE_WIDTH).print(shown)


def _console_cell(cell: Cell) -> str:
    text = escape(cell.text)
    first = f"[bold]{text}[/bold]" if cell.best else text
    return "\n".join([first, *(f"[dim]{escape(line)}[/dim]" for line in cell.small.splitlines())])
