"""Ranks that wait for a lost host: gloo would wait forever, their monitor ends them. Without training."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gaguide.errors import EXIT_HUNG
from gaguide.liveness.peers import EXIT_LOST_RANK
from tests.cluster.hosts import Hosts, hosts
from tests.support.patience import patience, wait_until
from tests.support.ranks import REPOSITORY

pytestmark = pytest.mark.cluster

FOLDER = REPOSITORY / "tests" / "cluster"
TIMEOUT, BOUND = 6, 40


@pytest.fixture()
def fresh(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts that this test may break."""
    with hosts(2, tmp_path) as made:
        yield made


def start(
    made: Hosts, folder: Path, script: str = "wait_script.py", hosts: tuple[int, ...] = (0, 1)
) -> list[subprocess.Popen[bytes]]:
    """Rank I on host `hosts[I]`, all running."""
    started = []
    for rank, host in enumerate(hosts):
        variables = {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(hosts)),
            "LOCAL_RANK": str(hosts[:rank].count(host)),
        }
        variables |= {"MASTER_ADDR": made[0].address, "MASTER_PORT": "29512"}
        words = (sys.executable, FOLDER / script, folder / "run", str(patience(TIMEOUT)))
        started.append(made[host].start(*words, log=folder / f"log-{rank}", cwd=REPOSITORY, **variables))
    wait_until(
        lambda: all("step 40\n" in output_of(folder, rank) for rank in range(len(hosts))),
        failure=lambda: [output_of(folder, rank) for rank in range(len(hosts))],
    )
    return started


def output_of(folder: Path, rank: int) -> str:
    return (folder / f"log-{rank}").read_text(errors="replace")


def test_both_sides_of_a_cut_link_end(fresh: Hosts, tmp_path: Path) -> None:
    started = start(fresh, tmp_path)
    fresh.cut(1)
    for rank, process in enumerate(started):
        assert process.wait(patience(BOUND)) == EXIT_HUNG, output_of(tmp_path, rank)
        assert re.search(
            r"nothing has moved for \d+ s .*on rank [01], .*adding up: all 2 ranks wait",
            output_of(tmp_path, rank),
        )


@pytest.mark.parametrize("lost", [0, 1])
def test_the_remaining_host_ends_and_names_the_other(fresh: Hosts, tmp_path: Path, lost: int) -> None:
    left = 1 - lost
    started = start(fresh, tmp_path)
    fresh[lost].power_off()
    assert started[left].wait(patience(BOUND)) == EXIT_HUNG, output_of(tmp_path, left)
    assert f"rank {lost} on host node{lost} has given no sign of life" in output_of(tmp_path, left)


def test_a_link_that_comes_back_ends_nobody(fresh: Hosts, tmp_path: Path) -> None:
    started = start(fresh, tmp_path)
    fresh.cut(1)
    time.sleep(2)
    fresh.restore(1)
    steps = output_of(tmp_path, 0).count("step ")
    wait_until(
        lambda: output_of(tmp_path, 0).count("step ") >= steps + 20, BOUND, lambda: output_of(tmp_path, 0)
    )
    assert [process.poll() for process in started] == [None, None]


@pytest.mark.parametrize("fault", ["a rank", "a link", "a host"])
def test_an_evaluation_that_loses_ranks_ends_on_every_host_and_says_why(
    fresh: Hosts, tmp_path: Path, fault: str
) -> None:
    """Rank 0 on the first host, ranks 1 and 2 on the second."""
    started = start(fresh, tmp_path, "meet_script.py", (0, 1, 1))
    if fault == "a rank":
        (last,) = [pid for pid in fresh[1].ranks("meet_script.py") if "RANK=2" in environ(pid)]
        os.kill(last, signal.SIGKILL)
    elif fault == "a link":
        fresh.cut(1)
    else:
        fresh[1].power_off()
    lost = {"a rank": ["2", "2"], "a link": ["[12]", "0"], "a host": ["[12]"]}[fault]
    for rank, whom in enumerate(lost):
        assert started[rank].wait(patience(BOUND)) == EXIT_LOST_RANK, output_of(tmp_path, rank)
        assert re.search(rf"evaluate: rank {whom} \(process .* is gone", output_of(tmp_path, rank))
    fresh.wait_for_no_ranks(5, "meet_script.py")


def environ(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")
