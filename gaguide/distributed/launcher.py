"""The launchers above this rank: a mistake in DeepSpeed's command line that it only warns of, and their end.

`deepspeed` with a hostfile that is not there trains on this host alone. Killed, it leaves pdsh and all ranks
running on every host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

from gaguide.errors import Fault, UserError

# How the names of launchers' programs and modules begin.
_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "mpirun", "mpiexec", "prterun", "orted", "prted",
              "hydra", "srun", "slurmstepd")  # fmt: skip
# What deepspeed and torchrun give every rank, whose parent they are.
_MARKS = ("CROSS_SIZE", "TORCHELASTIC_RUN_ID")


def check_hostfile() -> None:
    """Raise a `UserError` if the `deepspeed` command above this rank names a hostfile that is missing."""
    with suppress(psutil.Error, OSError):
        for process in psutil.Process().parents():
            name = hostfile_of(process.cmdline())
            if name and not (Path(process.cwd()) / name).is_file():
                raise UserError(
                    Fault(
                        "--hostfile",
                        "no such file; DeepSpeed would train on this host alone",
                        "give a file with a line `HOST slots=GPUS` for each host, or leave --hostfile out",
                        name,
                    )
                )


def hostfile_of(command: Sequence[str]) -> str | None:
    """The hostfile that a `deepspeed [options] SCRIPT …` command line names; None for other commands."""
    at = next((at for at, word in enumerate(command[:3]) if Path(word).name in ("deepspeed", "ds")), None)
    if at is None:
        return None
    named = None
    for word, following in zip(command[at + 1 :], [*command[at + 2 :], ""]):
        option, equals, value = word.partition("=")
        if word.endswith(".py") or word.startswith("gaguide."):
            break  # the program; what follows are its own arguments
        if option in ("--hostfile", "-H"):
            named = value if equals else following
    return named


class Launchers:
    """The launchers of this process, as they are when this is made: process id → start time."""

    def __init__(self) -> None:
        self.processes = launchers_above() | runner_over_ssh(os.environ.get("MASTER_PORT", ""))
        # A launcher that died while Python started has left its marks only.
        self._orphan = not self.processes and any(mark in os.environ for mark in _MARKS)

    def gone(self) -> bool:
        """Whether any of them has died."""
        return self._orphan or not still_there(self.processes)


@cache
def launchers() -> Launchers:
    """The launchers of this process, as they were at the first call: to be made before anything slow."""
    return Launchers()


def launchers_above() -> dict[int, float]:
    """Every launcher that this process descends from."""
    found = {}
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            with suppress(psutil.Error):
                if any(Path(word).name.startswith(_LAUNCHERS) for word in process.cmdline()[:4]):
                    found[process.pid] = process.create_time()
    return found


def still_there(processes: dict[int, float]) -> bool:
    """Whether all of them still run."""
    for pid, started in processes.items():
        try:
            process = psutil.Process(pid)
            if process.create_time() != started or process.status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:  # not allowed to look: no reason to stop
            continue
    return True


def runner_over_ssh(master_port: str) -> dict[int, float]:
    """pdsh and the `deepspeed` above it that start the ranks of this port, if they run on this host.

    They are no ancestors of any rank: sshd is.
    """
    found: dict[int, float] = {}
    for process in _processes():
        with suppress(psutil.Error, OSError):
            if _is_pdsh_of(process.cmdline(), master_port):
                parent = process.parent()
                for each in (process, parent):
                    if each is not None and each.pid != 1:
                        found[each.pid] = each.create_time()
    return found


def _is_pdsh_of(command: Sequence[str], master_port: str) -> bool:
    return bool(command) and Path(command[0]).name == "pdsh" and f"--master_port={master_port}" in command


def _processes() -> Iterable[psutil.Process]:
    mine = os.getuid()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.uids().real == mine:
                yield process
