"""Exclusive use of the output folder, which all hosts must share."""

from __future__ import annotations

import uuid
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from gaguide.distributed import World, barrier, broadcast, raise_together
from gaguide.errors import UserError
from gaguide.files import disk_fault
from gaguide.liveness.heartbeat import HeartbeatFolder
from gaguide.log import run_files
from gaguide.model.content import ADAPTER_FOLDER, MODEL_FOLDER

_TRACES = (".heartbeats", "checkpoints", run_files.METRICS)
"""What shows that a run has written to a folder."""
_REPLACED = (
    MODEL_FOLDER, ADAPTER_FOLDER, run_files.CONFIG, run_files.DEEPSPEED, run_files.SUMMARY,
    run_files.VALIDATIONS, run_files.EVALUATIONS,
)  # fmt: skip


def check_replaces_nothing(output: Path) -> None:
    """Raise a `UserError` where no run has written to a folder that holds what a run would replace."""
    if any((output / name).exists() for name in _TRACES):
        return
    found = [name for name in _REPLACED if (output / name).exists()]
    if found:
        problem = f"holds {', '.join(found)}, which no run has written there and this one would replace"
        raise UserError.of("output", problem, "choose another folder, or move them away", str(output))


def claim_output(output: Path, world: World) -> tuple[BaseFileLock, HeartbeatFolder]:
    """Lock `output` for this run until the lock is released or the process ends (a collective).

    Returns the lock and the folder of this start's heartbeats. Those of earlier starts are removed, so that a
    hanging rank of one of them does not disturb this one. Raises a `UserError` on all ranks if another run
    holds the folder, or if a host sees a different folder under that name: its part of every checkpoint would
    be missing.
    """
    lock = FileLock(output / ".lock")
    token = broadcast(uuid.uuid4().hex)
    mark = output / f".seen-{token}"
    beats = HeartbeatFolder(output / ".heartbeats" / token[:12])

    def take() -> None:
        if not world.is_main:
            return
        try:
            lock.acquire(timeout=0)
            beats.create()
            mark.touch()
        except Timeout:
            problem, remedy = "another run is writing there", "wait for it, or choose another folder"
            raise UserError.of("output", problem, remedy, str(output)) from None
        except OSError as error:
            reason, remedy = disk_fault(error)
            problem = f"cannot be written to ({reason})"
            raise UserError.of(
                "output", problem, f"{remedy}, or choose another folder", str(output)
            ) from None

    def look() -> None:
        if not mark.exists():
            raise UserError.of(
                "output",
                f"host {world.host} does not see what rank 0 wrote there",
                "choose a folder on a file system that all hosts share",
                str(output),
            )

    try:
        raise_together(take)
        raise_together(look)
        barrier()
    finally:
        if world.is_main:
            mark.unlink(missing_ok=True)
    return lock, beats
