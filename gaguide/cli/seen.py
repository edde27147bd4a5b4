"""`gaguide eval clean`: results without the examples that the training text contains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gaguide.grouping import grouped
from gaguide.log import table_console
from gaguide.numbers import fixed

if TYPE_CHECKING:
    from gaguide.evaluate.results.intervals import Metric
    from gaguide.evaluate.results.seen import SplitMetric

FILE = "results_clean.json"


def clean_command(
    results: Annotated[Path, typer.Argument(help="Output folder of an evaluation.")],
    overlap: Annotated[Path, typer.Option(help="Output folder of `gaguide data overlap`.")],
    by: Annotated[
        str, typer.Option(help="What makes an example seen: runs of words, or of tokens.")
    ] = "words",
) -> None:
    """Split an evaluation into clean examples and those that the training text contains."""
    from dataclasses import asdict

    from gaguide.errors import UserError, not_one_of
    from gaguide.evaluate.results.seen import split_results
    from gaguide.files import expand_home, write_json

    if by not in ("words", "tokens"):
        raise UserError(not_one_of("--by", by, ("words", "tokens")))
    folder = expand_home(results)
    found = split_results(folder, expand_home(overlap), by)  # type: ignore[arg-type]
    _print(found)
    content = {"overlap": str(overlap), "by": by, "metrics": [asdict(one) for one in found]}
    write_json(folder / FILE, content)
    typer.echo(f"written: {folder / FILE}")


def _print(found: list[SplitMetric]) -> None:
    from rich.table import Table

    table = Table("task", "metric")
    for name in ("all", "clean", "seen"):
        table.add_column(name, justify="right")
    for one in found:
        cells = [f"{_shown(one.values[name])} n={one.counts[name]:,}" for name in ("all", "clean", "seen")]
        table.add_row(
            one.task, one.metric + (f" ({one.left_out} not finite)" if one.left_out else ""), *cells
        )
    table_console(150).print(table)
    for task, counts in grouped((one.task, one.too_short) for one in found if one.too_short).items():
        count = max(counts)  # a metric may count fewer of them, such as those with tokens near a cue
        typer.echo(f"{task}: {count:,} of the clean examples are too short to be looked for by words")


def _shown(metric: Metric | None) -> str:
    if metric is None:
        return "—"
    known = not math.isnan(metric.low)
    ends = f" ({fixed(metric.low, 4)} to {fixed(metric.high, 4)})" if known else ""
    return f"{fixed(metric.value, 4)}{ends}"
