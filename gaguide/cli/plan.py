"""`gaguide plan`: memory, bytes on the wire, time and GPU-hours of a training before it runs."""

from __future__ import annotations

import json
import math
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gaguide.cli.options import takes
from gaguide.errors import Fault, FaultCollector, not_one_of

if TYPE_CHECKING:
    from rich.table import Table

    from gaguide.cost import CostEstimate, Measured, Spread

_CHOICES = {
    "precision": ("fp32", "bf16", "fp16", "autocast"),
    "offload_optimizer": ("none", "cpu", "nvme"),
    "offload_parameters": ("none", "cpu", "nvme"),
}
_GIB = 2**30


@dataclass(frozen=True)
class CostOptions:
    """Options that are fields of a `CostRequest`, under the same names except `stage`; None was not given."""

    gpus: Annotated[int, typer.Option(help="GPUs per node, one rank each.")] = 1
    nodes: Annotated[int, typer.Option(help="Number of nodes.")] = 1
    gpu: Annotated[
        str, typer.Option(help="GPU model: a100-80, h100, …; an unknown name lists all of them.")
    ] = "a100-80"
    link: Annotated[str, typer.Option(help="Network between nodes: ib-hdr, 100gbe, …")] = "ib-hdr"
    cards: Annotated[int, typer.Option(help="Network adapters per node.")] = 1
    block_length: Annotated[int | None, typer.Option(help="Tokens per sequence.", show_default="1024")] = None
    global_batch: Annotated[
        int | None, typer.Option(help="Sequences per optimizer step, over all ranks.", show_default="512")
    ] = None
    micro_batch: Annotated[
        int | None, typer.Option(help="Sequences per rank in a forward pass.", show_default="chosen")
    ] = None
    stage: Annotated[int | None, typer.Option(help="ZeRO stage, 0 to 3.", show_default="chosen")] = None
    offload_optimizer: Annotated[
        str | None, typer.Option(help="Offload of the optimizer: none, cpu or nvme.", show_default="chosen")
    ] = None
    offload_parameters: Annotated[
        str | None, typer.Option(help="Offload of the weights: none, cpu or nvme.", show_default="none")
    ] = None
    checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--checkpointing/--no-checkpointing",
            help="Recompute activations in backward.",
            show_default="chosen",
        ),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, bf16, fp16, or autocast at stage 0.", show_default="bf16; fp16 on GPUs without it"
        ),
    ] = None
    guided_heads: Annotated[
        int | None, typer.Option(help="Guided heads per layer, in every layer.", show_default="0")
    ] = None
    tokens: Annotated[float | None, typer.Option(help="Token budget, such as 1e9, for GPU-hours.")] = None

    def fields(self) -> dict[str, Any]:
        """Fields of a `CostRequest` by name; those that were not given are None."""
        given = asdict(self)
        given["zero_stage"] = given.pop("stage")
        finite = self.tokens is not None and math.isfinite(self.tokens)
        given["tokens"] = int(self.tokens) if self.tokens is not None and finite else None
        return given

    def faults(self) -> list[Fault]:
        """Values that are not one of their choices; `CostRequest` checks the rest."""
        faults = [
            not_one_of(f"--{name.replace('_', '-')}", value, choices)
            for name, choices in _CHOICES.items()
            if (value := getattr(self, name)) is not None and value not in choices
        ]
        if self.tokens is not None and not math.isfinite(self.tokens):
            faults.append(Fault("--tokens", "must be finite", "give a number such as 1e9", self.tokens))
        return faults


