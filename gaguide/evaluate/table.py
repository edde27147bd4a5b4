"""The table a person sees at the end, and its plain form for pipes."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from gaguide.evaluate.metrics import Metric
from gaguide.evaluate.results import Results


def print_table(results: Results, console: Console | None = None) -> None:
    """Every metric of every task with its 95% interval, the count, and the chance level."""
    table = Table(title=f"{results.model} ({results.seconds['total']:.1f} s on {results.world_size} ranks)")
    table.add_column("task", no_wrap=True)
    table.add_column("examples", justify="right")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right", no_wrap=True)
    table.add_column("chance", justify="right")
    for name, result in results.tasks.items():
        first = True
        for metric_name, metric in result.metrics.items():
            chance = result.chance if metric_name.startswith("acc") else None
            table.add_row(
                name if first else "",
                str(len(result.scored)) if first else "",
                metric_name,
                f"{metric.value:.4f}",
                _interval(metric),
                "" if chance is None else f"{chance:.4f}",
                end_section=metric_name == list(result.metrics)[-1],
            )
            first = False
    (console or Console(width=None if Console().is_terminal else 110)).print(table)


def _interval(metric: Metric) -> str:
    return "" if math.isnan(metric.stderr) else f"{metric.low:.4f} – {metric.high:.4f}"
