"""How a plan scales, by the same model: 1, 2, 4 … 1,024 GPUs, strong and weak. Not a measurement."""

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

from gaguide.cost.estimate import Plan, estimate
from gaguide.cost.request import PlanRequest
from gaguide.errors import UserError

LARGEST = 1024
LABEL = "a model's prediction, not a measurement"
_NODE = 8  # GPUs of a node where the plan has one GPU only

Kind = Literal["strong", "weak"]


@dataclass(frozen=True)
class Point:
    """One number of GPUs. strong: the global batch stays; weak: each rank's share stays.

    efficiency: tokens per second and GPU, against one GPU (whether the model fits on it or not), of the same
    global batch where one GPU could train it, else of one rank's share.
    """

    kind: Kind
    gpus: int
    nodes: int
    efficiency: float
    plan: Plan


def curves(plan: Plan) -> list[Point]:
    """Points of both kinds; one only where that many GPUs could train so."""
    kinds: tuple[Kind, ...] = ("strong", "weak")
    by_kind = {kind: _plans(plan, kind) for kind in kinds}
    points = []
    for kind, plans in by_kind.items():
        # The weak curve begins at one GPU always, the strong one where its batch needs no refused setting.
        alone = plans[0] if plans and plans[0].request.ranks == 1 else by_kind["weak"][0]
        points += [
            Point(kind, one.request.ranks, one.request.nodes, _a_gpu(one) / _a_gpu(alone), one)
            for one in plans
        ]
    return points


def _a_gpu(plan: Plan) -> float:
    """Tokens per second and GPU."""
    return plan.tokens_per_second / plan.request.ranks


def _plans(plan: Plan, kind: Kind) -> list[Plan]:
    made = []
    node = plan.request.gpus if plan.request.gpus > 1 else _NODE
    for ranks in _counts(node):
        with suppress(UserError):  # what training would refuse on so many
            made.append(estimate(_scaled(plan, ranks, node, kind)))
    return made


def _counts(node: int) -> list[int]:
    """1, 2, 4 … GPUs of a node that has `node`, then 1, 2, 4 … nodes."""
    powers = [2**power for power in range(LARGEST.bit_length())]
    return [n for n in powers if n < node] + [node * n for n in powers if node * n <= LARGEST]


def _scaled(plan: Plan, ranks: int, node: int, kind: Kind) -> PlanRequest:
    request, micro_batch = plan.request, plan.request.setup.micro_batch
    batch = request.global_batch
    if kind == "weak":
        batch = batch // request.ranks * ranks
    elif batch % ranks == 0:
        share = batch // ranks
        micro_batch = max(size for size in range(1, min(share, micro_batch) + 1) if share % size == 0)
    gpus = min(ranks, node)
    return replace(request, gpus=gpus, nodes=ranks // gpus, global_batch=batch, micro_batch=micro_batch)


def to_csv(points: Sequence[Point]) -> str:
    """A line a point."""
    text = io.StringIO()
    text.write(f"# {LABEL}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["kind", "gpus", "nodes", "global_batch", "micro_batch", "step_seconds", "exposed_seconds",
         "tokens_per_second", "efficiency", "gib_a_gpu", "fits", "gpu_hours"]
    )  # fmt: skip
    for point in points:
        one, request = point.plan, point.plan.request
        hours = "" if one.gpu_hours is None else f"{one.gpu_hours:.2f}"
        writer.writerow(
            [point.kind, point.gpus, point.nodes, request.global_batch, request.setup.micro_batch,
             f"{one.step.total:.4f}", f"{one.step.exposed:.4f}", round(one.tokens_per_second),
             f"{point.efficiency:.4f}", f"{one.needed / 2**30:.1f}", one.fits, hours]
        )  # fmt: skip
    return text.getvalue()


def draw(points: Sequence[Point], title: str) -> Figure:
    """Tokens a second, and efficiency, over the number of GPUs."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(f"{title}\n{LABEL}", fontsize=10)
    speed, share = figure.subplots(1, 2)
    styles = {"strong": ("#D55E00", "solid", "o"), "weak": ("#0080C0", "dashed", "s")}
    for kind, (colour, dashes, marker) in styles.items():
        mine = [point for point in points if point.kind == kind]
        if not mine:
            continue
        request = mine[0].plan.request
        held = f"global batch {request.global_batch}" if kind == "strong" else f"{request.global_batch} a GPU"
        gpus = [point.gpus for point in mine]
        for ax, values in (
            (speed, [point.plan.tokens_per_second for point in mine]),
            (share, [point.efficiency for point in mine]),
        ):
            ax.plot(gpus, values, color=colour, linestyle=dashes, linewidth=1.6, label=f"{kind}: {held}")
            for point, value in zip(mine, values):
                fill = colour if point.plan.fits else "white"
                ax.plot(point.gpus, value, marker, markersize=5, color=colour, markerfacecolor=fill)
    speed.set_yscale("log")
    speed.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    share.set_ylim(0, 1.1)
    _finish(speed, "tokens a second")
    _finish(share, "tokens a second and GPU, against one GPU")
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
