"""When a rank is taken to hang, who ends whom, and what is said; with clocks that the tests move."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from gaguide.distributed import World
from gaguide.errors import EXIT_HUNG, EXIT_USER_ERROR, Fault, LoneError
from gaguide.liveness.hang import HangCheck
from gaguide.liveness.heartbeat import HeartbeatFolder
from gaguide.liveness.monitor import Ending
from gaguide.liveness.verdict import STARTUP_SECONDS
from tests.support.patience import patience
from tests.support.ranks import rank_environment

TIMEOUT = 60.0
FIRST_STEP = 1


@dataclass
class FakeClock:
    """A clock that stands still until a test moves it."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture()
def clock() -> FakeClock:
    return FakeClock()


def checks(output: Path, clock: FakeClock, ranks: int = 2, timeout: float = TIMEOUT) -> list[HangCheck]:
    """The check of every rank of a run after the first step, each rank on another host."""
    beats = HeartbeatFolder(output / "beats" / "run")
    beats.create()
    made = [
        HangCheck(output, beats, World(rank, ranks, 0, f"n{rank}"), timeout, clock, clock)
        for rank in range(ranks)
    ]
    for check in made:
        check.has_begun = True
        check.mark(FIRST_STEP, "forward and backward")
    return made


def run_until(clock: FakeClock, seconds: float, *polled: HangCheck) -> list[Ending | None]:
    """Poll each check twice a second for `seconds`, or until all have an ending."""
    endings: list[Ending | None] = [None] * len(polled)
    until = clock.seconds + seconds
    while clock.seconds < until and None in endings:
        clock.seconds += 0.5
        for at, check in enumerate(polled):
            if endings[at] is None:
                endings[at] = check.poll()
    return endings


def test_all_ranks_end_when_one_has_not_moved(clock: FakeClock, tmp_path: Path) -> None:
    first, second = checks(tmp_path, clock)
    assert run_until(clock, TIMEOUT - 1, first, second) == [None, None]
    second.mark(FIRST_STEP, "forward and backward")  # only the first rank is overdue
    ended = run_until(clock, 40, first, second)
    assert all(ending is not None and ending.exit_code == EXIT_HUNG for ending in ended)
    for rank, ending in enumerate(ended):  # on two hosts, so each prints
        assert ending is not None and ending.message is not None
        assert "nothing has moved for 60 s (train.hang_timeout 60) on rank 0" in ending.message
        assert ending.message in (tmp_path / "hang" / f"rank-{rank:05}.txt").read_text()


def test_one_rank_of_a_host_prints(clock: FakeClock, tmp_path: Path) -> None:
    ranks = checks(tmp_path, clock, 3)
    ranks[1].world, ranks[2].world = World(1, 3, 1, "n0"), World(2, 3, 0, "n1")
    ended = run_until(clock, TIMEOUT + 40, *ranks)
    assert all(ended)
    assert [ending is not None and ending.message is not None for ending in ended] == [True, False, True]


def test_an_activity_may_have_more_patience(clock: FakeClock, tmp_path: Path) -> None:
    (only,) = checks(tmp_path, clock, 1)
    only.mark(5, "saving a checkpoint", patience=4)
    assert run_until(clock, 4 * TIMEOUT, only) == [None]
    assert run_until(clock, 40, only) != [None]


def test_the_countdown_begins_with_training(clock: FakeClock, tmp_path: Path) -> None:
    """Building, compiling and the first step have another, generous limit."""
    (only,) = checks(tmp_path, clock, 1)
    only.has_begun = False
    assert run_until(clock, STARTUP_SECONDS, only) == [None]
    assert not only.beats.is_abort_requested()
    assert run_until(clock, 40, only) != [None]


def test_no_timeout_means_no_end(clock: FakeClock, tmp_path: Path) -> None:
    (only,) = checks(tmp_path, clock, 1, timeout=0)
    assert run_until(clock, 10 * TIMEOUT, only) == [None]
    assert not only.beats.read()


def test_an_abort_that_is_withdrawn_ends_nobody(clock: FakeClock, tmp_path: Path) -> None:
    """The rank that requested it moves again before the time is over, the other has seen the request."""
    late, busy = checks(tmp_path, clock)
    run_until(clock, TIMEOUT, late)
    busy.mark(FIRST_STEP, "forward and backward")
    run_until(clock, 10, late, busy)
    assert late.beats.aborting_rank() == 0
    assert (tmp_path / "hang" / "rank-00001.txt").exists(), "the other rank has seen it"
    late.mark(2, "reading blocks")
    for _ in range(4):
        busy.mark(2, "reading blocks")
        assert run_until(clock, 10, late, busy) == [None, None]
    assert not late.beats.is_abort_requested()


