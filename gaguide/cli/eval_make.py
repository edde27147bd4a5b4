"""`gaguide eval make-negation` and `make-controls`: write data files of generated examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gaguide.evaluate.tasks.read import TaskData

_SUFFIX = ".jsonl"


def make_negation(
    output: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
    count: Annotated[
        int, typer.Option(help="Examples; a multiple of 16, which is one balanced block.")
    ] = 640,
    seed: Annotated[int, typer.Option(help="Seed of nouns, adjectives and frames.")] = 0,
    wordnet: Annotated[
        Path | None,
        typer.Option(
            help="Folder of WordNet's data.adj (Debian: /usr/share/wordnet); default: a shipped list."
        ),
    ] = None,
) -> None:
    """Generate questions about negation in which no rule about words, positions or lengths beats chance."""
    import random

    from gaguide.errors import Fault, FaultCollector
    from gaguide.evaluate.tasks.antonyms import seed_antonyms, wordnet_antonyms
    from gaguide.evaluate.tasks.balanced_negation import BLOCK, balanced_rows
    from gaguide.files import expand_home

    with FaultCollector() as faults:
        _check_output(output, faults)
        if count < 1 or count % BLOCK:
            remedy = f"give {max(1, round(count / BLOCK)) * BLOCK}"
            faults.add(Fault("--count", f"must be a positive multiple of {BLOCK}", remedy, count))
        found = faults.attempt(wordnet_antonyms, expand_home(wordnet)) if wordnet else seed_antonyms()
        antonyms = found or []
        rows = list(balanced_rows(antonyms, random.Random(f"balanced-negation-{seed}")))
        if not faults.faults and count > len(rows):
            problem = f"there are {len(rows):,} different examples of these adjectives"
            faults.add(Fault("--count", problem, "ask for fewer, or give --wordnet", count))
    _write(output, rows[:count])
    named = "WordNet's" if wordnet else "the shipped"
    typer.echo(f"written: {output}: {count:,} examples in {count // 4:,} groups, of {named} adjectives")


def make_controls(
    tasks: Annotated[list[str], typer.Argument(help="One task, as for --tasks of `gaguide evaluate`.")],
    output: Annotated[Path, typer.Option(help="The .jsonl file to write.")],
    data: Annotated[Path | None, typer.Option(help="Folder with the data files of named tasks.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N examples.", min=1)] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="A variant to make; may be repeated. Default: all of them.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Text in which no word is changed; may be repeated.")
    ] = None,
) -> None:
    """Write a task's examples with a negation, and each with it removed, replaced or reworded."""
    from gaguide.errors import FaultCollector, UserError, not_one_of
    from gaguide.evaluate.tasks.controls import CONTROLS, control_rows
    from gaguide.evaluate.tasks.locate import split_names
    from gaguide.evaluate.tasks.read import read_tasks
    from gaguide.files import expand_home

    variants = variant or list(CONTROLS)
    with FaultCollector() as faults:
        _check_output(output, faults)
        faults.add(*(not_one_of("--variant", one, CONTROLS) for one in variants if one not in CONTROLS))
    found = read_tasks(split_names(tasks), None if data is None else expand_home(data), limit, shots=0)
    if len(found) != 1 or found[0].kind != "classification":
        kinds = ", ".join(f"{one.task.name} ({one.kind})" for one in found)
        problem = "must be one task of kind classification"
        raise UserError.of("TASKS", problem, "make the controls of each task in a separate command", kinds)
    rows = control_rows(found[0].examples, variants, keep or ())
    if not rows:
        problem = "has no example with a negation that these variants change"
        raise UserError.of(f"task {found[0].task.name}", problem, "give another task", found[0].source)
    _write(output, rows)
    _report(output, found[0], rows)


def _check_output(output: Path, faults: Any) -> None:
    from gaguide.errors import Fault

    if output.suffix != _SUFFIX:
        faults.add(
            Fault("OUTPUT", f"must end in {_SUFFIX}", f"give a name such as set{_SUFFIX}", str(output))
        )
    if not output.expanduser().parent.is_dir():
        faults.add(Fault("OUTPUT", "is in a folder that does not exist", "make the folder", str(output)))


def _write(output: Path, rows: Sequence[dict[str, Any]]) -> None:
    import json

    from gaguide.files import write_text

    write_text(output.expanduser(), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _report(output: Path, task: TaskData, rows: Sequence[dict[str, Any]]) -> None:
    from gaguide.evaluate.tasks.controls import CONTROLS, ORIGINAL

    counts = Counter(str(row["part"]) for row in rows)
    asked = len(task.examples)
    typer.echo(f"written: {output}: {counts[ORIGINAL]:,} of {asked:,} examples of {task.task.name} and")
    for name, count in counts.items():
        if name != ORIGINAL:
            typer.echo(f"  {name:<16} {count:>6,}  {CONTROLS[name][1]}")
    if counts[ORIGINAL] < asked:
        typer.echo(
            f"  left out: {asked - counts[ORIGINAL]:,} examples, in which these variants change nothing"
        )
    typer.echo("  for example:")
    for row in rows[: 1 + len(CONTROLS)]:
        if row["group"] == rows[0]["group"]:
            typer.echo(f"  {row['part']:<16} {row['prompt'][-160:]!r}")
