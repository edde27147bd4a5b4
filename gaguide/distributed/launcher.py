"""The launchers of this rank: whether they still run, and a check of DeepSpeed's command line.

`deepspeed` with a hostfile that does not exist only warns and trains on this host alone. When it is killed,
pdsh and all ranks keep running on every host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

from gaguide.errors import UserError

# Prefixes of the names of launchers' programs and modules.
_LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "mpirun", "mpiexec", "prterun", "orted", "prted",
              "hydra", "srun", "slurmstepd")  # fmt: skip
STUDY_VARIABLE = "GAGUIDE_STUDY_PROCESS"
"""A study sets it to its process id, for the programs that it starts: it is their launcher."""
# Variables that deepspeed and torchrun set for every rank, whose parent they are.
_VARIABLES = ("CROSS_SIZE", "TORCHELASTIC_RUN_ID")


def check_hostfile() -> None:
    """Raise a `UserError` if the `deepspeed` command above this rank names a hostfile that does not exist."""
    with suppress(psutil.Error, OSError):
        for process in psutil.Process().parents():
            name = hostfile_of(process.cmdline())
            if name and not (Path(process.cwd()) / name).is_file():
                raise UserError.of(
                    "--hostfile",
                    "does not exist; DeepSpeed would train on this host alone",
                    "name a file with a line `HOST slots=GPUS` for each host, or omit --hostfile",
                    name,
                )


def hostfile_of(command: Sequence[str]) -> str | None:
    """The hostfile that a `deepspeed [options] SCRIPT …` command line names; None for other commands."""
    start = next((at for at, word in enumerate(command[:3]) if Path(word).name in ("deepspeed", "ds")), None)
    if start is None:
        return None
    hostfile = None
    for word, following in zip(command[start + 1 :], [*command[start + 2 :], ""]):
        option, equals, value = word.partition("=")
        if word.endswith(".py") or word.startswith("gaguide."):
            break  # the program; what follows are its own arguments
        if option in ("--hostfile", "-H"):
            hostfile = value if equals else following
    return hostfile


class Launchers:
    """The launchers that this process has when the object is made."""

    def __init__(self) -> None:
        self.processes = launchers_above() | runner_over_ssh(os.environ.get("MASTER_PORT", ""))
        # A launcher that died while Python started has left only its variables.
        self._orphan = not self.processes and any(name in os.environ for name in _VARIABLES)

    def gone(self) -> bool:
        """Whether any of them has died."""
        return self._orphan or not all_running(self.processes)


@cache
def launchers() -> Launchers:
    """The launchers that this process had at the first call, which should come before anything slow."""
    return Launchers()


def launchers_above() -> dict[int, float]:
    """Process id → start time of every launcher that this process descends from."""
    found = {}
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            with suppress(psutil.Error):
                words = [Path(word).name for word in process.cmdline()[:4]]
                is_study = os.environ.get(STUDY_VARIABLE) == str(process.pid)
                if is_study or any(word.startswith(_LAUNCHERS) for word in words):
                    found[process.pid] = process.create_time()
    return found


def all_running(processes: dict[int, float]) -> bool:
    """Whether all `processes` (id → start time) still run."""
    for pid, started in processes.items():
        try:
            process = psutil.Process(pid)
            if process.create_time() != started or process.status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:  # not permitted to look: not a reason to stop
            continue
    return True


def runner_over_ssh(master_port: str) -> dict[int, float]:
    """Process id → start time of the pdsh, and the `deepspeed` above it, that started the ranks of this port.

    Empty where they run on another host. They are not ancestors of any rank: sshd is.
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
