"""What a study would take, cell by cell, before it runs: memory and GPU-hours by gaguide.cost's model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from gaguide.cost import CostEstimate, CostRequest, estimate, with_deepspeed, with_run
from gaguide.data.build.python_reference import VOCABULARY_SIZE
from gaguide.data.format.manifest import Manifest, is_complete, read_manifest
from gaguide.engine.config import load_deepspeed_json
from gaguide.errors import Fault, UserError
from gaguide.model import SIZES, ModelShape, scratch_config, shape_of
from gaguide.model.sizes import GPT2_VOCABULARY
from gaguide.study.grid import Cell, Grid
from gaguide.study.state import read_state

_GIB = 2**30


@dataclass(frozen=True)
class CellPlan:
    """A trained cell's plan; `problem` instead where there can be none. tokens: None while not known."""

    cell: Cell
    done: bool
    plan: CostEstimate | None
    tokens: int | None
    problem: str | None = None


def plan_cells(grid: Grid, gpu: str) -> Iterator[CellPlan]:
    """The plan of every cell that is trained, on its ranks as GPUs of one node."""
    manifest = _manifest(grid)
    sizes = {size.name: size.model or size.name for size in grid.study.sizes}
    for cell in grid.cells:
        if cell.run is None:
            continue
        done, tokens = read_state(grid, cell).state == "done", _tokens(grid, cell, manifest)
        try:
            shape = _shape(sizes[cell.size], grid, manifest)
            request = CostRequest(shape, gpus=cell.ranks, gpu=gpu, tokens=tokens)
            request = with_deepspeed(with_run(request, cell.run), load_deepspeed_json(cell.ds_config))
            if cell.run.guidance.weight == 0:
                request = replace(request, guided_heads=0)
            yield CellPlan(cell, done, estimate(request), tokens)
        except UserError as error:
            problem = "; ".join(f"{fault.field} {fault.problem}" for fault in error.faults)
            yield CellPlan(cell, done, None, tokens, problem)


def print_plan(grid: Grid, gpu: str) -> None:
    """The table of `--dry-run`, and its sums."""
    table = Table(title=f"{grid.study.name} on {gpu}: a model, not a measurement")
    table.add_column("cell", overflow="fold")
    for name in ("ranks", "tokens", "GiB a rank", "tokens/s", "GPU-hours"):
        table.add_column(name, justify="right")
    planned = list(plan_cells(grid, gpu))
    for one in planned:
        tokens = "?" if one.tokens is None else f"{one.tokens / 1e6:,.4g}M"
        row = [one.cell.id + (" (done)" if one.done else ""), str(one.cell.ranks), tokens]
        plan = one.plan
        if plan is None:
            table.add_row(*row, one.problem)
            continue
        needed = f"{plan.needed / _GIB:.1f} of {plan.capacity / _GIB:.0f}" + ("" if plan.fits else " !")
        hours = "?" if plan.gpu_hours is None else _hours(plan.gpu_hours)
        table.add_row(*row, needed, f"{plan.tokens_per_second:,.0f}", hours)
    console = Console()
    console.print(table)
    for line in _sums(grid, planned):
        console.print(line, highlight=False)


def _sums(grid: Grid, planned: list[CellPlan]) -> Iterator[str]:
    evaluated = sum(cell.model is not None for cell in grid.cells)
    yield f"{len(planned)} cells to train, {evaluated} to evaluate on {', '.join(grid.study.tasks)}"
    plans = [one.plan for one in planned if not one.done and one.plan is not None]
    hours = [plan.gpu_hours for plan in plans if plan.gpu_hours is not None]
    if hours:
        yield f"training left: {_hours(sum(hours))} GPU-hours, evaluation and starts not counted"
    if len(hours) < len(plans):
        yield "? give data_tokens, or build the data: an epoch has an unknown number of tokens"
    if any(not plan.fits for plan in plans):
        yield "! more than the GPU has: gaguide plan finds settings that fit"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _manifest(grid: Grid) -> Manifest | None:
    name = grid.study.data.shards
    path = Path(name).expanduser() if name and "://" not in name else None
    return read_manifest(path) if path is not None and path.is_dir() and is_complete(path) else None


def _shape(model: str, grid: Grid, manifest: Manifest | None) -> ModelShape:
    """Of a named size by arithmetic, so that a plan needs no hub; else from the model's configuration."""
    if model not in SIZES:
        try:
            return shape_of(AutoConfig.from_pretrained(model, trust_remote_code=False))
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(Fault("model", f"cannot be loaded ({reason})", "give a folder", model)) from None
    vocabulary = manifest.vocab_size if manifest else GPT2_VOCABULARY
    if grid.study.data.shards == "embedded":
        vocabulary = VOCABULARY_SIZE
    return shape_of(scratch_config(SIZES[model], vocabulary, None))


def _tokens(grid: Grid, cell: Cell, manifest: Manifest | None) -> int | None:
    """Of a cell; with `epochs`, from the data where it is built, else from what the study says of it."""
    run = cell.run
    assert run is not None
    if run.train.steps is not None:
        return run.train.steps * run.train.global_batch * run.data.block_length
    built = sum(shard.tokens for shard in manifest.splits["train"]) if manifest else grid.study.data_tokens
    return None if built is None or run.train.epochs is None else round(run.train.epochs * built)
