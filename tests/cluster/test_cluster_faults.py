"""Faults of hosts, links and launchers: a run over two hosts ends everywhere, says why, and resumes."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gaguide.log import read_metrics
from tests.cluster.conftest import arguments, losses
from tests.cluster.hosts import Hosts, hosts
from tests.cluster.test_hosts import deepspeed_env
from tests.support.patience import patience, wait_until
from tests.support.ranks import REPOSITORY, TRAIN, run_ranks

pytestmark = pytest.mark.cluster

LONG = ("--train.steps", "40", "--checkpoint.every", "10", "--train.hang_timeout", str(patience(15)))
# Without this ssh waits a quarter of an hour for a host that is gone.
PATIENCE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"


@pytest.fixture()
def fresh(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts that this test may break."""
    with hosts(2, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def expected_long(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    output = tmp_path_factory.mktemp("one-host-long") / "run"
    done = run_ranks(TRAIN, arguments(output, *LONG), 2)
    assert done.returncode == 0, done.stdout
    return losses(output)


class Run:
    """A running `deepspeed --hostfile` over the first two hosts; the command runs on host `at`."""

    def __init__(self, made: Hosts, folder: Path, at: int = 0) -> None:
        self.hosts, self.folder, self.output, self.log = made, folder, folder / "run", folder / "log"
        command = ["deepspeed", "--hostfile", made.hostfile(count=2), TRAIN, *arguments(self.output, *LONG)]
        more = {"DS_ENV_FILE": deepspeed_env(folder), "PDSH_SSH_ARGS_APPEND": PATIENCE}
        self.process = made[at].start(*command, log=self.log, cwd=REPOSITORY, **more)
        self._wait_for_steps(14)

    def _wait_for_steps(self, count: int) -> None:
        metrics = self.output / "metrics.jsonl"

        def reached() -> bool:
            assert self.process.poll() is None, self.output_text()
            return metrics.exists() and len(read_metrics(metrics)) >= count

        wait_until(reached, 150, self.output_text)

    def output_text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_output(self, pattern: str) -> None:
        """Wait until the output matches; it comes through ssh."""
        wait_until(lambda: re.search(pattern, self.output_text()), 10, self.output_text)

    def kill(self, host: int, pattern: str, every: bool = False) -> None:
        """kill -9 of the outermost process (or all) of a host whose command line matches."""
        found = {
            pid: line
            for pid, line in self.hosts[host].processes("train.py").items()
            if re.search(pattern, line)
        }
        assert found, self.hosts[host].processes("train.py")
        for pid in sorted(found) if every else sorted(found)[:1]:
            os.kill(pid, signal.SIGKILL)

    def ends(self, seconds: float) -> int:
        """The launcher's exit code; no rank may live on any host by then."""
        began = time.monotonic()
        code = self.process.wait(patience(seconds))
        self.hosts.wait_for_no_ranks(max(1.0, seconds - (time.monotonic() - began)))
        print(f"ended after {time.monotonic() - began:.1f} s with {code}")
        return code

    def saved(self) -> int:
        """The step of the newest checkpoint."""
        return max(int(path.name[5:]) for path in (self.output / "checkpoints").glob("step-*"))

    def assert_resumes(self, expected: dict[int, float]) -> None:
        """On the first host alone, with two ranks: the same global batches and the same losses."""
        command = ["deepspeed", "--num_accelerators", "2", TRAIN, *arguments(self.output, *LONG)]
        done = self.hosts[0].run(*command, timeout=300)
        assert done.returncode == 0, done.stdout
        assert "resuming after step" in done.stdout and losses(self.output) == expected


def test_the_ranks_of_a_host_are_killed(two: Hosts, tmp_path: Path, expected_long: dict[int, float]) -> None:
    run = Run(two, tmp_path)
    for pid in two[1].ranks():
        os.kill(pid, signal.SIGKILL)
    assert run.ends(60) != 0
    run.wait_for_output("exits with return code = -9")
    run.assert_resumes(expected_long)


def test_the_launcher_is_killed(two: Hosts, tmp_path: Path) -> None:
    """The command that a person started: pdsh and all ranks would keep running."""
    run = Run(two, tmp_path)
    os.kill(min(two[0].processes("bin/deepspeed --hostfile")), signal.SIGKILL)
    run.ends(60)
    run.wait_for_output(r"train: stopped after step \d+ of 40 \(its launcher has died\)")


@pytest.mark.parametrize("host", [0, 1])
def test_the_launcher_of_one_host_is_killed(two: Hosts, tmp_path: Path, host: int) -> None:
    run = Run(two, tmp_path)
    # Not the ssh and pdsh on the first host, whose command lines hold the launcher's.
    run.kill(host, rf"^(?!\S*(ssh|pdsh) ).*-m deepspeed.launcher.launch .*--node_rank={host}", every=True)
    run.ends(60)
    run.wait_for_output(r"train: stopped after step \d+ of 40 \(its launcher has died\)")


@pytest.mark.parametrize("at", [0, 2])
def test_the_command_and_its_ssh_are_killed(tmp_path: Path, expected_long: dict[int, float], at: int) -> None:
    """On a host of the run, and on a login host without ranks, where only their ssh saw it."""
    with hosts(3, tmp_path) as made:
        run = Run(made, tmp_path, at)
        for pid, line in made[at].processes("train.py").items():
            if re.match(r"\S*(pdsh|ssh) |.*bin/deepspeed --hostfile", line):
                os.kill(pid, signal.SIGKILL)
        run.ends(60)
        assert run.saved() == len(losses(run.output)) < 40, run.output_text()
        run.assert_resumes(expected_long)


def test_ctrl_c(two: Hosts, tmp_path: Path) -> None:
    """The terminal signals the command and all below it on this host; `deepspeed` then ends its launchers."""
    run = Run(two, tmp_path)
    os.killpg(run.process.pid, signal.SIGINT)
    run.ends(60)
    assert run.saved() == len(losses(run.output)) < 40, run.output_text()


def test_a_link_is_cut_for_good(fresh: Hosts, tmp_path: Path, expected_long: dict[int, float]) -> None:
    """Both sides wait for each other until their watchdogs end them."""
    run = Run(fresh, tmp_path)
    fresh.cut(1)
    assert run.ends(120) != 0
    run.wait_for_output(r"train: nothing has moved for \d+ s .*on rank [01]")
    for rank in (0, 1):
        assert "nothing has moved" in (run.output / "hang" / f"rank-{rank:05}.txt").read_text()
    run.assert_resumes(expected_long)


def test_a_link_that_comes_back_does_not_end_the_run(
    two: Hosts, tmp_path: Path, expected_long: dict[int, float]
) -> None:
    run = Run(two, tmp_path)
    two.cut(1)
    time.sleep(4)
    two.restore(1)
    assert run.ends(300) == 0, run.output_text()
    assert losses(run.output) == expected_long


def test_a_host_loses_its_power(fresh: Hosts, tmp_path: Path, expected_long: dict[int, float]) -> None:
    """It notifies nobody, and is missing when the run resumes."""
    run = Run(fresh, tmp_path)
    fresh[1].power_off()
    assert run.ends(120) != 0
    run.wait_for_output(r"rank 1 on host node1 has given no sign of life")
    run.assert_resumes(expected_long)


def test_the_first_host_loses_its_power(fresh: Hosts, tmp_path: Path) -> None:
    """It takes the command, its ssh and the rendezvous with it: the other host must notice without them."""
    run = Run(fresh, tmp_path)
    fresh[0].power_off()
    fresh.wait_for_no_ranks(120)
    assert "rank 0 on host node0" in (run.output / "hang" / "rank-00001.txt").read_text()
