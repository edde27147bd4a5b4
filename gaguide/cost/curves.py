"""Predicted scaling curves: the same training on 1, 2, 4 … 1,024 GPUs, strong and weak. Not a measurement."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from gaguide.cost.estimate import CostEstimate, estimate
from gaguide.cost.hardware import GIB
from gaguide.cost.request import CostRequest
from gaguide.errors import UserError

LARGEST = 1024
"""Most GPUs of a curve."""
LABEL = "a model's prediction, not a measurement"
_DEFAULT_NODE = 8  # GPUs per node, if the request has one GPU only

Scaling = Literal["strong", "weak"]
"""strong: the global batch stays the same. weak: the share of each rank stays the same."""


@dataclass(frozen=True)
class ScalingPoint:
    """A training on one number of GPUs."""

    kind: Scaling
    """The curve it belongs to."""
    efficiency: float
    """Tokens per second and GPU, relative to one GPU, whether or not the model fits on that.

    One GPU has the same global batch if it can train it, else one rank's share.
    """
    cost: CostEstimate
    """The estimate for that number of GPUs."""

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return self.cost.request.ranks


def scaling_points(cost: CostEstimate) -> list[ScalingPoint]:
    """Points of both curves, without the numbers of GPUs on which training would be refused."""
    kinds: tuple[Scaling, ...] = ("strong", "weak")
    by_kind = {kind: _estimates(cost.request, kind) for kind in kinds}
    points = []
    for kind, estimates in by_kind.items():
        # The weak curve always starts at one GPU; the strong one only if its batch is allowed there.
        single = estimates[0] if estimates and estimates[0].request.ranks == 1 else by_kind["weak"][0]
        points += [ScalingPoint(kind, _speed_per_gpu(one) / _speed_per_gpu(single), one) for one in estimates]
    return points


def _speed_per_gpu(cost: CostEstimate) -> float:
    return cost.tokens_per_second / cost.request.ranks


def _estimates(request: CostRequest, kind: Scaling) -> list[CostEstimate]:
    made = []
    node = request.gpus if request.gpus > 1 else _DEFAULT_NODE
    for ranks in _gpu_counts(node):
        with suppress(UserError):  # what training would refuse on that many
            made.append(estimate(_scaled(request, ranks, node, kind)))
    return made


def _gpu_counts(node: int) -> list[int]:
    """1, 2, 4 … GPUs of one node of `node` GPUs, then 1, 2, 4 … nodes."""
    powers = [2**power for power in range(LARGEST.bit_length())]
    return [n for n in powers if n < node] + [node * n for n in powers if node * n <= LARGEST]


def _scaled(request: CostRequest, ranks: int, node: int, kind: Scaling) -> CostRequest:
    micro_batch, batch = request.setup.micro_batch, request.global_batch
    if kind == "weak":
        batch = batch // request.ranks * ranks
    elif batch % ranks == 0:
        share = batch // ranks
        micro_batch = max(size for size in range(1, min(share, micro_batch) + 1) if share % size == 0)
    gpus = min(ranks, node)
    return replace(request, gpus=gpus, nodes=ranks // gpus, global_batch=batch, micro_batch=micro_batch)


def to_csv(points: Sequence[ScalingPoint]) -> str:
    """CSV with one line per point, after a comment line and a header."""
    text = io.StringIO()
    text.write(f"# {LABEL}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["kind", "gpus", "nodes", "global_batch", "micro_batch", "step_seconds", "exposed_seconds",
         "tokens_per_second", "efficiency", "gib_a_gpu", "fits", "gpu_hours"]
    )  # fmt: skip
    for point in points:
        one, request = point.cost, point.cost.request
        hours = "" if one.gpu_hours is None else f"{one.gpu_hours:.2f}"
        writer.writerow(
            [point.kind, point.gpus, request.nodes, request.global_batch, request.setup.micro_batch,
             f"{one.step.total:.4f}", f"{one.step.exposed:.4f}", round(one.tokens_per_second),
             f"{point.efficiency:.4f}", f"{one.needed / GIB:.1f}", one.fits, hours]
        )  # fmt: skip
    return text.getvalue()


def draw(points: Sequence[ScalingPoint], title: str) -> Figure:
    """Figure of tokens per second and of efficiency over the number of GPUs."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(f"{title}\n{LABEL}", fontsize=10)
    speed, share = figure.subplots(1, 2)
    styles = {"strong": ("#D55E00", "solid", "o"), "weak": ("#0080C0", "dashed", "s")}
    for kind, (colour, dashes, marker) in styles.items():
        mine = [point for point in points if point.kind == kind]
        if not mine:
            continue
        request = mine[0].cost.request
        batch = request.global_batch
        held = f"global batch {batch}" if kind == "strong" else f"{batch} per GPU"
        gpus = [point.gpus for point in mine]
        for ax, values in (
            (speed, [point.cost.tokens_per_second for point in mine]),
            (share, [point.efficiency for point in mine]),
        ):
            ax.plot(gpus, values, color=colour, linestyle=dashes, linewidth=1.6, label=f"{kind}: {held}")
            for point, value in zip(mine, values):
                fill = colour if point.cost.fits else "white"
                ax.plot(point.gpus, value, marker, markersize=5, color=colour, markerfacecolor=fill)
    speed.set_yscale("log")
    speed.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    share.set_ylim(0, 1.1)
    _finish(speed, "tokens per second")
    _finish(share, "tokens per second and GPU, relative to one GPU")
    speed.legend(frameon=False, fontsize=9, title="hollow: does not fit", title_fontsize=8)
    return figure


def _finish(ax: Axes, title: str) -> None:
    ax.set_xscale("log", base=2)
    ticks = [4**power for power in range(6)]
    ax.set_xticks(ticks, [f"{count:,}" for count in ticks])
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("GPUs")
    ax.grid(alpha=0.25)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
