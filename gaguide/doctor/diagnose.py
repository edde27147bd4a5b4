"""All checks, in the order of a person's interest; slow ones run beside each other."""

from __future__ import annotations

from gaguide.doctor import machine, network, software
from gaguide.doctor.check import Check, guarded
from gaguide.doctor.probes import Probes
from gaguide.ports import free_port

DEADLINE_SECONDS = 13.0
"""What has not answered by then is reported as such."""


def diagnose(deadline_seconds: float = DEADLINE_SECONDS, busy: bool = False) -> list[Check]:
    """Look at everything; takes a few seconds and never longer than about the deadline.

    busy: a run may be using the accelerators, so they are only counted.
    """
    hub = network.Hub()
    with Probes(deadline_seconds) as probes:
        port = str(free_port())
        for rank in ("0", "1"):
            probes.start("gloo", rank, port, key=f"gloo{rank}")
        probes.start("torch", *(["busy"] if busy else []))
        probes.start("mpi")
        here = [
            *guarded("python", software.python),
            *guarded("packages", software.packages),
            *guarded("compiler", software.compiler),
            *guarded("programs", software.programs),
            *guarded("compiled ops' cache", software.extension_locks),
        ]
        ranks = [
            *guarded("network interfaces", network.interfaces),
            *guarded("hostname", network.hostname),
        ]
        rest = [
            *guarded("slurm", software.slurm),
            *guarded("memory", machine.memory),
            *guarded("shared memory", machine.shared_memory),
            *guarded("disks", machine.disks),
        ]
        return [
            *here,
            *guarded("accelerator", lambda: machine.accelerator(probes.answer("torch"))),
            *guarded("deepspeed ops", lambda: software.ops(probes.answer("torch", part="ops"))),
            *guarded("gloo", lambda: network.gloo([probes.answer(f"gloo{rank}") for rank in (0, 1)])),
            *ranks,
            *guarded("mpi", lambda: software.mpi(probes.answer("mpi"))),
            *rest,
            *guarded("model hub", hub.check),
        ]
