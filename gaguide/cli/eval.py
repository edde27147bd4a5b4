"""`gaguide eval`: the built-in tasks, checks of data, generated data, comparisons of evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gaguide.cli import eval_compare
from gaguide.cli.eval_golden import golden_command
from gaguide.cli.eval_make import make_controls, make_negation
from gaguide.cli.seen import clean_command
from gaguide.log import table_console

_PIPE_WIDTH = 170

app = typer.Typer(
    help="Tasks of the evaluator: list them, check their data; compare evaluations.", no_args_is_help=True
)
app.command("clean")(clean_command)
app.command()(eval_compare.compare)
app.command("golden")(golden_command)
app.command("make-controls")(make_controls)
app.command("make-negation")(make_negation)


@app.command("list")
def list_tasks() -> None:
    """List the built-in tasks with their group, kind, data, and whether the paper reports them."""
    from rich.table import Table

    from gaguide.evaluate import built_in_tasks

    table = Table()
    table.add_column("task", no_wrap=True)
    for name in ("group", "kind", "examples from", "in the paper"):
        table.add_column(name, overflow="fold")
    for name, task in built_in_tasks().items():
        if task.generator:
            data = f"generated, {task.count}"
        elif task.files:
            more = f" and {len(task.files) - 1} more" if len(task.files) > 1 else ""
            data = f"{task.files[0].file}{more}, from {task.source}"
        else:
            data = f"{task.file}, or hub: {task.hub}"
        table.add_row(name, task.group, task.kind, data, "yes" if task.paper else "")
    table_console(_PIPE_WIDTH).print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A built-in task, or a task file.", metavar="TASK")],
) -> None:
    """Describe one task: where its data are from, its prompt, and what its score shows and cannot show."""
    from gaguide.errors import UserError, suggestion
    from gaguide.evaluate import built_in_tasks
    from gaguide.evaluate.tasks.task import read_task_file

    known = built_in_tasks()
    if name not in known and not Path(name).is_file():
        raise UserError.of("TASK", "must be a built-in task or a file", suggestion(name, known), name)
    task = known[name] if name in known else read_task_file(Path(name))
    files = [f"{one.file}  sha256 {one.sha256 or 'not known'}" for one in task.data_files]
    prompt = None if task.template is None else task.template.prompt
    described: dict[str, list[str]] = {
        "task": [task.name], "kind": [task.kind or "by its columns"], "about": [task.summary],
        "data": files or [f"generated, {task.count}" if task.generator else str(task.hub)],
        "source": [task.source or ""], "license": [task.license or ""],
        "prompt": [repr(prompt)] if prompt is not None else [],
        "shows": [task.shows], "cannot show": [task.hides],
    }  # fmt: skip
    for field, values in described.items():
        for at, value in enumerate(one for one in values if one):
            typer.echo(f"{field if at == 0 else '':<12} {value}")


@app.command()
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
    from rich.table import Table
    from rich.text import Text

    from gaguide.evaluate.encode.examples import encode_examples
    from gaguide.evaluate.model_folder import find_model_folder
    from gaguide.evaluate.results.metrics import chance_level
    from gaguide.evaluate.results.parts import constant_answer
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
    table = Table("task", "kind", "examples", "chance", "constant answer", "longest, in tokens", "data")
    for task in found:
        name = task.task.name
        chance, constant = chance_level(task.kind, task.examples), constant_answer(task.examples)
        table.add_row(
            Text(name), task.kind, str(len(task.examples)),
            "" if chance is None else f"{chance:.4f}",
            Text("" if constant is None else f"{constant[1]:.4f} ({constant[0]})"),
            longest.get(name, ""), Text(task.source),
        )  # fmt: skip
    console = table_console(_PIPE_WIDTH)
    console.print(table)
    for warning in (text for task in found for text in task.warnings):
        console.print(Text(f"warning: {warning}"), soft_wrap=True)
