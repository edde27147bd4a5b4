"""A training run from the first lock to the exported model."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel

from gaguide.checkpoint import export_model
from gaguide.data.build.background import BackgroundBuild
from gaguide.data.format.manifest import is_complete
from gaguide.distributed import World, raise_together, shared_clock
from gaguide.engine.build import build_engine
from gaguide.engine.heap import separate_large_tensors
from gaguide.engine.monitors import configure_wandb
from gaguide.errors import Fault, UserError
from gaguide.guidance import Guidance, guide
from gaguide.liveness.preemption import Preemption
from gaguide.liveness.watchdog import Watchdog
from gaguide.log import say
from gaguide.model import build_model
from gaguide.train.evaluating import Evaluation
from gaguide.train.job import Job
from gaguide.train.output import claim_output
from gaguide.train.summary import write_summary
from gaguide.train.trainer import Trainer


def train(job: Job, world: World, evaluation: Evaluation | None = None) -> Path:
    """Train to the last step, from the newest checkpoint if there is one; returns the exported model.

    `evaluation` is called every `evaluate.every` steps; its records go to evaluations.jsonl.
    """
    claim, beats = claim_output(job.output, world)
    preemption = Preemption(world)
    watchdog = Watchdog(
        job.output, beats, world, job.run.train.hang_timeout, preemption.request_stop, shared_clock()
    )
    with watchdog, _background_build(job, world):
        watchdog.mark(0, "waiting for the first shards", patience=10)
        # A source has no blocks before its first shards are built.
        raise_together(lambda: len(job.corpus.held_out))
        with preemption:
            checkpoint = _optimize(job, world, preemption, watchdog, evaluation)
            gc.collect()  # the export needs room for a whole model where the engine had its part
            exported = job.output / "model"
            watchdog.mark(job.total_steps, "exporting the model", patience=4)
            raise_together(lambda: _export(job, world, checkpoint, exported))
    claim.release()
    return exported


@contextmanager
def _background_build(job: Job, world: World) -> Iterator[None]:
    """Inside, rank 0's host tokenises the source while training goes on; nothing where the data is built."""
    work = job.corpus.build
    building = None
    if world.is_main and work is not None and not is_complete(work.request.output):
        building = BackgroundBuild(work.request)
    try:
        yield
    finally:
        if building is not None:
            building.stop()


def _optimize(
    job: Job, world: World, preemption: Preemption, watchdog: Watchdog, evaluation: Evaluation | None
) -> Path:
    """Do all steps; returns the last checkpoint's folder."""
    watchdog.mark(0, "building the model", patience=4)
    if world.is_main:
        configure_wandb(job.deepspeed, job.output, job.run.name)
    with separate_large_tensors():
        model = raise_together(lambda: build_model(job.model, job.run.seed))
        engine = build_engine(model, job.deepspeed, job.run.train, world, job.frozen)
    with guided(engine.module, job) as guidance:
        trainer = Trainer(job, world, engine, guidance, preemption, watchdog, evaluation)
        trainer.resume()
        for step in trainer.steps_left():
            trainer.step(step)
        trainer.finish()
    engine.close()
    return trainer.store.path(job.total_steps)


def guided(model: PreTrainedModel, job: Job) -> AbstractContextManager[Guidance | None]:
    """A context in which the job's guidance is attached to `model`; it yields None in an unguided run."""
    if job.plan is None:
        return nullcontext()
    # At weight 0 the model must compute exactly as without guidance.
    return guide(model, job.plan, measure_only=job.plan.weight == 0)


def _export(job: Job, world: World, checkpoint: Path, exported: Path) -> None:
    if not world.is_main:
        return
    try:
        trusted = job.run.model.trust_remote_code
        export_model(checkpoint, job.model.config, job.corpus.tokenizer, exported, remote_code=trusted)
        write_summary(job, world)
    except (OSError, SafetensorError) as error:
        problem = f"the trained model could not be written ({getattr(error, 'strerror', None) or error})"
        remedy = "make room and start the same command again: the last checkpoint is complete"
        raise UserError(Fault("output", problem, remedy, str(exported))) from None
    say(f"model: {exported}")
