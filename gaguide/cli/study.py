"""`gaguide study run|status|collect|list`: a grid of runs from one file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from gaguide.cli.options import takes
from gaguide.errors import Fault, FaultCollector, UserError, suggestion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gaguide.slurm import JobRequest
    from gaguide.study.grid import Cell, Grid
    from gaguide.study.state import CellState

app = typer.Typer(help="Studies: sizes × experiments × seeds, and their comparison.", no_args_is_help=True)
_FIELDS = {"allow_extra_args": True, "ignore_unknown_options": True}
_FILE = Annotated[
    str, typer.Argument(metavar="FILE", help="A study's YAML file, or the name of a shipped one.")
]

_FILE_OR_FOLDER = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="A study's YAML file, the name of a shipped one, or the folder that it was run into.",
    ),
]


@dataclass(frozen=True)
class SlurmOptions:
    """Options of `gaguide study run --slurm`."""

    slurm: Annotated[bool, typer.Option("--slurm", help="Submit each cell as a Slurm job.")] = False
    gpus_per_node: Annotated[int | None, typer.Option(help="With --slurm: GPUs of a job.")] = None
    time: Annotated[str, typer.Option(help="With --slurm: time limit of a job.")] = "12:00:00"
    partition: Annotated[str | None, typer.Option(help="With --slurm: partition.")] = None
    account: Annotated[str | None, typer.Option(help="With --slurm: account.")] = None
    setup: Annotated[
        list[str] | None, typer.Option(help="With --slurm: shell command before the start. Repeatable.")
    ] = None
    sbatch: Annotated[
        list[str] | None, typer.Option(help="With --slurm: further option of sbatch. Repeatable.")
    ] = None
    max_running: Annotated[
        int | None, typer.Option(help="With --slurm: jobs that run at a time.", show_default="all")
    ] = None
    max_restarts: Annotated[
        int, typer.Option(help="With --slurm: restarts in a row without anything saved that end a job.")
    ] = 3

    def job(self) -> JobRequest:
        """The job of each cell, apart from its name and arguments."""
        from gaguide.slurm import JobRequest

        return JobRequest(
            "cell", "cell", (), gpus_per_node=self.gpus_per_node, time=self.time, partition=self.partition,
            account=self.account, setup=tuple(self.setup or ()), options=tuple(self.sbatch or ()),
            max_running=self.max_running, max_restarts=self.max_restarts,
        )  # fmt: skip


@dataclass(frozen=True)
class RunOptions(SlurmOptions):
    """Options of `gaguide study run`."""

    jobs: Annotated[int, typer.Option(min=1, help="Number of cells at a time.")] = 1
    ranks: Annotated[int | None, typer.Option(min=1, help="Ranks of each cell.")] = None
    cell: Annotated[str | None, typer.Option(help="Run only this cell.")] = None
    before: Annotated[str, typer.Option(help="Words put before each command, e.g. 'nice -n 10'.")] = ""
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the estimated cost of each cell and the power of the tasks; run nothing."
        ),
    ] = False
    gpu: Annotated[str, typer.Option(help="GPU model of the estimate by --dry-run.")] = "a100-80"


@app.command("list")
def list_studies() -> None:
    """List the studies that come with gaguide."""
    from gaguide.study.file import load_study, shipped_studies

    for name in shipped_studies():
        one = load_study(name, {})
        sizes, experiments = (
            ", ".join(part.name for part in parts) for parts in (one.sizes, one.experiments)
        )
        typer.echo(f"{name}: {sizes} × {experiments} × {len(one.seeds)} seeds")


@app.command(context_settings=_FIELDS)
@takes(RunOptions)
def run(context: typer.Context, file: _FILE, options: RunOptions) -> None:
    """Train and evaluate the cells that are not done, then compare. Fields follow as --field VALUE."""
    ranks = options.ranks
    if options.dry_run or options.slurm:
        ranks = ranks or options.gpus_per_node
    grid = _grid(file, context.args, ranks)
    from gaguide.study.dry_run import check_plans, print_costs

    check_plans(grid)
    for note in grid.notes:
        typer.echo(f"note: {note}", err=True)
    if options.dry_run:
        from gaguide.study.task_power import print_powers

        print_costs(grid, options.gpu)
        print_powers(grid)
    elif options.slurm:
        _submit(grid, options.job(), file)
    else:
        _run(grid, options.jobs, options.cell, options.before)


def _submit(grid: Grid, job: JobRequest, file: str) -> None:
    from gaguide.study.slurm import submit_study

    submission = submit_study(grid, job)
    for name, number in submission.queued.items():
        typer.echo(f"job {number}: {name} (already in the queue)")
    for name, number in submission.new.items():
        typer.echo(f"job {number}: {name}")
    typer.echo(f"logs: {grid.folder / 'slurm'}; then: gaguide study status|collect {file}")


def _run(grid: Grid, jobs: int, cell: str | None, before: str) -> None:
    from gaguide.study.collect import collect as collect_study
    from gaguide.study.collect import write_progress
    from gaguide.study.record_files import tables_folder
    from gaguide.study.run import Runner
    from gaguide.study.state import needs_ablation

    grid.folder.mkdir(parents=True, exist_ok=True)
    cells = [grid.cell(cell)] if cell else list(grid.cells)

    def report(one: Cell, state: CellState) -> None:
        seconds = state.total("wall")
        typer.echo(f"{state.state:8} {one.id}" + (f"  {seconds:.0f} s" if seconds else ""))
        if state.error:
            typer.echo("    " + state.error.replace("\n", "\n    "))
        write_progress(grid)

    write_progress(grid)
    runner = Runner(grid, jobs, shlex.split(before), report)
    states = runner.run(cells)
    if runner.stopped:
        typer.echo("stopped; the same command resumes it")
        raise typer.Exit(130)
    left_out = 0
    if cell is None:
        left_out = len(collect_study(grid).left_out)
        typer.echo(f"tables: {tables_folder(grid.folder)}")
    unfinished = [name for name, state in states.items() if state.state != "done"]
    whole = [one for one in cells if one.id not in unfinished and needs_ablation(grid, one)]
    if whole:
        typer.echo(f"{len(whole)} of {len(cells)} cells are done, but their heads were not removed")
    if unfinished:
        typer.echo(f"{len(unfinished)} of {len(cells)} cells are not done")
    if left_out:
        typer.echo(f"{left_out} of the numbers above are left out of the tables")
    if unfinished or left_out or whole:
        raise typer.Exit(1)


@app.command(context_settings=_FIELDS)
def status(context: typer.Context, file: _FILE_OR_FOLDER) -> None:
    """Show the state of each cell."""
    from gaguide.study.status import print_status

    print_status(_run_grid(file, context.args))


@app.command(context_settings=_FIELDS)
def collect(context: typer.Context, file: _FILE_OR_FOLDER) -> None:
    """Rebuild the tables from the cells that are done."""
    from gaguide.study.collect import collect as collect_study
    from gaguide.study.record_files import tables_folder

    grid = _run_grid(file, context.args)
    if not grid.folder.is_dir():
        remedy = f"run gaguide study run {file}"
        raise UserError.of("FILE", "its study has not been run yet", remedy, str(grid.folder))
    records = collect_study(grid)
    done = sum(record.state == "done" for record in records.cells)
    typer.echo(f"{done} of {len(records.cells)} cells are done; tables: {tables_folder(grid.folder)}")


def _run_grid(file: str, arguments: Sequence[str]) -> Grid:
    """The study of a file, or the one that was run into a folder."""
    from pathlib import Path

    if not Path(file).is_dir():
        return _grid(file, arguments, None)
    if arguments:
        problem = (
            "a study given by its folder takes its settings from study.json; other fields are not accepted"
        )
        raise UserError.of(arguments[0], problem, "leave the fields out, or give the study's YAML file")
    from gaguide.study.recorded import recorded_grid

    return recorded_grid(Path(file))


def _grid(file: str, arguments: Sequence[str], ranks: int | None) -> Grid:
    from gaguide.config.yaml_tree import parse_overrides
    from gaguide.study.file import StudyConfig, load_study
    from gaguide.study.grid import make_grid

    overrides = parse_overrides(arguments)
    with FaultCollector() as faults:
        for name in overrides:
            section = name.split(".")[0]
            if section not in StudyConfig.model_fields:
                remedy = suggestion(section, StudyConfig.model_fields)
                faults.add(Fault(f"--{name}", "unknown option or field", remedy))
    return make_grid(load_study(file, overrides), ranks)
