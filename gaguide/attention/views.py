"""Pictures of attention: heat maps, and lines between tokens whose opacity is the attention.

Panels of one model are arranged with layers as rows and heads as columns; with several models, each head has
a row with the models side by side. All panels of a picture share one scale. Guided words are marked by
colour, bold type and an arrow, so that no mark depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from gaguide.attention.panels import EARLIER, HIDDEN, Panel
from gaguide.errors import UserError
from gaguide.figures import GUIDED, OTHER

MAX_PANELS = 48
"""Most panels of one picture."""
_LABEL_LENGTH = 14
_FAINTEST = 0.01  # lines below this attention are not visible


def draw_heatmaps(panels: Sequence[Panel]) -> Figure:
    """Rows are queries, columns are keys; the colour is the square root of the attention."""
    highest = max((float(panel.weights_QK.max()) for panel in panels), default=1.0) or 1.0
    ticks = [tick for tick in (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1) if tick <= highest * 1.001]
    return _draw_maps(panels, _Scale("Blues", PowerNorm(0.5, 0, highest), ticks, "attention"))


def draw_difference(panels: Sequence[Panel]) -> Figure:
    """Heat maps of each further model's attention minus the first model's, head by head.

    Raises `UserError` unless there are several models whose tokens are the same.
    """
    first = panels[0].model if panels else ""
    before = {(panel.layer, panel.head): panel for panel in panels if panel.model == first}
    changed = []
    for panel in panels:
        if panel.model == first:
            continue
        other = before.get((panel.layer, panel.head))
        if other is None or other.key_labels != panel.key_labels:
            problem = f"{panel.model} and {first} have different tokens or heads"
            raise UserError.of("--view difference", problem, "choose models of one tokenizer and shape")
        change_QK = panel.weights_QK - other.weights_QK
        mass = None if panel.mass is None or other.mass is None else panel.mass - other.mass
        changed.append(replace(panel, model=f"{panel.model} − {first}", weights_QK=change_QK, mass=mass))
    if not changed:
        raise UserError.of("--view difference", "needs two models or more", "give --model twice")
    largest = max(float(panel.weights_QK.abs().max()) for panel in changed) or 1.0
    ticks = [-largest, -largest / 2, 0, largest / 2, largest]
    scale = _Scale("RdBu_r", Normalize(-largest, largest), ticks, "difference", "%+.2g", "+.3f")
    return _draw_maps(changed, scale)


@dataclass(frozen=True)
class _Scale:
    """How a heat map's numbers become colours."""

    colours: str
    """Name of the colour map."""
    norm: Normalize
    """From numbers to [0, 1]."""
    ticks: list[float]
    """Numbers marked on the bar."""
    name: str
    """Name of the numbers."""
    format: str = "%g"
    """Format of the numbers on the bar."""
    mass: str = ".3f"
    """Format of a panel's attention on its words."""


def _draw_maps(panels: Sequence[Panel], scale: _Scale) -> Figure:
    """A heat map for each panel, and the bar of their common scale."""
    grid = _Grid(panels)
    cell, label = 0.21, grid.label_inches
    width, height = grid.most_keys * cell + label + 0.35, grid.most_queries * cell + label + 0.75
    figure, axes = grid.figure(width, height, right=0.95)
    image = None
    for panel, ax in axes:
        ax.set_facecolor(HIDDEN)
        if grid.most_queries >= 8:  # there is room, for the causal mask leaves this corner empty
            ax.text(
                0.98, 0.97, "each row's token attends\nto the columns' tokens",
                transform=ax.transAxes, ha="right", va="top", fontsize=7, color="#6E6E6E",
            )  # fmt: skip
        image = ax.imshow(panel.visible, cmap=scale.colours, norm=scale.norm)
        _label_axis(ax.xaxis, panel.key_labels, panel.guided_keys, rotation=90)
        queries = frozenset(key - panel.first_key for key in panel.guided_keys if key >= panel.first_key)
        _label_axis(ax.yaxis, panel.query_labels, queries)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        for key in panel.guided_keys:
            top = max(key - panel.first_key, 0) - 0.5  # rows above cannot see it
            box = Rectangle((key - 0.5, top), 1, len(panel.query_labels) - 0.5 - top)
            box.set(fill=False, edgecolor=GUIDED, linewidth=1.1)
            ax.add_patch(box)
        _title(ax, panel, scale.mass)
    assert image is not None
    bar_height = min(2.4, figure.get_figheight() - 1.2)
    bar = figure.add_axes(
        (
            1 - 0.8 / figure.get_figwidth(),
            1 - (bar_height + 0.75) / figure.get_figheight(),
            0.14 / figure.get_figwidth(),
            bar_height / figure.get_figheight(),
        )
    )
    colorbar = figure.colorbar(image, cax=bar, ticks=scale.ticks, format=scale.format)
    colorbar.outline.set_visible(False)
    bar.tick_params(labelsize=7, length=2)
    bar.set_title(scale.name, fontsize=7, loc="left", pad=6)
    return figure


def draw_lines(panels: Sequence[Panel]) -> Figure:
    """Queries on the left, keys on the right, and a line per pair, whose opacity is the attention."""
    grid = _Grid(panels)
    label = grid.label_inches
    width, height = 1.7 + 2 * label + 0.3, grid.most_keys * 0.22 + 0.9
    figure, axes = grid.figure(width, height, right=0.1)
    for panel, ax in axes:
        _draw_pairs(ax, panel)
        ax.set_xlim(0, 1)
        ax.set_ylim(grid.most_keys - 0.4, -0.6)
        ax.set_axis_off()
        _title(ax, panel)
    return figure


