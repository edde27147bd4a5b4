"""A training run, told as a story."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from gaguide.checkpoint import Checkpoint, CheckpointStore, export_model
from gaguide.data import rank_micro_batches
from gaguide.data.build.background import BackgroundBuild
from gaguide.data.format.manifest import is_complete
from gaguide.distributed import World, broadcast, raise_together
from gaguide.engine.build import make_engine
from gaguide.engine.monitors import place_wandb
from gaguide.engine.nonfinite import SkippedSteps
from gaguide.engine.offload_state import restore_offloaded, save_swapped
from gaguide.engine.reshard import load_resized, state_layout
from gaguide.engine.save import MODEL, STATE_TAG, Written, write_engine
from gaguide.errors import Fault, UserError
from gaguide.guidance import Guidance, guide, weight_factor
from gaguide.liveness.preemption import Preemption
from gaguide.liveness.watchdog import Watchdog
from gaguide.log import say
from gaguide.model import build_model
from gaguide.train.device import large_tensors_apart, peak_memory
from gaguide.train.evaluating import Evaluation, undisturbed
from gaguide.train.inputs import Inputs, model_inputs
from gaguide.train.job import Job
from gaguide.train.output import claim_output
from gaguide.train.records import EVALUATIONS, VALIDATION, RunRecords
from gaguide.train.schedule import learning_rate
from gaguide.train.step import train_step
from gaguide.train.summary import write_summary
from gaguide.train.validate import validate


def train(job: Job, world: World, evaluation: Evaluation | None = None) -> Path:
    """Train to the last step, from the newest checkpoint if there is one; returns the exported model.

    evaluation: called every `evaluate.every` steps; its records go to evaluations.jsonl.
    """
    claim, beats = claim_output(job.output, world)
    preemption = Preemption(world)
    watchdog = Watchdog(job.output, beats, world, job.run.train.hang_timeout, preemption.wish)
    with watchdog, _building(job, world):
        watchdog.mark(0, "waiting for the first shards", patience=10)
        raise_together(lambda: len(job.corpus.held_out))  # of a source the first ones have to be made
        with preemption:
            exported = _train(job, world, preemption, watchdog, evaluation)
    claim.release()
    return exported


@contextmanager
def _building(job: Job, world: World) -> Iterator[None]:
    """Where the data is a source: tokenise it beside the training, on rank 0's host."""
    work = job.corpus.work
    building = None
    if world.is_main and work is not None and not is_complete(work.request.output):
        building = BackgroundBuild(work.request)
    try:
        yield
    finally:
        if building is not None:
            building.stop()


def _train(
    job: Job, world: World, preemption: Preemption, watchdog: Watchdog, evaluation: Evaluation | None
) -> Path:
    checkpoint = _optimize(job, world, preemption, watchdog, evaluation)
    gc.collect()  # the export needs room for a whole model where the engine had its part
    exported = job.output / "model"
    watchdog.mark(job.total_steps, "exporting the model", patience=4)
    raise_together(lambda: _export(job, world, checkpoint, exported))
    return exported


def _export(job: Job, world: World, checkpoint: Path, exported: Path) -> None:
    if not world.is_main:
        return
    try:
        trusted = job.run.model.trust_remote_code
        export_model(checkpoint, job.model.config, job.corpus.tokenizer, exported, remote_code=trusted)
        write_summary(job, world)
    except (OSError, SafetensorError) as error:
        problem = f"the trained model could not be written ({getattr(error, 'strerror', None) or error})"
        remedy = "make room and start the same command again: the last checkpoint is whole"
        raise UserError(Fault("output", problem, remedy, str(exported))) from None
    say(f"model: {exported}")


def _optimize(
    job: Job, world: World, preemption: Preemption, watchdog: Watchdog, evaluation: Evaluation | None
) -> Path:
    """All steps; returns the last checkpoint."""
    watchdog.mark(0, "building the model", patience=4)
    if world.is_main:
        place_wandb(job.deepspeed, job.output, job.run.name)
    with large_tensors_apart():
        model = raise_together(lambda: build_model(job.model, job.run.seed))
        engine = make_engine(model, job.run.train, job.deepspeed, job.frozen, world)
    with _guided(engine.module, job) as guidance:
        trainer = Trainer(job, world, engine, guidance, preemption, watchdog, evaluation)
        trainer.resume()
        for step in trainer.steps_left():
            trainer.step(step)
        trainer.finish()
    engine.destroy()
    return trainer.store.path(job.total_steps)


