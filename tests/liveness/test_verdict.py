"""Which ranks a hang is blamed on, and the files through which ranks learn of each other."""

from __future__ import annotations

from pathlib import Path

from gaguide.distributed import World
from gaguide.liveness.heartbeat import HeartbeatFolder
from gaguide.liveness.verdict import STARTUP_SECONDS, Activity, Beat, describe_hang
from gaguide.train.output import claim_output

NOW, SILENT_AFTER = 1001.0, 20


def beat(rank: int, **changes: object) -> Beat:
    """A rank that waits in a collective at step 5, seen a second before `NOW`."""
    fields: dict[str, object] = {
        "host": f"n{rank}", "time": 1000.0, "step": 5, "doing": "forward and backward", "seconds": 900.0,
        "place": "run.py:1 f", "waiting": True,
    }  # fmt: skip
    return Beat(**({"rank": rank} | fields | changes))  # type: ignore[arg-type]


BUSY = beat(1, waiting=False, doing="reading blocks", place="blocks.py:9 read")


def test_the_rank_that_does_not_wait_is_blamed() -> None:
    described = describe_hang([beat(0), BUSY, beat(2)], 3, NOW, SILENT_AFTER)
    assert described == "rank 1 on host n1 hangs at step 5, reading blocks, since 900 s in blocks.py:9 read"
    assert "rank 1" in describe_hang([beat(0), beat(1, waiting=False, seconds=0.0)], 2, NOW, SILENT_AFTER)


def test_a_silent_rank_is_blamed_first() -> None:
    described = describe_hang([beat(0), beat(1, time=100.0)], 2, NOW, SILENT_AFTER)
    assert described.startswith("rank 1 on host n1 has given no sign of life for 901 s")
    assert "rank 1 never gave a sign of life" in describe_hang([beat(0)], 2, NOW, SILENT_AFTER)


def test_a_connection_is_blamed_when_all_wait() -> None:
    assert "broken connection" in describe_hang([beat(0), beat(1)], 2, NOW, SILENT_AFTER)


def test_on_gpus_where_nobody_is_seen_to_wait_the_rank_behind_is_blamed() -> None:
    beats = [beat(0, waiting=False), beat(1, waiting=False, step=4)]
    assert describe_hang(beats, 2, NOW, SILENT_AFTER).startswith("rank 1 on host n1 hangs at step 4")


def test_a_rank_that_is_ahead_by_some_micro_batches_is_not_blamed() -> None:
    ahead = beat(2, waiting=False, seconds=3.0)
    assert "rank 2" not in describe_hang([beat(0), BUSY, ahead], 3, NOW, SILENT_AFTER)


def test_how_long_an_activity_may_take() -> None:
    activity = Activity(since=100.0, step=3, name="saving a checkpoint", patience=4)
    assert activity.limit(60, has_begun=True) == 240
    assert activity.limit(60, has_begun=False) == STARTUP_SECONDS
    assert activity.limit(900, has_begun=False) == 3600, "a long timeout counts from the start on"
    assert not activity.is_overdue(340.0, 60, has_begun=True)
    assert activity.is_overdue(340.1, 60, has_begun=True)


def test_damaged_beats_are_skipped(tmp_path: Path) -> None:
    beats = HeartbeatFolder(tmp_path)
    beats.write(BUSY)
    (tmp_path / "rank-00007.json").write_text("{")
    (tmp_path / "rank-00008.json").write_text('{"rank": 8, "of": "another version"}')
    assert beats.read() == [BUSY]
    beats.remove(1)
    assert not beats.read()


def test_one_rank_requests_an_abort(tmp_path: Path) -> None:
    beats = HeartbeatFolder(tmp_path)
    assert not beats.is_abort_requested() and beats.aborting_rank() is None
    assert beats.request_abort(3) and not beats.request_abort(1)
    assert beats.is_abort_requested() and beats.aborting_rank() == 3
    beats.withdraw_abort(1)
    assert beats.is_abort_requested(), "it is another rank's"
    beats.withdraw_abort(3)
    assert not beats.is_abort_requested() and beats.request_abort(1)


def test_a_hanging_rank_of_an_earlier_run_aborts_nobody_of_this_run(tmp_path: Path) -> None:
    claim, earlier = claim_output(tmp_path, World())
    earlier.write(beat(7))
    claim.release()
    claim, beats = claim_output(tmp_path, World())
    assert earlier.request_abort(7) and not beats.is_abort_requested()
    assert not beats.read()
    claim.release()
