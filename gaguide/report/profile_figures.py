"""Figures of a profile: maps by layer and head, and the estimate against the exact change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from gaguide.heads.records import HeadProfile, ProfileRecord
from gaguide.report.head_maps import draw_map, frame_head, map_norm
from gaguide.report.style import COLOURS, INK, plain_axes


def draw_profile(record: ProfileRecord) -> Figure:
    """Three maps: attention on the words, estimated effect near them, estimated effect everywhere."""
    columns: list[tuple[str, Callable[[HeadProfile], float | None], bool]] = [
        (f"attention on {record.pattern}", lambda head: head.mass, False),
        ("loss near the words", lambda head: head.near_estimate, True),
        ("loss, all tokens", lambda head: head.loss_estimate, True),
    ]
    height = min(7.0, max(2.0, 0.22 * record.layers))
    width = min(4.2, max(2.4, 0.26 * record.heads_per_layer))
    figure = Figure(figsize=(3 * width + 1.8, height + 0.9), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    chosen = record.chosen[0].heads if record.chosen else ()
    for ax, (title, value, signed) in zip(axes, columns, strict=True):
        grid = np.full((max(head.layer for head in record.heads) + 1, record.heads_per_layer), np.nan)
        for head in record.heads:
            found = value(head)
            grid[head.layer, head.head] = np.nan if found is None else found
        largest = float(np.nanmax(np.abs(grid))) if np.isfinite(grid).any() else 1.0
        image = draw_map(ax, grid, map_norm(largest or 1.0, signed), title)
        for layer, index in chosen:
            frame_head(ax, layer, index, 1.6)
        bar = figure.colorbar(image, ax=ax, fraction=0.06, pad=0.03)
        bar.ax.tick_params(colors=INK, labelsize=7)
        bar.set_label("nats per token" if signed else "share of a query", fontsize=7, color=INK)
    return figure


def draw_agreement(record: ProfileRecord) -> Figure | None:
    """Estimate against exact change near the words; None where no head was removed."""
    known = [head for head in record.heads if head.near is not None]
    if not known:
        return None
    figure = Figure(figsize=(4.6, 3.8), layout="constrained")
    ax = figure.add_subplot()
    for head in known:
        if head.near_low is not None and head.near_high is not None:
            ax.plot([head.near_estimate] * 2, [head.near_low, head.near_high], color=COLOURS[1], alpha=0.5)
    exact = [head.near for head in known if head.near is not None]
    ax.plot([head.near_estimate for head in known], exact, "o", color=COLOURS[1], markersize=4)
    ends = [
        min(*exact, *(head.near_estimate for head in known)),
        max(*exact, *(h.near_estimate for h in known)),
    ]
    ax.plot(ends, ends, color=INK, linewidth=0.8, alpha=0.5, linestyle="dashed")
    plain_axes(ax, "exact (nats per token)", "estimate (nats per token)")
    return figure
