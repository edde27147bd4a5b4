"""A training run from the first lock to the exported model."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from gaguide.checkpoint import export_adapter, export_model
from gaguide.data.build.background import BackgroundBuild
from gaguide.data.format.manifest import is_complete
from gaguide.distributed import World, broadcast, raise_together, shared_clock
from gaguide.engine.build import build_engine
from gaguide.engine.fp32_state import fp32_state
from gaguide.engine.heap import separate_large_tensors
from gaguide.engine.monitors import configure_wandb
from gaguide.errors import DivergedError, PreemptedError, UserError, first_line
from gaguide.files import disk_errors, disk_fault, write_text
from gaguide.guidance import Guidance, guide
from gaguide.liveness.preemption import Preemption
from gaguide.liveness.watchdog import Watchdog
from gaguide.log import SlowWork, run_files, say
from gaguide.model import build_model
from gaguide.model.content import ADAPTER_FOLDER, MODEL_FOLDER
from gaguide.publish import CARD, read_own_card, write_card
from gaguide.trackers import Trackers
from gaguide.trackers.tracker import Status
from gaguide.train.evaluating import Evaluation
from gaguide.train.job import Job
from gaguide.train.output import claim_output
from gaguide.train.step_inputs import StepInputs
from gaguide.train.summary import validation_at, write_summary
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
    with watchdog, disk_errors(job.output), _background_build(job, world):
        watchdog.mark(0, "waiting for the first shards", patience=10)
        # A source has no blocks before its first shards are built.
        raise_together(lambda: len(job.corpus.held_out))
        with preemption, _tracked(job, world) as trackers:
            outcome = _optimize(job, world, preemption, watchdog, evaluation, trackers)
            gc.collect()  # the export needs room for a whole model where the engine had its part
            exported = job.output / MODEL_FOLDER
            watchdog.mark(job.total_steps, "exporting the model", patience=4)
            with SlowWork("exporting the model", shown=world.is_main):
                raise_together(lambda: _export(job, world, outcome, exported))
            diverged = broadcast(explain_divergence(job, outcome.dropped_steps) if world.is_main else None)
            status: Status = "finished" if diverged is None else "diverged"
            watchdog.mark(job.total_steps, "sending the last numbers to trackers", patience=4)
            limit = job.run.train.hang_timeout or None
            raise_together(lambda: trackers.close(status, (job.output / run_files.SUMMARY,), limit))
    claim.release()
    if diverged is not None:
        raise DivergedError(diverged)
    return exported


@contextmanager
def _background_build(job: Job, world: World) -> Iterator[None]:
    """Inside, rank 0's host tokenises the source during training; does nothing where the data are built."""
    work = job.corpus.build
    building = None
    if world.is_main and work is not None and not is_complete(work.request.output):
        building = BackgroundBuild(work.request)
    try:
        yield
    finally:
        if building is not None:
            building.stop()


@contextmanager
def _tracked(job: Job, world: World) -> Iterator[Trackers]:
    """The run's trackers, which are ended if the block raises."""
    trackers = Trackers(job.deepspeed.settings, world.is_main)
    try:
        yield trackers
    except PreemptedError:  # on all ranks together, so that launchers do not end the rank that is sending
        raise_together(lambda: trackers.close("stopped"))
        raise
    except BaseException:
        trackers.close("failed")
        raise


def _optimize(
    job: Job,
    world: World,
    preemption: Preemption,
    watchdog: Watchdog,
    evaluation: Evaluation | None,
    trackers: Trackers,
) -> _Outcome:
    """Do all steps."""
    watchdog.mark(0, "building the model", patience=4)
    if world.is_main:
        configure_wandb(job.deepspeed, job.output, job.run.name, job.fingerprint)
    with separate_large_tensors():
        with SlowWork(f"loading model {job.run.model.name}", shown=world.is_main):
            model = raise_together(lambda: _build(job))
        with SlowWork("building the engine (DeepSpeed may compile ops)", shown=world.is_main):
            engine = build_engine(model, job.deepspeed, job.run.train, world, job.frozen)
            if job.run.data.isolate_documents:
                engine.isolate_documents(job.run.data.block_length)
    with attach_guidance(engine.module, job) as guidance:
        inputs = StepInputs(job, world, engine, guidance, preemption, watchdog)
        trainer = Trainer(inputs, evaluation, trackers)
        trainer.resume()
        for step in trainer.steps_left():
            trainer.step(step)
        trainer.finish()
    dropped = engine.skipped_steps
    engine.close()
    return _Outcome(
        trainer.store.path(job.total_steps), dropped, trainer.done > trainer.started_at, trainer.store.history
    )


