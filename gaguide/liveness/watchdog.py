"""A thread beside the training of each rank: ends a rank that hangs, or whose launcher is gone.

Without it a rank that is stuck keeps all others waiting in a collective, for as long as the cluster bills
them; and ranks whose launcher was killed train on, unseen. Training marks what it does; once a mark is older
than `timeout`, every rank writes its stacks into OUTPUT/hang/, says which rank holds the others up and where,
and ends with EXIT_HUNG. Should Python itself be stuck, faulthandler's own thread ends the process later.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from gaguide.distributed import World
from gaguide.distributed.launcher import launchers
from gaguide.errors import EXIT_HUNG, PreemptedError, UserError
from gaguide.liveness.heartbeat import (
    Beat,
    call_end,
    caller,
    end_called,
    read_beats,
    verdict,
    withdraw_call,
    write_beat,
)
from gaguide.log import has_reader, say

_LOOK_SECONDS = 0.5
_COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")


class Watchdog:
    """Watches this rank from `start` to `stop`.

    beats: where this run's ranks say what they do; timeout: seconds that one thing may take, 0 for ever;
    lost_launcher: called with the reason, once, when a launcher above this process has died.
    """

    def __init__(
        self,
        output: Path,
        beats: Path,
        world: World,
        timeout: float,
        lost_launcher: Callable[[str], None],
    ) -> None:
        self.output, self.beats, self.world, self.timeout = output, beats, world, timeout
        self.lost_launcher = lost_launcher
        self.interval = min(30.0, max(0.5, timeout / 10)) if timeout else 30.0
        self._hearing = self.interval + _LOOK_SECONDS  # a call is heard within so many seconds
        self._launched = True
        self._mark = (time.monotonic(), 0, "starting", 1.0)
        self._armed = 0.0
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._main_thread = threading.main_thread().ident or 0

    def __enter__(self) -> Watchdog:
        if self.timeout:
            with contextlib.suppress(OSError):  # as where a beat is written
                self.beats.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # With these all ranks end together.
        self._error = None if isinstance(error, (UserError, PreemptedError)) else error
        self._stopped.set()
        # A thread that lives on while the interpreter ends can abort it; one that hangs is not waited for.
        self._thread.join(timeout=5 if self._error is None else 60)
        # A collective breaks when the others have ended before this rank's thread had heard of it.
        if self._error is not None and self._called():
            self._end()
        faulthandler.cancel_dump_traceback_later()
        with contextlib.suppress(OSError):
            (self.beats / f"rank-{self.world.rank:05}.json").unlink(missing_ok=True)

    def mark(self, step: int, doing: str, patience: float = 1.0) -> None:
        """Say what this rank begins to do; it may take `patience` times the timeout."""
        now = time.monotonic()
        self._mark = (now, step, doing, patience)
        if self.timeout and now - self._armed > self.interval:
            self._armed = now
            # Does not need Python's lock, nor the file system that may be what hangs.
            later = patience * self.timeout + max(60.0, self.timeout)
            faulthandler.dump_traceback_later(later, exit=True)

    def _watch(self) -> None:
        beaten = 0.0
        while not self._stopped.wait(_LOOK_SECONDS):
            self._look_for_launchers()
            if not self.timeout:
                continue
            now = time.monotonic()
            if now - beaten > self.interval:
                beaten = now
                self._beat()
                if self._called():
                    self._end()
            if self._overdue():
                self._end()

    def _overdue(self) -> bool:
        since, _, _, patience = self._mark
        return time.monotonic() - since > patience * self.timeout

    def _called(self) -> bool:
        return self.timeout > 0 and end_called(self.beats)

    def _look_for_launchers(self) -> None:
        if not self._launched:
            return
        if launchers().gone():
            self._launched = False
            self.lost_launcher("its launcher has died")
        elif not has_reader():  # a launcher on a host without ranks, seen by its ssh only
            self._launched = False
            self.lost_launcher("nobody reads what it prints any more")

    def _beat(self) -> Beat:
        since, step, doing, _ = self._mark
        place, waiting = where(self._main_thread)
        beat = Beat(
            self.world.rank,
            self.world.host,
            time.time(),
            step,
            doing,
            round(time.monotonic() - since, 1),
            place,
            waiting,
        )
        if self._error is None:  # else the main thread is no longer where it hung
            with contextlib.suppress(OSError):  # a full or broken disk: what matters is to end in time
                write_beat(self.beats, beat)
        return beat

    def _end(self) -> None:
        """End this process together with the other ranks, unless the one that called goes on at last."""
        beat = self._beat()
        own = call_end(self.beats, self.world.rank)
        # Until all have heard of it, said where they are, and written their stacks. The one that called
        # decides; the others look a moment later whether its call still stands.
        until = time.monotonic() + 2 * self._hearing + (0 if own else 2 * _LOOK_SECONDS)
        stacks = self._write_stacks()
        while time.monotonic() < until and not self._stopped.wait(_LOOK_SECONDS):
            if own and not self._overdue():
                break
        went_on = not self._overdue() if own else not end_called(self.beats)
        if went_on or (self._stopped.is_set() and self._error is None):
            if own:
                withdraw_call(self.beats, self.world.rank)
            return
        message, host = self._message(beat)
        # One rank of each host speaks, as each host may have a console of its own.
        if own or (self.world.local_rank == 0 and host != self.world.host):
            say(message, error=True)
        with contextlib.suppress(OSError), stacks.open("a") as file:
            file.write(f"\n{message}\n")
            if self._error is not None:
                file.writelines(["\n", *traceback.format_exception(self._error)])
        os._exit(EXIT_HUNG)

    def _message(self, own: Beat) -> tuple[str, str]:
        """What the rank that called says, or another in its name; and that rank's host."""
        beats = read_beats(self.beats)
        called = caller(self.beats)
        first = next((beat for beat in beats if beat.rank == called), own)
        told = verdict(beats, self.world.size, time.time(), 4 * self._hearing)
        message = (
            f"train: nothing has moved for {first.seconds:.0f} s (train.hang_timeout {self.timeout:g}) "
            f"on rank {first.rank}, step {first.step}, {first.doing}: {told}\n"
            f"    → stacks of all ranks: {self.output / 'hang'}; the same command goes on from the newest "
            "checkpoint"
        )
        return message, first.host

    def _write_stacks(self) -> Path:
        path = self.output / "hang" / f"rank-{self.world.rank:05}.txt"
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        return path


def where(thread: int) -> tuple[str, bool]:
    """The innermost line of a thread that is not a library's, and whether it waits in a collective."""
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
