"""Estimated cost of a study before it runs: memory and GPU-hours of each cell, by `gaguide.cost`, and of
measuring it (`measuring_cost`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, PretrainedConfig

from gaguide.config import GuidanceSection
from gaguide.config.data import EMBEDDED_SHARDS
from gaguide.cost import GPUS, CostEstimate, CostRequest, Spread, estimate, spread, with_deepspeed, with_run
from gaguide.data.build.python_reference import EMBEDDED_VOCABULARY
from gaguide.data.format.manifest import Manifest, is_complete, read_manifest
from gaguide.engine.config import load_deepspeed_json
from gaguide.errors import Fault, FaultCollector, UserError, not_one_of, reworded
from gaguide.grouping import grouped
from gaguide.model import SIZES, ModelShape, scratch_config, shape_of
from gaguide.model.sizes import GPT2_VOCABULARY
from gaguide.study.grid import Cell, Grid
from gaguide.study.measuring_cost import measuring_lines, plan_heads
from gaguide.study.state import read_state

_GIB = 2**30


@dataclass(frozen=True)
class CellCost:
    """The estimated cost of training a cell."""

    cell: Cell
    """The cell."""
    done: bool
    """Whether it is done already."""
    tokens: int | None
    """Training tokens; None while the data's number of tokens is unknown."""
    estimate: CostEstimate | None
    """The estimate; None where `problem` says why there is none."""
    problem: str | None = None
    """Why the cost cannot be estimated."""


def estimate_cells(grid: Grid, gpu: str) -> Iterator[CellCost]:
    """The cost of every trained cell, with a GPU of model `gpu` for each rank, on one node."""
    manifest = _manifest(grid)
    sizes = {size.name: size.model or size.name for size in grid.study.sizes}
    for cell in grid.cells:
        if cell.run is None:
            continue
        done, tokens = read_state(grid, cell).state == "done", _tokens(grid, cell, manifest)
        try:
            config = size_config(sizes[cell.size], grid, manifest)
            request = CostRequest(shape_of(config), gpus=cell.ranks, gpu=gpu, tokens=tokens)
            request = with_deepspeed(with_run(request, cell.run, config), load_deepspeed_json(cell.ds_config))
            if cell.run.guidance.weight == 0:
                request = replace(request, guided_heads=0)
            yield CellCost(cell, done, tokens, estimate(request))
        except UserError as error:
            problem = "; ".join(f"{fault.field} {fault.problem}" for fault in error.faults)
            yield CellCost(cell, done, tokens, None, problem)


def check_plans(grid: Grid) -> None:
    """Raise a `UserError` with every plan of heads that the model of a size does not have.

    Models that cannot be found now are left to their training.
    """
    plans: dict[str, dict[str, GuidanceSection]] = {}
    for cell in grid.cells:
        if cell.run is not None and cell.names_heads:
            plans.setdefault(cell.size, {}).setdefault(cell.experiment, cell.run.guidance)
    with FaultCollector() as faults:
        for size in (size for size in grid.study.sizes if size.name in plans):
            with suppress(UserError):
                shape = size_config(size.model or size.name, grid, None).get_text_config()
                for experiment, section in plans[size.name].items():
                    where = f" ({size.name}, {experiment})"
                    with faults.catching(), reworded(_at(where)):
                        plan_heads(section).resolve(shape.num_hidden_layers, shape.num_attention_heads)


def _at(where: str) -> Callable[[Fault], Fault]:
    return lambda fault: replace(fault, problem=fault.problem + where)


def print_costs(grid: Grid, gpu: str) -> None:
    """Print the table of `gaguide study run --dry-run`, one row for all seeds, and its sums.

    Speeds and hours are ranges: the model's estimate, divided and multiplied by its errors on published runs.
    """
    if gpu not in GPUS:
        raise UserError(not_one_of("--gpu", gpu, GPUS))
    known = spread(gpu)
    table = Table(title=f"{grid.study.name} on {gpu}: a model, not a measurement")
    table.add_column("size", overflow="fold")
    table.add_column("experiment", overflow="fold")
    for name in ("seeds", "ranks", "tokens", "GiB a rank", "tokens/s", "GPU-hours"):
        table.add_column(name, justify="right")
    costs = list(estimate_cells(grid, gpu))
    rows = grouped(((cost.cell.size, cost.cell.experiment or cost.cell.role), cost) for cost in costs)
    for (size, experiment), cells in rows.items():
        table.add_row(size, experiment, *_row(cells, known))
    console = Console()
    console.print(table)
    for line in (*_sums(grid, costs, known), *_measuring(grid, gpu, known)):
        console.print(line, highlight=False)


