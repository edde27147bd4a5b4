"""Console output while a program runs. Numbers for programs are in metrics.jsonl instead."""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str, error: bool = False) -> None:
    """Print a line for the user and flush it, since launchers forward output through pipes.

    Never raises `OSError`: a run must not end because its output is not read. If the reader has gone (the
    launcher's ssh died, a terminal was closed), this and later lines are discarded and `has_reader` returns
    False. If the log's disk is full, the line stays buffered until there is space.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return
        _Reader.gone = _Reader.gone or problem.errno in (errno.EPIPE, errno.EIO)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)


def print_any_text() -> None:
    """From now on print characters that the locale's encoding lacks as escapes, in place of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def table_console(width: int) -> Console:
    """rich's console for a table: as wide as the terminal, or `width` columns where there is none."""
    from rich.console import Console

    return Console(width=None if Console().is_terminal else width)


def escape_control_characters(text: str) -> str:
    """`text` with escapes for line ends and control characters, which a terminal would interpret."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


class _Reader:
    gone = False


def has_reader() -> bool:
    """Whether the reader of this process's output is still there, as far as `say` has noticed."""
    return not _Reader.gone


def is_first_process() -> bool:
    """Whether this process speaks for a job: rank 0 of it, or the only one. For code without a `World`."""
    return os.environ.get("RANK", "0") == "0"


class SlowWork:
    """Reports work that takes long: nothing in its first five seconds, then its name and progress.

        with SlowWork("validating", total=64) as work:
            for at, batch in enumerate(batches):
                work.done(at)

    Without a total it reports the number of parts done, without `done` that it still runs. `shown` is False
    on ranks that print nothing.
    """

    def __init__(self, what: str, total: int | None = None, shown: bool = True) -> None:
        self.what, self.total, self.shown = what, total, shown
        self._count: int | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def done(self, count: int, total: int | None = None) -> None:
        """Note that `count` parts are done, of `total` where it was not known at the start."""
        self._count, self.total = count, total or self.total

    def __enter__(self) -> SlowWork:
        if self.shown:
            self._thread = threading.Thread(target=self._report, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _report(self) -> None:
        started, wait = time.monotonic(), _PATIENCE
        while not self._ended.wait(wait):
            far = "" if self._count is None else f": {self._count}"
            far = far if self.total is None else f": {self._count or 0} of {self.total}"
            seconds = time.monotonic() - started
            left = ""
            if self.total and self._count and seconds >= _ESTIMATE_AFTER:
                left = f", {format_duration(seconds / self._count * (self.total - self._count))} left"
            say(f"{self.what}{far} ({format_duration(seconds)}{left})")
            wait = min(4 * wait, 60.0)


_PATIENCE = 5.0
_ESTIMATE_AFTER = 20.0


class StepLine:
    """Formats a record of metrics.jsonl as a line with progress and remaining time."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def format(self, record: Mapping[str, Any]) -> str:
        """Return `step 120/300 40% │ lm 4.8123 │ …`; values that the record lacks are left out."""
        step = record["step"]
        parts = [
            f"step {step:>{len(str(self.total_steps))}}/{self.total_steps} {step / self.total_steps:4.0%}",
            f"lm {record['lm_loss']:.4f}",
        ]
        if record.get("guidance_loss") is not None:
            parts.append(f"guidance {record['guidance_loss']:.4f}")
        if record.get("guided_attention") is not None:
            parts.append(f"attention {record['guided_attention']:.3f}")
        parts.append(f"lr {record['lr']:.2e}")
        if record.get("grad_norm") is not None:
            parts.append(f"norm {record['grad_norm']:.2f}")
        parts.append(f"{_with_unit(record['tokens_per_second'])} tok/s")
        if record.get("mfu") is not None:
            parts.append(f"mfu {record['mfu']:.0%}")
        if record.get("peak_memory"):
            parts.append(f"{record['peak_memory'] / 1e9:.1f} GB")
        parts.append(f"{format_duration(record['seconds_left'])} left")
        return " │ ".join(parts)


def format_duration(seconds: float) -> str:
    """Format a duration as `45s`, `12m05s`, `3h20m` or `2d04h`."""
    whole = max(0, round(seconds))
    minutes, secs = divmod(whole, 60)
    hours, mins = divmod(minutes, 60)
    days, hrs = divmod(hours, 24)
    if days:
        return f"{days}d{hrs:02}h"
    if hours:
        return f"{hours}h{mins:02}m"
    return f"{minutes}m{secs:02}s" if minutes else f"{secs}s"


def _with_unit(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}"
