"""The training loop's state and decisions: each step, and what is due after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from gaguide.checkpoint import MODEL_FOLDER, Checkpoint, CheckpointStore
from gaguide.distributed import broadcast, raise_together
from gaguide.engine.compiled import CompileCost
from gaguide.engine.layout import describe_layout
from gaguide.engine.save import SaveResult
from gaguide.errors import Fault, UserError
from gaguide.guidance import weight_factor
from gaguide.log import SlowWork, say
from gaguide.log.run_files import EVALUATIONS, VALIDATIONS
from gaguide.trackers import Trackers
from gaguide.train.evaluating import Evaluation, undisturbed
from gaguide.train.records import RunRecords
from gaguide.train.resume import (
    changes,
    check_own_step,
    data_start,
    find_origin,
    parse_origin,
    read_manifest,
    refuse_changes,
)
from gaguide.train.schedule import learning_rate
from gaguide.train.skipped import SkippedSteps
from gaguide.train.step import train_step
from gaguide.train.step_inputs import StepInputs
from gaguide.train.validate import validate


class Trainer:
    """A run between two steps: its progress, records and checkpoints. Every method is a collective."""

    def __init__(
        self, inputs: StepInputs, evaluation: Evaluation | None = None, trackers: Trackers | None = None
    ) -> None:
        job, world, engine = inputs.job, inputs.world, inputs.engine
        self.job, self.world, self.engine, self.guidance = job, world, engine, inputs.guidance
        self.inputs, self.preemption, self.watchdog = inputs, inputs.preemption, inputs.watchdog
        self.evaluation = evaluation
        self.skips = SkippedSteps(job.run.train.max_skipped_steps, job.deepspeed.precision)
        checkpoint = job.run.checkpoint
        self.store = CheckpointStore(
            job.output / "checkpoints", world, checkpoint.keep, checkpoint.keep_best, job.measure
        )
        self.records = RunRecords(job, world, engine, trackers or Trackers({}, world.is_main))
        self.done = 0
        """Optimizer steps done."""
        self.started_at = 0
        """Steps that were done before this start."""
        self.validated: tuple[int, float | None] = (-1, None)
        """The step of the latest validation, and its held-out loss."""
        self.save_is_due = False
        """Whether a checkpoint is due, and was put off because the step was dropped."""

    def resume(self) -> None:
        """Load the newest complete checkpoint, or validate the untrained model."""
        self.watchdog.mark(0, "loading a checkpoint", patience=4)
        found = self.store.newest(self.job.identity, self._refuse)
        folder, origin = None, None
        if found is not None:
            folder = self.store.path(found.step)
        elif self.job.run.resume_from:
            folder, found = self._find_elsewhere(self.job.run.resume_from)
            origin = folder.parent.parent
        if found is not None and folder is not None:
            self._load(found, folder)
            self.done = found.step
            self._take_over(found, origin)
        elif self.job.run.init_optimizer:
            assert self.job.model.checkpoint is not None
            self._load(read_manifest(self.job.model.checkpoint), self.job.model.checkpoint)
            self.engine.reset_counters()
        self.started_at = self.done
        raise_together(lambda: self.records.open(self.done, found is not None, origin, self._tasks))
        if found is not None:  # the steps after the last logged one are in no record
            self.records.clock.total = max(self.records.clock.total, found.seconds or 0.0)
        stop = self._is_stop_requested()
        if not stop and self.done < self.job.total_steps:  # after the last step, `finish` measures
            stop = self._validate_if_due() or self._evaluate_if_due()
            step, loss = self.validated
            if step > 0 and loss is not None:
                self.store.note_loss(step, loss)
        if stop:
            self.preemption.stop(self.done, self.job.total_steps)

    def _refuse(self, saved: Checkpoint) -> Fault | None:
        """Why the run may not resume from a checkpoint of its own folder; for rank 0."""
        run = self.job.run
        origin = parse_origin(run.resume_from) if run.resume_from else None
        if origin is not None and origin.run is None:
            fault = check_own_step(saved, origin.step, self.job.output)
            if fault is not None:
                return fault
        elif origin is not None and origin.run is not None:
            if origin.run.resolve() != self.job.output.resolve():
                # Begun from another run already: from now on the settings are those of this folder.
                run = run.model_copy(update={"resume_from": None})
            elif origin.step.isdigit() and (fault := check_own_step(saved, origin.step, self.job.output)):
                return fault
        return refuse_changes(saved, self.job.identity, run, self.job.output)

    def _find_elsewhere(self, resume_from: str) -> tuple[Path, Checkpoint]:
        """The checkpoint of another run that this one resumes from; a collective."""

        def find() -> tuple[Path, Checkpoint] | None:
            if not self.world.is_main:
                return None
            folder = find_origin(resume_from, "resume_from").path.absolute()
            saved = read_manifest(folder)
            fault = refuse_changes(saved, self.job.identity, self.job.run, folder.parent.parent)
            if fault is not None:
                raise UserError(fault)
            return folder, saved

        found = broadcast(raise_together(find))
        assert found is not None
        return found

    def _take_over(self, found: Checkpoint, origin: Path | None) -> None:
        """Record differences from the checkpoint's run, and where the data begin."""
        differing = changes(found.identity, self.job.identity)
        self.store.history = list(found.history)
        if differing or origin is not None:
            source = None if origin is None else str(origin)
            self.store.history.append({"step": found.step, "from": source, "changes": differing})
        self.store.data_start = data_start(found, differing)
        self.job = self.records.job = replace(self.job, data_start=self.store.data_start)
        if self.world.is_main and differing:
            listed = "; ".join(f"{name} {old} → {new}" for name, (old, new) in differing.items())
            say(f"from step {found.step + 1} on: {listed[:1000]}")

    def _load(self, found: Checkpoint, folder: Path) -> None:
        same_files = (found.world_size, found.layout) == (self.world.size, self.engine.layout)
        if self.world.is_main and not same_files:
            say(
                f"the checkpoint of step {found.step} was saved by {found.world_size} ranks at "
                f"{describe_layout(found.layout)}: its state is resharded to {self.world.size} at "
                f"{describe_layout(self.engine.layout)}"
            )
        self.engine.load(folder, found.world_size, found.layout)

    def steps_left(self) -> range:
        """Optimizer steps still to do, counted from 1."""
        return range(self.done + 1, self.job.total_steps + 1)

    def step(self, step: int) -> None:
        """Do optimizer step `step` and what is due after it. Raises `PreemptedError` if asked to stop."""
        run = self.job.run
        logged = step % run.train.log_every == 0 or step in (1, self.job.total_steps)
        rate = learning_rate(run.train, step, self.job.total_steps)
        self._set_guidance_weight(step)
        compiled = self.engine.compile_cost
        with self.records.clock.running(self.job.tokens_per_step):
            numbers, dropped = train_step(
                self.engine, self.guidance, self.inputs.micro_batches(step), rate, logged
            )
        self.done = step
        self._note_compiling(step, compiled)
        self.watchdog.training_has_begun()
        stop = self.preemption.is_stop_agreed()
        self.skips.record(step, dropped)
        if numbers is not None:
            compiled = self.engine.compile_cost
            context: dict[str, Any] = {
                "lr": rate,
                "skipped_steps": self.engine.skipped_steps,
                "guidance_weight": None if self.guidance is None else self.guidance.weight,
            }
            if compiled is not None:
                context |= {f"compile_{name}": value for name, value in asdict(compiled).items()}
            self.records.step(step, numbers, context)
        if dropped:
            self._handle_dropped(step, rate)
        if step == self.job.total_steps and not stop:
            return  # `finish` measures and saves
        stop = stop or self._validate_if_due()
        self.save_is_due |= bool(run.checkpoint.every) and step % run.checkpoint.every == 0
        # Steps are dropped where the weights have diverged: the checkpoints from before stay.
        if stop or (self.save_is_due and not dropped):
            self._save()
        if not stop and self._evaluate_if_due():
            self._save()
            stop = True
        if stop:
            self.preemption.stop(step, self.job.total_steps)

    def _note_compiling(self, step: int, before: CompileCost | None) -> None:
        """Keep the seconds in which a step compiled out of the throughput, and report them."""
        after = self.engine.compile_cost
        if before is None or after is None or after == before:
            return
        seconds, graphs = after.seconds - before.seconds, after.graphs - before.graphs
        self.records.clock.exclude(seconds)
        if self.world.is_main and graphs:
            say(f"step {step}: compiled {graphs} graph{'s' if graphs > 1 else ''} in {seconds:.0f} s")

    def finish(self) -> None:
        """Validate, save and evaluate the trained model, unless an earlier start did so.

        An evaluation may take long, so the state is saved before it. Raises `PreemptedError` where a rank was
        asked to stop.
        """
        raise_together(
            self.job.corpus.blocks.wait_for_checksums
        )  # of shards whose checksums are still being compared
        total = self.job.total_steps
        if not broadcast(self.records.has(VALIDATIONS, total, self.job.measure)):
            self._validate(total)
            loss = self.validated[1]
            if loss is not None and broadcast(self.store.path(total).exists()):
                self.store.note_loss(total, loss)
        stop = self._is_stop_requested()
        self._save()
        if stop:
            self.preemption.stop(total, total)
        if self._tasks is not None and not broadcast(self.records.has(EVALUATIONS, total, self._tasks)):
            self._evaluate(total)
            raise_together(self.records.sync_all)

    def _validate_if_due(self) -> bool:
        """`_measure_if_due` of the held-out loss, which a checkpoint's manifest names."""
        every = self.job.run.validation.every
        return self._measure_if_due(every, VALIDATIONS, self.job.measure, self._validate)

    def _evaluate_if_due(self) -> bool:
        """`_measure_if_due` of the tasks. It may take long: a checkpoint is saved before it."""
        return self._measure_if_due(self.job.run.evaluate.every, EVALUATIONS, self._tasks, self._evaluate)

    def _measure_if_due(
        self, every: int, name: str, kind: str | None, measure: Callable[[int], None]
    ) -> bool:
        """Measure where that is due after the steps done and has not been done yet, of this `kind`.

        Returns whether a request to stop has come meanwhile; the rest is then measured after the resume.
        """
        due = kind is not None and (self.done == 0 or (every and self.done % every == 0))
        if not due or broadcast(self.records.has(name, self.done, kind)):
            return False
        measure(self.done)
        return self._is_stop_requested()

    def _is_stop_requested(self) -> bool:
        """Whether any rank was asked to stop; for use between steps, which ask themselves."""
        self.preemption.share()
        return self.preemption.is_stop_agreed()

    def _handle_dropped(self, step: int, rate: float) -> None:
        """Record the blocks of the dropped step; raises a `UserError` if it is one too many."""
        if self.world.is_main:
            say(self.skips.describe(self.engine.skipped_steps))
        self.records.dropped(step, rate)
        last = max(self.store.steps(), default=None)
        self.skips.raise_if_too_many(rate, last, self.job.output / "skipped.jsonl")

    def _set_guidance_weight(self, step: int) -> None:
        section = self.job.run.guidance
        if self.guidance is not None:
            factor = weight_factor(section.schedule, section.warmup_steps, step, self.job.total_steps)
            self.guidance.weight = section.weight * factor

    def _validate(self, step: int) -> None:
        mark = partial(self.watchdog.mark, step, "validating")
        measured = validate(self.engine, self.guidance, self.job, self.world, mark)
        self.validated = (step, measured.lm_loss)
        self.records.validated(step, measured)

    def _evaluate(self, step: int) -> None:
        if self.evaluation is None:
            return
        work = SlowWork("evaluating", shown=self.world.is_main)
        with work, undisturbed(self.engine.module, self.guidance):
            record = self.evaluation(self.engine.module, partial(self.watchdog.mark, step, "evaluating"))
        self.records.evaluated(step, self.evaluation.measure, record)

    @property
    def _tasks(self) -> str | None:
        """What an evaluation during training measures; None without one."""
        return None if self.evaluation is None else self.evaluation.measure

    def _save(self) -> None:
        """Save the state of the steps done, unless that checkpoint exists."""
        self.watchdog.mark(self.done, "saving a checkpoint", patience=4)
        self.save_is_due = False
        step, loss = self.validated
        loss = loss if step == self.done else None
        self.store.seconds = self.records.clock.total
        with SlowWork(f"saving the checkpoint of step {self.done}", shown=self.world.is_main):
            self.store.save(self.done, self.job.identity, self.engine.layout, loss, self._write)

    def _write(self, folder: Path) -> SaveResult:
        result = self.engine.save(folder)
        if self.world.is_main:
            # An export needs no more than this folder.
            result.attempt((folder / MODEL_FOLDER).mkdir, parents=True, exist_ok=True)
            result.attempt(self.job.companions.write, folder / MODEL_FOLDER)
            result.files += [path for path in (folder / MODEL_FOLDER).rglob("*") if path.is_file()]
            # Retries records that a full disk refused, so that none are missing once there is a checkpoint.
            result.attempt(self.records.sync)
        return result
