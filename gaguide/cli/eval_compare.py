"""`gaguide eval compare`: evaluations compared on the same examples, on the console and as files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gaguide.errors import EXIT_USER_ERROR, Fault, FaultCollector

if TYPE_CHECKING:
    from gaguide.evaluate.compare.records import Comparison


class Match(StrEnum):
    """How examples of two evaluations are matched."""

    CONTENT = "content"
    ID = "id"


def compare(
    evaluations: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B [C …]",
            help="Output folders of gaguide evaluate, or of lm-eval --log_samples (a folder or "
            "samples_*.jsonl); the baseline first.",
        ),
    ],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            help="File to write: .html, .md, .json, .csv, .tex, .png, .svg or .pdf; may be repeated."
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            help="Further formats of the first --output: html,md,json,csv,latex,png,svg,pdf; or all."
        ),
    ] = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Compare every two, not only each with the first.")
    ] = False,
    match: Annotated[
        Match,
        typer.Option(
            help="content: examples that ask the same, prompt included. id: the same id and answer, for "
            "evaluations that differ in the prompt (shots, templates)."
        ),
    ] = Match.CONTENT,
    group: Annotated[
        str | None,
        typer.Option(help="Field of lm-eval's documents that names a contrast set, the unit of the tests."),
    ] = None,
    detect: Annotated[
        str, typer.Option(help="True differences to compute the power for, with commas between them.")
    ] = "0.01,0.02,0.05",
    examples: Annotated[
        int, typer.Option(min=0, help="Gained and lost examples of each task in pages and on the console.")
    ] = 5,
) -> None:
    """Test every task of evaluations against the first on the same examples: differences with intervals,
    Holm-corrected p values, effect sizes, what these examples could show, and examples gained and lost.
    """
    from gaguide.cli.report_files import wanted_files
    from gaguide.evaluate.compare.sources import read_evaluations
    from gaguide.files import expand_home, local_folder, write_bytes
    from gaguide.log import SlowWork
    from gaguide.report import FORMATS

    with FaultCollector() as faults:
        if len(evaluations) < 2:
            faults.add(Fault("EVALUATION", "must be two or more", "give the baseline and one to compare"))
        given = [faults.attempt(local_folder, path, "--output") for path in output or []]
        known = FORMATS | {"json": ".json"}
        wanted = wanted_files([path for path in given if path is not None], formats, known, faults)
        sizes = _sizes(detect, faults)
        with SlowWork("reading the evaluations"):
            read = faults.attempt(read_evaluations, [expand_home(path) for path in evaluations], group)
    assert read is not None

    # After the checks, which need neither scipy nor matplotlib.
    from gaguide.evaluate.compare.comparison import CompareOptions, compare_evaluations
    from gaguide.report import render_report
    from gaguide.report.comparison_report import comparison_json, comparison_report, power_table
    from gaguide.report.console import print_report, print_table

    options = CompareOptions(all_pairs, match.value, sizes)
    with SlowWork("comparing"):
        compared = compare_evaluations(read, options)
    report = comparison_report(compared, examples)
    print_report(report)
    if compared.tests:
        print_table(power_table([one for one in compared.tests if one.is_main]))
    _print_examples(compared, examples)
    for path, kind in wanted:
        if kind == "json":
            files = {path.name: comparison_json(compared).encode("utf-8", "backslashreplace")}
        else:
            files = dict(render_report(report, kind, path.stem))
        for name, content in files.items():
            write_bytes(path.parent / name, content)
            typer.echo(f"wrote {path.parent / name}")
    if not compared.tests:
        typer.echo("gaguide: nothing could be compared", err=True)
        raise typer.Exit(EXIT_USER_ERROR)


def _sizes(text: str, faults: FaultCollector) -> tuple[float, ...]:
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
        if all(0 < size < float("inf") for size in found):
            return found
    except ValueError:
        pass
    faults.add(Fault("--detect", "must be positive numbers", "write for example 0.01,0.05", text))
    return ()


def _print_examples(compared: Comparison, shown: int) -> None:
    """The largest gain and loss of each pair's tasks, at most `shown` each in all."""
    from rich.console import Console
    from rich.text import Text

    from gaguide.log import escape_control_characters

    console = Console()
    for word in ("gained", "lost"):
        found = [one for one in compared.changes if one.change == word]
        found.sort(key=lambda one: -abs(one.loss_difference or 0.0))
        for one in found[:shown]:
            prompt = one.prompt if len(one.prompt) <= 300 else "…" + one.prompt[-300:]
            lines = [f"{word}: {one.task} {one.id}, {one.evaluation} against {one.baseline}", f"  {prompt}"]
            lines.append(f"  right {one.answer}")
            lines += [f"  {one.baseline}: {one.baseline_prediction}", f"  {one.evaluation}: {one.prediction}"]
            for line in lines:
                console.print(Text(escape_control_characters(line)), soft_wrap=True)
