"""The figure of a comparison of evaluations: every difference with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from gaguide.evaluate.compare.records import TaskComparison
from gaguide.report.style import BASELINE, INK, plain_axes, series_marker, series_style
from gaguide.report.text import shorten


def draw_differences(tests: Sequence[TaskComparison]) -> Figure | None:
    """A panel for each metric, a line for each task and pair; None without a test.

    The grey bar of a line reaches as far as the smallest difference that its examples show with power 0.8.
    """
    metrics = list(dict.fromkeys(one.metric for one in tests))
    if not metrics:
        return None
    pairs = list(dict.fromkeys((one.evaluation, one.baseline) for one in tests))
    counts = [sum(one.metric == metric for one in tests) for metric in metrics]
    figure = Figure(figsize=(8.2, 0.75 * len(metrics) + 0.34 * sum(counts) + 0.4), layout="constrained")
    panels = figure.subplots(len(metrics), 1, squeeze=False, height_ratios=[count + 1 for count in counts])
    for (ax,), metric in zip(panels, metrics, strict=True):
        own = [one for one in tests if one.metric == metric]
        for line, one in enumerate(own):
            index = pairs.index((one.evaluation, one.baseline)) + 1
            colour, _ = series_style(index)
            if one.detectable is not None:
                ax.barh(line, 2 * one.detectable, 0.7, left=-one.detectable, color=BASELINE, alpha=0.18)
            if one.low is not None and one.high is not None:
                ax.plot([one.low, one.high], [line, line], color=colour, linewidth=1.6)
            ax.plot(
                one.difference, line, marker=series_marker(index), color=colour, markersize=6,
                markerfacecolor=colour if one.is_shown else "none",
            )  # fmt: skip
        ax.axvline(0, color=INK, linewidth=0.8)
        names = [_label(one, len(pairs) > 1) for one in own]
        ax.set_yticks(range(len(own)), names)
        ax.set_ylim(len(own) - 0.4, -0.6)
        plain_axes(ax, f"{metric}: difference", "")
        ax.grid(visible=False, axis="y")
    return figure


def _label(one: TaskComparison, several: bool) -> str:
    name = shorten(one.task, 34)
    return f"{name}: {shorten(one.evaluation, 24)} − {shorten(one.baseline, 24)}" if several else name
