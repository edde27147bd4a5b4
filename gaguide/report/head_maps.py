"""Common parts of maps of heads: layers upwards, heads to the right."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from gaguide.report.style import INK

_FRAME = "#E08A00"


def map_norm(largest: float, signed: bool) -> Any:
    """Colours of values up to `largest`: from 0, or from -`largest` with white at 0."""
    return TwoSlopeNorm(0, -largest, largest) if signed else Normalize(0, largest)


def draw_map(ax: Axes, grid_LH: np.ndarray, norm: Any, title: str) -> Any:
    """The image of a map [layers, heads], with its title and axes; NaN is left out."""
    colours = "RdBu_r" if isinstance(norm, TwoSlopeNorm) else "Greys"
    shown = np.ma.masked_invalid(grid_LH)
    image = ax.imshow(shown, cmap=colours, norm=norm, aspect="auto", origin="lower")
    ax.set_title(title, loc="left", fontsize=9, color=INK)
    ax.set_xlabel("head", fontsize=8, color=INK)
    ax.set_ylabel("layer", fontsize=8, color=INK)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    ax.tick_params(colors=INK, labelsize=8, length=2)
    return image


def frame_head(ax: Axes, layer: int, head: int, width: float) -> None:
    """Frame the cell of a head; `width` of the line in points."""
    ax.add_patch(Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=_FRAME, linewidth=width))
