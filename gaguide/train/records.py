"""What a run writes about itself: records for programs, lines for the person at the keyboard."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from gaguide.config import dump_config
from gaguide.distributed import World
from gaguide.engine.monitors import tame_monitors, write_to_monitors
from gaguide.errors import Fault, UserError
from gaguide.files import write_json, write_text
from gaguide.guidance import Measurement
from gaguide.log import MetricsFile, StepLine, read_metrics, say
from gaguide.train.clock import Clock
from gaguide.train.job import Job
from gaguide.train.step import StepNumbers

METRICS, VALIDATION, EVALUATIONS, SKIPPED = "metrics", "validation", "evaluations", "skipped"


class RunRecords:
    """The files NAME.jsonl of a run's output folder, its console and its monitors.

    Rank 0 alone writes: on the other ranks every method returns at once.
    """

    def __init__(self, job: Job, world: World, engine: Any) -> None:
        self.job, self.world, self.engine = job, world, engine
        self.clock = Clock()
        self._files: dict[str, MetricsFile] = {}

    def open(self, done: int, resumed: bool) -> None:
        """Write the run's configuration, and take the records up after step `done`.

        Raises a `UserError` where the disk takes nothing.
        """
        if not self.world.is_main:
            return
        output, job = self.job.output, self.job
        try:
            write_text(output / "config.yaml", dump_config(job.run))
            write_json(output / "deepspeed.json", job.deepspeed)
            self._take_up(METRICS, done)
            # Step 0 is the untrained model: a run that begins makes that record anew.
            self._take_up(VALIDATION, done if resumed else -1)
            if job.run.evaluate.every:
                self._take_up(EVALUATIONS, done if resumed else -1)
            if (output / f"{SKIPPED}.jsonl").exists():
                self._take_up(SKIPPED, done)
        except OSError as error:
            problem = f"cannot be written to ({error.strerror or error})"
            raise UserError(Fault("output", problem, "make room, or name another", str(output))) from None
        tame_monitors(self.engine, done * job.batch.global_batch)
        if resumed:
            records = read_metrics(output / f"{METRICS}.jsonl")
            self.clock.total = records[-1]["seconds"] if records else 0.0
            say(f"resuming after step {done} of {job.total_steps}")

    def _take_up(self, name: str, done: int) -> None:
        self._files[name] = MetricsFile(self.job.output / f"{name}.jsonl", done)

    def has(self, name: str, step: int) -> bool:
        """Whether the file has a record of `step`; False on other ranks than 0."""
        if name not in self._files:
            return False
        return any(record["step"] == step for record in read_metrics(self.job.output / f"{name}.jsonl"))

    def step(self, step: int, numbers: StepNumbers, more: Mapping[str, Any]) -> None:
        """A logged step; `more`: what its loop knows (lr, skipped_steps, guidance_weight, peak_memory)."""
        if not self.world.is_main:
            return
        job = self.job
        tokens = job.tokens_per_step
        per_second = self.clock.tokens_per_second()
        record = {
            "step": step,
            **asdict(numbers),
            **more,
            "epoch": job.epoch(step),
            "tokens": step * tokens,
            "tokens_per_second": per_second,
            "mfu": job.utilisation(per_second, self.world.size, self.engine.device),
            "seconds": self.clock.total,
            "seconds_left": (job.total_steps - step) * tokens / per_second,
        }
        self._files[METRICS].append(record)
        write_to_monitors(self.engine, record, step * job.batch.global_batch)
        say(StepLine(job.total_steps).format(record))

    def dropped(self, step: int, rate: float) -> None:
        """A step without effect: the blocks that it held."""
        if not self.world.is_main:
            return
        size = self.job.batch.global_batch
        ids = self.job.corpus.order.at(np.arange((step - 1) * size, step * size))
        with suppress(OSError):  # a full disk: the next checkpoint tells all ranks of it
            if SKIPPED not in self._files:
                self._take_up(SKIPPED, step - 1)
            self._files[SKIPPED].append({"step": step, "lr": rate, "blocks": ids.tolist()})

    def validated(self, step: int, measured: Measurement) -> None:
        """Held-out loss and attention after `step`."""
        if not self.world.is_main:
            return
        self._files[VALIDATION].append({"step": step, **measured.as_record()})
        mass = measured.guided_attention
        attention = "" if mass is None else f", attention {mass:.3f}"
        say(f"held-out after step {step}: lm {measured.lm_loss:.4f}{attention}")

    def evaluated(self, step: int, record: Mapping[str, Any]) -> None:
        """An evaluation's metrics after `step`; the console shows the first of each task."""
        if not self.world.is_main:
            return
        self._files[EVALUATIONS].append({"step": step, **record})
        firsts = {name: next(iter(task["metrics"].items())) for name, task in record["tasks"].items()}
        shown = ", ".join(f"{name} {metric} {of['value']:.4f}" for name, (metric, of) in firsts.items())
        say(f"evaluated after step {step}: {shown}")

    def sync(self) -> None:
        """Bring all records to disk, those as well that a full disk did not take before; else `OSError`."""
        for file in self._files.values():
            file.sync()
