"""The monitor of a training rank: ends it when a rank hangs, stops the run when its launcher is gone."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable
from pathlib import Path

from gaguide.distributed import World
from gaguide.liveness.hang import HangCheck
from gaguide.liveness.heartbeat import HeartbeatFolder
from gaguide.liveness.monitor import LauncherCheck, Monitor


class Watchdog(Monitor):
    """Watches this rank from entry to exit of the context.

    `timeout` is `train.hang_timeout` in seconds, 0 for no limit. `on_lost_launcher` is called with the
    reason, once. `unix_time` must be the same on all hosts, whose clocks need not agree.
    """

    def __init__(
        self,
        output: Path,
        beats: HeartbeatFolder,
        world: World,
        timeout: float,
        on_lost_launcher: Callable[[str], None],
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self.hang = HangCheck(output, beats, world, timeout, unix_time=unix_time)
        self._armed = float("-inf")
        super().__init__([LauncherCheck(on_lost_launcher), self.hang])

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        super().__exit__(kind, error, trace)
        faulthandler.cancel_dump_traceback_later()

    def mark(self, step: int, doing: str, patience: float = 1.0) -> None:
        """Record that this rank begins `doing`, which may take `patience` times the timeout.

        Until `training_has_begun` it may take at least `verdict.STARTUP_SECONDS`.
        """
        self.hang.mark(step, doing, patience)
        now = time.monotonic()
        if self.hang.timeout and now - self._armed > self.hang.interval:
            self._armed = now
            # The last resort needs neither Python's lock nor the file system, either of which may be what
            # hangs.
            faulthandler.dump_traceback_later(self.hang.limit + max(60.0, self.hang.timeout), exit=True)

    def training_has_begun(self) -> None:
        """Record that this process has completed an optimizer step: from now on the timeout counts."""
        if not self.hang.has_begun:
            self.hang.has_begun = True
            self._armed = float("-inf")  # the next activity arms the last resort with its shorter limit
