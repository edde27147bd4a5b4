"""`gaguide report`: runs side by side, on the console and as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gaguide.errors import Fault, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from gaguide.report import RunRecord, Value

_PAGES = (".html", ".md", ".csv")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Run folders; the first one is the baseline.")
    ],
    output: Annotated[
        list[Path] | None, typer.Option(help="File to write: .html, .md or .csv; may be repeated.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Write the training curves alone: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Compare runs: held-out loss, attention on the guided words, task scores, against the first run."""
    from gaguide.attention.figures import check_figure_path, save_figure
    from gaguide.report import draw_curves, read_runs

    outputs = output or []
    faults = [fault for path in outputs for fault in _check_page(path)]
    if figure is not None:
        faults += check_figure_path(figure, "--figure")
    records: list[RunRecord] = []
    try:
        records = read_runs(runs)
    except UserError as error:
        faults += error.faults
    curves = None if figure is None or faults else draw_curves(records)
    if figure is not None and not faults and curves is None:
        faults.append(Fault("--figure", "no run has logged a step yet", "leave it out, or train further"))
    if faults:
        raise UserError(faults)

    _print(records)
    for path in outputs:
        _write(path, records)
        typer.echo(f"wrote {path}")
    if figure is not None and curves is not None:
        save_figure(curves, figure)
        typer.echo(f"wrote {figure}")


def _check_page(path: Path) -> list[Fault]:
    if path.suffix.lower() not in _PAGES:
        return [Fault("--output", "unknown kind of file", f"end the name in {', '.join(_PAGES)}", str(path))]
    if not path.parent.is_dir():
        return [Fault("--output", "the folder does not exist", "make it, or choose another", str(path))]
    return []


def _write(path: Path, runs: Sequence[RunRecord]) -> None:
    from gaguide.log import write_text
    from gaguide.report import to_csv, to_html, to_markdown

    write = {".html": to_html, ".md": to_markdown, ".csv": to_csv}[path.suffix.lower()]
    write_text(path, write(runs))


def _print(runs: Sequence[RunRecord]) -> None:
    from rich.console import Console

    from gaguide.report import cautions, findings

    console = Console()
    console.print(_table(runs))
    for sentence in findings(runs):
        console.print(f"• {sentence}", markup=False, highlight=False)
    for caution in cautions(runs):
        console.print(f"! {caution}", markup=False, highlight=False, style="yellow")


def _table(runs: Sequence[RunRecord]) -> Table:
    from itertools import groupby

    from rich.markup import escape
    from rich.table import Table

    from gaguide.report import measures
    from gaguide.report.measures import FURTHER

    table = Table(show_header=True, header_style="bold", title="Runs side by side (Δ: against the first)")
    table.add_column("")
    for run in runs:
        table.add_column(escape(run.name), justify="right")
    shown = [row for row in measures(runs) if row.section != FURTHER]  # these are in the files
    for section, rows in groupby(shown, key=lambda row: row.section):
        table.add_section()
        table.add_row(f"[italic]{escape(section)}[/italic]")
        for row in rows:
            table.add_row(f"  {escape(row.name)}", *map(_cell, row.values))
    return table


def _cell(value: Value) -> str:
    from rich.markup import escape

    from gaguide.report.measures import interval_text

    text = escape(value.text)
    lines = [f"[bold]{text}[/bold]" if value.best else text]
    if value.change:
        lines.append(f"[dim]Δ {escape(value.change)}[/dim]")
    if interval := interval_text(value):
        lines.append(f"[dim]{escape(interval)}[/dim]")
    return "\n".join(lines)
