"""Figures that compare runs: loss and guided attention over the steps, guided heads before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gaguide.numbers import finite
from gaguide.report.run_records import RunRecord
from gaguide.report.run_validation import Validation
from gaguide.report.style import add_legend, plain_axes, series_marker, series_style


def draw_curves(runs: Sequence[RunRecord]) -> Figure | None:
    """Language-model loss and guided attention over optimizer steps; None where no run has records.

    Lines are training batches, markers are held-out text.
    """
    panels = [
        ("lm_loss", "Language-model loss (nats per token)"),
        ("guided_attention", "Attention on the guided words"),
    ]
    shown = [
        (key, title)
        for key, title in panels
        if any(_series(run.metrics, key)[0] or _held_out(run, key)[0] for run in runs)
    ]
    if not shown:
        return None
    figure = Figure(figsize=(5.2 * len(shown), 3.9), layout="constrained")
    handles: dict[str, Any] = {}
    for column, (key, title) in enumerate(shown, 1):
        ax = figure.add_subplot(1, len(shown), column)
        handles |= _draw_lines(ax, runs, key)
        for index, run in enumerate(runs):
            ax.plot(*_held_out(run, key), linestyle="none", marker="o", markersize=6,
                    markerfacecolor="none", markeredgewidth=1.6, color=series_style(index)[0])  # fmt: skip
        if key == "guided_attention":
            ax.set_ylim(-0.02, 1.02)
        plain_axes(ax, title, "optimizer step")
    add_legend(figure, handles, 4)
    return figure


_COURSE = {
    "lr": ("Learning rate", 1.0),
    "grad_norm": ("Norm of the gradient before clipping", 1.0),
    "guidance_loss": ("Guidance loss, weighted", 1.0),
    "tokens_per_second": ("Tokens per second", 1.0),
    "peak_memory": ("Peak memory of a rank (GiB)", 1 / 2**30),
}
"""Column of metrics.jsonl → title, and factor of its values."""


def draw_course(runs: Sequence[RunRecord]) -> Figure | None:
    """Rate, gradient norm, guidance loss, throughput and memory over steps; None where no run has them."""
    shown = [key for key in _COURSE if any(_series(run.metrics, key)[0] for run in runs)]
    if not shown:
        return None
    down = -(-len(shown) // 2)
    figure = Figure(figsize=(5.2 * min(2, len(shown)), 2.9 * down + 0.5), layout="constrained")
    handles: dict[str, Any] = {}
    for place, key in enumerate(shown, 1):
        title, factor = _COURSE[key]
        ax = figure.add_subplot(down, min(2, len(shown)), place)
        handles |= _draw_lines(ax, runs, key, factor)
        plain_axes(ax, title, "optimizer step")
    add_legend(figure, handles, 4)
    return figure


def _draw_lines(ax: Axes, runs: Sequence[RunRecord], key: str, factor: float = 1.0) -> dict[str, Any]:
    """Draw a column of the runs' metrics over steps, times `factor`; the line of each run, by name."""
    lines: dict[str, Any] = {}
    for index, run in enumerate(runs):
        colour, dashes = series_style(index)
        steps, values = _series(run.metrics, key)
        scaled = [value * factor for value in values]
        (lines[run.name],) = ax.plot(steps, scaled, color=colour, linestyle=dashes, linewidth=1.6)
    return lines


def draw_heads(runs: Sequence[RunRecord]) -> Figure | None:
    """Attention mass of each guided head by layer, hollow before training and filled after.

    None where no run has guided heads.
    """
    patterns = _patterns(runs)
    if not patterns:
        return None
    columns = min(len(patterns), 2)
    rows = -(-len(patterns) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.0 * rows + 0.6), layout="constrained")
    handles: dict[str, Any] = {}
    for place, (head, pattern) in enumerate(patterns, 1):
        ax = figure.add_subplot(rows, columns, place)
        for index, run in enumerate(runs):
            colour, dashes = series_style(index)
            before, after = (_by_layer(value, head, pattern) for value in (run.before, run.after))
            marker = series_marker(index)
            ax.plot(*before, color=colour, marker=marker, markerfacecolor="none",
                    linestyle="none", markersize=6)  # fmt: skip
            if after[0]:
                (line,) = ax.plot(*after, color=colour, marker=marker,
                                  linestyle=dashes, linewidth=1.2, markersize=6)  # fmt: skip
                handles.setdefault(run.name, line)
        ax.set_ylim(-0.04, 1.04)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain_axes(ax, f"Head {head}: {pattern}", "layer")
    add_legend(figure, handles, 4)
    return figure


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values under `key`; empty where no record has one.

    A number that is not finite is NaN, which interrupts a line. Attention that no query of a batch could give
    is left out: the line goes on.
    """
    known = [
        (record["step"], math.nan if (value := finite(record.get(key))) is None else value)
        for record in records
        if key != "guided_attention" or record.get(key) is not None or record.get("lm_loss") is None
    ]
    if all(math.isnan(value) for _, value in known):
        return [], []
    return [step for step, _ in known], [value for _, value in known]


def _held_out(run: RunRecord, key: str) -> tuple[list[float], list[float]]:
    """Held-out values by step: of every validation, or else the two in summary.json."""
    if run.validations:
        return _series(run.validations, key)
    ends = [(0, run.before), (run.steps, run.after)]
    return _series(
        [
            {"step": step, key: getattr(value, key)}
            for step, value in ends
            if value is not None and step is not None
        ],
        key,
    )


def _patterns(runs: Sequence[RunRecord]) -> list[tuple[int, str]]:
    """(head, pattern) of every head that some run measured, in order."""
    validations = [value for run in runs for value in (run.before, run.after) if value is not None]
    return sorted({(mass.head, mass.pattern) for value in validations for mass in value.per_head})


def _by_layer(validation: Validation | None, head: int, pattern: str) -> tuple[list[float], list[float]]:
    """Layers and attention masses of one head, where they were measured."""
    known = [
        (mass.layer, mass.attention)
        for mass in (validation.per_head if validation else ())
        if (mass.head, mass.pattern) == (head, pattern) and mass.attention is not None
    ]
    return [layer for layer, _ in known], [attention for _, attention in known]
