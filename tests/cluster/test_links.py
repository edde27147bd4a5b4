"""Ranks that wait for a host that is gone: gloo would wait for ever, the watchdog ends them. No training."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gaguide.errors import EXIT_HUNG
from tests.cluster.hosts import Hosts, hosts
from tests.support.ranks import REPOSITORY

pytestmark = pytest.mark.cluster

SCRIPT = REPOSITORY / "tests" / "cluster" / "wait_script.py"
TIMEOUT, BOUND = 6, 40


@pytest.fixture()
def fresh(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts that this test may break."""
    with hosts(2, tmp_path) as made:
        yield made


def start(made: Hosts, folder: Path) -> list[subprocess.Popen[bytes]]:
    """A rank on each host, both under way."""
    started = []
    for rank, host in enumerate(made):
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        variables |= {"MASTER_ADDR": made[0].address, "MASTER_PORT": "29512"}
        words = (sys.executable, SCRIPT, folder / "run", str(TIMEOUT))
        started.append(host.start(*words, log=folder / f"log-{rank}", cwd=REPOSITORY, **variables))
    until = time.monotonic() + 60
    while not all("step 40\n" in said(folder, rank) for rank in (0, 1)):
        assert time.monotonic() < until, said(folder, 0) + said(folder, 1)
        time.sleep(0.1)
    return started


def said(folder: Path, rank: int) -> str:
    return (folder / f"log-{rank}").read_text(errors="replace")


def test_both_sides_of_a_cut_link_end(fresh: Hosts, tmp_path: Path) -> None:
    started = start(fresh, tmp_path)
    fresh.cut(1)
    for rank, process in enumerate(started):
        assert process.wait(BOUND) == EXIT_HUNG, said(tmp_path, rank)
        assert re.search(
            rf"nothing has moved for \d+ s .*on rank {rank}, .*adding up: all 2 ranks wait",
            said(tmp_path, rank),
        )


@pytest.mark.parametrize("lost", [0, 1])
def test_the_host_that_is_left_ends_and_names_the_other(fresh: Hosts, tmp_path: Path, lost: int) -> None:
    left = 1 - lost
    started = start(fresh, tmp_path)
    fresh[lost].power_off()
    assert started[left].wait(BOUND) == EXIT_HUNG, said(tmp_path, left)
    assert f"rank {lost} on host node{lost} has given no sign of life" in said(tmp_path, left)


def test_a_link_that_comes_back_is_forgiven(fresh: Hosts, tmp_path: Path) -> None:
    started = start(fresh, tmp_path)
    fresh.cut(1)
    time.sleep(2)
    fresh.mend(1)
    steps = said(tmp_path, 0).count("step ")
    until = time.monotonic() + BOUND
    while said(tmp_path, 0).count("step ") < steps + 20:
        assert time.monotonic() < until, said(tmp_path, 0)
        time.sleep(0.1)
    assert [process.poll() for process in started] == [None, None]
