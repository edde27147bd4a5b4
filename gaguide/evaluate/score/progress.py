"""Progress of one rank with the remaining time; ranks have equal shares by predicted cost."""

from __future__ import annotations

import sys
import time

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from gaguide.log import format_duration, say

_LINE_SECONDS = 10.0


class ScoringProgress:
    """A bar on a terminal, a line every ten seconds elsewhere, nothing where not `shown`."""

    def __init__(self, total: float, shown: bool) -> None:
        self._total, self._done, self._shown = max(total, 1.0), 0.0, shown
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if shown and sys.stdout.isatty():
            columns = TextColumn("scoring"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
            self._bar = Progress(*columns, transient=True)
            self._task = self._bar.add_task("", total=self._total)
            self._bar.start()

    def advance(self, cost: float) -> None:
        """Count `cost` as done."""
        self._done += cost
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif self._shown and now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            left = (now - self._started) * (self._total / self._done - 1)
            say(f"scoring {self._done / self._total:4.0%} │ {format_duration(left)} left")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
