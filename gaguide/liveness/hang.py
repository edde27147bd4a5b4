"""Ends a training in which a rank hangs, and reports which rank and where.

A stuck rank keeps all others waiting in a collective until the job's time limit.
Training marks each activity; once an activity has taken longer than its limit, its rank requests an abort.
Every rank then writes the stacks of its threads into OUTPUT/hang/ and ends with `EXIT_HUNG`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import selectors
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gaguide.distributed import World, out_of_memory
from gaguide.errors import EXIT_HUNG, EXIT_USER_ERROR, LoneError, first_line
from gaguide.liveness.heartbeat import HeartbeatFolder
from gaguide.liveness.monitor import POLL_SECONDS, Check, Ending
from gaguide.liveness.verdict import Activity, Beat, describe_hang

_COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")


@dataclass(frozen=True)
class _Abort:
    """An abort that was requested and is not decided yet."""

    is_own: bool
    """Whether this rank requested it, and therefore decides whether it is upheld."""
    decided_at: float
    """When every rank has seen the request and written its stacks (monotonic seconds)."""
    beat: Beat
    """Where this rank was when it learned of it."""
    stacks: Path
    """The file with this rank's stacks."""


class HangCheck(Check):
    """Decides whether this rank hangs, or must end because another rank hangs.

    `timeout` is the seconds that one activity may take after the first step; 0 disables the check. `now`
    and `unix_time` are the clocks.
    """

    def __init__(
        self,
        output: Path,
        beats: HeartbeatFolder,
        world: World,
        timeout: float,
        now: Callable[[], float] = time.monotonic,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self.output, self.beats, self.world, self.timeout = output, beats, world, timeout
        self.interval = min(30.0, max(0.5, timeout / 10))
        self.notice_seconds = self.interval + POLL_SECONDS
        """Seconds within which every live rank has seen a request."""
        self._now, self._unix_time = now, unix_time
        self._activity = Activity(now(), 0, "starting")
        self.has_begun = False
        """Whether this process has completed a step: until then activities have the patience of a start."""
        self._last_beat = -1e9
        self._abort: _Abort | None = None
        self._error: BaseException | None = None
        self._main_thread = threading.main_thread().ident or 0

    def start(self, selector: selectors.BaseSelector) -> None:
        """Make the folder of heartbeats if it does not exist yet."""
        if self.timeout:
            with contextlib.suppress(OSError):
                self.beats.path.mkdir(parents=True, exist_ok=True)

    @property
    def limit(self) -> float:
        """Seconds that the present activity may take."""
        return self._activity.limit(self.timeout, self.has_begun)

    def mark(self, step: int, doing: str, patience: float = 1.0) -> None:
        """Record that this rank begins `doing`, which may take `patience` times the timeout."""
        self._activity = Activity(self._now(), step, doing, patience)

    def poll(self) -> Ending | None:
        """Write a heartbeat when one is due; begin or decide an abort."""
        if not self.timeout:
            return None
        if self._abort is not None:
            return self._decide(self._abort)
        now, seen = self._now(), False
        if now - self._last_beat > self.interval:
            self._last_beat = now
            self._beat()
            if (ending := self._fault_elsewhere()) is not None:
                return ending
            seen = self.beats.is_abort_requested()
        if seen or self._is_overdue():
            self._abort = self._begin_abort()
        return None

    def close(self, error: BaseException | None) -> Ending | None:
        """End at once where this rank's error follows from an abort or a fault of another rank.

        Otherwise remove this rank's heartbeat. A fault of this rank alone is left for the others.
        """
        self._error = error
        ending = None
        if isinstance(error, LoneError) or (error is not None and out_of_memory(error)):
            text = str(error) if isinstance(error, LoneError) else f"out of memory ({first_line(error)})"
            self.beats.leave_fault(self.world.host, text)
        elif error is not None and (fault := self._fault_elsewhere()) is not None:
            ending = fault
        elif self.timeout and error is not None and (self._abort or self.beats.is_abort_requested()):
            # A collective broke because other ranks have ended before this rank has seen the request.
            ending = self._decide(self._abort or self._begin_abort())
        elif self._abort is not None and self._abort.is_own:
            self.beats.withdraw_abort(self.world.rank)
        if ending is None:
            self.beats.remove(self.world.rank)
        return ending

    def _fault_elsewhere(self) -> Ending | None:
        """How to end where a rank has left a fault, which it has printed on its own host."""
        found = self.beats.fault()
        if found is None:
            return None
        host, text = found
        prints = self.world.local_rank == 0 and host != self.world.host
        return Ending(EXIT_USER_ERROR, f"train: {text}" if prints else None)

    def _is_overdue(self) -> bool:
        return self._activity.is_overdue(self._now(), self.timeout, self.has_begun)

    def _begin_abort(self) -> _Abort:
        beat = self._beat()
        is_own = self.beats.request_abort(self.world.rank)
        # The others look a moment after the requesting rank has decided.
        wait = 2 * self.notice_seconds + (0 if is_own else 2 * POLL_SECONDS)
        decided_at = self._now() + wait
        return _Abort(is_own, decided_at, beat, self._write_stacks())

    def _decide(self, abort: _Abort) -> Ending | None:
        """How to end once the time is over; an abort is off if the rank that requested it moves again."""
        is_due = self._error is not None or self._now() >= abort.decided_at
        if abort.is_own and not self._is_overdue():
            self.beats.withdraw_abort(self.world.rank)
        elif not is_due:
            return None
        elif abort.is_own or self.beats.is_abort_requested():
            return self._ending(abort)
        self._abort = None
        return None

    def _ending(self, abort: _Abort) -> Ending:
        message, host = self._message(abort.beat)
        with contextlib.suppress(OSError), abort.stacks.open("a") as file:
            file.write(f"\n{message}\n")
            if self._error is not None:
                file.writelines(["\n", *traceback.format_exception(self._error)])
        # One rank of each host prints, as hosts may have separate consoles.
        prints = abort.is_own or (self.world.local_rank == 0 and host != self.world.host)
        return Ending(EXIT_HUNG, message if prints else None)

    def _message(self, own: Beat) -> tuple[str, str]:
        """The message about the rank that requested the abort, and that rank's host."""
        beats = self.beats.read()
        requested_by = self.beats.aborting_rank()
        first = next((beat for beat in beats if beat.rank == requested_by), own)
        cause = describe_hang(beats, self.world.size, self._unix_time(), 4 * self.notice_seconds)
        message = (
            f"train: nothing has moved for {first.seconds:.0f} s (train.hang_timeout {self.timeout:g}) "
            f"on rank {first.rank}, step {first.step}, {first.doing}: {cause}\n"
            f"    → stacks of all ranks: {self.output / 'hang'}; the same command resumes from the newest "
            "checkpoint"
        )
        return message, first.host

    def _beat(self) -> Beat:
        """This rank's sign of life, written unless its main thread has left the place where it hung."""
        activity = self._activity
        place, waiting = where(self._main_thread)
        beat = Beat(
            rank=self.world.rank,
            host=self.world.host,
            time=self._unix_time(),
            step=activity.step,
            doing=activity.name,
            seconds=round(self._now() - activity.since, 1),
            place=place,
            waiting=waiting,
        )
        if self._error is None:
            self.beats.write(beat)
        return beat

    def _write_stacks(self) -> Path:
        path = self.output / "hang" / f"rank-{self.world.rank:05}.txt"
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        return path


def where(thread: int) -> tuple[str, bool]:
    """The innermost line of a thread outside libraries, and whether the thread waits in a collective."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "no Python code", False
    stack = traceback.extract_stack(frame)
    waiting = any(part in each.filename for each in stack[-6:] for part in _COLLECTIVES)
    ours = next((each for each in reversed(stack) if "site-packages" not in each.filename), stack[-1])
    inner = stack[-1]
    place = f"{Path(ours.filename).name}:{ours.lineno} {ours.name}"
    if inner is not ours:
        place += f" → {Path(inner.filename).name}:{inner.lineno} {inner.name}"
    return place, waiting
