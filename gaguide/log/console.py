"""What a person sees while a run goes on. Numbers for programs are in metrics.jsonl, not here."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from typing import Any


def say(text: str, error: bool = False) -> None:
    """A line for the person at the keyboard, at once (launchers pass output on through pipes).

    When nobody listens any more (a launcher's ssh has died, a terminal was closed) the work must still be
    saved: what is said from then on is lost, what is recorded is not, and `heard` knows. A log on a full
    disk ends no run either; what it did not take follows when there is room.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return
        _Listener.gone = _Listener.gone or problem.errno in (errno.EPIPE, errno.EIO)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Listener:
    gone = False


def heard() -> bool:
    """False once the reader of what this process says has gone away."""
    return not _Listener.gone


class StepLine:
    """Formats one record of metrics.jsonl as a line with progress and time left."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def format(self, record: Mapping[str, Any]) -> str:
        """`step 120/300 40% │ lm 4.8123 │ …`; parts that a run has not are left out."""
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
        parts.append(f"{_short(record['tokens_per_second'])} tok/s")
        if record.get("mfu") is not None:
            parts.append(f"mfu {record['mfu']:.0%}")
        if record.get("peak_memory"):
            parts.append(f"{record['peak_memory'] / 1e9:.1f} GB")
        parts.append(f"{duration(record['seconds_left'])} left")
        return " │ ".join(parts)


def duration(seconds: float) -> str:
    """`45s`, `12m05s`, `3h20m`, `2d04h`."""
    whole = max(0, round(seconds))
    minutes, secs = divmod(whole, 60)
    hours, mins = divmod(minutes, 60)
    days, hrs = divmod(hours, 24)
    if days:
        return f"{days}d{hrs:02}h"
    if hours:
        return f"{hours}h{mins:02}m"
    return f"{minutes}m{secs:02}s" if minutes else f"{secs}s"


def _short(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}"
