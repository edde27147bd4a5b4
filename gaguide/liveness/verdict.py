"""Decisions about hangs, as pure functions of the evidence: no clock, no file, no thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STARTUP_SECONDS = 1800.0
"""Least time limit of any activity until the first optimizer step of this process is done.

Loading weights, compiling kernels and the first step take minutes on one machine and seconds on another.
"""


@dataclass(frozen=True)
class Activity:
    """Activity of a rank."""

    since: float
    """When it began, in seconds of the rank's monotonic clock."""
    step: int
    """The optimizer step it belongs to; 0 before the first."""
    name: str
    """In words, such as `reading blocks`."""
    patience: float = 1.0
    """Multiple of the hang timeout that it may take."""

    def limit(self, timeout: float, has_begun: bool) -> float:
        """Seconds that it may take. `has_begun`: whether this process has completed an optimizer step."""
        return max(self.patience * timeout, 0.0 if has_begun else STARTUP_SECONDS)

    def is_overdue(self, now: float, timeout: float, has_begun: bool) -> bool:
        """Whether it has taken longer than its limit."""
        return now - self.since > self.limit(timeout, has_begun)


@dataclass(frozen=True)
class Beat:
    """A rank's sign of life."""

    rank: int
    """Global rank."""
    host: str
    """The rank's host name."""
    time: float
    """When it was written, in Unix seconds."""
    step: int
    """The optimizer step the rank is at."""
    doing: str
    """The rank's activity in words."""
    seconds: float
    """Duration of that activity so far."""
    place: str
    """The line of code that the rank's main thread is in."""
    waiting: bool
    """Whether that line waits for other ranks in a collective."""

    @property
    def name(self) -> str:
        """The rank and its host, for messages."""
        return f"rank {self.rank} on host {self.host}"


def describe_hang(beats: Sequence[Beat], world_size: int, now: float, silent_after: float) -> str:
    """One sentence that names the ranks that hold up the others, and where they are.

    `beats` holds each rank's last sign of life, at most one a rank; `now` is in Unix seconds. A rank whose
    beat is older than `silent_after` seconds counts as silent, one without a beat as never seen.
    """
    silent = [beat for beat in beats if now - beat.time > silent_after]
    missing = sorted(set(range(world_size)) - {beat.rank for beat in beats})
    if silent or missing:
        parts = [
            f"{beat.name} has given no sign of life for {now - beat.time:.0f} s (stopped, killed, or its "
            f"host or link is down); it was at step {beat.step}, {beat.doing}"
            for beat in silent
        ]
        parts += [f"rank {rank} never gave a sign of life" for rank in missing]
        return "; ".join(parts)
    if culprits := _culprits(beats, world_size):
        return "; ".join(
            f"{beat.name} hangs at step {beat.step}, {beat.doing}, since {beat.seconds:.0f} s in {beat.place}"
            for beat in culprits
        )
    places = "; ".join(sorted({f"{beat.doing} in {beat.place}" for beat in beats}))
    step = min(beat.step for beat in beats)
    return f"all {len(beats)} ranks wait at step {step} ({places}): a broken connection between hosts?"


def _culprits(beats: Sequence[Beat], world_size: int) -> list[Beat]:
    """The ranks that do not wait while others do; empty if there are none."""
    busy = [beat for beat in beats if not beat.waiting]
    if len(busy) == len(beats):  # on GPUs collectives do not block Python: the rank that is behind is meant
        first = min(beat.step for beat in beats)
        busy = [beat for beat in beats if beat.step == first]
    if not busy or (len(busy) == len(beats) and world_size > 1):
        return []
    longest = max(beat.seconds for beat in busy)
    return [beat for beat in busy if 2 * beat.seconds >= longest]  # the rest is ahead, and computes
