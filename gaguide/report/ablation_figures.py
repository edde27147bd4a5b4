"""Heat maps of an ablation: cost of removing each head, and its attention on its words, by layer and head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gaguide.ablate.records import AblationRecord, HeadRecord, ModelRecord
from gaguide.numbers import fixed
from gaguide.report.head_maps import draw_map, frame_head, map_norm
from gaguide.report.style import INK
from gaguide.report.text import shorten

_EMPTY = "#D9D9D9"
"""Heads that were not removed."""
_NUMBERED = 8
"""Largest number of heads in a layer whose cells show their number."""


def draw_heads(records: Sequence[AblationRecord]) -> Figure | None:
    """Two maps for each model, side by side: change of loss without a head, attention on its words.

    Guided heads have a frame. None where no loss was measured.
    """
    models = [(record, model) for record in records for model in record.models]
    costs = [_grid(model, partial(_cost, record.deciding)) for record, model in models]
    masses = [_grid(model, attrgetter("attention")) for _, model in models]
    known = [abs(value) for grid in costs for value in grid[np.isfinite(grid)]]
    if not known:
        return None
    largest = max(known) or 1e-9
    tall = max(model.layers for _, model in models)
    wide = max(model.heads_per_layer for _, model in models)
    height = min(5.0, max(1.5, 0.32 * tall))
    width = min(5.5, max(2.4, 0.42 * wide))
    figure = Figure(figsize=(width * len(models) + 1.6, 2 * height + 1.4), layout="constrained")
    axes = figure.subplots(2, len(models), squeeze=False)
    shown = (
        (costs, map_norm(largest, True), "loss without the head", "nats per token"),
        (masses, map_norm(1.0, False), "attention", "share of a query"),
    )
    for down, (grids, norm, title, unit) in enumerate(shown):
        for ax, grid, (_, model) in zip(axes[down], grids, models, strict=True):
            image = draw_map(ax, grid, norm, f"{shorten(model.name, 24)}: {title}")
            ax.patch.set(facecolor=_EMPTY, edgecolor="white", hatch="///")
            ax.spines[:].set_visible(False)
            _write_numbers(ax, grid, norm, _digits(largest) if down == 0 else None)
            for head in model.with_role("guided"):
                frame_head(ax, head.layer, head.head, 1.8)
        bar = figure.colorbar(image, ax=list(axes[down]), fraction=0.05, pad=0.02)
        bar.ax.tick_params(colors=INK, labelsize=8)
        bar.outline.set_visible(False)
        bar.set_label(unit, fontsize=8, color=INK)
    return figure


def _cost(deciding: str, head: HeadRecord) -> float | None:
    found = head.methods.get(deciding)
    return None if found is None else found.loss.difference


def _grid(model: ModelRecord, value: Callable[[HeadRecord], float | None]) -> np.ndarray:
    """[layers, heads], NaN where a head was not measured."""
    grid = np.full((model.layers, model.heads_per_layer), np.nan)
    for head in model.heads:
        if (found := value(head)) is not None:
            grid[head.layer, head.head] = found
    return grid


def _digits(largest: float) -> int:
    """Decimals at which the largest number has two digits; three to five."""
    return min(5, max(3, 1 - math.floor(math.log10(largest))))


def _write_numbers(ax: Axes, grid: np.ndarray, norm: Any, digits: int | None) -> None:
    """Numbers in the cells of a small map: with a sign and `digits` decimals, or two without a sign."""
    if grid.shape[1] > _NUMBERED or grid.shape[0] > 2 * _NUMBERED:
        return
    for (layer, head), value in np.ndenumerate(grid):
        if np.isfinite(value):
            shade = float(norm(value))
            dark = shade > 0.55 if digits is None else abs(shade - 0.5) > 0.35
            text = f"{value:.2f}" if digits is None else fixed(value, digits, "+")
            ax.text(head, layer, text, ha="center", va="center", fontsize=7 if (digits or 0) < 4 else 6,
                    color="white" if dark else "black")  # fmt: skip