@takes(CostOptions)
def plan(
    options: CostOptions,
    model: Annotated[
        str | None,
        typer.Option(help="A GPT-2 size, a folder with a config.json, or a hub id; default: the run's."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A run's YAML: model, batch, block length, checkpointing, guided heads."),
    ] = None,
    deepspeed: Annotated[
        Path | None, typer.Option(help="DeepSpeed JSON: stage, precision, offload, buckets.")
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            help="A run's metrics.jsonl, on the same GPUs: its speed replaces the model's constants."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Estimate what a training costs. Settings that are not given are chosen: the simplest that are fast."""
    from dataclasses import replace

    from gaguide.cost import assemble_request, estimate, read_measured, recommend

    with FaultCollector() as faults:
        faults.add(*options.faults())
        # DeepSpeed's logger keeps the standard output of its first import, which must not end up in the JSON.
        with redirect_stdout(sys.stderr):
            request, open_settings = assemble_request(model, config, deepspeed, options.fields())
            run = read_measured(measured, request) if measured is not None else None
    if run is not None:
        request = replace(request, pace=run.pace)
    best = recommend(request, open_settings)[0] if open_settings else estimate(request)
    if as_json:
        speeds = _range(best, run).speeds(best.tokens_per_second)
        extra = {"chosen": open_settings, "tokens_per_second_range": list(speeds)}
        extra["measured"] = None if run is None else asdict(run)
        typer.echo(json.dumps(best.as_record() | extra, indent=2))
    else:
        _print(best, open_settings, run)


def _range(cost: CostEstimate, measured: Measured | None) -> Measured | Spread:
    """Basis of the range of speeds: the run that was measured, or the errors on published runs."""
    from gaguide.cost import spread

    return measured if measured is not None else spread(cost.request.gpu)


def _reason(cost: CostEstimate, measured: Measured | None) -> str:
    """Basis of the range of speeds, in words."""
    from gaguide.cost import spread

    if measured is not None:
        return (
            f"Times: scaled to the measured run's {measured.tokens_per_second:,.0f} tokens per second "
            f"({measured.ranks} ranks, {measured.steps} logged steps), {measured.pace:.2g} times the model's."
        )
    of = spread(cost.request.gpu)
    names = ", ".join(dict.fromkeys(run.source for run in of.runs))
    where = f"on {cost.request.gpu}" if of.own_gpu else f"on other GPUs (none is known on {cost.request.gpu})"
    return (
        f"Times: a model, not a measurement. {len(of.runs)} published runs {where} reached "
        f"{of.slowest:.2f} to {of.fastest:.2f} times its speed ({names}). "
        "Better: a run of your own, with --measured METRICS.jsonl."
    )


def _print(cost: CostEstimate, chosen: list[str], measured: Measured | None) -> None:
    from rich.console import Console

    console, request, setup = Console(), cost.request, cost.request.setup
    ranks = f"{request.nodes} × {request.gpus} {request.gpu}"
    console.print(
        f"{request.model.parameters:,} parameters in {request.precision} on {ranks}"
        + (f" over {request.cards} × {request.link}" if request.nodes > 1 else "")
    )
    if request.trained is not None:
        share = request.trained / (request.model.parameters + request.added)
        kind = "of adapters on a frozen model" if request.added else "the others are frozen"
        console.print(f"{request.trained:,} parameters ({share:.2%}) are trained: {kind}")
    console.print(
        f"ZeRO {request.zero_stage}, batch {request.global_batch} = {setup.micro_batch} × "
        f"{setup.accumulation} accumulation × {request.ranks} ranks, blocks of {request.block_length}, "
        f"checkpointing {'on' if request.checkpointing else 'off'}, "
        f"optimizer offload {request.offload_optimizer}"
        + (f", {request.guided_heads} guided heads per layer" if request.guided_heads else "")
    )
    if chosen:
        console.print(
            f"chosen: {', '.join(chosen).replace('_', ' ')} (the simplest that fits, among those that the "
            "model cannot distinguish from the fastest)"
        )
    console.print(_memory_table(cost))
    console.print(_time_table(cost, _range(cost, measured)))
    console.print(_reason(cost, measured))
    console.print("docs/scaling.md lists the model's assumptions and what was checked.")


def _memory_table(cost: CostEstimate) -> Table:
    from rich.table import Table

    memory = cost.memory
    table = Table("memory per GPU", "GiB", show_edge=False, pad_edge=False)
    for name, size in memory.parts().items():
        if size and name not in ("host", "disk", "standing"):
            table.add_row(f"  {name.replace('_', ' ')}", f"{size / _GIB:.2f}")
    other, size = cost.other_activations
    table.add_row(f"  (activations {other} checkpointing)", f"{size / _GIB:.2f}")
    table.add_row(f"peak ({memory.peak_phase})", f"{memory.peak / _GIB:.2f}")
    fits = "fits" if cost.fits else "DOES NOT FIT"
    table.add_row(
        "with context and fragmentation", f"{cost.needed / _GIB:.2f} of {cost.capacity / _GIB:.0f}: {fits}"
    )
    for name, where in (("host", "host memory"), ("disk", "NVMe")):
        if size := memory.parts()[name]:
            table.add_row(f"{where} per node", f"{size * cost.request.gpus / _GIB:.1f}")
    return table


def _time_table(cost: CostEstimate, known: Measured | Spread) -> Table:
    from rich.table import Table

    step, (slow, fast) = cost.step, known.speeds(cost.tokens_per_second)
    table = Table("time per step", "seconds", show_edge=False, pad_edge=False)
    for name, seconds in (
        ("matrix products", step.compute),
        ("elementwise", step.elementwise),
        ("waiting for the host", step.waiting),
        (f"exposed communication (of {step.wire:.3f})", step.exposed),
        ("optimizer", step.update),
        ("step", step.total),
    ):
        table.add_row(f"  {name}" if name != "step" else name, f"{seconds:.3f}")
    for name, text in (
        ("sent per rank and step", f"{cost.sent_bytes / 1e9:.2f} GB"),
        ("tokens per second", f"{cost.tokens_per_second:,.0f} ({slow:,.0f} to {fast:,.0f})"),
        ("scaling efficiency", f"{step.efficiency:.1%}"),
        ("model FLOPs utilisation", f"{cost.utilisation:.1%}"),
    ):
        table.add_row(name, text)
    if cost.gpu_hours is not None and cost.hours is not None:
        for name, hours, unit in (
            (f"{cost.request.tokens:,} tokens, {cost.steps:,} steps", cost.hours, " h"),
            ("GPU-hours", cost.gpu_hours, ""),
        ):
            least, most = known.times(hours)
            table.add_row(name, f"{_hours(hours)}{unit} ({_hours(least)} to {_hours(most)})")
    return table


def _hours(hours: float) -> str:
    """Hours with a decimal, and two digits below 1."""
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"
