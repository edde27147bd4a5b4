"""`JobRequest`: the resources and program of a Slurm job, and their checks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gaguide.errors import Fault, not_one_of

JobKind = Literal["train", "evaluate", "data", "cell"]
"""Program of a job, and the name of its template in launch/slurm; `cell` is a cell of a study."""

ContainerRuntime = Literal["apptainer", "pyxis"]
RUNTIMES: tuple[ContainerRuntime, ...] = ("apptainer", "pyxis")

# minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]
_TIME = re.compile(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(?:(\d+):)?(\d+):(\d+)|(\d+))")
# Options of sbatch that a user cannot pass on, because gaguide sets them or the script depends on them.
_OWN_OPTIONS = frozenset(
    ("job-name", "nodes", "ntasks", "ntasks-per-node", "array", "signal", "requeue", "no-requeue",
     "output", "open-mode", "dependency", "chdir", "wrap", "parsable", "test-only", "wait", "time",
     "partition", "account", "qos", "gpus-per-node", "cpus-per-task", "mem")
)  # fmt: skip


@dataclass(frozen=True)
class JobRequest:
    """One job. None leaves the choice to the cluster."""

    kind: JobKind
    """Program of the job."""
    name: str
    """The job's name in the queue."""
    arguments: tuple[str, ...]
    """Arguments of the program that it runs."""
    nodes: int = 1
    """Number of hosts."""
    gpus_per_node: int | None = None
    """GPUs of each host."""
    ranks_per_node: int | None = None
    """Ranks on each host; None is one per GPU, or one without GPUs."""
    cpus_per_rank: int | None = None
    """Cores of each rank."""
    memory: str | None = None
    """Memory of each host, such as 64G; 0 is all of it."""
    time: str = "12:00:00"
    """Time limit in the format of sbatch."""
    partition: str | None = None
    """Partition, that is, queue."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    requeue: bool = True
    """Whether the job goes back into the queue after a preemption or the loss of a host."""
    signal_seconds: int = 180
    """Seconds before the time limit at which Slurm signals the job to save and end."""
    chain: int = 1
    """Number of jobs that run one after another."""
    parts: int = 8
    """Tasks of the job array that builds data."""
    max_running: int | None = None
    """Tasks of the job array, or jobs of a study, that run at a time; None: as many as the cluster allows."""
    output: Path | None = None
    """The run's folder, where the job looks for checkpoints; None lets the job ask the program."""
    max_restarts: int = 3
    """Restarts in a row without a newer checkpoint after which the job ends."""
    container: str | None = None
    """Image: a file, or with pyxis also the name of one in a registry."""
    container_runtime: ContainerRuntime = "apptainer"
    """Container runtime; `pyxis` is Slurm's plugin for enroot."""
    mounts: tuple[str, ...] = ()
    """Further folders of the host that the container sees, as PATH or PATH:INSIDE."""
    python: str = "python"
    """Python interpreter on the hosts, or in the container."""
    setup: tuple[str, ...] = ()
    """Shell commands that the batch shell runs first."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, such as `--constraint=a100`."""

    @property
    def tasks_per_node(self) -> int:
        """Ranks on each host."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def all_mounts(self) -> tuple[str, ...]:
        """Folders that a pyxis container must see: `mounts`, and that in which the job is submitted."""
        return (*self.mounts, str(Path.cwd()))

    @property
    def world_size(self) -> int:
        """Number of ranks of the job."""
        return self.nodes * self.tasks_per_node

    def faults(self) -> list[Fault]:
        """Every fault of the request, under the names of the options of `gaguide submit`."""
        return [*self._amount_faults(), *self._text_faults(), *self._option_faults()]

    def _amount_faults(self) -> Iterator[Fault]:
        for field, value in (
            ("--nodes", self.nodes),
            ("--gpus-per-node", self.gpus_per_node),
            ("--ranks-per-node", self.ranks_per_node),
            ("--cpus" if self.kind == "data" else "--cpus-per-rank", self.cpus_per_rank),
            ("--signal-seconds", self.signal_seconds),
            ("--chain", self.chain),
            ("--parts", self.parts),
            ("--max-running", self.max_running),
        ):
            if value is not None and value < 1:
                yield Fault(field, "must be at least 1", "give a larger number, or leave it out", value)
        if self.max_restarts < 0:
            yield Fault("--max-restarts", "must be at least 0", "give 0 or more", self.max_restarts)
        if self.gpus_per_node and self.ranks_per_node and self.ranks_per_node > self.gpus_per_node:
            problem = f"must be at most {self.gpus_per_node}, the GPUs of a host"
            yield Fault("--ranks-per-node", problem, "give at most one rank per GPU", self.ranks_per_node)

    def _text_faults(self) -> Iterator[Fault]:
        seconds = time_limit_seconds(self.time)
        if seconds is None:
            remedy = "write HOURS:MINUTES:SECONDS or DAYS-HOURS"
            yield Fault("--time", "is not a time limit", remedy, self.time)
        elif self.kind in ("train", "cell") and seconds <= self.signal_seconds:
            problem = f"must be less than the time limit, which is {seconds} s"
            yield Fault(
                "--signal-seconds", problem, "raise --time, or give fewer seconds", self.signal_seconds
            )
        if not re.fullmatch(r"[\w.+-]+", self.name):
            yield Fault("--job-name", "is not a valid file name", "use letters, digits, . _ + -", self.name)
        if self.memory is not None and not re.fullmatch(r"\d+[KMGT]?", self.memory):
            remedy = "write it as 64G, or 0 for all memory of a host"
            yield Fault("--memory", "is not an amount of memory", remedy, self.memory)
        yield from self._container_faults()
        for field in ("partition", "account", "qos"):
            value = getattr(self, field)
            if value is not None and not re.fullmatch(r"[^\s\"'\\#]+", value):
                remedy = "remove spaces, quotes, # and backslashes"
                yield Fault(f"--{field}", "must be a single word", remedy, value)

    def _container_faults(self) -> Iterator[Fault]:
        if self.container_runtime not in RUNTIMES:
            yield not_one_of("--container-runtime", self.container_runtime, RUNTIMES)
        elif self.container is None:
            for field, value in (("--mount", self.mounts), ("--container-runtime", self.container_runtime)):
                if value not in ((), "apptainer"):
                    yield Fault(field, "needs --container", "name an image, or leave it out", value)
        # pyxis also takes names in registries, such as nvcr.io#nvidia/pytorch:25.10-py3.
        elif not Path(self.container).exists() and (
            self.container_runtime == "apptainer" or self.container.endswith((".sqsh", ".sif"))
        ):
            remedy = "build it (docker/), or give the path that the hosts see"
            yield Fault("--container", "does not exist", remedy, self.container)
        for mount in self.mounts:
            if not re.fullmatch(r"/[^\s,:]*(:/[^\s,:]*)?(:[a-z]+)?", mount):
                remedy = "write absolute paths as PATH or PATH:INSIDE, without spaces and commas"
                yield Fault("--mount", "is not a folder to mount", remedy, mount)

    def _option_faults(self) -> Iterator[Fault]:
        for option in self.options:
            name = option.removeprefix("--").partition("=")[0]
            if not re.fullmatch(r"--[a-z][a-z0-9-]*(=\S+)?", option):
                yield Fault("--sbatch", "is not a long option of sbatch", "write it as --name=value", option)
            elif name in _OWN_OPTIONS:
                problem = "is set by gaguide"
                yield Fault("--sbatch", problem, "use the option of gaguide submit instead", option)


def time_limit_seconds(text: str) -> int | None:
    """Seconds of a time limit in one of the formats of sbatch; None if `text` is not one."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    days, day_hours, day_minutes, day_seconds, hours, minutes, seconds, only = (
        int(n or 0) for n in match.groups()
    )
    whole = days * 86_400 + (day_hours + hours) * 3600 + (day_minutes + minutes + only) * 60
    return whole + day_seconds + seconds
