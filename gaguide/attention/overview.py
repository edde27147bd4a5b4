"""All heads in one picture: small maps, layers as rows and heads as columns, models side by side."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from gaguide.attention.panels import HIDDEN, Panel
from gaguide.errors import UserError
from gaguide.figures import GUIDED

MAX_HEADS = 1200
"""Most maps of one picture."""
_SIDE, _GAP, _MARGIN, _TOP = 0.62, 0.06, 0.55, 0.75  # inches
_NARROWEST, _LETTER = 4.2, 0.085  # inches: of a picture, so that its notes fit, and of a letter of a name


def draw_overview(panels: Sequence[Panel]) -> Figure:
    """A map without words for each panel, all on one scale: the square root of the attention.

    Heads with a pattern have a thick frame and their attention on its targets as a number. Raises `UserError`
    for more than `MAX_HEADS` maps.
    """
    if not panels:
        raise ValueError("no panels to draw")
    if len(panels) > MAX_HEADS:
        problem = f"give {len(panels)} maps, but an overview has at most {MAX_HEADS}"
        raise UserError.of("--layers, --heads", problem, "choose fewer models, layers or heads")
    models = list(dict.fromkeys(panel.model for panel in panels))
    layers, heads = sorted({p.layer for p in panels}), sorted({p.head for p in panels})
    step = _SIDE + _GAP
    block = _MARGIN + max(len(heads) * step, _LETTER * max(map(len, models)))
    width, height = max(len(models) * block + 0.2, _NARROWEST), _TOP + len(layers) * step + 0.25
    figure = Figure(figsize=(width, height), layout=None)
    norm = PowerNorm(0.5, 0, max(float(panel.weights_QK.max()) for panel in panels) or 1.0)
    for panel in panels:
        left = models.index(panel.model) * block + _MARGIN + heads.index(panel.head) * step
        bottom = height - _TOP - (layers.index(panel.layer) + 1) * step
        ax = figure.add_axes((left / width, bottom / height, _SIDE / width, _SIDE / height))
        _draw(ax, panel, norm)
        if panel.layer == layers[0]:
            ax.set_title(str(panel.head), fontsize=7, pad=2)
        if panel.head == heads[0]:
            ax.set_ylabel(str(panel.layer), fontsize=7, rotation=0, ha="right", va="center", labelpad=3)
    for at, model in enumerate(models):
        x = (at * block + _MARGIN) / width
        figure.text(x, 1 - 0.18 / height, model, fontsize=8, weight="bold", va="center")
    note = f"columns: heads, rows: layers; darkest: attention {norm.vmax:.2g}, square root"
    figure.text(_MARGIN / width, 1 - 0.38 / height, note, fontsize=7, color="#6E6E6E", va="center")
    if any(panel.pattern for panel in panels):
        note = "framed: heads with a pattern, and their attention on its words"
        figure.text(_MARGIN / width, 0.1 / height, note, fontsize=7, color=GUIDED, va="center")
    return figure


def _draw(ax: Axes, panel: Panel, norm: PowerNorm) -> None:
    ax.set_facecolor(HIDDEN)
    ax.imshow(panel.visible, cmap="Blues", norm=norm, aspect="auto", interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(GUIDED if panel.pattern else "#C8C8C8")
        spine.set_linewidth(1.6 if panel.pattern else 0.5)
    if panel.pattern and panel.mass is not None:
        ax.text(
            0.96, 0.94, f"{panel.mass:.2f}", transform=ax.transAxes, ha="right", va="top", fontsize=7,
            color=GUIDED, weight="bold",
        )  # fmt: skip