def _draw_pairs(ax: Axes, panel: Panel) -> None:
    """One panel's lines and both columns of tokens; a query is at the height of its own key."""
    weights = panel.weights_QK.numpy()
    queries, keys = np.nonzero(weights >= _FAINTEST)
    # Strong lines are drawn last, on top of fainter ones.
    order = np.argsort(weights[queries, keys], kind="stable")
    queries, keys = queries[order], keys[order]
    is_guided = panel.guided_QK.numpy()[queries, keys]
    rgb = np.where(is_guided[:, None], to_rgb(GUIDED), to_rgb(OTHER))
    colours = np.column_stack([rgb, np.clip(weights[queries, keys], 0, 1)])
    ends = np.stack(
        [
            np.column_stack([np.zeros(len(queries)), queries + panel.first_key]),
            np.column_stack([np.ones(len(keys)), keys]),
        ],
        1,
    )
    ax.add_collection(LineCollection(list(ends), colors=colours, linewidths=1.8, capstyle="round"))
    for query, text in enumerate(panel.query_labels):
        drawn = ax.text(-0.03, query + panel.first_key, _short(text), ha="right", va="center", fontsize=8)
        _mark(drawn, False, text)
    for key, text in enumerate(panel.key_labels):
        shown = f"◂ {_short(text)}" if key in panel.guided_keys else _short(text)
        drawn = ax.text(1.03, key, shown, ha="left", va="center", fontsize=8)
        _mark(drawn, key in panel.guided_keys, text)


class _Grid:
    """Arrangement of the panels and size of the picture, in inches."""

    def __init__(self, panels: Sequence[Panel]) -> None:
        if not panels:
            raise ValueError("no panels to draw")
        if len(panels) > MAX_PANELS:
            raise UserError.of(
                "--layers, --heads",
                f"give {len(panels)} panels, but a picture has at most {MAX_PANELS}",
                "choose fewer layers or heads",
            )
        self.panels = panels
        models = list(dict.fromkeys(panel.model for panel in panels))
        heads = list(dict.fromkeys(panel.head for panel in panels))
        layers = sorted({panel.layer for panel in panels})
        if len(models) > 1:
            rows = sorted({(panel.layer, panel.head) for panel in panels})
            self.places = [(rows.index((p.layer, p.head)), models.index(p.model)) for p in panels]
            self.rows, self.columns = len(rows), len(models)
        else:
            self.places = [(layers.index(p.layer), heads.index(p.head)) for p in panels]
            self.rows, self.columns = len(layers), len(heads)
        self.most_keys = max(len(panel.key_labels) for panel in panels)
        self.most_queries = max(len(panel.query_labels) for panel in panels)
        longest = max(len(_short(label)) for panel in panels for label in panel.key_labels)
        self.label_inches = 0.078 * (longest + 2) + 0.1

    def figure(self, width: float, height: float, right: float) -> tuple[Figure, list[tuple[Panel, Axes]]]:
        """A figure with one axes per panel, each `width` × `height` with its labels."""
        # Titles need this width even where panels are narrower.
        width = max(width, 2.6)
        figure = Figure(figsize=(self.columns * width + right, self.rows * height), layout=None)
        total_width, total_height = figure.get_size_inches()
        placed = []
        for panel, (row, column) in zip(self.panels, self.places, strict=True):
            left = column * width + self.label_inches
            bottom = (self.rows - 1 - row) * height
            inner = (width - self.label_inches - 0.35, height - 0.75)
            if right > 0.5:  # keys are labelled below the panel
                bottom, inner = bottom + self.label_inches, (inner[0], inner[1] - self.label_inches)
            else:  # keys are labelled to its right
                bottom, inner = bottom + 0.1, (width - 2 * self.label_inches, inner[1])
            box = (left / total_width, bottom / total_height, inner[0] / total_width, inner[1] / total_height)
            placed.append((panel, figure.add_axes(box)))
        return figure, placed


def _title(ax: Axes, panel: Panel, number: str = ".3f") -> None:
    where = f"layer {panel.layer}, head {panel.head}"
    if panel.pattern:
        mass = "none in view" if panel.mass is None else format(panel.mass, number)
        where += f"\nattention on {panel.pattern} words: {mass}"
    ax.set_title(_short(panel.model, 34) + "\n" + where, fontsize=8, loc="left", pad=5)


def _label_axis(axis: Axis, labels: Sequence[str], guided: frozenset[int], rotation: float = 0) -> None:
    """Label every index of an axis with its token and mark the guided ones."""
    shown = [f"▸ {_short(label)}" if at in guided else _short(label) for at, label in enumerate(labels)]
    axis.set_ticks(range(len(labels)), shown, rotation=rotation, fontsize=7.5)
    for at, (text, label) in enumerate(zip(axis.get_ticklabels(), labels, strict=True)):
        _mark(text, at in guided, label)


def _mark(text: Text, guided: bool, label: str) -> None:
    if guided:
        text.set_color(GUIDED)
        text.set_fontweight("bold")
    elif label == EARLIER:
        text.set_color("#777777")
        text.set_fontstyle("italic")


def _short(label: str, length: int = _LABEL_LENGTH) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"
