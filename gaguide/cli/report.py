"""`gaguide report`: a comparison of runs, or a whole study, on the console and as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gaguide.cli.report_files import wanted_files
from gaguide.errors import Fault, FaultCollector, UserError

if TYPE_CHECKING:
    from gaguide.report.document import Report


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN…|STUDY|ABLATION…",
            help="Run folders, the baseline first; or one study's folder; or folders of gaguide ablate.",
        ),
    ],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            help="File to write: .html, .md, .csv, .tex, .png, .svg or .pdf (figures); may be repeated."
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(help="Further formats of the first --output: html,md,csv,latex,png,svg,pdf; or all."),
    ] = None,
    attach: Annotated[
        bool, typer.Option("--attach", help="Add the files to the runs' runs in MLflow and trackio.")
    ] = False,
) -> None:
    """Compare runs (loss, attention on the guided words, tasks) with the first, or report on a study or an
    ablation."""
    from gaguide.files import expand_home, local_folder, write_bytes
    from gaguide.log import SlowWork
    from gaguide.report import FORMATS, render_report
    from gaguide.report.console import print_report

    with FaultCollector() as faults:
        given = [faults.attempt(local_folder, path, "--output") for path in output or []]
        if attach and not output:
            faults.add(Fault("--attach", "needs files to attach", "add --output report.html"))
        if attach:
            from gaguide.trackers import check_attach

            for run in runs:
                faults.attempt(check_attach, expand_home(run))
        wanted = wanted_files([path for path in given if path is not None], formats, FORMATS, faults)
        with SlowWork("reading the records"):
            made = faults.attempt(_make_report, [expand_home(run) for run in runs])
    assert made is not None

    print_report(made)
    written: list[Path] = []
    for path, kind in wanted:
        with SlowWork(f"drawing {path}"):
            files = render_report(made, kind, path.stem)
        if not files:
            typer.echo(f"nothing to write as {kind}: nothing has been measured yet")
        for name, content in files.items():
            write_bytes(path.parent / name, content)
            typer.echo(f"wrote {path.parent / name}")
            written.append(path.parent / name)
    for run in runs if attach else ():
        from gaguide.trackers import attach_files

        trackers = attach_files(expand_home(run), "report", written)
        typer.echo(f"attached to {run} in {', '.join(trackers)}")


def _make_report(folders: list[Path]) -> Report:
    """The report on the study in the only folder, or on the runs. Raises `UserError` for other folders."""
    from gaguide.ablate.records import FILE, read_ablation
    from gaguide.report import make_report, read_runs
    from gaguide.report.ablation_report import ablation_report
    from gaguide.study.record_files import STUDY, read_study

    if folders and all((folder / FILE).is_file() for folder in folders):
        return ablation_report([read_ablation(folder) for folder in folders])
    studies = [folder for folder in folders if (folder / STUDY).is_file()]
    if not studies:
        return make_report(read_runs(folders))
    if len(folders) > 1:
        problem = "cannot be reported together with other folders"
        raise UserError.of("STUDY", problem, "give one study, or runs", str(studies[0]))
    return make_report(read_study(studies[0]))
