"""Runs all checks; the slow ones run concurrently."""

from __future__ import annotations

from collections.abc import Iterator

from gaguide.doctor import machine, network, software
from gaguide.doctor.check import Check, guarded
from gaguide.doctor.probes import Probes
from gaguide.ports import free_port

DEADLINE_SECONDS = 13.0
"""Time limit of the probes; one that has not answered by then is reported as late."""


def diagnose(deadline_seconds: float = DEADLINE_SECONDS, busy: bool = False) -> Iterator[Check]:
    """Yield every check as soon as it has a result; all of them take about `deadline_seconds` at most.

    busy: only count accelerators, without using their memory, because a run may need it.
    """
    hub = network.Hub()
    with Probes(deadline_seconds) as probes:
        port = str(free_port())
        for rank in ("0", "1"):
            probes.start("gloo", rank, port, key=f"gloo{rank}")
        probes.start("torch", *(["busy"] if busy else []))
        probes.start("mpi")
        yield from guarded("python", software.python)
        yield from guarded("packages", software.packages)
        yield from guarded("compiler", software.compiler)
        yield from guarded("programs", software.programs)
        yield from guarded("compiled ops' cache", software.extension_locks)
        yield from guarded("network interfaces", network.interfaces)
        yield from guarded("hostname", network.hostname)
        yield from guarded("slurm", software.slurm)
        yield from guarded("memory", machine.memory)
        yield from guarded("shared memory", machine.shared_memory)
        yield from guarded("disks", machine.disks)
        yield from guarded("mpi", lambda: software.mpi(probes.answer("mpi")))
        yield from guarded("accelerator", lambda: machine.accelerator(probes.answer("torch")))
        yield from guarded("gloo", lambda: network.gloo([probes.answer(f"gloo{rank}") for rank in (0, 1)]))
        yield from guarded("deepspeed ops", lambda: software.ops(probes.answer("torch", part="ops")))
        yield from guarded("model hub", hub.check)