def _guided(model: PreTrainedModel, job: Job) -> AbstractContextManager[Guidance | None]:
    if job.plan is None:
        return nullcontext()
    # At weight 0 the model must compute exactly what it would without guidance.
    return guide(model, job.plan, measure_only=job.plan.weight == 0)


class Trainer:
    """The state of a run between steps: where it is, its records, its checkpoints."""

    def __init__(
        self,
        job: Job,
        world: World,
        engine: Any,
        guidance: Guidance | None,
        preemption: Preemption,
        watchdog: Watchdog,
        evaluation: Evaluation | None = None,
    ) -> None:
        self.job, self.world, self.engine, self.guidance = job, world, engine, guidance
        self.preemption, self.watchdog, self.evaluation = preemption, watchdog, evaluation
        self.skips = SkippedSteps(engine, job.run.train.max_skipped_steps, job.precision)
        self.store = CheckpointStore(
            job.output / "checkpoints", world, job.run.checkpoint.keep, job.run.checkpoint.keep_best
        )
        self.records = RunRecords(job, world, engine)
        self.layout = state_layout(engine, job.deepspeed)
        self.done = 0
        self.validated: tuple[int, float | None] = (-1, None)

    def resume(self) -> None:
        """Go to the newest whole checkpoint, or validate the untrained model and begin."""
        self.watchdog.mark(0, "loading a checkpoint", patience=4)
        found = self.store.newest(self.job.identity)
        if found is not None:
            self._load(found)
            self.done = found.step
            self.skips.forget()
        raise_together(lambda: self.records.open(self.done, resumed=found is not None))
        stop = self._asked_to_stop()
        if not stop and self.done < self.job.total_steps:  # what follows the last step is in `finish`
            stop = self._measure_what_is_due()
            step, loss = self.validated
            if step > 0 and loss is not None:
                self.store.note_loss(step, loss)
        if stop:
            self.preemption.stop(self.done, self.job.total_steps)

    def _load(self, found: Checkpoint) -> None:
        """The state of a checkpoint, whatever ranks, stage and offload wrote it."""
        folder = self.store.path(found.step)
        if (found.world_size, found.layout) == (self.world.size, self.layout):
            loaded, _ = self.engine.load_checkpoint(str(folder), STATE_TAG)
            if loaded is None:
                raise RuntimeError(f"DeepSpeed found nothing to load in {folder}")
        else:
            if self.world.is_main:
                say(
                    f"the checkpoint of step {found.step} is of {found.world_size} ranks at "
                    f"{_told(found.layout)}: its state is dealt out anew to {self.world.size} at "
                    f"{_told(self.layout)}"
                )
            load_resized(self.engine, folder / STATE_TAG, found.zero_stage)
        restore_offloaded(self.engine, folder / STATE_TAG, self.world)

    def steps_left(self) -> range:
        """Optimizer steps to do, counted from 1."""
        return range(self.done + 1, self.job.total_steps + 1)

    def step(self, step: int) -> None:
        """One optimizer step, and what is due after it."""
        run = self.job.run
        logged = step % run.train.log_every == 0 or step in (1, self.job.total_steps)
        rate = learning_rate(run.train, step, self.job.total_steps)
        self._set_guidance_weight(step)
        with self.records.clock.running(self.job.tokens_per_step):
            numbers = train_step(self.engine, self.guidance, self._micro_batches(step), rate, logged)
        self.done = step
        stop = self.preemption.agreed()
        dropped = self.skips.dropped(step)
        if numbers is not None:
            known = {
                "lr": rate,
                "skipped_steps": self.skips.total,
                "guidance_weight": None if self.guidance is None else self.guidance.weight,
                "peak_memory": peak_memory(self.engine.device),  # over all ranks
            }
            self.records.step(step, numbers, known)
        if dropped:
            self._tell_dropped(step, rate)
        if step == self.job.total_steps:
            return  # what follows the last step is in `finish`
        stop = stop or self._measure_what_is_due()
        if stop or (run.checkpoint.every and step % run.checkpoint.every == 0):
            self._save()
        if stop:
            self.preemption.stop(step, self.job.total_steps)

    def _measure_what_is_due(self) -> bool:
        """Validate and evaluate where that is due after the steps done, and has not been done yet.

        Returns whether a signal has come meanwhile: then what is left of it is done after the resume.
        """
        for every, name, measure in (
            (self.job.run.validation.every, VALIDATION, self._validate),
            (self.job.run.evaluate.every, EVALUATIONS, self._evaluate),
        ):
            due = self.done == 0 or (every and self.done % every == 0)
            if due and not broadcast(self.records.has(name, self.done)):
                measure(self.done)
                if self._asked_to_stop():
                    return True
        return False

    def _asked_to_stop(self) -> bool:
        """Between two steps, where no step carries the question; a collective."""
        self.preemption.ask()
        return self.preemption.agreed()

    def _tell_dropped(self, step: int, rate: float) -> None:
        """Record which blocks the dropped step held; ends the run where it is one too many."""
        if self.world.is_main:
            self.skips.tell(step)
        self.records.dropped(step, rate)
        last = max(self.store.steps(), default=None)
        self.skips.raise_if_too_many(rate, last, self.job.output / "skipped.jsonl")

    def _set_guidance_weight(self, step: int) -> None:
        section = self.job.run.guidance
        if self.guidance is not None:
            factor = weight_factor(section.schedule, section.warmup_steps, step, self.job.total_steps)
            self.guidance.weight = section.weight * factor

    def finish(self) -> None:
        """Validate the trained model and save it, unless the run was resumed after its last step."""
        raise_together(self.job.corpus.blocks.finish_checks)  # shards whose checksum is still being compared
        if not broadcast(self.store.path(self.job.total_steps).exists()):
            self._validate(self.job.total_steps)
            self._evaluate(self.job.total_steps)
            self._save()

    def _micro_batches(self, step: int) -> Iterator[Inputs]:
        """This rank's micro batches; seeds dropout, so that a resumed step drops the same."""
        batch, corpus, run = self.job.batch, self.job.corpus, self.job.run
        _seed_dropout(run.seed, step, self.world.rank)
        corpus.look_ahead((step - 1) * batch.global_batch)

        def block_ids() -> np.ndarray:
            return rank_micro_batches(
                corpus.order,
                step - 1,
                batch.global_batch,
                batch.micro_batch,
                self.world.rank,
                self.world.size,
            )

        # A source may turn out to be unreadable while it is tokenised: then all ranks end together.
        ids_AM = block_ids() if corpus.work is None else raise_together(block_ids)
        for at, ids_M in enumerate(ids_AM):
            self.watchdog.mark(step, "reading blocks")
            inputs = model_inputs(corpus.blocks, ids_M, run.data.isolate_documents, self.engine.device)
            if at == len(ids_AM) - 1:
                self.preemption.ask()
            self.watchdog.mark(step, "forward and backward")
            yield inputs

    def _validate(self, step: int) -> None:
        mark = partial(self.watchdog.mark, step, "validating")
        measured = validate(self.engine, self.guidance, self.job, self.world, mark)
        self.validated = (step, measured.lm_loss)
        self.records.validated(step, measured)

    def _evaluate(self, step: int) -> None:
        if self.evaluation is None:
            return
        with undisturbed(self.engine.module, self.guidance):
            record = self.evaluation(self.engine.module, partial(self.watchdog.mark, step, "evaluating"))
        self.records.evaluated(step, record)

    def _save(self) -> None:
        self.watchdog.mark(self.done, "saving a checkpoint", patience=4)
        step, loss = self.validated
        loss = loss if step == self.done else None
        self.store.save(self.done, self.job.identity, self.layout, loss, self._write_state)

    def _write_state(self, folder: Path) -> Written:
        written = write_engine(self.engine, folder)
        written.files += written.attempt(save_swapped, self.engine, folder / STATE_TAG, self.world) or []
        if self.world.is_main:
            # An export needs no more than this folder.
            for part in (self.job.model.config, self.job.corpus.tokenizer):
                written.attempt(part.save_pretrained, folder / MODEL)
            written.files += [path for path in (folder / MODEL).rglob("*") if path.is_file()]
            # Records that a full disk did not take are tried again; after a checkpoint none are owing.
            written.attempt(self.records.sync)
        return written


def _told(layout: dict[str, Any]) -> str:
    places = {part: layout[f"offload_{part}"] for part in ("optimizer", "param")}
    offload = [f"{part} on {place}" for part, place in places.items() if place != "none"]
    return ", ".join([f"ZeRO stage {layout['zero_stage']}", *offload])


def _seed_dropout(*numbers: int) -> None:
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
