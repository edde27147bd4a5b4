"""Figures of a report: loss and guided attention over the steps, and each guided head before and after.

The first run, the baseline, is grey; the others have colours that colour-blind readers tell apart, and a
dash pattern each, so that nothing rests on colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gaguide.report.records import RunRecord, Validation

BASELINE = "#8A8A8A"
COLOURS = ("#D55E00", "#0080C0", "#009E73", "#CC79A7", "#B8860B", "#7A6FD0")
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = "osD^vP"
INK = "#1A1B1C"
"""Colour of axes and letters; a page may replace it by its own text colour."""


def run_style(at: int) -> tuple[str, Any]:
    """Colour and dash pattern of run number `at`; 0 is the baseline."""
    if at == 0:
        return BASELINE, "solid"
    return COLOURS[(at - 1) % len(COLOURS)], _DASHES[((at - 1) // len(COLOURS) + at) % len(_DASHES)]


def draw_curves(runs: Sequence[RunRecord]) -> Figure | None:
    """Language-model loss and guided attention over optimizer steps; None where no run has any record.

    Lines are the training batches, markers are held-out text.
    """
    panels = [
        ("lm_loss", "Language-model loss (nats a token)"),
        ("guided_attention", "Attention on the guided words"),
    ]
    shown = [(key, title) for key, title in panels if any(_has(run, key) for run in runs)]
    if not shown:
        return None
    figure = Figure(figsize=(5.2 * len(shown), 3.9), layout="constrained")
    handles: dict[str, Any] = {}
    for column, (key, title) in enumerate(shown, 1):
        ax = figure.add_subplot(1, len(shown), column)
        for at, run in enumerate(runs):
            colour, dashes = run_style(at)
            steps, values = _series(run.metrics, key)
            (line,) = ax.plot(steps, values, color=colour, linestyle=dashes, linewidth=1.6)
            held_steps, held_values = _held_out(run, key)
            ax.plot(held_steps, held_values, linestyle="none", marker="o", markersize=6,
                    markerfacecolor="none", markeredgewidth=1.6, color=colour)  # fmt: skip
            handles.setdefault(run.name, line)
        if key == "guided_attention":
            ax.set_ylim(-0.02, 1.02)
        plain_axes(ax, title, "optimizer step")
    names = list(handles)
    figure.legend(
        [handles[name] for name in names], [short(name) for name in names], loc="outside lower center",
        ncols=min(len(names), 4), frameon=False, fontsize=9, labelcolor=INK,
    )  # fmt: skip
    return figure


def draw_heads(runs: Sequence[RunRecord]) -> Figure | None:
    """Attention mass of each guided head by layer: hollow before training, filled after; None without any."""
    patterns = _patterns(runs)
    if not patterns:
        return None
    columns = min(len(patterns), 2)
    rows = -(-len(patterns) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.0 * rows + 0.6), layout="constrained")
    handles: dict[str, Any] = {}
    for place, (head, pattern) in enumerate(patterns, 1):
        ax = figure.add_subplot(rows, columns, place)
        for at, run in enumerate(runs):
            colour, dashes = run_style(at)
            before, after = (_by_layer(value, head, pattern) for value in (run.before, run.after))
            marker = MARKERS[at % len(MARKERS)]
            ax.plot(*before, color=colour, marker=marker, markerfacecolor="none",
                    linestyle="none", markersize=6)  # fmt: skip
            if after[0]:
                (line,) = ax.plot(*after, color=colour, marker=marker,
                                  linestyle=dashes, linewidth=1.2, markersize=6)  # fmt: skip
                handles.setdefault(run.name, line)
        ax.set_ylim(-0.04, 1.04)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain_axes(ax, f"Head {head}: {pattern}", "layer")
    names = list(handles)
    figure.legend(
        [handles[name] for name in names], [short(name) for name in names], loc="outside lower center",
        ncols=min(len(names), 4) or 1, frameon=False, fontsize=9, labelcolor=INK,
    )  # fmt: skip
    return figure


def plain_axes(ax: Axes, title: str, below: str) -> None:
    """Title and label in the page's ink, few lines."""
    ax.set_title(title, loc="left", fontsize=10, color=INK)
    ax.set_xlabel(below, fontsize=9, color=INK)
    ax.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
    ax.tick_params(colors=INK, labelsize=9, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the records that have a number under `key`."""
    pairs = [(record["step"], record.get(key)) for record in records]
    known = [(step, value) for step, value in pairs if isinstance(value, (int, float))]
    return [step for step, _ in known], [value for _, value in known]


def _held_out(run: RunRecord, key: str) -> tuple[list[float], list[float]]:
    """Held-out values by step: every validation, or the two that summary.json keeps."""
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


def _has(run: RunRecord, key: str) -> bool:
    return bool(_series(run.metrics, key)[0] or _held_out(run, key)[0])


def _patterns(runs: Sequence[RunRecord]) -> list[tuple[int, str]]:
    """(head, pattern) of every head that some run measured."""
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


def short(name: str, length: int = 32) -> str:
    """A name cut to what a legend or an axis can hold."""
    return name if len(name) <= length else name[: length - 1] + "…"
