"""`gaguide study run|status|collect|list`: a grid of runs from one file."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from gaguide.errors import Fault, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gaguide.study.grid import Cell, Grid
    from gaguide.study.state import CellState

study = typer.Typer(help="Studies: sizes × experiments × seeds, and what they show.", no_args_is_help=True)
_ANY = {"allow_extra_args": True, "ignore_unknown_options": True}
_FILE = Annotated[
    str, typer.Argument(metavar="FILE", help="A study's YAML file, or the name of a shipped one.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(study, name="study")


@study.command("list")
def list_studies() -> None:
    """The studies that come with gaguide."""
    from gaguide.study.file import load_study, shipped_studies

    for name in shipped_studies():
        one = load_study(name, {})
        sizes, columns = (", ".join(part.name for part in parts) for parts in (one.sizes, one.experiments))
        typer.echo(f"{name}: {sizes} × {columns} × {len(one.seeds)} seeds")


@study.command(context_settings=_ANY)
def run(
    context: typer.Context,
    file: _FILE,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time.")] = 1,
    ranks: Annotated[int | None, typer.Option(min=1, help="Ranks of each cell.")] = None,
    cell: Annotated[str | None, typer.Option(help="Only this cell.")] = None,
    before: Annotated[str, typer.Option(help="Words put before each command, e.g. 'nice -n 10'.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would take; run nothing.")
    ] = False,
    gpu: Annotated[str, typer.Option(help="Kind of GPU that --dry-run plans for.")] = "a100-80",
    slurm: Annotated[bool, typer.Option("--slurm", help="Hand each cell in as a job of Slurm.")] = False,
    gpus_per_node: Annotated[int | None, typer.Option(help="With --slurm: GPUs of a job.")] = None,
    time: Annotated[str, typer.Option(help="With --slurm: time limit of a job.")] = "12:00:00",
    partition: Annotated[str | None, typer.Option(help="With --slurm: partition.")] = None,
    account: Annotated[str | None, typer.Option(help="With --slurm: account.")] = None,
    setup: Annotated[
        list[str] | None, typer.Option(help="With --slurm: shell command before the start. Repeatable.")
    ] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(help="With --slurm: further option of sbatch. Repeatable.")
    ] = None,
) -> None:
    """Train and evaluate the cells that are not done, then compare. Fields follow as --field VALUE."""
    if dry_run or slurm:
        grid = _grid(file, context.args, ranks or gpus_per_node)
        if dry_run:
            from gaguide.study.plan import print_plan

            print_plan(grid, gpu)
            return
        from gaguide.study.slurm import SlurmOptions, submit_study

        options = SlurmOptions(
            gpus_per_node, time, partition, account, tuple(setup or ()), tuple(sbatch or ())
        )
        handed = submit_study(grid, options)
        for name, job in handed.queued.items():
            typer.echo(f"job {job}: {name} (was in the queue already)")
        for name, job in handed.new.items():
            typer.echo(f"job {job}: {name}")
        typer.echo(f"logs: {grid.folder / 'slurm'}; then: gaguide study status|collect {file}")
        return
    from gaguide.study.collect import collect as collect_study
    from gaguide.study.collect import write_progress
    from gaguide.study.run import Runner

    grid = _grid(file, context.args, ranks)
    grid.folder.mkdir(parents=True, exist_ok=True)
    cells = [grid.cell(cell)] if cell else list(grid.cells)
    left = len(cells)

    def tell(one: Cell, state: CellState) -> None:
        nonlocal left
        left -= 1
        seconds = state.total("wall")
        typer.echo(f"{state.state:8} {one.id}" + (f"  {seconds:.0f} s" if seconds else ""))
        if state.error:
            typer.echo("    " + state.error.replace("\n", "\n    "))
        write_progress(grid)

    write_progress(grid)
    runner = Runner(grid, jobs, shlex.split(before), tell)
    states = runner.run(cells)
    if runner.stopped:
        typer.echo("stopped; the same command goes on")
        raise typer.Exit(130)
    if cell is None:
        collect_study(grid)
        typer.echo(f"tables: {grid.folder}")
    bad = [name for name, state in states.items() if state.state != "done"]
    if bad:
        typer.echo(f"{len(bad)} of {len(cells)} cells are not done")
        raise typer.Exit(1)


@study.command(context_settings=_ANY)
def status(context: typer.Context, file: _FILE) -> None:
    """How far each cell is."""
    from gaguide.study.status import print_status

    print_status(_grid(file, context.args, None))


@study.command(context_settings=_ANY)
def collect(context: typer.Context, file: _FILE) -> None:
    """Make the tables anew from the cells that are done."""
    from gaguide.study.collect import collect as collect_study

    grid = _grid(file, context.args, None)
    if not grid.folder.is_dir():
        raise UserError(
            Fault("FILE", "its study was not run yet", "gaguide study run FILE", str(grid.folder))
        )
    records = collect_study(grid)
    done = sum(record.state == "done" for record in records.cells)
    typer.echo(f"{done} of {len(records.cells)} cells are done; tables: {grid.folder}")


def _grid(file: str, arguments: Sequence[str], ranks: int | None) -> Grid:
    from gaguide.config import parse_overrides
    from gaguide.study.file import StudyConfig, load_study
    from gaguide.study.grid import make_grid

    overrides = parse_overrides(arguments)
    unknown = [name for name in overrides if name.split(".")[0] not in StudyConfig.model_fields]
    if unknown:
        from gaguide.errors import suggestion

        remedy = suggestion(unknown[0], StudyConfig.model_fields)
        raise UserError([Fault(f"--{name}", "no such option or field", remedy) for name in unknown])
    return make_grid(load_study(file, overrides), ranks)
