"""Validation: held-out loss and guided attention, on the same blocks for any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from gaguide.distributed import World, alone
from gaguide.engine.engine import Engine
from gaguide.guidance import Guidance, Measurement, marked
from gaguide.guidance.measurement import measure_guided
from gaguide.log import SlowWork
from gaguide.train.inputs import Inputs, guidance_marks, model_inputs
from gaguide.train.job import Job


def validate(
    engine: Engine, guidance: Guidance | None, job: Job, world: World, mark: Callable[[], None]
) -> Measurement:
    """Measure the engine's model over all ranks; a collective. `mark` is called before every batch."""
    count = min(job.run.validation.blocks, len(job.corpus.held_out))
    with engine.autocast(), SlowWork("validating: blocks", count, world.is_main) as work:
        batches = _batches(job, world, engine.device, guidance, mark, work)
        return measure_guided(engine.module, guidance, batches, job.cues)


def _batches(
    job: Job,
    world: World,
    device: torch.device,
    guidance: Guidance | None,
    mark: Callable[[], None],
    work: SlowWork,
) -> Iterator[tuple[Inputs, bool]]:
    """This rank's batches, and whether each counts; a rank with one too few repeats the first, uncounted.

    Under ZeRO-3 a rank with fewer forward passes than the others would hang.
    """
    held_out, isolate = job.corpus.held_out, job.run.data.isolate_documents
    count = min(job.run.validation.blocks, len(held_out))
    spread = np.arange(count) * len(held_out) // count
    size = job.batch.micro_batch
    chunks = [spread[start : start + size] for start in range(0, count, size)]
    for first in range(0, len(chunks), world.size):
        mine = first + world.rank
        counted = mine < len(chunks)
        mark()
        work.done(min(count, first * size))
        blocks = chunks[mine] if counted else chunks[0]
        names = () if guidance is None else guidance.plan.marks
        with alone():
            marks = guidance_marks(held_out, blocks, names, device)
            inputs = model_inputs(held_out, blocks, isolate, device)
        with marked(marks):
            yield inputs, counted
