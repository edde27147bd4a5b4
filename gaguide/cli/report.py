"""`gaguide report`: runs side by side, or a whole study, on the console and as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gaguide.errors import Fault, UserError, suggestion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from gaguide.report import RunRecord, Value
    from gaguide.report.outputs import Reported


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…|STUDY", help="Run folders, the baseline first; or one study's folder."),
    ],
    output: Annotated[
        list[Path] | None,
        typer.Option(help="File to write: .html, .md, .csv, .tex, .png or .svg; may be repeated."),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(help="Further formats beside --output: html,md,csv,latex,png,svg; or all."),
    ] = None,
) -> None:
    """Compare runs (loss, attention on the guided words, tasks, against the first), or report on a study."""
    from gaguide.files import write_bytes
    from gaguide.report.outputs import render_report

    wanted, faults = _wanted(output or [], formats)
    records: Reported = []
    try:
        records = _read(runs)
    except UserError as error:
        faults += error.faults
    if faults:
        raise UserError(faults)

    _print(records)
    for path, kind in wanted:
        files = render_report(records, kind, path.stem)
        if not files:
            typer.echo(f"nothing to write as {kind}: nothing was measured yet")
        for name, content in files.items():
            write_bytes(path.parent / name, content)
            typer.echo(f"wrote {path.parent / name}")


def _wanted(outputs: list[Path], formats: str | None) -> tuple[list[tuple[Path, str]], list[Fault]]:
    """(path, format) of each thing to write, and what is wrong with what was asked for."""
    from gaguide.report.outputs import FORMATS

    kinds = {suffix: kind for kind, suffix in FORMATS.items()}
    faults, wanted = [], []
    for path in outputs:
        if path.suffix.lower() in kinds:
            wanted.append((path, kinds[path.suffix.lower()]))
        else:
            ends = f"end the name in {', '.join(kinds)}"
            faults.append(Fault("--output", "unknown kind of file", ends, str(path)))
        if not path.parent.is_dir():
            problem = "the folder does not exist"
            faults.append(Fault("--output", problem, "make it, or choose another", str(path)))
    given = list(FORMATS) if formats == "all" else formats.split(",") if formats else []
    for kind in (part.strip() for part in given):
        if kind not in FORMATS:
            faults.append(Fault("--formats", "no such format", suggestion(kind, FORMATS), kind))
        elif outputs and kind not in [other for _, other in wanted]:
            wanted.append((outputs[0].with_suffix(FORMATS[kind]), kind))
    if given and not outputs:
        faults.append(Fault("--formats", "needs a name for its files", "add --output report.html"))
    return wanted, faults


def _read(folders: list[Path]) -> Reported:
    """The study in the only folder, or the runs. Raises `UserError` for all that can't be read."""
    from gaguide.report import read_runs
    from gaguide.study.records import STUDY, read_study

    studies = [folder for folder in folders if (folder / STUDY).is_file()]
    if not studies:
        return read_runs(folders)
    if len(folders) > 1:
        raise UserError(Fault("STUDY", "is reported alone", "give one study, or runs", str(studies[0])))
    return read_study(studies[0])


def _print(records: Reported) -> None:
    from rich.console import Console

    from gaguide.report import cautions, findings
    from gaguide.report.study_findings import study_cautions, study_findings
    from gaguide.study.records import StudyRecords

    console = Console()
    if isinstance(records, StudyRecords):
        said, careful = study_findings(records), study_cautions(records)
    else:
        console.print(_table(records))
        said, careful = findings(records), cautions(records)
    for sentence in said:
        console.print(f"• {sentence}", markup=False, highlight=False)
    for caution in careful:
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
