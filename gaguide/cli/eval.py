"""`gaguide eval list|validate|compare`: lists the built-in tasks, checks data, compares evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gaguide.cli import eval_compare
from gaguide.cli.options import print_table
from gaguide.cli.seen import clean_command

_PIPE_WIDTH = 170

tasks_app = typer.Typer(
    help="Tasks of the evaluator: list them, check their data; compare evaluations.", no_args_is_help=True
)
tasks_app.command("clean")(clean_command)
tasks_app.command()(eval_compare.compare)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(tasks_app, name="eval")


@tasks_app.command("list")
def list_tasks() -> None:
    """List the built-in tasks with their group, kind, data, and whether the paper reports them."""
    from rich.table import Table

    from gaguide.evaluate import built_in_tasks

    table = Table()
    table.add_column("task", no_wrap=True)
    for name in ("group", "kind", "examples from", "in the paper"):
        table.add_column(name, overflow="fold")
    for name, task in built_in_tasks().items():
        data = f"generated, {task.count}" if task.generator else f"{task.file}, or hub: {task.hub}"
        table.add_row(name, task.group, task.kind, data, "yes" if task.paper else "")
    print_table(table, _PIPE_WIDTH)


@tasks_app.command()
def validate(
    tasks: Annotated[list[str], typer.Argument(help="As for --tasks of `gaguide evaluate`.")],
    data: Annotated[Path | None, typer.Option(help="Folder with the data files of named tasks.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Also encode every example for this model (folder or hub id); reads no weights."),
    ] = None,
    include_path: Annotated[
        list[Path] | None, typer.Option(help="Folder of lm-evaluation-harness's task files, to name them.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Run the Python functions that such task files name.")
    ] = False,
) -> None:
    """Read every example and report every fault with file and line; exit code 2 if there is one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gaguide.evaluate.encode.examples import encode_examples
    from gaguide.evaluate.model_folder import find_model_folder
    from gaguide.evaluate.tasks.locate import split_names
    from gaguide.evaluate.tasks.options import TaskOptions
    from gaguide.evaluate.tasks.read import read_tasks
    from gaguide.log import SlowWork

    options = TaskOptions(tuple(include_path or ()), trust_remote_code)
    with SlowWork("reading the tasks"):
        folder = None if model is None else find_model_folder(model)
        positions = None if folder is None else folder.positions
        found = read_tasks(split_names(tasks), data, None, positions, options=options)
    longest: dict[str, str] = {}
    if folder is not None:
        with SlowWork("encoding examples", sum(len(task.examples) for task in found)) as work:
            encoded = iter(encode_examples(found, folder, done=work.done))
        for task in found:
            pairs = [pair for _ in task.examples for pair in next(encoded)]
            truncated = sum(pair.truncated > 0 for pair in pairs)
            longest[task.task.name] = f"{max((len(pair.input_ids) for pair in pairs), default=0)}" + (
                f" ({truncated} truncated on the left)" if truncated else ""
            )
    table = Table("task", "kind", "examples", "longest, in tokens", "data")
    for task in found:
        name = task.task.name
        table.add_row(
            Text(name), task.kind, str(len(task.examples)), longest.get(name, ""), Text(task.source)
        )
    console = Console(width=None if Console().is_terminal else _PIPE_WIDTH)
    console.print(table)
    for warning in (text for task in found for text in task.warnings):
        console.print(Text(f"warning: {warning}"), soft_wrap=True)
