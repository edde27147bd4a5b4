"""Figures of a study: task scores, held-out loss and guided attention against size, with intervals.

An experiment has the same colour, dash pattern and marker in all figures.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from gaguide.evaluate.results.metric_names import ACCURACIES
from gaguide.grouping import grouped
from gaguide.report.study_analysis import attention_means
from gaguide.report.study_tables import mean_of
from gaguide.report.style import INK, add_legend, plain_axes, series_marker, series_style
from gaguide.report.text import DIRECTIONS, shorten
from gaguide.study.analysis_records import HeadAttention
from gaguide.study.records import HELD_OUT, Mean
from gaguide.study.study_records import StudyRecords

_ACROSS = 3


def draw_tasks(study: StudyRecords) -> Figure | None:
    """Every task's main metric against parameters, a line for each experiment; None without any."""
    tasks = study.index.main_metrics
    if not tasks:
        return None
    across = min(_ACROSS, len(tasks))
    down = -(-len(tasks) // across)
    figure = Figure(figsize=(4.0 * across, 2.9 * down + 0.5), layout="constrained")
    handles: dict[str, Any] = {}
    for place, (task, metric) in enumerate(tasks.items(), 1):
        ax = figure.add_subplot(down, across, place)
        series = _series(study, task, metric)
        chance = next((mean.chance for line in series.values() for mean in line if mean.chance), None)
        if chance is not None:
            ax.axhline(chance, color=INK, alpha=0.45, linewidth=0.9, linestyle=(0, (2, 2)))
        _lines(ax, study, series, handles)
        if metric in ACCURACIES:  # an interval over few seeds may reach beyond 0 and 1
            low, high = ax.get_ylim()
            ax.set_ylim(max(low, -0.02), min(high, 1.02))
        better = DIRECTIONS.get(next(iter(series.values()))[0].better or "", "")
        plain_axes(ax, f"{task} ({metric}{better})", "")
    add_legend(figure, handles, 6)
    return figure


def draw_loss(study: StudyRecords) -> Figure | None:
    """Held-out loss against parameters, and its difference from `finetuned`; None without any."""
    series = _series(study, HELD_OUT, "lm_loss")
    if not series:
        return None
    costs = [row for row in study.losses if row.baseline == "finetuned" and row.near is None]
    figure = Figure(figsize=(5.2 * (2 if costs else 1), 3.7), layout="constrained")
    handles: dict[str, Any] = {}
    ax = figure.add_subplot(1, 2 if costs else 1, 1)
    _lines(ax, study, series, handles)
    plain_axes(ax, "Held-out loss (nats per token)", "")
    if costs:
        ax = figure.add_subplot(1, 2, 2)
        ax.axhline(0, color=INK, linewidth=0.9, alpha=0.6)
        for index, experiment in enumerate(study.index.experiments):
            rows = {row.size: row for row in study.index.losses.get((experiment, "finetuned"), ())}
            points = [(size, rows[size].difference, rows[size].low, rows[size].high)
                      for size in study.index.sizes if size in rows]  # fmt: skip
            _line(ax, study, index, experiment, points, handles)
        _size_axis(ax, study)
        plain_axes(ax, "Loss added against finetuned (nats per token)", "")
    add_legend(figure, handles, 6)
    return figure


def draw_attention(study: StudyRecords) -> Figure | None:
    """Attention on the guided words: against size, and by layer of the largest size; None without any."""
    if not study.attention:
        return None
    figure = Figure(figsize=(10.4, 3.7), layout="constrained")
    handles: dict[str, Any] = {}
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    # By layer: the largest size that has guided heads; in an unfinished study that may not be the last.
    measured = {row.size for row in study.attention if row.guided} or {row.size for row in study.attention}
    largest = [size for size in study.index.sizes if size in measured][-1]
    for index, experiment in enumerate(study.index.experiments):
        rows = grouped((row.size, row) for row in study.index.attention.get(experiment, ()))
        before, after = [], []
        for size in study.index.sizes:
            first, last = attention_means(rows.get(size, []))
            before += [] if first is None else [(size, first, None, None)]
            after += [] if last is None else [(size, last, *_seed_range(rows[size]))]
        _line(left, study, index, experiment, before, {}, hollow=True)
        _line(left, study, index, experiment, after, handles)
        by_layer = study.index.attention_by_layer
        layers = sorted({row.layer for row in rows.get(largest, ())})
        for when, hollow in ((0, True), (1, False)):
            found = [(layer, attention_means(by_layer[largest, layer, experiment])[when]) for layer in layers]
            known = [(layer, value) for layer, value in found if value is not None]
            colour, dashes = series_style(index)
            right.plot([x for x, _ in known], [y for _, y in known], color=colour,
                       linestyle="none" if hollow else dashes, marker=series_marker(index),
                       markersize=6, markerfacecolor="none" if hollow else colour, linewidth=1.4)  # fmt: skip
    for ax in (left, right):
        ax.set_ylim(-0.04, 1.04)
    _size_axis(left, study)
    plain_axes(left, "Attention on the guided words", "")
    right.set_xticks(sorted({row.layer for row in study.attention if row.size == largest}))
    plain_axes(right, f"{shorten(largest)}, by layer", "layer")
    add_legend(figure, handles, 6)
    return figure


_Point = tuple[str, float, float | None, float | None]
"""Size, value and the ends of its interval."""


def _series(study: StudyRecords, task: str, metric: str) -> dict[str, list[Mean]]:
    """Experiment → its means by size, smallest first; experiments without any are left out."""
    found = {
        experiment: [
            m
            for size in study.index.sizes
            if (m := mean_of(study, size, experiment, task, metric)) is not None
        ]
        for experiment in study.index.experiments
    }
    return {experiment: means for experiment, means in found.items() if means}


def _lines(ax: Axes, study: StudyRecords, series: dict[str, list[Mean]], handles: dict[str, Any]) -> None:
    for index, experiment in enumerate(study.index.experiments):
        means = series.get(experiment, ())
        points = [(mean.size, mean.value, mean.low, mean.high) for mean in means]
        single = {mean.size for mean in means if mean.seeds == 1}
        _line(ax, study, index, experiment, points, handles, over_examples=single)
    _size_axis(ax, study)


def _line(
    ax: Axes,
    study: StudyRecords,
    index: int,
    experiment: str,
    points: Sequence[_Point],
    handles: dict[str, Any],
    hollow: bool = False,
    over_examples: Collection[str] = (),
) -> None:
    """One experiment's points and intervals, shifted a little so that experiments do not cover each other.

    Intervals over seeds are solid with a bar at either end, those over examples are dotted.
    """
    if not points:
        return
    colour, dashes = series_style(index)
    order, columns = study.index.sizes, len(study.index.experiments)
    x = [order.index(size) + 0.09 * (index - (columns - 1) / 2) for size, *_ in points]
    for place, (size, _, low, high) in zip(x, points, strict=True):
        if low is not None and high is not None:
            style = (0, (1, 1.5)) if size in over_examples else "solid"
            marker = "none" if size in over_examples else "_"
            ax.plot([place, place], [low, high], color=colour, linewidth=1.2, alpha=0.75, linestyle=style,
                    marker=marker, markersize=5)  # fmt: skip
    (line,) = ax.plot(
        x, [value for _, value, *_ in points], color=colour, linestyle="none" if hollow else dashes,
        marker=series_marker(index), markersize=5.5, markerfacecolor="none" if hollow else colour,
        linewidth=1.4,
    )  # fmt: skip
    handles.setdefault(experiment, line)


def _size_axis(ax: Axes, study: StudyRecords) -> None:
    """Sizes at equal steps, each with its number of parameters."""
    order = study.index.sizes
    parameters = study.index.parameters
    labels = [
        f"{shorten(size, 14)}\n{millions(parameters[size])}" if size in parameters else size for size in order
    ]
    ax.set_xticks(range(len(order)), labels)
    ax.set_xlim(-0.5, len(order) - 0.5)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())


def millions(parameters: int) -> str:
    """A number of parameters with three digits: 92k, 1.06M, 1.56B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return str(parameters)


def _seed_range(rows: Sequence[HeadAttention]) -> tuple[float | None, float | None]:
    """Lowest and highest mean over heads of a seed; (None, None) for fewer than two seeds."""
    by_seed = grouped((row.seed, row.after) for row in rows if row.after is not None)
    means = [fmean(values) for values in by_seed.values()]
    return (min(means), max(means)) if len(means) > 1 else (None, None)
