"""`gaguide eval golden`: does this installation reproduce the published scores of a known model?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gaguide.log import table_console
from gaguide.numbers import fixed

if TYPE_CHECKING:
    from gaguide.evaluate.results.golden import GoldenResult, GoldenTask

EXIT_MISMATCH = 1
"""Exit code if a figure differs from the published one."""


def golden_command(
    model: Annotated[str | None, typer.Option(help="Evaluate this model: a folder, or a hub id.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Compare this output folder of an evaluation instead.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the data files, see docs.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Model whose figures are expected; default: by the model's name.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="For the results; default: golden/MODEL.")] = None,
    figures: Annotated[Path | None, typer.Option(help="YAML file with other figures.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write the evaluation's own figures to this YAML file; no comparison.")
    ] = None,
) -> None:
    """Compare an evaluation with published figures; exit code 0 if they match, 1 if not."""
    from gaguide.errors import UserError
    from gaguide.evaluate.results.golden import compare_golden, read_figures
    from gaguide.files import expand_home

    if (model is None) == (results is None):
        raise UserError.of("--model", "must be given, or --results, not both", "give one of the two")
    expected = read_figures(None if figures is None else expand_home(figures))
    folder = expand_home(results) if results is not None else output or Path("golden") / Path(str(model)).name
    if model is not None:
        _check_reference(reference or Path(model).name, expected, record)
        _evaluate(model, list(expected), data, folder)
    if record is not None:
        _record(folder, expected, reference, expand_home(record))
        return
    compared = compare_golden(folder, expected, reference)
    _print(compared)
    if not compared.matches:
        raise typer.Exit(EXIT_MISMATCH)


def _check_reference(name: str, expected: Mapping[str, GoldenTask], record: Path | None) -> None:
    """Raise a `UserError` for an unknown reference, before minutes of evaluation."""
    from gaguide.errors import UserError

    known = list(dict.fromkeys(one for task in expected.values() for one in task.figures))
    if record is None and name not in known:
        problem = f"must be one of {', '.join(known)}"
        raise UserError.of("--reference", problem, "name the model whose figures are expected", name)


def _evaluate(model: str, tasks: list[str], data: Path | None, output: Path) -> None:
    from gaguide.errors import EXIT_NOT_FINITE
    from gaguide.evaluate.command import main
    from gaguide.evaluate.tasks.task import built_in_tasks

    groups = {built_in_tasks()[name].group for name in tasks if name in built_in_tasks()}
    # A group is reduced to the tasks that the folder holds.
    names = [str(group) for group in groups] if data is not None and groups else tasks
    arguments = ["--model", model, "--output", str(output), "--tasks", *names]
    code = main(arguments + ([] if data is None else ["--data", str(data)]))
    if code not in (0, EXIT_NOT_FINITE):
        raise typer.Exit(code)


def _record(folder: Path, expected: Mapping[str, GoldenTask], reference: str | None, path: Path) -> None:
    import yaml

    from gaguide.evaluate.results.golden import measured_tasks
    from gaguide.files import write_text

    found = measured_tasks(folder, list(expected), reference)
    tree = {name: task.model_dump(exclude_none=True) for name, task in found.items()}
    write_text(path, yaml.safe_dump(tree, sort_keys=False))
    typer.echo(f"written: {path}")


def _print(result: GoldenResult) -> None:
    from rich.table import Table

    table = Table("task", "figure", title=f"figures of {result.reference}")
    for name in ("published", "found", "difference", "tolerance"):
        table.add_column(name, justify="right")
    table.add_column("")
    for check in result.checks:
        table.add_row(
            check.task, check.figure, f"{check.expected:.6f}", f"{check.found:.6f}",
            fixed(check.found - check.expected, 6, "+"), f"{check.tolerance:.6f}",
            "matches" if check.matches else "DIFFERS",
        )  # fmt: skip
    table_console(120).print(table)
    for name in result.missing:
        typer.echo(f"not compared: {name}, which was not evaluated")
    for sentence in result.meaning:
        typer.echo(f"→ {sentence}")
    wrong = sum(not check.matches for check in result.checks)
    typer.echo(
        f"{len(result.checks) - wrong} of {len(result.checks)} figures match those of {result.reference}"
    )
