"""`gaguide data overlap`: which evaluation examples occur in the training text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gaguide.cli.options import Workers, cores, takes
from gaguide.log import table_console

if TYPE_CHECKING:
    from gaguide.data.overlap.find import OverlapResult


@dataclass(frozen=True)
class OverlapOptions:
    """Options of `gaguide data overlap`."""

    tasks: Annotated[list[str], typer.Option(help="Tasks, as for `gaguide evaluate`. May be repeated.")]
    output: Annotated[
        Path, typer.Option(help="Folder of the results. An interrupted search continues there.")
    ]
    data: Annotated[
        Path | None, typer.Option(help="Folder with the data files of named tasks.", show_default="the hub")
    ] = None
    split: Annotated[str, typer.Option(help="Split of the shards that is searched.")] = "train"
    workers: Workers = None


@takes(OverlapOptions)
def overlap_command(
    options: OverlapOptions,
    shards: Annotated[list[str], typer.Argument(help="Folders or addresses of shards.")],
) -> None:
    """Look for every evaluation example in the training text: exact runs of 13 words and of 8 tokens."""
    from gaguide.data.build.build import build_lock
    from gaguide.data.overlap.find import find_overlap
    from gaguide.data.overlap.report import EXAMPLES_FILE
    from gaguide.errors import UserError
    from gaguide.evaluate.tasks.locate import split_names
    from gaguide.evaluate.tasks.texts import evaluation_texts
    from gaguide.files import expand_home, output_folder
    from gaguide.log import say

    output = output_folder(options.output, "--output")
    workers = cores() if options.workers is None else options.workers
    if workers < 1:
        raise UserError.of("--workers", "must be at least 1", "give the number of cores", workers)
    data = None if options.data is None else expand_home(options.data)
    examples = evaluation_texts(split_names(options.tasks), data)
    output.mkdir(parents=True, exist_ok=True)
    say(f"searching for {len(examples):,} examples")

    def show(done: int, total: int) -> None:
        if total and done:
            say(f"{done:,} of {total:,} tokens searched ({done / total:.0%})")

    with build_lock(output, problem="another search is writing to this folder"):
        result = find_overlap(
            [str(expand_home(name)) if "://" not in name else name for name in shards],
            examples, output, options.split, workers, show,
        )  # fmt: skip
    _print(result)
    say(f"written: {output / EXAMPLES_FILE}")


def _print(result: OverlapResult) -> None:
    from rich.table import Table

    from gaguide.data.overlap.report import TOKEN_SHARE

    table = Table("task", title=f"{result.tokens:,} training tokens, {result.seconds:.1f} s")
    for heading in (
        "examples",
        "a run of 13 words seen",
        f"{TOKEN_SHARE:.0%} of tokens in seen runs of 8",
        "too short for words",
    ):
        table.add_column(heading, justify="right")
    for task in result.tasks:
        counts = (task.seen_words, task.seen_tokens, task.too_short)
        shares = (f"{count:,} ({count / task.examples:.1%})" for count in counts)
        table.add_row(task.task, f"{task.examples:,}", *shares)
    table_console(120).print(table)
