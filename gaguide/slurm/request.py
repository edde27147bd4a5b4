"""What is asked of Slurm for one job, and what is wrong with it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gaguide.errors import Fault

Kind = Literal["train", "evaluate", "data"]

# minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]
_TIME = re.compile(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(?:(\d+):)?(\d+):(\d+)|(\d+))")
# What a job needs to be gaguide's; a person can't want other values of these.
_OURS = ("job-name", "nodes", "ntasks", "ntasks-per-node", "array", "signal", "requeue", "no-requeue",
         "output", "open-mode", "dependency", "chdir", "wrap", "parsable", "test-only", "wait", "time",
         "partition", "account", "qos", "gpus-per-node", "cpus-per-task", "mem")  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One job. None leaves the choice to the cluster.

    `ranks_per_node`: None is one for each GPU, or one without GPUs. `time`: as sbatch takes it.
    `signal_seconds`: how long before the limit the ranks are told to save. `chain`: jobs, one after another.
    `parts`: tasks of the array that builds data. `container`: an Apptainer image. `setup`: shell commands
    that the batch shell runs first. `options`: further options of sbatch, `--constraint=a100`.
    """

    kind: Kind
    name: str
    arguments: tuple[str, ...]
    nodes: int = 1
    gpus_per_node: int | None = None
    ranks_per_node: int | None = None
    cpus_per_rank: int | None = None
    memory: str | None = None
    time: str = "12:00:00"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    requeue: bool = True
    signal_seconds: int = 180
    chain: int = 1
    parts: int = 8
    container: Path | None = None
    python: str = "python"
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def tasks_per_node(self) -> int:
        """Ranks on each host."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.nodes * self.tasks_per_node

    def faults(self) -> list[Fault]:
        """Everything that is wrong with it."""
        return list(self._faults())

    def _faults(self) -> Iterator[Fault]:
        yield from self._amounts()
        seconds = seconds_of(self.time)
        if seconds is None:
            yield Fault("--time", "is no duration", "write HOURS:MINUTES:SECONDS or DAYS-HOURS", self.time)
        elif self.kind == "train" and seconds <= self.signal_seconds:
            remedy = f"ask for more time, or give less than {seconds} s"
            problem = f"is not before the start: the time limit is {seconds} s"
            yield Fault("--signal-seconds", problem, remedy, self.signal_seconds)
        if not re.fullmatch(r"[\w.+-]+", self.name):
            yield Fault("--job-name", "is no name of a file", "use letters, digits, . _ + -", self.name)
        if self.memory is not None and not re.fullmatch(r"\d+[KMGT]?", self.memory):
            yield Fault("--memory", "is no amount", "write 64G, or 0 for all of a host", self.memory)
        if self.container is not None and not self.container.exists():
            remedy = "build it (docker/), or give the path that the hosts see"
            yield Fault("--container", "no such file", remedy, str(self.container))
        yield from self._given_options()

    def _amounts(self) -> Iterator[Fault]:
        for field, value, least in (
            ("--nodes", self.nodes, 1),
            ("--gpus-per-node", self.gpus_per_node, 1),
            ("--ranks-per-node", self.ranks_per_node, 1),
            ("--cpus" if self.kind == "data" else "--cpus-per-rank", self.cpus_per_rank, 1),
            ("--signal-seconds", self.signal_seconds, 1),
            ("--chain", self.chain, 1),
            ("--parts", self.parts, 1),
        ):
            if value is not None and value < least:
                yield Fault(field, f"is less than {least}", "give a larger number, or leave it out", value)
        if self.gpus_per_node and self.ranks_per_node and self.ranks_per_node > self.gpus_per_node:
            problem = f"is more than the {self.gpus_per_node} GPUs of a node"
            yield Fault("--ranks-per-node", problem, "at most one rank for each GPU", self.ranks_per_node)

    def _given_options(self) -> Iterator[Fault]:
        for option in self.options:
            name = option.removeprefix("--").partition("=")[0]
            if not re.fullmatch(r"--[a-z][a-z0-9-]*(=\S+)?", option):
                yield Fault("--sbatch", "is no long option of sbatch", "write it as --name=value", option)
            elif name in _OURS:
                yield Fault("--sbatch", "is set by gaguide submit itself", "use its own option", option)


def seconds_of(time: str) -> int | None:
    """A duration in sbatch's spelling, in seconds; None if it is none."""
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    days, day_hours, day_minutes, day_seconds, hours, minutes, seconds, only = (
        int(n or 0) for n in match.groups()
    )
    whole = days * 86_400 + (day_hours + hours) * 3600 + (day_minutes + minutes + only) * 60
    return whole + day_seconds + seconds