def test_an_abort_is_withdrawn_at_the_last_moment(clock: FakeClock, tmp_path: Path) -> None:
    """The other rank looks later than the one that decides, so it never ends alone."""
    late, busy = checks(tmp_path, clock)
    run_until(clock, TIMEOUT, late)
    busy.mark(FIRST_STEP, "forward and backward")
    clock.seconds += 0.5
    late.poll()
    busy.poll()
    assert late.beats.is_abort_requested()
    clock.seconds += 2 * late.notice_seconds - 0.1
    busy.mark(FIRST_STEP, "forward and backward")
    assert (busy.poll(), late.poll()) == (None, None)
    late.mark(2, "reading blocks")
    assert run_until(clock, 40, late, busy) == [None, None]


def test_a_rank_that_finishes_withdraws_its_request(clock: FakeClock, tmp_path: Path) -> None:
    late, _ = checks(tmp_path, clock)
    run_until(clock, TIMEOUT + 5, late)
    assert late.beats.is_abort_requested()
    assert late.close(None) is None
    assert not late.beats.is_abort_requested() and not late.beats.read()


def test_a_broken_collective_after_a_request_is_not_an_error_of_its_own(
    clock: FakeClock, tmp_path: Path
) -> None:
    """Another rank requested the abort and is gone before this rank's thread has seen the request."""
    first, second = checks(tmp_path, clock)
    run_until(clock, TIMEOUT + 1, first)
    ending = second.close(RuntimeError("Connection closed by peer"))
    assert ending is not None and ending.exit_code == EXIT_HUNG
    assert "Connection closed by peer" in (tmp_path / "hang" / "rank-00001.txt").read_text()


def test_an_error_without_a_request_is_this_ranks_own(clock: FakeClock, tmp_path: Path) -> None:
    first, _ = checks(tmp_path, clock)
    assert first.close(ValueError("an error of its own")) is None


@pytest.mark.parametrize("connection", ["breaks", "waits"])
def test_all_ranks_end_with_the_fault_that_one_has_found(
    clock: FakeClock, tmp_path: Path, connection: str
) -> None:
    """A broken connection shows it at once; where collectives only wait, the next look at the folder does."""
    first, second = checks(tmp_path, clock)
    fault = LoneError(Fault("rank 1: data", "shard x is damaged", "copy it again"))
    assert second.close(fault) is None  # it prints its fault itself
    if connection == "breaks":
        ending = first.close(RuntimeError("Connection closed by peer"))
    else:
        (ending,) = run_until(clock, first.notice_seconds, first)
    assert ending == Ending(EXIT_USER_ERROR, f"train: {fault}")


def test_one_rank_of_each_host_prints_the_fault_of_another(clock: FakeClock, tmp_path: Path) -> None:
    made = checks(tmp_path, clock, ranks=3)
    worlds = [World(0, 3, 0, "n0"), World(1, 3, 0, "n1"), World(2, 3, 1, "n1")]
    for check, world in zip(made, worlds, strict=True):
        check.world = world
    assert made[2].close(MemoryError("can't allocate memory")) is None
    endings = [check.close(RuntimeError("Connection closed by peer")) for check in made[:2]]
    assert [ending and ending.exit_code for ending in endings] == [EXIT_USER_ERROR] * 2
    assert "can't allocate memory" in str(endings[0] and endings[0].message)
    assert endings[1] is not None and endings[1].message is None


def rank_under_a_watchdog(output: Path, what: str) -> tuple[int, str]:
    """Exit code and output of watchdog_script.py."""
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "watchdog_script.py", output, str(patience(1)), what],
        env=rank_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience(60),
    )
    return done.returncode, done.stdout


@pytest.mark.processes
def test_an_error_after_a_withdrawn_request_is_reported_as_any(tmp_path: Path) -> None:
    code, printed = rank_under_a_watchdog(tmp_path, "resumes-and-fails")
    assert code == 1 and "ValueError: an error of its own" in printed, printed
    assert "nothing has moved" not in printed


@pytest.mark.processes
def test_a_rank_whose_connection_breaks_while_it_waits_reports_at_once(tmp_path: Path) -> None:
    code, printed = rank_under_a_watchdog(tmp_path, "disconnected")
    assert code == EXIT_HUNG and "nothing has moved" in printed and "Traceback" not in printed, printed
    (beat,) = HeartbeatFolder(tmp_path / "beats").read()
    assert "monitor.py" not in beat.place and "hang.py" not in beat.place
    assert "Connection closed by peer" in (tmp_path / "hang" / "rank-00000.txt").read_text()