def _build(job: Job) -> PreTrainedModel:
    """The model before its first step, or before a checkpoint is loaded into the engine."""
    model = build_model(job.model, job.run.seed)
    if job.adapter is not None:
        job.adapter.add_to(model, job.run.seed)
    if job.model.checkpoint is None:
        return model
    tied = set(model.all_tied_weights_keys or ())
    state = fp32_state(job.model.checkpoint)
    try:
        missing, unexpected = model.load_state_dict(
            {name: tensor for name, tensor in state.items() if name not in tied}, strict=False
        )
        wrong = [name for name in missing if name not in tied] + list(unexpected)
    except RuntimeError as error:  # shapes
        wrong = [first_line(error)]
    if wrong:
        problem = f"its weights do not fit model.name = {job.run.model.name} ({', '.join(wrong[:3])})"
        raise UserError.of("init_from", problem, "give the model.name of that run", str(job.model.checkpoint))
    model.tie_weights()
    return model


def attach_guidance(model: PreTrainedModel, job: Job) -> AbstractContextManager[Guidance | None]:
    """A context in which the job's guidance is attached to `model`; it yields None in an unguided run."""
    if job.plan is None:
        return nullcontext()
    # At weight 0 the model must compute exactly as without guidance.
    return guide(model, job.plan, measure_only=job.plan.weight == 0, method=job.run.guidance.method)


@dataclass(frozen=True)
class _Outcome:
    checkpoint: Path
    """Folder of the last checkpoint."""
    dropped_steps: int
    """Steps of the whole run that were dropped because their gradient was not finite."""
    trained: bool
    """Whether this start did a step; otherwise an earlier one had finished the run."""
    history: list[dict[str, Any]]
    """Resumes that changed something."""


def explain_divergence(job: Job, dropped: int) -> str | None:
    """Why the trained model is unusable and what to do; None if its held-out loss is a finite number.

    Reads the run's records: for rank 0.
    """
    record = validation_at(job, job.total_steps)
    if record is None or record.get("lm_loss") is not None:
        return None
    at = job.output / "checkpoints" / f"step-{job.total_steps:08}"
    return (
        f"the run has diverged: its held-out loss after step {job.total_steps} is not a finite number, and "
        f"{dropped} of {job.total_steps} steps were dropped because their gradient was not finite\n"
        f"    the model is not exported; its state is in {at}\n"
        "    → lower train.learning_rate or guidance.weight, or lengthen train.warmup_steps, and train into "
        "another output folder"
    )


@contextmanager
def _keeping_own_card(exported: Path) -> Iterator[None]:
    """Inside, a card that gaguide did not write survives the export that replaces its folder."""
    card = read_own_card(exported)
    yield
    if card is not None:
        write_text(exported / CARD, card)


def _export(job: Job, world: World, outcome: _Outcome, exported: Path) -> None:
    if not world.is_main:
        return
    diverged = explain_divergence(job, outcome.dropped_steps)
    if outcome.dropped_steps:
        share = outcome.dropped_steps / job.total_steps
        say(
            f"warning: {outcome.dropped_steps} of {job.total_steps} steps ({share:.0%}) were dropped because "
            f"their gradient was not finite; they are listed in {job.output / 'skipped.jsonl'}",
            error=True,
        )
    try:
        if diverged is None:
            trusted = job.run.model.trust_remote_code
            with _keeping_own_card(exported):
                export_model(outcome.checkpoint, job.companions, exported, remote_code=trusted)
            if job.adapter is not None:
                with _keeping_own_card(job.output / ADAPTER_FOLDER):
                    export_adapter(outcome.checkpoint, job.companions, job.output / ADAPTER_FOLDER)
        reason = diverged and diverged.splitlines()[0]
        write_summary(job, world, outcome.trained, outcome.dropped_steps, outcome.history, reason)
        if diverged is None:
            write_card(job.output, exported)
            if job.adapter is not None:
                write_card(job.output, job.output / ADAPTER_FOLDER)
    except (OSError, SafetensorError) as error:
        reason, remedy = disk_fault(error) if isinstance(error, OSError) else (str(error), "make room")
        problem = f"the trained model could not be written ({reason})"
        remedy += " and start the same command again: the last checkpoint is complete"
        raise UserError.of("output", problem, remedy, str(exported)) from None
    if diverged is None:
        say(f"model: {exported}")
