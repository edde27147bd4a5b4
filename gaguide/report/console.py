"""A report on the console: its summary table, findings and cautions."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table as ConsoleTable

from gaguide.report.document import Cell, Report, Table


def print_report(report: Report) -> None:
    """Print what fits a terminal."""
    console = Console()
    if report.summary is not None:
        console.print(_console_table(report.summary, report.summary.caption or report.title))
    for sentence in report.findings:
        console.print(f"• {sentence}", markup=False, highlight=False)
    for caution in report.cautions:
        console.print(f"! {caution}", markup=False, highlight=False, style="yellow")


def _console_table(table: Table, title: str) -> ConsoleTable:
    shown = ConsoleTable(header_style="bold", title=escape(title))
    shown.add_column(escape(table.header[0]))
    for name in table.header[1:]:
        shown.add_column(escape(name), justify="right")
    for group, rows in table.grouped():
        shown.add_section()
        if group:
            shown.add_row(f"[italic]{escape(group)}[/italic]")
        for name, cells in rows:
            shown.add_row(f"  {escape(name)}", *map(_console_cell, cells))
    return shown


def _console_cell(cell: Cell) -> str:
    text = escape(cell.text)
    first = f"[bold]{text}[/bold]" if cell.best else text
    return "\n".join([first, *(f"[dim]{escape(line)}[/dim]" for line in cell.small.splitlines())])
