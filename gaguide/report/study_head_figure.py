"""Figure of a study's guided heads: how far their attention moved, against the cost of removing them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gaguide.report.study_heads import head_families
from gaguide.report.style import BASELINE, COLOURS, INK, plain_axes
from gaguide.report.text import shorten
from gaguide.study.analysis_records import HeadVerdict
from gaguide.study.study_records import StudyRecords

_WHISKERS = 4
"""Most heads of a row that are drawn with intervals: more would cover each other."""
_SPREAD = 0.5
"""Height within a row over which its heads are spread."""
_COLOURS = {"used": COLOURS[2], "harmful": COLOURS[0]}


def draw_heads(study: StudyRecords) -> Figure | None:
    """A row for each size and experiment, a mark for each head; None where no head was removed.

    Left, attention on the head's words before (hollow) and after training; right, held-out loss added by its
    removal, in nats per token, with the interval where a row has few heads. Coloured: beyond noise.
    """
    families = head_families(study)
    if not families:
        return None
    several = len({size for size, _ in families}) > 1
    names = [f"{shorten(size, 14)} · {name}" if several else name for size, name in families]
    figure = Figure(figsize=(9.4, 1.1 + 0.34 * len(families)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row, heads in enumerate(families.values()):
        for at, one in zip(_places(row, len(heads)), heads, strict=True):
            _attention(left, at, one)
            _cost(right, at, one, len(heads) <= _WHISKERS)
    right.axvline(0, color=INK, linewidth=0.9, alpha=0.6, zorder=0)
    seen = [share for heads in families.values() for one in heads for share in (one.before, one.after)]
    most = max((share for share in seen if share is not None), default=1.0)
    end = 1.0 if most > 0.5 else 1.1 * most
    left.set_xlim(-0.03 * end, 1.03 * end)
    plain_axes(left, "Attention on the words: ○ before, ● after", "")
    plain_axes(right, "Loss added without the head", "nats per token")
    for ax in (left, right):
        ax.grid(visible=False)
        for row in range(1, len(names)):
            ax.axhline(row - 0.5, color=INK, alpha=0.15, linewidth=0.8, zorder=0)
    left.set_yticks(range(len(names)), [shorten(name, 34) for name in names])
    left.set_ylim(len(names) - 0.5, -0.5)
    return figure


def _places(row: int, heads: int) -> Sequence[float]:
    if heads == 1:
        return [float(row)]
    return [row + _SPREAD * (index / (heads - 1) - 0.5) for index in range(heads)]


def _attention(ax: Axes, at: float, one: HeadVerdict) -> None:
    if one.before is None or one.after is None:
        return
    colour = COLOURS[1] if one.moved.startswith("moved") else BASELINE
    ax.plot([one.before, one.after], [at, at], color=colour, linewidth=1.0, alpha=0.7)
    ax.plot(one.before, at, "o", color=colour, markersize=4, markerfacecolor="none")
    ax.plot(one.after, at, "o", color=colour, markersize=4)


def _cost(ax: Axes, at: float, one: HeadVerdict, whiskers: bool) -> None:
    if one.loss is None:
        return
    colour = _COLOURS.get(one.used, BASELINE)
    if whiskers and one.low is not None and one.high is not None:
        ax.plot([one.low, one.high], [at, at], color=colour, linewidth=1.2, alpha=0.7)
    ax.plot(one.loss, at, "D", color=colour, markersize=4)
