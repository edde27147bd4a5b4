"""What maps of heads share: layers upwards, heads to the right."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from gaguide.report.style import INK

_FRAME = "#E08A00"


def label_map(ax: Axes, title: str) -> None:
    """Title and axes of a map."""
    ax.set_title(title, loc="left", fontsize=9, color=INK)
    ax.set_xlabel("head", fontsize=8, color=INK)
    ax.set_ylabel("layer", fontsize=8, color=INK)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    ax.tick_params(colors=INK, labelsize=8, length=2)


def frame_head(ax: Axes, layer: int, head: int, width: float) -> None:
    """Frame the cell of a head; `width` of the line in points."""
    ax.add_patch(Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=_FRAME, linewidth=width))
