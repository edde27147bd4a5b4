"""The records of a run, for programs, and its console lines, for people."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gaguide.config import dump_config
from gaguide.distributed import World
from gaguide.engine.engine import Engine
from gaguide.errors import UserError, mask_all
from gaguide.files import disk_fault, write_json, write_text
from gaguide.guidance import Measurement
from gaguide.log import MetricsFile, StepLine, read_metrics, say
from gaguide.log.run_files import CONFIG, DEEPSPEED, EVALUATIONS, METRICS, SKIPPED, VALIDATIONS
from gaguide.trackers import Trackers
from gaguide.train.clock import Clock
from gaguide.train.job import Job
from gaguide.train.step import StepNumbers
from gaguide.train.tracking import tracked_run


class RunRecords:
    """The record files of a run's output folder, its console, its monitors and its trackers.

    Only rank 0 writes; on the other ranks every method returns at once.
    """

    def __init__(self, job: Job, world: World, engine: Engine, trackers: Trackers) -> None:
        self.job, self.world, self.engine, self.trackers = job, world, engine, trackers
        self.clock = Clock()
        self._files: dict[str, MetricsFile] = {}

    def open(
        self, done: int, resumed: bool, origin: Path | None = None, evaluation: str | None = None
    ) -> None:
        """Write the run's configuration, and truncate the records of an earlier start to step `done`.

        `origin` is the folder of another run that is resumed here: its records are copied first.
        `evaluation` is the measure of the evaluation during training.

        Raises a `UserError` where nothing can be written.
        """
        if not self.world.is_main:
            return
        output, job = self.job.output, self.job
        try:
            if origin is not None:
                for name in (METRICS, VALIDATIONS, EVALUATIONS, SKIPPED):
                    if (origin / name).exists():
                        shutil.copyfile(origin / name, output / name)
            write_text(output / CONFIG, dump_config(job.run, masked=True))
            write_json(output / DEEPSPEED, mask_all(job.deepspeed.settings))
            self._open_file(METRICS, done)
            # Step 0 is the untrained model: a run that starts over writes its record again.
            self._open_file(VALIDATIONS, done if resumed else -1)
            if job.run.evaluate.every:
                self._open_file(EVALUATIONS, done if resumed else -1)
            if (output / SKIPPED).exists():
                self._open_file(SKIPPED, done)
        except OSError as error:
            reason, remedy = disk_fault(error)
            problem = f"cannot be written to ({reason})"
            raise UserError.of(
                "output", problem, f"{remedy}, or choose another folder", str(output)
            ) from None
        self.engine.resume_monitors(done * job.batch.global_batch)
        if self.trackers:
            self.trackers.start(tracked_run(job, evaluation))
        if resumed:
            records = read_metrics(output / METRICS)
            self.clock.total = max((float(record.get("seconds") or 0) for record in records), default=0.0)
            say(f"resuming after step {done} of {job.total_steps}")

    def _open_file(self, name: str, done: int) -> None:
        self._files[name] = MetricsFile(self.job.output / name, done)

    def has(self, name: str, step: int, measure: str | None = None) -> bool:
        """Whether the file has a record of `step` (with `measure`, if given); False on ranks other than 0."""
        if name not in self._files:
            return False
        records = read_metrics(self.job.output / name)
        return any(
            record.get("step") == step and measure in (None, record.get("measure")) for record in records
        )

    def step(self, step: int, numbers: StepNumbers, context: Mapping[str, Any]) -> None:
        """Write a logged step; `context` has lr, skipped_steps, guidance_weight and peak_memory."""
        if not self.world.is_main:
            return
        job = self.job
        tokens = job.tokens_per_step
        per_second = self.clock.tokens_per_second()
        record = {
            "step": step,
            **asdict(numbers),
            **context,
            "epoch": job.epoch(step),
            "tokens": step * tokens,
            "tokens_per_second": per_second,
            "mfu": job.utilisation(per_second, self.world.size, self.engine.device),
            "seconds": self.clock.total,
            "seconds_left": (job.total_steps - step) * tokens / per_second,
        }
        self._files[METRICS].append(record)
        self.engine.write_monitors(record, step * job.batch.global_batch)
        self.trackers.notify()
        say(StepLine(job.total_steps).format(record))

    def dropped(self, step: int, rate: float) -> None:
        """Write the blocks of a step that was dropped."""
        if not self.world.is_main:
            return
        size = self.job.batch.global_batch
        first = self.job.first_block(step)
        ids = self.job.corpus.order.at(np.arange(first, first + size))
        with suppress(OSError):  # a full disk: the next checkpoint reports it on all ranks
            if SKIPPED not in self._files:
                self._open_file(SKIPPED, step - 1)
            self._files[SKIPPED].append({"step": step, "lr": rate, "blocks": ids.tolist()})

    def validated(self, step: int, measured: Measurement) -> None:
        """Write the held-out loss and attention after `step`."""
        if not self.world.is_main:
            return
        self._files[VALIDATIONS].append({"step": step, "measure": self.job.measure, **measured.as_record()})
        self.trackers.notify()
        mass = measured.guided_attention
        attention = "" if mass is None else f", attention {mass:.3f}"
        say(f"held-out after step {step}: lm {measured.lm_loss:.4f}{attention}")
        if step == 0 and measured.unseen:
            say(
                f"warning: no token of {measured.sequences:,} held-out blocks is a target of "
                f"{', '.join(measured.unseen)}: nothing shows whether its guidance does anything; check the "
                "words, guidance.mode and the text (gaguide lexicon show)"
            )

    def evaluated(self, step: int, measure: str, record: Mapping[str, Any]) -> None:
        """Write an evaluation's metrics after `step`; the console shows the first metric of each task."""
        if not self.world.is_main:
            return
        self._files[EVALUATIONS].append({"step": step, "measure": measure, **record})
        self.trackers.notify()
        firsts = {name: next(iter(task["metrics"].items())) for name, task in record["tasks"].items()}
        shown = ", ".join(f"{name} {metric} {of['value']:.4f}" for name, (metric, of) in firsts.items())
        say(f"evaluated after step {step}: {shown}")

    def sync_all(self) -> None:
        """`sync`, with a `UserError` where records do not fit on the disk."""
        try:
            self.sync()
        except OSError as error:
            reason, remedy = disk_fault(error)
            problem = f"the last records could not be written ({reason})"
            remedy += " and start the same command again: the last checkpoint is complete"
            raise UserError.of("output", problem, remedy, str(self.job.output)) from None

    def sync(self) -> None:
        """Flush all records to disk, including those that a full disk refused before; may raise `OSError`."""
        for file in self._files.values():
            file.sync()
