"""A Slurm of two hosts: slurmctld and munge on the first, a slurmd on each."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts, need
from tests.support.patience import patience, wait_until

_PROGRAMS = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "munged": "munge"}
_CONF = """
ClusterName=gaguide
SlurmctldHost=node0(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
KillWait=20
SlurmdTimeout=20
MessageTimeout=10
NodeName=node0 NodeAddr=10.77.0.1 CPUs=2
NodeName=node1 NodeAddr=10.77.0.2 CPUs=2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass
class Slurm:
    """A running Slurm over `hosts`; commands run on the first."""

    hosts: Hosts
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variable by which commands find this Slurm."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *words: str | Path, timeout: float = 60, **more: str) -> str:
        """The output of a command, which must succeed."""
        done = self.hosts[0].run(*words, timeout=timeout, **self.environment, **more)
        assert done.returncode == 0, f"{words}: {done.stdout}"
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        """`scontrol show job` as a table."""
        shown = self.run("scontrol", "show", "job", "--oneliner", job)
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    def wait_for(self, job: str, *states: str, seconds: float = 200) -> dict[str, str]:
        """The job's table once it is in one of `states`; fails the test after `seconds`."""
        until = time.monotonic() + patience(seconds)
        while True:
            table = self.state(job)
            if table["JobState"] in states:
                return table
            if time.monotonic() > until:
                pytest.fail(f"job {job} is {table['JobState']} ({table.get('Reason')}), not one of {states}")
            time.sleep(0.5)

    def now(self, job: str) -> None:
        """Start a requeued job without the two minutes that Slurm holds it back."""
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")


@contextlib.contextmanager
def slurm(hosts: Hosts, folder: Path) -> Iterator[Slurm]:
    """Munge and Slurm's daemons on all hosts, stopped at the end."""
    need(_PROGRAMS)
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    for name in ("state", "spool-node0", "spool-node1"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(_CONF.format(folder=folder))
    made = Slurm(hosts, folder)
    daemons: list[subprocess.Popen[bytes]] = []

    def start(at: int, *words: str) -> None:
        log = folder / f"{Path(words[0]).name}-{at}.out"
        daemons.append(hosts[at].start(*words, log=log, cwd=folder, **made.environment))

    try:
        socket, key = f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"
        files = [
            f"--pid-file={folder}/munge.pid",
            f"--log-file={folder}/munge.log",
            f"--seed-file={folder}/seed",
        ]
        start(0, "munged", "--foreground", "--force", socket, key, *files)
        _until(lambda: (folder / "munge.socket").exists(), "munged", folder)
        start(0, "slurmctld", "-D")
        for at, host in enumerate(hosts):
            start(at, "slurmd", "-D", "-N", host.name)
        _until(lambda: _idle(made) == "2", "slurm", folder)
        yield made
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(patience(10))
            daemon.kill()


def _idle(made: Slurm) -> str:
    """The number of idle hosts, as sinfo prints it."""
    words = ("sinfo", "--noheader", "--states=idle", "--format=%D", "--partition=main")
    return made.hosts[0].run(*words, **made.environment).stdout.strip()


def _until(ready, name: str, folder: Path) -> None:
    def logs() -> str:
        return "\n".join(f"{path.name}: {path.read_text()[-800:]}" for path in folder.glob("*.[lo][ou][gt]"))

    wait_until(ready, 30, lambda: f"{name} did not start\n{logs()}")
