"""Estimated cost of measuring a study's models before it runs: their evaluation, and the removal of heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gaguide.ablate.subjects import choose_subjects, count_passes
from gaguide.config import GuidanceSection
from gaguide.config.experiments import EXPERIMENTS
from gaguide.cost import GPUS
from gaguide.cost.flops import flops_per_token
from gaguide.errors import UserError
from gaguide.evaluate.tasks.locate import split_names
from gaguide.evaluate.tasks.read import read_tasks
from gaguide.guidance.patterns import TokenSet
from gaguide.guidance.plan import Assignment, GuidancePlan
from gaguide.model import ModelShape
from gaguide.study.grid import Cell, Grid
from gaguide.study.state import is_evaluated, needs_ablation

_CHARACTERS = 4
"""Approximate number of characters of a token of English text."""


@dataclass(frozen=True)
class MeasuringCost:
    """Remaining cost of one kind of measurement."""

    cells: int
    """Cells that have not been measured."""
    passes: tuple[float, float]
    """Fewest and most passes over the text of a cell; 1 for an evaluation."""
    tokens: float
    """Tokens of all passes of all cells."""
    gpu_seconds: float
    """GPU-seconds of them, from the matrix products in the model of `gaguide.cost`."""


def evaluation_cost(grid: Grid, shapes: Mapping[str, ModelShape], gpu: str) -> MeasuringCost | None:
    """Cost of evaluating the cells that have no evaluation yet, of sizes whose shape is known.

    Prompts that several answers share are counted once; tokens are characters divided by four. None if a
    task's data cannot be read now.
    """
    study = grid.study
    folder = None if study.task_data is None else Path(study.task_data).expanduser()
    try:
        read = read_tasks(split_names(study.tasks), folder, study.evaluate.limit, shots=study.evaluate.shots)
    except UserError:
        return None
    texts = [one for data in read for one in data.examples]
    characters = sum(len(text) for one in texts for text in (*one.prompts, *one.continuations))
    longest = max((len("".join(one.prompts)) for one in texts), default=0) // _CHARACTERS
    tokens = characters / _CHARACTERS
    known = [one for one in grid.cells if one.model is not None and one.size in shapes]
    cells = [one for one in known if not is_evaluated(grid, one)]
    seconds = 0.0
    for cell in cells:
        shape = shapes[cell.size]
        length = min(longest, shape.positions or longest)
        seconds += tokens * flops_per_token(shape, max(length, 1)).forward / _speed(grid, gpu)
    return MeasuringCost(len(cells), (1.0, 1.0), tokens * len(cells), seconds)


def ablation_cost(grid: Grid, shapes: Mapping[str, ModelShape], gpu: str) -> MeasuringCost | None:
    """Cost of removing the heads of the cells where that is not done yet, of sizes whose shape is known; None
    if there is no such cell."""
    settings, length = grid.study.ablation, grid.study.data.block_length
    if settings is None:
        return None
    found, tokens, seconds = [], settings.blocks * length, 0.0
    for cell in grid.cells:
        shape = shapes.get(cell.size)
        if shape is None or not needs_ablation(grid, cell):
            continue
        passes, logits = ablation_passes(grid, cell, shape)
        found.append(passes)
        flops = flops_per_token(shape, length)
        seconds += tokens * ((flops.forward - flops.logits) * passes + flops.logits * logits)
    if not found:
        return None
    return MeasuringCost(
        len(found), (min(found), max(found)), tokens * sum(found), seconds / _speed(grid, gpu)
    )


def ablation_passes(grid: Grid, cell: Cell, shape: ModelShape) -> tuple[float, int]:
    """Passes over the text in a cell's ablation: through the layers, in whole passes, and through the output
    layer.

    Counts the passes of `measure_text`, one for the mean outputs, and one of the model before training.
    """
    settings = grid.study.ablation
    assert settings is not None and cell.run is not None
    guided = plan_heads(cell.run.guidance).resolve(shape.layers, shape.heads)
    subjects = choose_subjects(
        guided, range(shape.layers), shape.heads, settings.controls, settings.seed, every=False
    )
    passes, logits = count_passes(subjects, shape.layers, len(settings.methods))
    return passes + 1 + ("mean" in settings.methods), logits


def measuring_lines(
    grid: Grid, shapes: Mapping[str, ModelShape], gpu: str, hours: Sequence[float]
) -> Iterator[str]:
    """Sentences on both costs. hours: factors from the model's time to that of the fastest and the slowest
    published run."""

    def time(cost: MeasuringCost) -> str:
        ends = [cost.gpu_seconds * factor / 3600 for factor in hours]
        shown = " to ".join(f"{end:.2g}" for end in ends) if ends[1] >= 0.01 else "< 0.01"
        return f"{shown} GPU-hours, without starts"

    if unknown := [size.name for size in grid.study.sizes if size.name not in shapes]:
        yield f"what is left to measure is counted without {', '.join(unknown)}, whose shape is not known"
    evaluation = evaluation_cost(grid, shapes, gpu)
    if evaluation is None:
        yield "evaluation left: ? the data of a task cannot be read now"
    elif evaluation.cells:
        yield (
            f"evaluation left: {evaluation.cells} cells, about {evaluation.tokens / 1e6:,.3g}M tokens "
            f"({_CHARACTERS} characters each); {time(evaluation)}"
        )
    ablation = ablation_cost(grid, shapes, gpu)
    settings = grid.study.ablation
    if ablation is not None and settings is not None:
        least, most = (f"{passes:.3g}" for passes in ablation.passes)
        passes = least if least == most else f"{least} to {most}"
        yield (
            f"removal of heads left: {ablation.cells} cells, each {passes} "
            f"passes over {settings.blocks} blocks of {grid.study.data.block_length}, "
            f"{ablation.tokens / 1e6:,.3g}M tokens in all; {time(ablation)}"
        )


def plan_heads(section: GuidanceSection) -> GuidancePlan:
    """The heads of a run's guidance; its patterns need a tokenizer, and have their names only."""
    entries = [(entry.pattern, entry.heads, entry.layers) for entry in section.plan]
    if not entries:
        named = enumerate(EXPERIMENTS[section.experiment])
        entries = [(name, (head,), section.layers) for head, name in named]
    return GuidancePlan(
        tuple(Assignment(TokenSet(name, frozenset()), heads, layers) for name, heads, layers in entries)
    )


def _speed(grid: Grid, gpu: str) -> float:
    """FLOP/s of one GPU in the precision of the evaluation."""
    return GPUS[gpu].peak(grid.study.evaluate.dtype) * GPUS[gpu].matrix_share
