"""`gaguide plan`: memory, time, bytes on the wire and GPU-hours of a training, before it runs."""

from __future__ import annotations

import json
import math
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gaguide.errors import Fault, UserError

if TYPE_CHECKING:
    from rich.table import Table

    from gaguide.cost import Plan

_WORDS = {
    "precision": ("fp32", "bf16", "fp16", "autocast"),
    "offload_optimizer": ("none", "cpu", "nvme"),
    "offload_parameters": ("none", "cpu", "nvme"),
}
_GIB = 2**30


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan)


def plan(
    model: Annotated[
        str | None,
        typer.Option(help="gpt2 … gpt2-xl, a folder with a config.json, or a hub id; else the run's."),
    ] = None,
    gpus: Annotated[int, typer.Option(help="GPUs on each node, one rank each.")] = 1,
    nodes: Annotated[int, typer.Option(help="Nodes.")] = 1,
    gpu: Annotated[
        str, typer.Option(help="Kind of GPU: a100-80, h100, …; a wrong name lists all.")
    ] = "a100-80",
    link: Annotated[str, typer.Option(help="Network between nodes: ib-hdr, 100gbe, …")] = "ib-hdr",
    cards: Annotated[int, typer.Option(help="Network cards of a node.")] = 1,
    config: Annotated[
        Path | None,
        typer.Option(help="A run's YAML: model, batch, block length, checkpointing, guided heads."),
    ] = None,
    deepspeed: Annotated[
        Path | None, typer.Option(help="DeepSpeed JSON: stage, precision, offload, buckets.")
    ] = None,
    block_length: Annotated[
        int | None, typer.Option(help="Tokens of a sequence.", show_default="1024")
    ] = None,
    global_batch: Annotated[
        int | None, typer.Option(help="Sequences in a step, over all ranks.", show_default="512")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Sequences of a rank in a forward pass.", show_default="chosen")
    ] = None,
    stage: Annotated[int | None, typer.Option(help="ZeRO stage.", show_default="chosen")] = None,
    offload_optimizer: Annotated[
        str | None, typer.Option(help="none, cpu or nvme.", show_default="chosen")
    ] = None,
    offload_parameters: Annotated[
        str | None, typer.Option(help="none, cpu or nvme.", show_default="none")
    ] = None,
    checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--checkpointing/--no-checkpointing", help="Recompute activations.", show_default="chosen"
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, fp16, or autocast at stage 0.", show_default="bf16, fp16 on a V100"),
    ] = None,
    guided_heads: Annotated[
        int | None, typer.Option(help="Guided heads of every layer.", show_default="0")
    ] = None,
    tokens: Annotated[float | None, typer.Option(help="Token budget, such as 1e9, for GPU-hours.")] = None,
    curves: Annotated[
        Path | None, typer.Option(help="Write curves to 1,024 GPUs: .png, .svg, .pdf or .csv.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Say what a training would take. Settings that are not given are chosen: the fastest that fit."""
    options = {
        "gpus": gpus,
        "nodes": nodes,
        "gpu": gpu,
        "link": link,
        "cards": cards,
        "block_length": block_length,
        "global_batch": global_batch,
        "micro_batch": micro_batch,
        "zero_stage": stage,
        "offload_optimizer": offload_optimizer,
        "offload_parameters": offload_parameters,
        "checkpointing": checkpointing,
        "precision": precision,
        "guided_heads": guided_heads,
        "tokens": int(tokens) if tokens is not None and math.isfinite(tokens) else None,
    }
    from gaguide.cost import assemble, estimate, recommend

    faults = _words(options) + _curves_fault(curves)
    if tokens is not None and not math.isfinite(tokens):
        faults.append(Fault("--tokens", "is no number of tokens", "give one such as 1e9", tokens))
    try:
        # DeepSpeed's logger writes to what standard output is when it is first imported: not into the JSON.
        with redirect_stdout(sys.stderr):
            request, free = assemble(model, config, deepspeed, options)
    except UserError as error:
        raise UserError([*faults, *error.faults]) from None
    if faults:
        raise UserError(faults)
    best = recommend(request, free)[0] if free else estimate(request)
    if as_json:
        typer.echo(json.dumps(best.as_record() | {"chosen": free}, indent=2))
    else:
        _print(best, free)
    if curves is not None:
        _write_curves(best, model or str(config), curves)
        typer.echo(f"wrote {curves}", err=as_json)


def _words(options: dict[str, object]) -> list[Fault]:
    return [
        Fault(
            "--" + name.replace("_", "-"), "is none of its words", f"give {', '.join(words)}", options[name]
        )
        for name, words in _WORDS.items()
        if options[name] is not None and options[name] not in words
    ]


def _curves_fault(path: Path | None) -> list[Fault]:
    from gaguide.figures import check_figure_path

    return [] if path is None else check_figure_path(path, "--curves", also=(".csv",))


def _write_curves(plan: Plan, model: str, path: Path) -> None:
    from gaguide.cost.curves import curves, draw, to_csv
    from gaguide.figures import save_figure
    from gaguide.files import write_text

    points, request = curves(plan), plan.request
    if path.suffix.lower() == ".csv":
        write_text(path, to_csv(points))
        return
    title = f"{model} on {request.gpu}, {request.link} × {request.cards}, ZeRO {request.zero_stage}"
    save_figure(draw(points, title), path)


def _print(plan: Plan, free: list[str]) -> None:
    from rich.console import Console

    console, request, setup = Console(), plan.request, plan.request.setup
    ranks = f"{request.nodes} × {request.gpus} {request.gpu}"
    console.print(
        f"{request.model.parameters:,} parameters in {request.precision} on {ranks}"
        + (f" over {request.cards} × {request.link}" if request.nodes > 1 else "")
    )
    console.print(
        f"ZeRO {request.zero_stage}, batch {request.global_batch} = {setup.micro_batch} × "
        f"{setup.accumulation} accumulation × {request.ranks} ranks, blocks of {request.block_length}, "
        f"checkpointing {'on' if request.checkpointing else 'off'}, "
        f"optimizer offload {request.offload_optimizer}"
        + (f", {request.guided_heads} guided heads a layer" if request.guided_heads else "")
    )
    if free:
        console.print(f"chosen as the fastest that fits: {', '.join(free).replace('_', ' ')}")
    console.print(_memory(plan))
    console.print(_time(plan))
    console.print("A model, not a measurement: docs/scaling.md says what it assumes and what was checked.")


def _memory(plan: Plan) -> Table:
    from rich.table import Table

    memory = plan.memory
    table = Table("memory of a GPU", "GiB", show_edge=False, pad_edge=False)
    for name, size in memory.parts().items():
        if size and name not in ("host", "disk", "standing"):
            table.add_row(f"  {name.replace('_', ' ')}", f"{size / _GIB:.2f}")
    other, size = plan.other_activations
    table.add_row(f"  (activations {other} checkpointing)", f"{size / _GIB:.2f}")
    table.add_row(f"most at one moment ({memory.peak_phase})", f"{memory.peak / _GIB:.2f}")
    fits = "fits" if plan.fits else "DOES NOT FIT"
    table.add_row(
        "with context and fragmentation", f"{plan.needed / _GIB:.2f} of {plan.capacity / _GIB:.0f}: {fits}"
    )
    for name, where in (("host", "host memory"), ("disk", "NVMe")):
        if size := memory.parts()[name]:
            table.add_row(f"{where} of a node", f"{size * plan.request.gpus / _GIB:.1f}")
    return table


def _time(plan: Plan) -> Table:
    from rich.table import Table

    step = plan.step
    table = Table("time of a step", "seconds", show_edge=False, pad_edge=False)
    for name, seconds in (
        ("matrix products", step.compute),
        ("elementwise", step.elementwise),
        ("waiting for the host", step.waiting),
        (f"communication not hidden (of {step.wire:.3f})", step.exposed),
        ("optimizer", step.update),
        ("step", step.total),
    ):
        table.add_row(f"  {name}" if name != "step" else name, f"{seconds:.3f}")
    for name, text in (
        ("sent by a rank in a step", f"{plan.sent_bytes / 1e9:.2f} GB"),
        ("tokens a second", f"{plan.tokens_per_second:,.0f}"),
        ("scaling efficiency", f"{step.efficiency:.1%}"),
        ("model FLOPs utilisation", f"{plan.utilisation:.1%}"),
    ):
        table.add_row(name, text)
    if plan.gpu_hours is not None and plan.hours is not None:
        table.add_row(f"{plan.request.tokens:,} tokens, {plan.steps:,} steps", f"{plan.hours:,.1f} h")
        table.add_row("GPU-hours", f"{plan.gpu_hours:,.1f}")
    return table
