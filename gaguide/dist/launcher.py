"""The DeepSpeed launcher above this rank: a mistake of its command line that it only warns of, and its death.

`deepspeed` with a hostfile that is not there trains on this host alone. Killed, it leaves pdsh and all ranks
running on every host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from gaguide.errors import Fault, UserError


def check_hostfile() -> None:
    """Raise a `UserError` if the `deepspeed` command that started this rank names a hostfile that is missing."""
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
        if word.endswith(".py"):
            break  # the script; what follows is its own
        if option in ("--hostfile", "-H"):
            named = value if equals else following
    return named


def runner_over_ssh(master_port: str) -> dict[int, float]:
    """Process id → start time of pdsh and the `deepspeed` that start the ranks of this port, if on this host.

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
