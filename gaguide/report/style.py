"""One look for every figure: a colour, dash pattern and marker for each series, few lines, the page's ink.

The first series, the baseline, is grey; the others have colours that colour-blind readers can distinguish and
a dash pattern each, so that nothing depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gaguide.report.text import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASELINE = "#8A8A8A"
COLOURS = ("#D55E00", "#0080C0", "#009E73", "#CC79A7", "#B8860B", "#7A6FD0")
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_MARKERS = "osD^vP"
INK = "#1A1B1C"
"""Colour of axes and letters; a page may replace it by its own text colour."""


def series_style(index: int) -> tuple[str, Any]:
    """Colour and dash pattern of a series; 0 is the baseline."""
    if index == 0:
        return BASELINE, "solid"
    dashes = _DASHES[((index - 1) // len(COLOURS) + index) % len(_DASHES)]
    return COLOURS[(index - 1) % len(COLOURS)], dashes


def series_marker(index: int) -> str:
    """Marker of a series."""
    return _MARKERS[index % len(_MARKERS)]


def plain_axes(ax: Axes, title: str, below: str) -> None:
    """Give axes a title and an x label in the page's ink, horizontal grid lines and two spines."""
    ax.set_title(title, loc="left", fontsize=10, color=INK)
    ax.set_xlabel(below, fontsize=9, color=INK)
    ax.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
    ax.tick_params(colors=INK, labelsize=9, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)


def add_legend(figure: Figure, handles: Mapping[str, Any], columns: int) -> None:
    """Put the names of `handles` below the figure, at most `columns` in a row."""
    figure.legend(
        list(handles.values()), [shorten(name) for name in handles], loc="outside lower center",
        ncols=min(len(handles), columns) or 1, frameon=False, fontsize=9, labelcolor=INK,
    )  # fmt: skip