def _row(cells: list[CellCost], known: Spread) -> list[str]:
    """Columns of a row of cells that differ in their seed only; some of them may be done."""
    cost, done = cells[0], sum(cell.done for cell in cells)
    seeds = str(len(cells)) + (f" ({done} done)" if done else "")
    tokens = "?" if cost.tokens is None else f"{cost.tokens / 1e6:,.4g}M"
    found = cost.estimate
    if found is None:
        return [seeds, str(cost.cell.ranks), tokens, str(cost.problem)]
    needed = f"{found.needed / _GIB:.1f} of {found.capacity / _GIB:.0f}" + ("" if found.fits else " !")
    slow, fast = known.speeds(found.tokens_per_second)
    speeds = (
        f"{slow:,.3g} to {fast:,.3g}"
        if found.tokens_per_second < 1000
        else f"{slow / 1000:,.0f} to {fast / 1000:,.0f} thousand"
    )
    hours = "?" if found.gpu_hours is None else _hours(found.gpu_hours * len(cells), known)
    return [seeds, str(cost.cell.ranks), tokens, needed, speeds, hours]


def _sums(grid: Grid, costs: list[CellCost], known: Spread) -> Iterator[str]:
    evaluated = sum(cell.model is not None for cell in grid.cells)
    yield f"{len(costs)} cells to train, {evaluated} to evaluate on {', '.join(grid.study.tasks)}"
    estimates = [cost.estimate for cost in costs if not cost.done and cost.estimate is not None]
    hours = [one.gpu_hours for one in estimates if one.gpu_hours is not None]
    if hours:
        yield f"training left: {_hours(sum(hours), known)} GPU-hours, without starts"
        where = "this GPU" if known.own_gpu else "other GPUs"
        yield f"ranges: {len(known.runs)} published runs on {where} reached {known.slowest:.2f} to " + (
            f"{known.fastest:.2f} times the predicted speed"
        )
    if len(hours) < len(estimates):
        yield "? give data_tokens, or build the data: an epoch has an unknown number of tokens"
    if any(not one.fits for one in estimates):
        yield "! more than the GPU has: gaguide plan finds settings that fit"


def _measuring(grid: Grid, gpu: str, known: Spread) -> Iterator[str]:
    """Cost of evaluation and of the removal of heads, for the sizes whose shape is known."""
    manifest, shapes = _manifest(grid), {}
    for size in grid.study.sizes:
        with suppress(UserError):  # its row of the table gives the reason
            shapes[size.name] = size_shape(size.model or size.name, grid, manifest)
    return measuring_lines(grid, shapes, gpu, (1 / known.fastest, 1 / known.slowest))


def _hours(hours: float, known: Spread) -> str:
    """GPU-hours as a range."""
    low, high = known.times(hours)
    if high < 0.01:
        return "< 0.01"
    return " to ".join(f"{each:,.0f}" if each >= 100 else f"{each:.2g}" for each in (low, high))


def _manifest(grid: Grid) -> Manifest | None:
    name = grid.study.data.shards
    path = Path(name).expanduser() if name and "://" not in name else None
    return read_manifest(path) if path is not None and path.is_dir() and is_complete(path) else None


def size_shape(model: str, grid: Grid, manifest: Manifest | None) -> ModelShape:
    """The shape of a model of the study."""
    return shape_of(size_config(model, grid, manifest))


def size_config(model: str, grid: Grid, manifest: Manifest | None) -> PretrainedConfig:
    """The configuration of a model; that of a known size needs no hub."""
    if model not in SIZES:
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(model, trust_remote_code=False)
            return config
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError.of("model", f"cannot be loaded ({reason})", "give a folder", model) from None
    vocabulary = manifest.vocab_size if manifest else GPT2_VOCABULARY
    if grid.study.data.shards == EMBEDDED_SHARDS:
        vocabulary = EMBEDDED_VOCABULARY
    return scratch_config(SIZES[model], vocabulary, None)


def _tokens(grid: Grid, cell: Cell, manifest: Manifest | None) -> int | None:
    """A cell's training tokens; those of an epoch from the built data, else from `data_tokens`."""
    run = cell.run
    assert run is not None
    if run.train.steps is not None:
        return run.train.steps * run.train.global_batch * run.data.block_length
    built = sum(shard.tokens for shard in manifest.splits["train"]) if manifest else grid.study.data_tokens
    return None if built is None or run.train.epochs is None else round(run.train.epochs * built)
